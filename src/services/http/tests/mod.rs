//! The service on one end of a socket pair, a client on the other. Every wait has a deadline.

mod bodies;
mod demo;
mod files;
mod gathering;
mod kept;
mod passing;
mod turns;

use super::*;
use crate::service::Peer;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// Longer than any wait of a test that passes.
const DEADLINE: Option<Duration> = Some(Duration::from_secs(10));

/// A client at a service.
struct Table<H> {
    http: Http<H>,
    connection: Connection,
    client: UnixStream,
}

/// A response as the client sees it.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl<H: Handler> Table<H> {
    fn new(handler: H) -> Self {
        let (ours, client) = UnixStream::pair().expect("make a socket pair");
        client.set_read_timeout(DEADLINE).expect("set a timeout");
        client.set_write_timeout(DEADLINE).expect("set a timeout");
        let mut connection = Connection::adopt(ours, Peer::Unix);
        connection
            .set_timeouts(DEADLINE, DEADLINE)
            .expect("set timeouts");
        let mut http = Http::new(handler);
        // A client that is a thread of a busy machine is not slow.
        http.drain_patience = Duration::from_secs(10);
        Self {
            http,
            connection,
            client,
        }
    }

    /// The client sends this.
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).expect("send");
    }

    /// The client sends nothing more.
    fn end(&mut self) {
        self.client.shutdown(Shutdown::Write).expect("shut down");
    }

    #[track_caller]
    fn turn(&mut self) -> Turn {
        let turn = self.http.turn(&mut self.connection).expect("serve a turn");
        let carry = self.connection.buffer().len();
        assert!(carry <= 64 * 1024, "{carry} bytes of carry");
        turn
    }

    /// Serves turns for as long as there is something to do at once.
    #[track_caller]
    fn turns(&mut self) -> Turn {
        loop {
            match self.turn() {
                Turn::Again => {}
                turn => return turn,
            }
        }
    }

    /// Sends, serves one turn, and takes one response.
    #[track_caller]
    fn exchange(&mut self, bytes: impl AsRef<[u8]>) -> (Answer, Turn) {
        self.send(bytes);
        let turn = self.turn();
        (self.answer(), turn)
    }

    /// Takes one response.
    #[track_caller]
    fn answer(&mut self) -> Answer {
        read_answer(&mut self.client, true)
    }

    /// Takes one response to a HEAD request.
    #[track_caller]
    fn head_answer(&mut self) -> Answer {
        read_answer(&mut self.client, false)
    }

    /// Closes the service's side as the master does, unread input drained: what the client has not
    /// taken yet.
    fn leftover(self) -> Vec<u8> {
        let Self {
            mut connection,
            mut client,
            ..
        } = self;
        connection.consume(connection.buffer().len());
        while let Fill::Bytes(count) = connection.fill().expect("drain") {
            connection.consume(count);
        }
        drop(connection);
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).expect("read to the end");
        bytes
    }
}

#[track_caller]
fn read_answer(client: &mut UnixStream, with_body: bool) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let seen = head.escape_ascii().to_string();
        client
            .read_exact(&mut byte)
            .unwrap_or_else(|error| panic!("{error} after {seen:?}"));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("a head is ASCII");
    let status = head[9..12].parse().expect("a status");
    let mut answer = Answer {
        status,
        head,
        body: Vec::new(),
    };
    if with_body && let Some(length) = answer.field("Content-Length") {
        answer.body = vec![0; length.parse().expect("a length")];
        client.read_exact(&mut answer.body).expect("read a body");
    }
    answer
}

impl Answer {
    /// The value of the only field of this name.
    fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().filter_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        });
        let value = values.next();
        assert_eq!(values.next(), None, "two {name} in {}", self.head);
        value
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }
}

/// A request without a body.
fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// A handler that decides so on each request that is not to be waited for in memory.
struct Deciding<H>(Decision, H);

type Decision = fn(&Request<'_>) -> OnHead;

impl<H: Handler> Handler for Deciding<H> {
    fn handle(&mut self, request: &mut Request<'_>) -> Response {
        self.1.handle(request)
    }

    fn on_head(&mut self, request: &Request<'_>) -> OnHead {
        (self.0)(request)
    }
}

/// Answers with what it was asked for; leaves the body alone.
fn mirror(request: &mut Request<'_>) -> Response {
    Response::text(format!("{} {}", request.method(), request.target()))
}

/// Answers with the body.
fn echo(request: &mut Request<'_>) -> Response {
    match request.read_body() {
        Ok(body) => Response::new(StatusCode::OK).bytes(body),
        Err(error) => error.into(),
    }
}
