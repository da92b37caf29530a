//! The head of a request: from bytes to what they mean, or to why they are refused. Pure: no system
//! call, no clock.
//!
//! Every byte decides when it is read and never twice, so that a head which arrives in pieces is
//! judged exactly as one that arrives whole. Where RFC 9112 leaves a server the choice between
//! repairing a head and refusing it, it is refused: two servers that repair differently see
//! different requests in the same bytes (request smuggling, §11.2).

mod fields;
#[cfg(test)]
mod tests;

use std::ops::Range;

use ::http::{Method, StatusCode};

use self::fields::{decide, is_host};

/// The longest request line, in bytes without its CRLF; a longer one is answered with 414 (RFC 9112
/// §3 asks for 8000).
pub(super) const MAX_LINE: usize = 8 * 1024;

/// The longest head, in bytes from the request line to the empty line; a longer one is answered
/// with 431.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// The most header fields of a head; more are answered with 431.
pub(super) const MAX_FIELDS: usize = 100;

/// How many empty lines before a request line are skipped (RFC 9112 §2.2 asks for at least one).
const MAX_EMPTY_LINES: usize = 2;

/// Nearly every head has at most this many fields, and clearing room for more is not free.
const FEW_FIELDS: usize = 24;

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
pub(super) enum Framing {
    /// This many bytes follow the head; 0 without a Content-Length.
    Length(u64),
    /// The body says where it ends.
    Chunked,
}

/// Why a head is refused. The connection is over: where the next request begins is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// For the person on the other side, as a sentence without a full stop.
    pub(super) reason: &'static str,
}

/// A 400 with this reason.
pub(super) const fn bad(reason: &'static str) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, reason)
}

const fn refuse(status: StatusCode, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

/// A part of the head, by position: a parsed head borrows nothing and is used again for the next
/// request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    start: u16,
    end: u16,
}

impl Span {
    fn new(range: Range<usize>) -> Self {
        // Positions are below MAX_HEAD plus a few empty lines.
        let position = |at| u16::try_from(at).expect("a head is shorter than 64 KiB");
        Self {
            start: position(range.start),
            end: position(range.end),
        }
    }

    /// The bytes it stands for in the head it was made from.
    pub(super) fn of<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[usize::from(self.start)..usize::from(self.end)]
    }
}

/// One header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Span,
    pub(super) value: Span,
}

/// A parsed head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) version: Version,
    pub(super) target: Span,
    /// Empty when an absolute-form target has none.
    pub(super) path: Span,
    pub(super) query: Option<Span>,
    pub(super) fields: Vec<Field>,
    pub(super) framing: Framing,
    /// The client may send a further request on this connection (RFC 9112 §9.3).
    pub(super) keep_alive: bool,
    /// The client waits for a 100 before it sends the body (RFC 9110 §10.1.1).
    pub(super) expects_continue: bool,
}

impl Head {
    pub(super) fn new() -> Self {
        Self {
            method: Method::GET,
            version: Version::Http11,
            target: Span::default(),
            path: Span::default(),
            query: None,
            fields: Vec::with_capacity(FEW_FIELDS),
            framing: Framing::Length(0),
            keep_alive: false,
            expects_continue: false,
        }
    }

    /// Reads the head at the start of `bytes`, leading empty lines included: how many bytes it
    /// takes, or `None` when more are needed to tell.
    ///
    /// # Errors
    /// How to refuse it. The method is that of the refused request if it got so far, else GET.
    pub(super) fn parse(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        self.method = Method::GET;
        self.fields.clear();
        let Some(start) = skip_empty_lines(bytes)? else {
            return Ok(None);
        };
        let Some(line_end) = self.parse_line(bytes, start)? else {
            return Ok(None);
        };
        let window = &bytes[..bytes.len().min(start + MAX_HEAD)];
        match self.parse_fields(window, line_end)? {
            Some(end) => {
                self.refuse_bare_line_feeds(&window[..end])?;
                decide(self, window)?;
                Ok(Some(end))
            }
            None if window.len() - start == MAX_HEAD => Err(refuse(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the header is longer than 16 KiB",
            )),
            None => Ok(None),
        }
    }

    /// Reads the fields from `line_end` on: where their empty line ends, if it is there.
    fn parse_fields(&mut self, window: &[u8], line_end: usize) -> Result<Option<usize>, Refusal> {
        let mut few = [httparse::EMPTY_HEADER; FEW_FIELDS];
        let mut result = self.note_fields(window, line_end, &mut few);
        if result == Err(httparse::Error::TooManyHeaders) {
            let mut many = [httparse::EMPTY_HEADER; MAX_FIELDS];
            result = self.note_fields(window, line_end, &mut many);
        }
        result.map_err(|error| match error {
            httparse::Error::TooManyHeaders => refuse(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "more than 100 header fields",
            ),
            httparse::Error::HeaderName => bad("malformed header field name"),
            httparse::Error::HeaderValue => bad("malformed header field value"),
            _ => bad("malformed header"),
        })
    }

    fn note_fields<'b>(
        &mut self,
        window: &'b [u8],
        line_end: usize,
        room: &mut [httparse::Header<'b>],
    ) -> Result<Option<usize>, httparse::Error> {
        let status = httparse::parse_headers(&window[line_end..], room)?;
        let httparse::Status::Complete((length, headers)) = status else {
            return Ok(None);
        };
        let base = window.as_ptr().addr();
        let span = |part: &[u8]| {
            let start = part.as_ptr().addr() - base;
            Span::new(start..start + part.len())
        };
        self.fields.extend(headers.iter().map(|header| Field {
            name: span(header.name.as_bytes()),
            value: span(header.value),
        }));
        Ok(Some(line_end + length))
    }

    /// httparse takes a bare LF for a line's end. A value holds neither CR nor LF, so it is enough
    /// to look at what precedes each name and the end.
    fn refuse_bare_line_feeds(&self, head: &[u8]) -> Result<(), Refusal> {
        let strict = head.ends_with(b"\r\n\r\n")
            && self
                .fields
                .iter()
                .all(|field| head[..usize::from(field.name.start)].ends_with(b"\r\n"));
        if strict {
            Ok(())
        } else {
            Err(bad("a line that ends without CR"))
        }
    }

    /// Reads the request line (RFC 9112 §3) that begins at `start`: where it ends, its CRLF
    /// included.
    fn parse_line(&mut self, bytes: &[u8], start: usize) -> Result<Option<usize>, Refusal> {
        const FULL: usize = MAX_LINE + 2;
        let window = &bytes[..bytes.len().min(start + FULL)];
        match split_line(window, start)? {
            None if window.len() - start == FULL => Err(refuse(
                StatusCode::URI_TOO_LONG,
                "the request line is longer than 8 KiB",
            )),
            None => Ok(None),
            Some(line) => {
                self.version = version(window[line.major], window[line.minor])?;
                self.method = method(&window[start..line.method_end])?;
                self.target = Span::new(line.target.clone());
                self.split_target(window, line.target)?;
                Ok(Some(line.end))
            }
        }
    }

    /// Finds path and query in a target of origin-form, absolute-form or asterisk-form (RFC 9112
    /// §3.2).
    fn split_target(&mut self, bytes: &[u8], target: Range<usize>) -> Result<(), Refusal> {
        let text = &bytes[target.clone()];
        let path_start = if text[0] == b'/' {
            target.start
        } else if text == b"*" && self.method == Method::OPTIONS {
            (self.path, self.query) = (self.target, None);
            return Ok(());
        } else {
            target.start + authority_end(text)?
        };
        let rest = &bytes[path_start..target.end];
        let path_end = rest.iter().position(|byte| *byte == b'?');
        let path_end = path_end.map_or(target.end, |length| path_start + length);
        self.path = Span::new(path_start..path_end);
        self.query = (path_end < target.end).then(|| Span::new(path_end + 1..target.end));
        Ok(())
    }
}

/// Where the authority of an absolute-form target ends.
fn authority_end(target: &[u8]) -> Result<usize, Refusal> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| {
            target
                .get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
        .ok_or(bad("malformed request target"))?
        .len();
    let authority = &target[scheme..];
    let length = authority
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?'))
        .unwrap_or(authority.len());
    if length == 0 || !is_host(&authority[..length]) {
        return Err(bad("malformed host in the request target"));
    }
    Ok(scheme + length)
}

/// Where the first line that is not empty begins; `None` when that is not known yet.
fn skip_empty_lines(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    let mut at = 0;
    for _ in 0..=MAX_EMPTY_LINES {
        match &bytes[at..] {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] => at += 2,
            _ => return Ok(Some(at)),
        }
    }
    Err(bad("too many empty lines before the request"))
}

/// The positions of a request line's parts.
struct Line {
    method_end: usize,
    target: Range<usize>,
    major: usize,
    minor: usize,
    end: usize,
}

/// Splits the request line that begins at `start`; `None` when `bytes` end before it does.
fn split_line(bytes: &[u8], start: usize) -> Result<Option<Line>, Refusal> {
    let find = |from: usize, inside: fn(u8) -> bool| {
        let length = bytes[from..].iter().position(|byte| !inside(*byte))?;
        Some(from + length)
    };
    let Some(method_end) = find(start, is_token) else {
        return Ok(None);
    };
    if method_end == start || bytes[method_end] != b' ' {
        return Err(bad("malformed method"));
    }
    let Some(target_end) = find(method_end + 1, is_target) else {
        return Ok(None);
    };
    if target_end == method_end + 1 || bytes[target_end] != b' ' {
        return Err(bad("malformed request target"));
    }
    let version = target_end + 1;
    const PATTERN: &[u8] = b"HTTP/0.0\r\n";
    for (byte, expected) in bytes[version..].iter().zip(PATTERN) {
        let fits = match expected {
            b'0' => byte.is_ascii_digit(),
            _ => byte == expected,
        };
        if !fits {
            return Err(bad("malformed HTTP version"));
        }
    }
    let end = version + PATTERN.len();
    Ok((bytes.len() >= end).then_some(Line {
        method_end,
        target: method_end + 1..target_end,
        major: version + 5,
        minor: version + 7,
        end,
    }))
}

fn version(major: u8, minor: u8) -> Result<Version, Refusal> {
    match (major, minor) {
        (b'1', b'0') => Ok(Version::Http10),
        (b'1', _) => Ok(Version::Http11),
        _ => Err(refuse(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "this server speaks HTTP/1.1 and HTTP/1.0",
        )),
    }
}

/// The methods of RFC 9110 §9.3 and RFC 5789, except CONNECT: this is no proxy.
fn method(name: &[u8]) -> Result<Method, Refusal> {
    Ok(match name {
        b"GET" => Method::GET,
        b"HEAD" => Method::HEAD,
        b"POST" => Method::POST,
        b"PUT" => Method::PUT,
        b"DELETE" => Method::DELETE,
        b"OPTIONS" => Method::OPTIONS,
        b"PATCH" => Method::PATCH,
        b"TRACE" => Method::TRACE,
        _ => {
            return Err(refuse(
                StatusCode::NOT_IMPLEMENTED,
                "this method is not known here",
            ));
        }
    })
}

/// A byte of a token (RFC 9110 §5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte that a target may have. A few that RFC 3986 wants encoded are let through, for browsers
/// send them.
fn is_target(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'#'
}
