//! What a handler sees of a request, and what a handler is.

use std::borrow::Cow;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use ::http::Method;

use super::body::{Body, BodyError};
use super::head::{Head, Version};
use super::response::Response;
use crate::service::Peer;

/// Answers requests, one after the other.
///
/// Closures are handlers. A panic ends the worker: the client gets 502, every other connection goes
/// on.
pub trait Handler {
    /// Answers one request, whatever its method; only CONNECT and a request about the server as a
    /// whole (`OPTIONS *`) never get here.
    ///
    /// The request is complete by then, unless [`on_head`](Self::on_head) has said otherwise. Of a
    /// body that comes while the handler reads it, up to 64 KiB that it leaves unread are dropped;
    /// if there is more, the connection ends.
    fn handle(&mut self, request: &mut Request<'_>) -> Response;

    /// Decides what is to become of a request that is not to be waited for in memory: with its body
    /// it has more than 48 KiB, or the body is longer than the limit, or the client sends it only
    /// after a 100. Its head is complete, and nothing of its body can be read yet.
    ///
    /// This is asked once for such a request, and not for any other.
    fn on_head(&mut self, _request: &Request<'_>) -> OnHead {
        OnHead::Gather
    }

    /// The methods that this handler serves somewhere: the value of Allow in the answer to
    /// `OPTIONS *` (RFC 9110 §9.3.7).
    fn methods(&self) -> &str {
        "GET, HEAD, OPTIONS"
    }
}

/// What is to become of a request whose head is here, before its body is.
#[derive(Debug)]
pub enum OnHead {
    /// The body is gathered, without a worker, until it is complete; then the handler gets the
    /// request. A body that is longer than
    /// [`max_body`](crate::config::Settings::max_body) gets 413.
    Gather,
    /// The handler does not need the body. It gets the request when the next one can follow: when
    /// the body has come, if that is short; at once, if it is long, and then the connection ends
    /// after the answer.
    Leave,
    /// The handler gets the request at once, and reads the body as it comes. That occupies its
    /// worker for as long as the client takes, so it is for those who do something with each part.
    AsItComes,
    /// This is the answer. The connection ends after it, because nobody reads the body.
    Answer(Response),
}

impl<F: FnMut(&mut Request<'_>) -> Response> Handler for F {
    fn handle(&mut self, request: &mut Request<'_>) -> Response {
        self(request)
    }
}

/// One request: its parsed head, and its body, which is yet to be read.
#[derive(Debug)]
pub struct Request<'a> {
    pub(super) head: &'a Head,
    /// The bytes that `head` was parsed from.
    pub(super) bytes: &'a [u8],
    pub(super) body: Body<'a>,
    pub(super) body_limit: u64,
}

impl<'a> Request<'a> {
    /// The method: a standard one, or any other that the client made up. A handler answers those
    /// that it does not serve with [`Response::wrong_method`].
    #[must_use]
    pub fn method(&self) -> &'a Method {
        &self.head.method
    }

    /// The HTTP version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.head.version
    }

    /// The target as the client sent it (RFC 9112 §3.2).
    #[must_use]
    pub fn target(&self) -> &'a str {
        ascii(self.head.target.of(self.bytes))
    }

    /// The path as the client sent it, percent-encoded. It begins with a slash.
    #[must_use]
    pub fn path(&self) -> &'a str {
        match self.head.path.of(self.bytes) {
            b"" => "/",
            path => ascii(path),
        }
    }

    /// The path with its percent-encoding undone; `%2F` becomes a slash like any other. Borrowed
    /// when nothing was encoded. What is not an encoding (`%zz`) stays as it is.
    #[must_use]
    pub fn decoded_path(&self) -> Cow<'a, [u8]> {
        percent_encoding::percent_decode_str(self.path()).into()
    }

    /// What follows the question mark, as the client sent it.
    #[must_use]
    pub fn query(&self) -> Option<&'a str> {
        self.head.query.map(|query| ascii(query.of(self.bytes)))
    }

    /// The value of the first field of this name, in any case, without the white space around it.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let known = name.as_bytes();
        let (_, value) = self
            .fields()
            .find(|(name, _)| name.eq_ignore_ascii_case(known))?;
        Some(value)
    }

    /// The header fields, name and value, in the order in which they came.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        self.fields().map(|(name, value)| (ascii(name), value))
    }

    /// The header fields as bytes, which saves the check that names are text.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let bytes = self.bytes;
        let fields = self.head.fields.iter();
        fields.map(move |field| (field.name.of(bytes), field.value.of(bytes)))
    }

    /// How many bytes of the body are still to be read, when the client said so; `None` for a
    /// chunked body.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.body.remaining()
    }

    /// The longest body that [`Request::read_body`] takes, in bytes.
    #[must_use]
    pub fn body_limit(&self) -> u64 {
        self.body_limit
    }

    /// The body, to read from.
    pub fn body(&mut self) -> &mut Body<'a> {
        &mut self.body
    }

    /// Reads what is left of the body into memory, if that is at most the service's limit
    /// ([`Http::body_limit`](super::Http::body_limit)).
    ///
    /// # Errors
    /// As [`Body::read_to_limit`]; the error makes the response: `.map_err(Response::from)`.
    pub fn read_body(&mut self) -> Result<Vec<u8>, BodyError> {
        let limit = self.body_limit;
        self.body.read_to_limit(limit)
    }

    /// The client.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.body.connection.peer()
    }

    /// Which turn of the connection this request came in, from 1.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.body.connection.turn()
    }

    /// The slot of the worker that serves this request, from 0.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.body.connection.slot()
    }
}

/// The descriptor number of the connection in this worker, for this turn. It is there to be shown,
/// not to be used.
impl AsRawFd for Request<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.body.connection.as_fd().as_raw_fd()
    }
}

/// Targets and field names were checked to be ASCII when the head was parsed.
fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
