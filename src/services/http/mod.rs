//! HTTP/1.1 and HTTP/1.0 (RFC 9112, RFC 9110), served a turn at a time.
//!
//! [`Http`] owns the turn: when a head is complete, it calls a [`Handler`], which gets a
//! [`Request`] and returns a [`Response`]. A head or a small body that is still arriving is left in
//! the connection's buffer and occupies no worker. What a connection may cost is bounded at every
//! step, and what is ambiguous is refused.
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

mod beneath;
mod body;
mod cache;
mod chunked;
mod complaints;
mod demo;
mod files;
mod head;
mod output;
mod preconditions;
mod request;
mod response;
mod syntax;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use self::body::{Fault, Leftover};
use self::chunked::{Chunked, Malformed};
use self::head::{Framing, Head, Refusal, bad};
use self::output::{DATE_SLOT, Failure, Output, SendMode, canned};
use crate::service::{Connection, Fill, Service, ServiceProfile, Turn};

pub use ::http::{Method, StatusCode};

pub use self::body::{Body, BodyError};
pub use self::demo::Demo;
pub use self::files::Files;
pub use self::head::Version;
pub use self::request::{Handler, Request};
pub use self::response::Response;

/// How many pipelined requests one turn answers, before others get a turn.
const MAX_PIPELINED: u32 = 32;

/// How often one turn asks for more of what the client has sent, before others get a turn.
const MAX_FILLS: u32 = 8;

/// A request up to this size, in bytes of head and body on the wire, is waited for without
/// occupying a worker. It is well below what the buffer can carry, so that a request behind it does
/// not matter.
const MAX_WAIT: usize = 48 * 1024;

/// How long, all told, a worker waits for the rest of a body that its handler left unread. A small
/// request was complete before; this is for clients that are just sending a larger one.
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

    /// The length of the head in the buffer, when its request can be answered.
    fn next_request(&mut self, buffer: &[u8]) -> Result<Option<usize>, Refusal> {
        if buffer.is_empty() {
            return Ok(None);
        }
        let Some(head) = self.head.parse(buffer)? else {
            return Ok(None);
        };
        Ok(self.has_come(buffer, head)?.then_some(head))
    }

    /// Whether the request whose head is the first `head` bytes of the buffer can be answered: it
    /// is all here, or it is large, or its client waits for a 100. This follows from the first
    /// [`MAX_WAIT`] bytes, and not from how they came.
    fn has_come(&self, buffer: &[u8], head: usize) -> Result<bool, Refusal> {
        if self.head.expects_continue {
            return Ok(true);
        }
        let window = &buffer[..buffer.len().min(MAX_WAIT)];
        match self.head.framing {
            Framing::Length(body) => {
                let whole = body.saturating_add(head as u64);
                Ok(window.len() as u64 >= whole || whole > MAX_WAIT as u64)
            }
            Framing::Chunked if window.len() == MAX_WAIT => Ok(true),
            Framing::Chunked => Chunked::is_whole(&window[head..])
                .map_err(|Malformed| bad("malformed chunked coding")),
        }
    }

    /// Answers the request whose head is the first `length` bytes of the buffer. Returns how the
    /// turn ends, if it does.
    fn serve(&mut self, connection: &mut Connection, length: usize) -> io::Result<Option<Turn>> {
        self.head_bytes.clear();
        self.head_bytes
            .extend_from_slice(&connection.buffer()[..length]);
        connection.consume(length);
        let body_limit = self.body_limit.unwrap_or(connection.keeping().max_body);
        let mut request = Request {
            head: &self.head,
            bytes: &self.head_bytes,
            body: Body::new(connection, &self.head),
            body_limit,
        };
        let response = if self.head.is_about_server {
            Response::options(self.handler.methods())
        } else {
            self.handler.handle(&mut request)
        };
        let (response, whole) = match request.body.leave(self.drain_patience) {
            Leftover::Nothing => (response, true),
            Leftover::Some => (response, false),
            Leftover::Fault(Fault::Broken(error)) => return Err(error),
            Leftover::Fault(Fault::TimedOut) => {
                (Response::error(StatusCode::REQUEST_TIMEOUT), false)
            }
            Leftover::Fault(Fault::Malformed | Fault::Truncated) => {
                (Response::error(StatusCode::BAD_REQUEST), false)
            }
        };
        let keep_alive = whole && self.head.keep_alive && !response.close;
        self.send(connection, response, keep_alive)?;
        Ok(if keep_alive {
            None
        } else if whole && connection.buffer().is_empty() {
            Some(Turn::Close)
        } else {
            Some(Turn::Linger)
        })
    }

    /// Tells the client why what it sent is refused.
    fn refuse(&mut self, connection: &mut Connection, refusal: Refusal) -> io::Result<()> {
        let text = format!("{}: {}\n", refusal.status, refusal.reason);
        let response = Response::text(text).status(refusal.status);
        self.send(connection, response, false)
    }

    fn send(
        &mut self,
        connection: &mut Connection,
        response: Response,
        keep_alive: bool,
    ) -> io::Result<()> {
        let mode = SendMode {
            head_only: self.head.method == Method::HEAD,
            version: self.head.version,
            keep_alive,
        };
        let error = match self.output.send(connection, response, mode) {
            Err(Failure::File(error)) => error,
            Err(Failure::CutOff(error)) => {
                // More bytes were announced, so only the end of the connection tells the client.
                self.warn_of_file(&error, "closing the connection within the response");
                return Err(error);
            }
            Err(Failure::Client(error)) => return Err(error),
            Ok(()) => return Ok(()),
        };
        self.warn_of_file(&error, "answering 500");
        let response = Response::error(StatusCode::INTERNAL_SERVER_ERROR);
        let result = self.output.send(connection, response, mode);
        result.map_err(Failure::into_error)
    }

    fn warn_of_file(&self, error: &io::Error, consequence: &str) {
        let target = self.head.target.of(&self.head_bytes).escape_ascii();
        complaints::warn(
            format_args!("read the file for {target}"),
            error,
            consequence,
        );
    }

    /// Ends the turn of a client that has ended its side before its request was complete.
    fn end(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        let is_blank = |byte: &u8| matches!(byte, b'\r' | b'\n');
        if !connection.buffer().iter().all(is_blank) {
            self.refuse(connection, bad("the request is incomplete"))?;
        }
        Ok(Turn::Close)
    }
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
        let mut served = 0;
        let mut fills = 0;
        loop {
            skip_line_ends(connection);
            match self.next_request(connection.buffer()) {
                Ok(Some(_)) if served == MAX_PIPELINED => return Ok(Turn::Again),
                Ok(Some(length)) => {
                    if let Some(turn) = self.serve(connection, length)? {
                        return Ok(turn);
                    }
                    served += 1;
                    if connection.buffer().is_empty() {
                        return Ok(Turn::Park);
                    }
                }
                // What was so after a turn before may have changed since.
                Ok(None) if fills > 0 && connection.is_drained() => return Ok(Turn::Park),
                // It can send line ends for as long as it likes; others are to have their turn.
                Ok(None) if fills == MAX_FILLS => return Ok(Turn::Again),
                Ok(None) => match connection.fill()? {
                    Fill::Bytes(_) => fills += 1,
                    Fill::Empty => return Ok(Turn::Park),
                    Fill::End => return self.end(connection),
                },
                Err(refusal) => {
                    self.refuse(connection, refusal)?;
                    return Ok(Turn::Linger);
                }
            }
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
