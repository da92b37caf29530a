//! Sends responses, in as few system calls as possible.

use std::io::{self, IoSlice, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::StatusCode;
use rustix::buffer::spare_capacity;
use rustix::fd::AsFd;

use super::failure::Failure;
use super::head::Version;
use super::response::{Content, Response};
use super::stream::Stream;
use crate::service::{Connection, Turn};

/// A body up to this length, in bytes, is copied behind its head, so that both leave with one call.
const INLINE: usize = 32 * 1024;

/// What a log line calls a body that is a file.
const FILE: &str = "file";

/// Sends responses, one after the other, from the same buffer.
#[derive(Debug, Default)]
pub(super) struct Output {
    buffer: Vec<u8>,
    date: Date,
}

/// How a response is to be sent, by its request and the state of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct SendMode {
    /// The request was HEAD, so only the head is sent.
    pub(super) head_only: bool,
    pub(super) version: Version,
    /// Another request may follow.
    pub(super) keep_alive: bool,
}

impl Output {
    /// Sends `response`.
    ///
    /// # Errors
    /// What writing to the client or reading the file of the body fails with.
    pub(super) fn send(
        &mut self,
        connection: &mut Connection,
        response: Response,
        mode: SendMode,
    ) -> Result<(), Failure> {
        self.buffer.clear();
        write_status(&mut self.buffer, response.status);
        self.buffer.extend_from_slice(b"Date: ");
        self.buffer
            .extend_from_slice(self.date.at(SystemTime::now()));
        self.buffer.extend_from_slice(b"\r\n");
        self.buffer.extend_from_slice(&response.fields);
        if let Content::Cached(file) = &response.content {
            self.buffer.extend_from_slice(&file.metadata.fields);
        }
        let has_content = has_content(response.status);
        match response.content.length() {
            _ if !has_content => {}
            Some(length) => {
                let mut digits = itoa::Buffer::new();
                write_field(&mut self.buffer, "Content-Length", digits.format(length));
            }
            None if mode.version == Version::Http11 => {
                write_field(&mut self.buffer, "Transfer-Encoding", "chunked");
            }
            None => {}
        }
        match (mode.keep_alive, mode.version) {
            (false, _) => self.buffer.extend_from_slice(b"Connection: close\r\n"),
            (true, Version::Http10) => {
                self.buffer.extend_from_slice(b"Connection: keep-alive\r\n");
            }
            (true, Version::Http11) => {}
        }
        self.buffer.extend_from_slice(b"\r\n");
        let last = !mode.keep_alive;
        if mode.head_only || !has_content {
            return Ok(self.send_buffer(connection, last)?);
        }
        match response.content {
            Content::Bytes(bytes) => self.send_bytes(connection, &bytes, last)?,
            Content::Cached(file) => self.send_bytes(connection, &file.body, last)?,
            // Of an answer that is another pool's, nothing is sent.
            Content::Passed(_) => {}
            Content::Repeated { pattern, length } => {
                self.send_repeated(connection, pattern, length, last)?;
            }
            Content::File {
                file,
                offset,
                length,
            } => self.send_file(connection, file, offset, length, last)?,
            Content::Stream { source, length } => {
                let chunked = length.is_none() && mode.version == Version::Http11;
                let stream = Stream::new(source.0, length, chunked);
                stream.send(connection, &mut self.buffer, last)?;
            }
        }
        Ok(())
    }

    /// Sends the buffer. The `last` bytes of a connection leave in one packet with its end, when
    /// the turn is over.
    fn send_buffer(&self, connection: &mut Connection, last: bool) -> io::Result<()> {
        let then = match last {
            true => Turn::Close,
            false if connection.is_away() => Turn::Home,
            false => Turn::Park,
        };
        connection.write_last(&self.buffer, then)
    }

    fn send_bytes(
        &mut self,
        connection: &mut Connection,
        bytes: &[u8],
        last: bool,
    ) -> io::Result<()> {
        if bytes.len() <= INLINE {
            self.buffer.extend_from_slice(bytes);
            return self.send_buffer(connection, last);
        }
        let mut parts = [IoSlice::new(&self.buffer), IoSlice::new(bytes)];
        let mut parts = &mut parts[..];
        while !parts.is_empty() {
            let count = connection.write_vectored(parts)?;
            IoSlice::advance_slices(&mut parts, count);
        }
        Ok(())
    }

    fn send_repeated(
        &mut self,
        connection: &mut Connection,
        pattern: &'static [u8],
        length: u64,
        last: bool,
    ) -> io::Result<()> {
        if length > INLINE as u64 {
            connection.write_more(&self.buffer)?;
            return connection.send_repeated(pattern, length);
        }
        let mut left = length as usize;
        while left > 0 {
            let block = &pattern[..left.min(pattern.len())];
            self.buffer.extend_from_slice(block);
            left -= block.len();
        }
        self.send_buffer(connection, last)
    }

    fn send_file(
        &mut self,
        connection: &mut Connection,
        file: impl AsFd,
        offset: u64,
        length: u64,
        last: bool,
    ) -> Result<(), Failure> {
        match usize::try_from(length) {
            Ok(length) if length <= INLINE => {
                let end = self.buffer.len() + length;
                read_exactly(&mut self.buffer, file, offset, end)
                    .map_err(|error| Failure::Body(FILE, error))?;
                Ok(self.send_buffer(connection, last)?)
            }
            _ => {
                connection.write_more(&self.buffer)?;
                let sent = connection.send_file(file, offset, length);
                sent.map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => Failure::CutOff(FILE, shorter()),
                    kind if is_of_client(kind) => Failure::Client(error),
                    _ => Failure::CutOff(FILE, error),
                })
            }
        }
    }
}

/// Whether sendfile(2) fails so because of the client; otherwise it is because of the file.
fn is_of_client(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::*;
    matches!(
        kind,
        BrokenPipe
            | ConnectionReset
            | ConnectionAborted
            | NotConnected
            | TimedOut
            | HostUnreachable
            | NetworkUnreachable
            | NetworkDown
    )
}

fn shorter() -> io::Error {
    let text = "it is shorter than it was when it was opened";
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

/// Reads from `offset` of `file` on until `buffer` is `end` bytes long.
pub(super) fn read_exactly(
    buffer: &mut Vec<u8>,
    file: impl AsFd,
    mut offset: u64,
    end: usize,
) -> io::Result<()> {
    buffer.reserve(end - buffer.len());
    while buffer.len() < end {
        match rustix::io::pread(&file, spare_capacity(buffer), offset) {
            Ok(0) => return Err(shorter()),
            Ok(count) => offset += count as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The file may be longer, and the buffer may have had room for more of it.
    buffer.truncate(end);
    Ok(())
}

/// Whether a response of this status has content, and so a length (RFC 9110 §6.4.1).
fn has_content(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// What stands for the date in a canned reply, until the master sends it.
pub(super) const DATE_SLOT: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

/// A whole response that the master can send, which knows nothing of the request. So it has no
/// content: in answer to HEAD, content would be taken for the next response (RFC 9110 §9.3.2), and
/// a browser has an error page of its own where there is none.
pub(super) fn canned(status: StatusCode, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_status(&mut bytes, status);
    write_field(&mut bytes, "Date", DATE_SLOT);
    write_field(&mut bytes, "Content-Length", "0");
    for (name, value) in fields {
        write_field(&mut bytes, name, value);
    }
    write_field(&mut bytes, "Connection", "close");
    bytes.extend_from_slice(b"\r\n");
    bytes
}

fn write_status(bytes: &mut Vec<u8>, status: StatusCode) {
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(status.as_str().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    bytes.extend_from_slice(b"\r\nServer: baton\r\n");
}

fn write_field(bytes: &mut Vec<u8>, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        bytes.extend_from_slice(part.as_bytes());
    }
}

/// The text of the current second (RFC 9110 §5.6.7), made once a second.
#[derive(Debug, Default)]
struct Date {
    second: u64,
    text: Vec<u8>,
}

impl Date {
    fn at(&mut self, now: SystemTime) -> &[u8] {
        let second = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        if second != self.second || self.text.is_empty() {
            self.second = second;
            let now = UNIX_EPOCH + Duration::from_secs(second);
            self.text = httpdate::fmt_http_date(now).into_bytes();
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_follows_the_clock() {
        let mut date = Date::default();
        let start = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(date.at(start), b"Sun, 06 Nov 1994 08:49:37 GMT");
        let later = start + Duration::from_millis(900);
        assert_eq!(date.at(later), b"Sun, 06 Nov 1994 08:49:37 GMT");
        let later = start + Duration::from_secs(1);
        assert_eq!(date.at(later), b"Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(date.at(UNIX_EPOCH), b"Thu, 01 Jan 1970 00:00:00 GMT");
    }

    #[test]
    fn a_canned_reply_is_whole() {
        let bytes = canned(StatusCode::SERVICE_UNAVAILABLE, &[("Retry-After", "1")]);
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "HTTP/1.1 503 Service Unavailable\r\nServer: baton\r\n\
             Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 0\r\nRetry-After: 1\r\n\
             Connection: close\r\n\r\n"
        );
    }
}
