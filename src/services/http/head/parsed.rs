//! What a parsed head is, and what the refusal of one is. Pure: no system call, no clock.

use std::ops::Range;

use ::http::{Method, StatusCode};

/// Nearly every head has at most this many fields, and clearing room for more is not free.
pub(in super::super) const FEW_FIELDS: usize = 24;

/// The HTTP version of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1, or a later HTTP/1, which is read as 1.1 (RFC 9110 §2.5).
    Http11,
}

/// How the end of a request's body is known (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Framing {
    /// This many bytes follow the head; 0 without a Content-Length.
    Length(u64),
    /// The body says where it ends.
    Chunked,
}

/// Why a head is refused. The connection is over, because nobody knows where the next request
/// begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Refusal {
    pub(in super::super) status: StatusCode,
    /// Told to the client: a sentence without a full stop.
    pub(in super::super) reason: &'static str,
}

/// A 400 with this reason.
pub(in super::super) const fn bad(reason: &'static str) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, reason)
}

pub(super) const fn refuse(status: StatusCode, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

/// A part of the head, by position: a parsed head borrows nothing and is used again for the next
/// request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) struct Span {
    pub(super) start: u16,
    pub(super) end: u16,
}

impl Span {
    pub(super) fn new(range: Range<usize>) -> Self {
        // Positions are below MAX_HEAD.
        let position = |at| u16::try_from(at).expect("a head is shorter than 64 KiB");
        Self {
            start: position(range.start),
            end: position(range.end),
        }
    }

    /// The bytes that it stands for in the head that it was made from.
    pub(in super::super) fn of<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[usize::from(self.start)..usize::from(self.end)]
    }
}

/// One header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Field {
    pub(in super::super) name: Span,
    pub(in super::super) value: Span,
}

/// A parsed head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Head {
    pub(in super::super) method: Method,
    pub(in super::super) version: Version,
    pub(in super::super) target: Span,
    /// Empty when an absolute-form target has none.
    pub(in super::super) path: Span,
    pub(in super::super) query: Option<Span>,
    /// The request is about the server, not about one of its resources (RFC 9110 §7.1): `*`, and
    /// what a proxy would have made `*` of.
    pub(in super::super) is_about_server: bool,
    pub(in super::super) fields: Vec<Field>,
    pub(in super::super) framing: Framing,
    /// The client may send a further request on this connection (RFC 9112 §9.3).
    pub(in super::super) keep_alive: bool,
    /// The client waits for a 100 before it sends the body (RFC 9110 §10.1.1).
    pub(in super::super) expects_continue: bool,
}

impl Head {
    pub(in super::super) fn new() -> Self {
        Self {
            method: Method::GET,
            version: Version::Http11,
            target: Span::default(),
            path: Span::default(),
            query: None,
            is_about_server: false,
            fields: Vec::with_capacity(FEW_FIELDS),
            framing: Framing::Length(0),
            keep_alive: false,
            expects_continue: false,
        }
    }
}
