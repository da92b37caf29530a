//! The head of a request: from bytes to what they mean, or to why they are refused. Pure: no system
//! call, no clock.
//!
//! A head that arrives in pieces is judged exactly as one that arrives whole. Where RFC 9112 leaves
//! a server the choice between repairing a head and refusing it, it is refused: two servers that
//! repair differently see different requests in the same bytes (request smuggling, §11.2).

mod authority;
mod fields;
mod line;
mod parsed;
#[cfg(test)]
mod tests;

use ::http::{Method, StatusCode};

use self::fields::decide;
use self::parsed::{FEW_FIELDS, refuse};

pub use self::parsed::Version;
pub(super) use self::parsed::{Field, Framing, Head, Refusal, Span, bad};

/// The longest request line, in bytes without its CRLF; a longer one is answered with 414 (RFC 9112
/// §3 asks for 8000).
pub(super) const MAX_LINE: usize = 8 * 1024;

/// The longest head, in bytes from the request line to the empty line; a longer one is answered
/// with 431.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// The most header fields of a head; more are answered with 431.
pub(super) const MAX_FIELDS: usize = 100;

impl Head {
    /// Reads the head at the start of `bytes`. Returns how many bytes it takes, or `None` when more
    /// are needed to tell. A CR alone may be the beginning of an empty line before it.
    ///
    /// # Errors
    /// How to refuse the head. The method is the client's if it could be read, else GET.
    pub(super) fn parse(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        self.method = Method::GET;
        self.fields.clear();
        if bytes == b"\r" {
            return Ok(None);
        }
        let Some(line_end) = self.parse_line(bytes)? else {
            return Ok(None);
        };
        let window = &bytes[..bytes.len().min(MAX_HEAD)];
        match self.parse_fields(window, line_end)? {
            Some(end) => {
                self.refuse_bare_line_feeds(&window[..end])?;
                decide(self, window)?;
                Ok(Some(end))
            }
            None if window.len() == MAX_HEAD => Err(refuse(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the header is longer than 16 KiB",
            )),
            None => Ok(None),
        }
    }

    /// Reads the fields from `line_end` on. Returns where the empty line behind them ends, if it is
    /// there.
    fn parse_fields(&mut self, window: &[u8], line_end: usize) -> Result<Option<usize>, Refusal> {
        let mut few = [httparse::EMPTY_HEADER; FEW_FIELDS];
        let mut result = self.store_fields(window, line_end, &mut few);
        if result == Err(httparse::Error::TooManyHeaders) {
            let mut many = [httparse::EMPTY_HEADER; MAX_FIELDS];
            result = self.store_fields(window, line_end, &mut many);
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

    fn store_fields<'b>(
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

    /// Reads the request line (RFC 9112 §3). Returns where it ends, with its CRLF.
    fn parse_line(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        const FULL: usize = MAX_LINE + 2;
        let window = &bytes[..bytes.len().min(FULL)];
        match line::split(self, window)? {
            None if window.len() == FULL => Err(refuse(
                StatusCode::URI_TOO_LONG,
                "the request line is longer than 8 KiB",
            )),
            None => Ok(None),
            Some(line) => line::store(self, window, line).map(Some),
        }
    }
}
