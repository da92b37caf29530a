//! The body of a request, read by the handler: from its connection, or from the luggage in which it
//! was gathered.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use ::http::StatusCode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::chunked::{Malformed, Piece};
use super::head::Head;
use super::response::Response;
use super::rest::{MAX_CODED_DRAIN, MAX_DRAIN, Rest, Stored};
use crate::service::{Connection, Fill};

/// The answer that has a client send its body (RFC 9110 §15.2.1).
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The body of a request. It ends where the body ends, not the connection. Reading sleeps only if
/// the handler has asked for the body [as it comes](super::OnHead::AsItComes), until the client
/// sends.
///
/// When a read fails, the client gets 400 or 408 in place of what the handler returns, and the
/// connection closes: a handler may give up with any response.
#[derive(Debug)]
pub struct Body<'a> {
    pub(super) connection: &'a mut Connection,
    rest: Rest,
    source: Source,
    fault: Option<Fault>,
}

/// Where a body is to be had.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// In the connection.
    Client {
        /// The client waits for a 100 before it sends the body.
        expected: bool,
    },
    /// In the luggage, and what is not there in the connection.
    Luggage(Stored),
}

/// Why the rest of a body cannot be had.
#[derive(Debug)]
pub(super) enum Fault {
    Malformed,
    Truncated,
    TimedOut,
    Broken(io::Error),
    /// It was gathered, and cannot be read again.
    Lost(io::Error),
}

/// How the handler left the body.
#[derive(Debug)]
pub(super) enum Leftover {
    /// The next request begins with the next byte.
    Nothing,
    /// The rest of the body is not worth waiting for.
    Some,
    /// The rest of the body cannot be had.
    Fault(Fault),
}

/// Why a body could not be read whole. As a [`Response`], it is the one that the client should get.
#[derive(Debug)]
pub enum BodyError {
    /// It is longer than this many bytes.
    TooLong(u64),
    /// The client sent something malformed, or too slowly, or went away.
    Unreadable(io::Error),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(limit) => write!(f, "the request body is longer than {limit} bytes"),
            Self::Unreadable(error) => write!(f, "cannot read the request body: {error}"),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLong(_) => None,
            Self::Unreadable(error) => Some(error),
        }
    }
}

impl From<BodyError> for Response {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLong(_) => {
                Response::text(format!("{error}\n")).status(StatusCode::PAYLOAD_TOO_LARGE)
            }
            BodyError::Unreadable(_) => Response::error(StatusCode::BAD_REQUEST),
        }
    }
}

impl<'a> Body<'a> {
    pub(super) fn new(connection: &'a mut Connection, head: &Head, source: Source) -> Self {
        Self {
            connection,
            rest: Rest::of(head.framing),
            source,
            fault: None,
        }
    }

    /// How many bytes are still to come, when the client said so; `None` for a chunked body.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.rest.length()
    }

    /// The whole body as a file, and how long it is, if it is one: it came too slowly to be waited
    /// for in memory, and was not chunked. It begins at offset 0. Do not use the file's own offset,
    /// which other processes share: map the file, or read it with pread(2).
    #[must_use]
    pub fn as_file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        match self.source {
            Source::Luggage(stored) if stored.whole && self.rest.length().is_some() => {
                Some((self.connection.luggage()?, stored.end))
            }
            _ => None,
        }
    }

    /// Reads what is left of the body into memory, if that is at most `limit` bytes.
    ///
    /// # Errors
    /// [`BodyError::TooLong`], as early as it is known; otherwise what reading fails with.
    pub fn read_to_limit(&mut self, limit: u64) -> Result<Vec<u8>, BodyError> {
        if self.remaining().is_some_and(|remaining| remaining > limit) {
            return Err(BodyError::TooLong(limit));
        }
        // An announced length alone gets no memory: only what is here already does.
        let stored = match self.source {
            Source::Luggage(stored) => stored.end - stored.at,
            Source::Client { .. } => 0,
        };
        let here = stored + self.connection.buffer().len() as u64;
        let room = self.remaining().unwrap_or(0).min(here);
        let mut bytes = Vec::with_capacity(usize::try_from(room).unwrap_or(0));
        self.by_ref()
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(BodyError::Unreadable)?;
        if bytes.len() as u64 > limit {
            return Err(BodyError::TooLong(limit));
        }
        Ok(bytes)
    }

    /// Drops what the handler left unread, if it is not long, and waits for it with this patience.
    /// Whether it is dropped follows from what is sent, not from how the bytes arrive, unless the
    /// client is slower than that.
    pub(super) fn leave(mut self, patience: Duration) -> Leftover {
        let expected = match self.source {
            Source::Client { expected } => expected,
            Source::Luggage(stored) => return self.leave_stored(stored),
        };
        // A client that still waits for a 100 may send the body, or its next request.
        let is_too_much = expected || self.remaining().is_some_and(|rest| rest > MAX_DRAIN);
        let (mut end, mut data, mut coded) = (None, 0, 0);
        while self.fault.is_none() && !self.rest.ended() {
            if is_too_much || data > MAX_DRAIN || coded > MAX_CODED_DRAIN {
                return Leftover::Some;
            }
            let before = self.connection.buffer().len();
            if before == 0 {
                let end = *end.get_or_insert_with(|| Instant::now() + patience);
                match self.fill_until(end) {
                    Ok(Fill::Bytes(_)) => {}
                    Ok(Fill::Empty) => return Leftover::Some,
                    Ok(Fill::End) => self.fault = Some(Fault::Truncated),
                    Err(error) => self.fault = Some(Fault::Broken(error)),
                }
                continue;
            }
            match self.decode(usize::MAX, |_| {}) {
                Ok(count) => data += count as u64,
                Err(Malformed) => self.fault = Some(Fault::Malformed),
            }
            coded += before - self.connection.buffer().len();
        }
        self.fault.map_or(Leftover::Nothing, Leftover::Fault)
    }

    /// The same for a body in the luggage, of which no more has to come if it is there as a whole.
    fn leave_stored(self, stored: Stored) -> Leftover {
        if !stored.whole {
            return self.fault.map_or(Leftover::Some, Leftover::Fault);
        }
        let unread = self.connection.buffer().len();
        self.connection.consume(unread);
        self.fault.map_or(Leftover::Nothing, Leftover::Fault)
    }

    /// Receives more from the client, sleeping for it until `end`; nothing if none has come by
    /// then.
    fn fill_until(&mut self, end: Instant) -> io::Result<Fill> {
        loop {
            match self.connection.fill()? {
                Fill::Empty => {}
                fill => return Ok(fill),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Fill::Empty);
            }
            let timeout = Timespec::try_from(left).ok();
            let mut watched = [PollFd::new(&*self.connection, PollFlags::IN)];
            match poll(&mut watched, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Consumes framing and at most `most` bytes of data from the buffer; returns how many bytes of
    /// data.
    fn decode(&mut self, most: usize, with: impl FnOnce(&[u8])) -> Result<usize, Malformed> {
        let buffer = self.connection.buffer();
        let Piece { framing, data } = self.rest.next(buffer, most)?;
        with(&buffer[framing..framing + data]);
        self.connection.consume(framing + data);
        Ok(data)
    }

    /// Gets more from the luggage, or from the client, sleeping for it.
    fn more(&mut self) -> Result<(), Fault> {
        match &mut self.source {
            Source::Luggage(stored) if stored.at < stored.end => {
                let most = stored.end - stored.at;
                let read = self.connection.fill_from_luggage(stored.at, most);
                stored.at += read.map_err(Fault::Lost)? as u64;
                return Ok(());
            }
            Source::Client { expected: true } => {
                self.source = Source::Client { expected: false };
                let sent = self.connection.write_all(CONTINUE);
                sent.map_err(Fault::from)?;
            }
            Source::Luggage(_) | Source::Client { expected: false } => {}
        }
        match self.connection.fill_wait()? {
            Fill::End => Err(Fault::Truncated),
            Fill::Bytes(_) | Fill::Empty => Ok(()),
        }
    }

    fn fail(&mut self, fault: Fault) -> io::Error {
        let error = fault.to_error();
        self.fault = Some(fault);
        error
    }
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(fault) = &self.fault {
            return Err(fault.to_error());
        }
        while !self.rest.ended() && !into.is_empty() {
            if self.connection.buffer().is_empty() {
                self.more().map_err(|fault| self.fail(fault))?;
            }
            let most = into.len();
            let taken = self.decode(most, |data| into[..data.len()].copy_from_slice(data));
            match taken {
                Ok(0) => {}
                Ok(count) => {
                    // The client did not wait for a 100.
                    if let Source::Client { expected } = &mut self.source {
                        *expected = false;
                    }
                    return Ok(count);
                }
                Err(Malformed) => return Err(self.fail(Fault::Malformed)),
            }
        }
        Ok(0)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Broken(error),
        }
    }
}

impl Fault {
    fn to_error(&self) -> io::Error {
        match self {
            Self::Malformed => {
                io::Error::new(io::ErrorKind::InvalidData, "malformed chunked coding")
            }
            Self::Truncated => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the client ended before its request did",
            ),
            Self::TimedOut => io::Error::new(io::ErrorKind::TimedOut, "the client took too long"),
            Self::Broken(error) | Self::Lost(error) => {
                io::Error::new(error.kind(), error.to_string())
            }
        }
    }
}
