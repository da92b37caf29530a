//! Responses to bytes on a connection, in as few system calls as they take.

use std::io::{self, IoSlice, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::StatusCode;
use rustix::buffer::spare_capacity;
use rustix::fd::AsFd;

use super::head::Version;
use super::response::{Content, Response};
use crate::service::{Connection, Turn};

/// A body up to this length, in bytes, is copied behind its head, so that both leave with one call.
const INLINE: usize = 32 * 1024;

/// Writes responses. One memory serves them all.
#[derive(Debug, Default)]
pub(super) struct Output {
    buffer: Vec<u8>,
    date: Date,
}

/// What the request and the connection ask of a response.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// The request was HEAD: the head alone.
    pub(super) head_only: bool,
    pub(super) version: Version,
    /// Another request may follow.
    pub(super) keep_alive: bool,
}

impl Output {
    /// Sends `response`.
    ///
    /// # Errors
    /// What writing to the client or reading the file of the body fails with. The response may have
    /// gone in part.
    pub(super) fn send(
        &mut self,
        connection: &mut Connection,
        response: Response,
        manner: Manner,
    ) -> io::Result<()> {
        self.buffer.clear();
        write_status(&mut self.buffer, response.status);
        self.buffer.extend_from_slice(b"Date: ");
        self.buffer
            .extend_from_slice(self.date.at(SystemTime::now()));
        self.buffer.extend_from_slice(b"\r\n");
        self.buffer.extend_from_slice(&response.fields);
        if let Content::Kept(file) = &response.content {
            self.buffer.extend_from_slice(&file.about.fields);
        }
        let has_content = has_content(response.status);
        if has_content {
            let mut digits = itoa::Buffer::new();
            let length = digits.format(response.content.length());
            write_field(&mut self.buffer, "Content-Length", length);
        }
        match (manner.keep_alive, manner.version) {
            (false, _) => self.buffer.extend_from_slice(b"Connection: close\r\n"),
            (true, Version::Http10) => {
                self.buffer.extend_from_slice(b"Connection: keep-alive\r\n");
            }
            (true, Version::Http11) => {}
        }
        self.buffer.extend_from_slice(b"\r\n");
        let last = !manner.keep_alive;
        if manner.head_only || !has_content {
            return self.send_buffer(connection, last);
        }
        match response.content {
            Content::Bytes(bytes) => self.send_bytes(connection, &bytes, last),
            Content::Kept(file) => self.send_bytes(connection, &file.body, last),
            Content::Repeated { pattern, length } => {
                self.send_repeated(connection, pattern, length)
            }
            Content::File {
                file,
                offset,
                length,
            } => self.send_file(connection, file, offset, length, last),
        }
    }

    /// Sends what is in the buffer. What is `last` leaves together with the end of the connection,
    /// one packet for both, when the turn is over.
    fn send_buffer(&self, connection: &mut Connection, last: bool) -> io::Result<()> {
        connection.write_last(&self.buffer, if last { Turn::Close } else { Turn::Park })
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
        pattern: &[u8],
        length: u64,
    ) -> io::Result<()> {
        let mut left = length;
        let mut next = || {
            let count = usize::try_from(left).map_or(pattern.len(), |left| left.min(pattern.len()));
            left -= count as u64;
            (count > 0).then(|| &pattern[..count])
        };
        if length <= INLINE as u64 {
            while let Some(block) = next() {
                self.buffer.extend_from_slice(block);
            }
            return connection.write_all(&self.buffer);
        }
        connection.write_more(&self.buffer)?;
        while let Some(block) = next() {
            connection.write_all(block)?;
        }
        Ok(())
    }

    fn send_file(
        &mut self,
        connection: &mut Connection,
        file: impl AsFd,
        offset: u64,
        length: u64,
        last: bool,
    ) -> io::Result<()> {
        match usize::try_from(length) {
            Ok(length) if length <= INLINE => {
                let end = self.buffer.len() + length;
                read_exactly(&mut self.buffer, file, offset, end)?;
                self.send_buffer(connection, last)
            }
            _ => {
                connection.write_more(&self.buffer)?;
                connection.send_file(file, offset, length)
            }
        }
    }
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
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => offset += count as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // There may have been room, and file, for more.
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
