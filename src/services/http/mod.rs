//! HTTP/1.1 and HTTP/1.0 (RFC 9112, RFC 9110), served a turn at a time.
//!
//! [`Http`] owns the turn: when a request is complete, it calls a [`Handler`], which gets a
//! [`Request`] and returns a [`Response`]. What is still arriving occupies no worker: a head or a
//! small body is left in the connection's buffer, a larger body is gathered in a file. What a
//! connection may cost is bounded at every step, and what is ambiguous is refused.
//!
//! ```
//! use batond::http::{Http, Request, Response};
//! use batond::{Connection, Peer, Service, Turn};
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//!
//! let mut service = Http::new(|request: &mut Request<'_>| {
//!     Response::text(format!("You asked for {}.\n", request.path()))
//! });
//!
//! // A server does this for every turn; here, it is a test of the service.
//! let (ours, mut client) = UnixStream::pair()?;
//! client.write_all(b"GET /tea HTTP/1.1\r\nHost: x\r\n\r\n")?;
//! let mut connection = Connection::adopt(ours, Peer::Unix);
//! assert_eq!(service.turn(&mut connection)?, Turn::Park);
//! drop(connection);
//! let mut answer = String::new();
//! client.read_to_string(&mut answer)?;
//! assert!(answer.ends_with("\r\n\r\nYou asked for /tea.\n"));
//! # Ok::<(), std::io::Error>(())
//! ```

mod arrival;
mod beneath;
mod body;
mod cache;
mod chunked;
mod complaints;
mod demo;
mod failure;
mod files;
mod gathering;
mod head;
mod output;
mod preconditions;
mod request;
mod response;
mod rest;
mod stream;
mod syntax;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use self::arrival::Arrival;
use self::body::{Fault, Leftover, Source};
use self::failure::Failure;
use self::gathering::{Gatherer, Purpose, Terms, Trouble};
use self::head::{Framing, Head, Refusal, bad};
use self::output::{DATE_SLOT, Output, SendMode, canned};
use self::response::Content;
use self::rest::MAX_DRAIN;
use crate::service::{Connection, Fill, Service, ServiceProfile, Turn};

pub use ::http::{Method, StatusCode};

pub use self::body::{Body, BodyError};
pub use self::demo::Demo;
pub use self::files::Files;
pub use self::head::Version;
pub use self::request::{Handler, OnHead, Request};
pub use self::response::Response;

/// How many pipelined requests one turn answers, before others get a turn.
const MAX_PIPELINED: u32 = 32;

/// How often one turn asks for more of what the client has sent, before others get a turn.
const MAX_FILLS: u32 = 8;

/// How long, all told, a worker waits for the rest of a body that its handler has read as it came,
/// and not to its end.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// The service that speaks HTTP and lets a [`Handler`] answer.
#[derive(Debug)]
pub struct Http<H> {
    handler: H,
    body_limit: Option<u64>,
    drain_patience: Duration,
    head: Head,
    /// The bytes of the request's head, copied because the body is read into the same buffer.
    head_bytes: Vec<u8>,
    output: Output,
    gatherer: Gatherer,
}

impl<H: Handler> Http<H> {
    /// Serves what `handler` answers.
    #[must_use]
    pub fn new(handler: H) -> Self {
        Self {
            handler,
            body_limit: None,
            drain_patience: DRAIN_PATIENCE,
            head: Head::new(),
            head_bytes: Vec::new(),
            output: Output::default(),
            gatherer: Gatherer::default(),
        }
    }

    /// Sets the longest body that [`Request::read_body`] takes, in bytes. If not set, it is what
    /// the pool's settings say ([`max_body`](crate::config::Settings::max_body), 1 MiB by default).
    /// A longer one is the error that becomes 413.
    #[must_use]
    pub fn body_limit(mut self, bytes: u64) -> Self {
        self.body_limit = Some(bytes);
        self
    }

    /// What has come of the next request.
    fn arrival(&mut self, connection: &Connection) -> Result<Arrival, Refusal> {
        let buffer = connection.buffer();
        if buffer.is_empty() {
            return Ok(Arrival::Nothing);
        }
        match self.head.parse(buffer)? {
            Some(length) => arrival::of(&self.head, length, buffer, self.limit(connection)),
            None => Ok(Arrival::Nothing),
        }
    }

    /// Answers the next request, or decides what is to become of it. Returns how the turn ends, if
    /// it does.
    fn answer(
        &mut self,
        connection: &mut Connection,
        arrival: Arrival,
    ) -> io::Result<Option<Turn>> {
        match arrival {
            Arrival::Whole(length) => {
                let source = Source::Client { expected: false };
                self.serve(connection, length, source)
            }
            Arrival::Large(length, is_here) => self.begin(connection, length, is_here),
            Arrival::Nothing | Arrival::Part => Ok(None),
        }
    }

    /// The longest body that is gathered.
    fn limit(&self, connection: &Connection) -> u64 {
        let own = self.body_limit.unwrap_or_default();
        connection.keeping().max_body.max(own)
    }

    /// Decides on a request whose head is the first `length` bytes of the buffer and whose body is
    /// not to be waited for there; all the same it may be there. Returns how the turn ends, if it
    /// does.
    fn begin(
        &mut self,
        connection: &mut Connection,
        length: usize,
        is_here: bool,
    ) -> io::Result<Option<Turn>> {
        let expected = self.head.expects_continue;
        let source = Source::Client { expected };
        let decision = self.decide(connection, length);
        let limit = self.limit(connection);
        let purpose = match decision {
            OnHead::AsItComes => return self.serve(connection, length, source),
            OnHead::Leave if expected || self.body_exceeds(MAX_DRAIN) => {
                return self.serve(connection, length, source);
            }
            OnHead::Leave => Purpose::Unwanted,
            OnHead::Answer(Response {
                content: Content::Passed(pool),
                ..
            }) => return Ok(Some(Turn::Pass(pool))),
            OnHead::Answer(response) => {
                return self.answer_last(connection, response).map(Some);
            }
            OnHead::Gather if self.body_exceeds(limit) => {
                return self.give_up(connection, Trouble::TooLong(limit)).map(Some);
            }
            OnHead::Gather => Purpose::Wanted,
        };
        let terms = Terms {
            purpose,
            expected,
            limit,
        };
        if is_here {
            // It did not wait for a 100.
            let source = Source::Client { expected: false };
            return match gathering::check(&connection.buffer()[length..], &self.head, terms) {
                Ok(()) => self.serve(connection, length, source),
                Err(trouble) => self.give_up(connection, trouble).map(Some),
            };
        }
        let framing = self.head.framing;
        match self.gatherer.begin(connection, length, framing, terms) {
            Ok(turn) => Ok(Some(turn)),
            Err(trouble) => self.give_up(connection, trouble).map(Some),
        }
    }

    /// Asks the handler about the request whose head is the first `length` bytes of the buffer.
    fn decide(&mut self, connection: &mut Connection, length: usize) -> OnHead {
        if self.head.is_about_server {
            return OnHead::Leave;
        }
        self.keep_head(&connection.buffer()[..length]);
        let body_limit = self.read_limit(connection);
        let source = Source::Client { expected: false };
        let request = Request {
            head: &self.head,
            bytes: &self.head_bytes,
            body: Body::new(connection, &self.head, source),
            body_limit,
        };
        self.handler.on_head(&request)
    }

    /// Whether the client has announced a longer body.
    fn body_exceeds(&self, limit: u64) -> bool {
        matches!(self.head.framing, Framing::Length(length) if length > limit)
    }

    fn keep_head(&mut self, head: &[u8]) {
        self.head_bytes.clear();
        self.head_bytes.extend_from_slice(head);
    }

    /// The longest body that [`Request::read_body`] takes.
    fn read_limit(&self, connection: &Connection) -> u64 {
        self.body_limit.unwrap_or(connection.keeping().max_body)
    }

    /// Goes on with a request whose head is the buffer, and whose body is in the luggage, or
    /// becomes so.
    #[cold]
    fn resume(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        let stored = gathering::restore_stored(connection.baggage().record());
        let limit = self.limit(connection);
        let baggage = connection.baggage_mut();
        (baggage.resumable, baggage.body) = (false, false);
        let Some(stored) = stored else {
            return match self.gatherer.go_on(connection, limit) {
                Ok(turn) => Ok(turn),
                Err(trouble) => {
                    // Another process has read it; an answer depends on the method.
                    let _ = self.head.parse(connection.buffer());
                    self.give_up(connection, trouble)
                }
            };
        };
        let turn = match self.head.parse(connection.buffer()) {
            Ok(Some(length)) => self.serve(connection, length, Source::Luggage(stored))?,
            Ok(None) => Some(self.give_up(connection, Trouble::Truncated)?),
            Err(refusal) => Some(self.refuse(connection, refusal)?),
        };
        let next = match connection.is_away() {
            true => Turn::Home,
            false => Turn::Park,
        };
        Ok(turn.unwrap_or(next))
    }

    /// Tells a client why its body cannot be gathered.
    #[cold]
    fn give_up(&mut self, connection: &mut Connection, trouble: Trouble) -> io::Result<Turn> {
        let response = match trouble {
            Trouble::Malformed => {
                return self.refuse(connection, bad("malformed chunked coding"));
            }
            Trouble::Truncated => {
                return self.refuse(connection, bad("the request is incomplete"));
            }
            Trouble::TooLong(limit) => BodyError::TooLong(limit).into(),
            Trouble::Storage(error) => {
                complaints::warn("keep the body of a request", &error, "answering 500");
                Response::error(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Trouble::Broken(error) => return Err(error),
        };
        self.answer_last(connection, response)
    }

    /// Gives an answer after which the connection ends, because nobody knows where the next request
    /// begins.
    fn answer_last(&mut self, connection: &mut Connection, response: Response) -> io::Result<Turn> {
        self.send(connection, response, false)?;
        Ok(Turn::Linger)
    }

    /// Answers the request whose head is the first `length` bytes of the buffer. Returns how the
    /// turn ends, if it does.
    fn serve(
        &mut self,
        connection: &mut Connection,
        length: usize,
        source: Source,
    ) -> io::Result<Option<Turn>> {
        self.keep_head(&connection.buffer()[..length]);
        connection.consume(length);
        let before = connection.moved();
        let body_limit = self.read_limit(connection);
        let mut request = Request {
            head: &self.head,
            bytes: &self.head_bytes,
            body: Body::new(connection, &self.head, source),
            body_limit,
        };
        let response = if self.head.is_about_server {
            Response::options(self.handler.methods())
        } else {
            self.handler.handle(&mut request)
        };
        if let Content::Passed(pool) = response.content {
            return self.pass(connection, pool, before);
        }
        let (response, whole) = match request.body.leave(self.drain_patience) {
            Leftover::Nothing => (response, true),
            Leftover::Some => (response, false),
            Leftover::Fault(Fault::Broken(error)) => return Err(error),
            Leftover::Fault(Fault::Lost(error)) => {
                return self.give_up(connection, Trouble::Storage(error)).map(Some);
            }
            Leftover::Fault(Fault::TimedOut) => {
                (Response::error(StatusCode::REQUEST_TIMEOUT), false)
            }
            Leftover::Fault(Fault::Malformed | Fault::Truncated) => {
                (Response::error(StatusCode::BAD_REQUEST), false)
            }
        };
        // Without a length and without chunks, the end of the connection ends the body.
        let ends = response.content.length().is_none() && self.head.version == Version::Http10;
        let keep_alive = whole && self.head.keep_alive && !response.close && !ends;
        self.send(connection, response, keep_alive)?;
        Ok(if keep_alive {
            None
        } else if whole && connection.buffer().is_empty() {
            Some(Turn::Close)
        } else {
            Some(Turn::Linger)
        })
    }

    /// Has another pool answer the request, as it came: `before` is how much was in the buffer, and
    /// what had been moved, when the handler was asked.
    fn pass(
        &mut self,
        connection: &mut Connection,
        pool: &'static str,
        before: (usize, u64, u64),
    ) -> io::Result<Option<Turn>> {
        if before != connection.moved() || connection.luggage().is_some() {
            let cause = "its body was read or gathered";
            complaints::warn(
                format_args!("pass a request to pool {pool}"),
                &io::Error::other(cause),
                "answering 500",
            );
            let response = Response::error(StatusCode::INTERNAL_SERVER_ERROR);
            return self.answer_last(connection, response).map(Some);
        }
        connection.put_back(&self.head_bytes);
        Ok(Some(Turn::Pass(pool)))
    }

    /// Tells the client why what it sent is refused.
    fn refuse(&mut self, connection: &mut Connection, refusal: Refusal) -> io::Result<Turn> {
        self.answer_last(connection, refused(refusal))
    }

    fn send(
        &mut self,
        connection: &mut Connection,
        response: Response,
        keep_alive: bool,
    ) -> io::Result<()> {
        if !connection.baggage().record().is_empty() {
            // The answer ends the gathering.
            connection.take_luggage();
            connection.baggage_mut().set_record(&[]);
        }
        let mode = SendMode {
            head_only: self.head.method == Method::HEAD,
            version: self.head.version,
            keep_alive,
        };
        let (what, error) = match self.output.send(connection, response, mode) {
            Err(Failure::Body(what, error)) => (what, error),
            Err(Failure::CutOff(what, error)) => {
                // More bytes were announced, so only the end of the connection tells the client.
                self.warn_of(what, &error, "closing the connection within the response");
                return Err(error);
            }
            Err(Failure::Client(error)) => return Err(error),
            Ok(()) => return Ok(()),
        };
        self.warn_of(what, &error, "answering 500");
        let response = Response::error(StatusCode::INTERNAL_SERVER_ERROR);
        let result = self.output.send(connection, response, mode);
        result.map_err(Failure::into_error)
    }

    fn warn_of(&self, what: &str, error: &io::Error, consequence: &str) {
        let target = self.head.target.of(&self.head_bytes).escape_ascii();
        complaints::warn(
            format_args!("read the {what} for {target}"),
            error,
            consequence,
        );
    }

    /// Ends the turn of a client that has ended its side before its request was complete.
    fn end(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        let is_blank = |byte: &u8| matches!(byte, b'\r' | b'\n');
        if !connection.buffer().iter().all(is_blank) {
            self.send(connection, refused(bad("the request is incomplete")), false)?;
        }
        Ok(Turn::Close)
    }
}

fn refused(refusal: Refusal) -> Response {
    let text = format!("{}: {}\n", refusal.status, refusal.reason);
    Response::text(text).status(refusal.status)
}

/// Skips line ends before a request, which are none of it (RFC 9112 §2.2): a client that has sent
/// nothing else owes nothing.
fn skip_line_ends(connection: &mut Connection) {
    while connection.buffer().starts_with(b"\r\n") {
        connection.consume(2);
    }
}

impl<H: Handler> Service for Http<H> {
    fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        if !connection.baggage().record().is_empty() {
            return self.resume(connection);
        }
        let mut served = 0;
        let mut fills = 0;
        loop {
            skip_line_ends(connection);
            let arrival = match self.arrival(connection) {
                Ok(arrival) => arrival,
                Err(refusal) => return self.refuse(connection, refusal),
            };
            if arrival.is_to_be_served() {
                if served == MAX_PIPELINED {
                    return Ok(Turn::Again);
                }
                match self.answer(connection, arrival)? {
                    // Nothing may have been sent in the turn that passes a connection on.
                    Some(Turn::Pass(_)) if served > 0 => return Ok(Turn::Again),
                    Some(turn) => return Ok(turn),
                    // The next request begins at home.
                    None if connection.is_away() => return Ok(Turn::Home),
                    None => served += 1,
                }
                if connection.is_behind() {
                    // The next answer can wait until the client has taken this one.
                    return Ok(Turn::Park);
                }
                if connection.buffer().is_empty() {
                    return Ok(Turn::Park);
                }
                continue;
            }
            // What was so after a turn before may have changed since.
            let is_all = fills > 0 && connection.is_drained();
            // It can send line ends for as long as it likes; others are to have their turn.
            let turn = if !is_all && fills == MAX_FILLS {
                Turn::Again
            } else {
                match if is_all {
                    Fill::Empty
                } else {
                    connection.fill()?
                } {
                    Fill::Bytes(_) => {
                        fills += 1;
                        continue;
                    }
                    Fill::Empty => Turn::Park,
                    Fill::End => return self.end(connection),
                }
            };
            connection.baggage_mut().body = arrival == Arrival::Part;
            return Ok(turn);
        }
    }

    fn profile() -> ServiceProfile {
        ServiceProfile {
            speaks_first: false,
            tolerates_empty_turns: true,
            whole_responses: true,
            // Half of a line end before a request, which is none of it.
            blank: b"\r".into(),
            date_slot: DATE_SLOT.as_bytes().into(),
            crashed: canned(StatusCode::BAD_GATEWAY, &[]).into(),
            timed_out: canned(StatusCode::GATEWAY_TIMEOUT, &[]).into(),
            overloaded: canned(StatusCode::SERVICE_UNAVAILABLE, &[("Retry-After", "1")]).into(),
            request_timeout: canned(StatusCode::REQUEST_TIMEOUT, &[]).into(),
        }
    }
}
