//! What a handler answers.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ::http::{Method, StatusCode};

use super::cache::CachedFile;
use super::syntax::is_token;

/// The fields that the server writes itself: those that say where a message ends or what becomes of
/// the connection, and those that every response has.
const RESERVED_FIELDS: [&str; 6] = [
    "connection",
    "content-length",
    "date",
    "server",
    "trailer",
    "transfer-encoding",
];

/// An answer: status, header fields, body.
///
/// The server adds the fields `Content-Length`, `Connection`, `Date` and `Server`. The body of
/// an answer to HEAD, or with status 204 or 304, is not sent.
#[derive(Debug)]
#[must_use]
pub struct Response {
    pub(super) status: StatusCode,
    /// The header fields as they are sent, each line with its CRLF.
    pub(super) fields: Vec<u8>,
    pub(super) content: Content,
    pub(super) close: bool,
}

/// Where the bytes of a body come from.
#[derive(Debug)]
pub(super) enum Content {
    Bytes(Cow<'static, [u8]>),
    /// The pattern, repeated, and cut off after `length` bytes.
    Repeated {
        pattern: &'static [u8],
        length: u64,
    },
    File {
        file: OwnedFd,
        offset: u64,
        length: u64,
    },
    /// A whole file in memory; its header fields come with it.
    Cached(Arc<CachedFile>),
    /// What is read while it is sent; so many bytes if that is known.
    Stream {
        source: Source,
        length: Option<u64>,
    },
    /// Another pool is to answer.
    Passed(&'static str),
}

/// Something to read from.
pub(super) struct Source(pub(super) Box<dyn Read>);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl Content {
    /// How long the body is, in bytes, if that is known before it is sent.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Cached(file) => Some(file.body.len() as u64),
            Self::Repeated { length, .. } | Self::File { length, .. } => Some(*length),
            Self::Stream { length, .. } => *length,
            Self::Passed(_) => Some(0),
        }
    }
}

impl Response {
    /// An answer without a body.
    ///
    /// # Panics
    /// On a 1xx status, because an interim response is no answer.
    pub fn new(status: StatusCode) -> Self {
        Self {
            status: final_status(status),
            fields: Vec::new(),
            content: Content::Bytes(Cow::Borrowed(b"")),
            close: false,
        }
    }

    /// No answer: the pool of this name is to answer the request
    /// ([`Turn::Pass`](crate::Turn::Pass)). The handler must not have read any of the body.
    pub fn pass(pool: &'static str) -> Self {
        Self::prepared(Vec::new(), Content::Passed(pool))
    }

    /// 200 with plain text.
    pub fn text(text: impl Into<Cow<'static, str>>) -> Self {
        Self::typed("text/plain; charset=utf-8", text)
    }

    /// 200 with a page of HTML.
    pub fn html(page: impl Into<Cow<'static, str>>) -> Self {
        Self::typed("text/html; charset=utf-8", page)
    }

    fn typed(content_type: &str, text: impl Into<Cow<'static, str>>) -> Self {
        let bytes = match text.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Self::new(StatusCode::OK)
            .header("Content-Type", content_type)
            .bytes(bytes)
    }

    /// 200 with header fields that were written before, each line with its CRLF.
    pub(super) fn prepared(fields: Vec<u8>, content: Content) -> Self {
        Self {
            fields,
            content,
            ..Self::new(StatusCode::OK)
        }
    }

    /// An answer whose text is the status itself: `404 Not Found`.
    pub fn error(status: StatusCode) -> Self {
        Self::text(format!("{status}\n")).status(status)
    }

    /// 405, naming the methods that would have been right (RFC 9110 §15.5.6): `"GET, HEAD"`.
    pub fn method_not_allowed(allowed: &str) -> Self {
        Self::error(StatusCode::METHOD_NOT_ALLOWED).header("Allow", allowed)
    }

    /// The answer to a method that is none of those `allowed` for what the request is about: 405
    /// for a method of RFC 9110 or RFC 5789 (PATCH), 501 for any other (RFC 9110 §9.1).
    pub fn wrong_method(method: &Method, allowed: &str) -> Self {
        if is_standard(method) {
            Self::method_not_allowed(allowed)
        } else {
            Self::error(StatusCode::NOT_IMPLEMENTED)
        }
    }

    /// The answer to OPTIONS (RFC 9110 §9.3.7): 204, naming the methods that are allowed.
    pub fn options(allowed: &str) -> Self {
        Self::new(StatusCode::NO_CONTENT).header("Allow", allowed)
    }

    /// Sets the status.
    ///
    /// # Panics
    /// On a 1xx status, because an interim response is no answer.
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = final_status(status);
        self
    }

    /// Adds a header field. Control characters in the value become spaces, so that no value can end
    /// its line.
    ///
    /// # Panics
    /// When the name is not a token, or is that of a field that the server writes itself.
    pub fn header(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        assert!(
            !name.is_empty() && name.bytes().all(is_token),
            "{name:?} is no field name"
        );
        assert!(
            !RESERVED_FIELDS
                .iter()
                .any(|own| own.eq_ignore_ascii_case(name)),
            "the server writes {name} itself"
        );
        let value = value.as_ref();
        self.fields.reserve(name.len() + value.len() + 4);
        self.fields.extend_from_slice(name.as_bytes());
        self.fields.extend_from_slice(b": ");
        let clean = value.iter().map(|byte| match byte {
            b'\t' | b' '..=b'~' | 0x80.. => *byte,
            _ => b' ',
        });
        self.fields.extend(clean);
        self.fields.extend_from_slice(b"\r\n");
        self
    }

    /// Sets the body.
    pub fn bytes(mut self, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        self.content = Content::Bytes(bytes.into());
        self
    }

    /// Sets the body to `pattern` repeated up to `length` bytes, without memory for them.
    ///
    /// # Panics
    /// When the pattern is empty and the length is not 0.
    pub fn repeated(mut self, pattern: &'static [u8], length: u64) -> Self {
        assert!(!pattern.is_empty() || length == 0, "nothing to repeat");
        self.content = Content::Repeated { pattern, length };
        self
    }

    /// Sets the body to `length` bytes of a regular file from `offset` on. If the file turns out to
    /// be shorter, or cannot be read, that is logged, and the client gets 500; or the connection is
    /// cut off, so that the client notices, when a part of a long file has been sent already.
    pub fn file(mut self, file: impl Into<OwnedFd>, offset: u64, length: u64) -> Self {
        let file = file.into();
        self.content = Content::File {
            file,
            offset,
            length,
        };
        self
    }

    /// Sets the body to what `source` gives until its end, in chunks, each sent when it has been
    /// read: at most 64 KiB at a time. (A client that speaks HTTP/1.0 gets it without chunks, and
    /// the connection ends with it.) What a slow client does not take is kept, so that the worker
    /// is in the turn only until the source has ended; with a source that has no end, until the
    /// limit `max-spool` is reached, and then for as long as the client stays.
    ///
    /// If the source fails before it has given anything, that is logged, and the client gets 500;
    /// later, the connection is cut off, so that the client notices.
    pub fn stream(mut self, source: impl Read + 'static) -> Self {
        self.content = Content::Stream {
            source: Source(Box::new(source)),
            length: None,
        };
        self
    }

    /// Sets the body to the first `length` bytes of what `source` gives, as [`Response::stream`]
    /// does, but without chunks. A source that ends before that has failed.
    pub fn stream_of(mut self, source: impl Read + 'static, length: u64) -> Self {
        self.content = Content::Stream {
            source: Source(Box::new(source)),
            length: Some(length),
        };
        self
    }

    /// Ends the connection after this answer.
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }
}

/// A method of RFC 9110 or RFC 5789: whoever implements HTTP recognizes it.
pub(super) fn is_standard(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET
            | Method::HEAD
            | Method::POST
            | Method::PUT
            | Method::DELETE
            | Method::CONNECT
            | Method::OPTIONS
            | Method::TRACE
            | Method::PATCH
    )
}

fn final_status(status: StatusCode) -> StatusCode {
    assert!(!status.is_informational(), "{status} is no final answer");
    status
}
