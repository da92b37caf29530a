//! Sending what a record says, from memory and from a file, without sleeping for the client unless
//! that is asked for.
//!
//! sendfile(2) has no flag for one call that is not to sleep, and O_NONBLOCK belongs to the open
//! file description, which the master shares. Nor can it be known beforehand how much is sure to
//! fit: when the system's memory for TCP is short (tcp(7), tcp_mem), it sleeps whatever room the
//! send buffer has. So a file goes through a buffer of this process unless the write may sleep.
//! (splice(2) with SPLICE_F_NONBLOCK sleeps for the socket; SO_SNDTIMEO sleeps for a tick of the
//! kernel's clock at the least, and would outlive a worker that is killed.) A MiB costs 245 us of
//! CPU through the buffer, and 115 us with sendfile(2).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, pread};
use rustix::net::{SendFlags, send};

use super::record::{Next, Record};

/// How much goes through the buffer at a time, in bytes.
const BLOCK: u64 = 128 * 1024;

/// The most that one sendfile(2) transfers (it says so).
const MAX_CALL: u64 = 0x7fff_f000;

/// Where to send, and how.
#[derive(Debug)]
pub struct Line<'a> {
    pub socket: &'a OwnedFd,
    /// Whether to sleep until the client has made room, as long as the socket's timeout is.
    pub sleeps: bool,
    /// Counts what the kernel has taken, also before an error.
    pub written: &'a mut u64,
    /// Memory for what goes from a file to the socket.
    pub block: &'a mut Vec<u8>,
}

/// Why the rest was not sent.
#[derive(Debug)]
pub enum Fault {
    /// The client cannot be written to.
    Client(io::Error),
    /// The file cannot be read, or is shorter than it was.
    File(io::Error),
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Client(error) | Fault::File(error) => error,
        }
    }
}

/// How far it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// To the end, or as far as was asked for.
    All,
    /// Until the kernel had no more room for the client.
    Full,
}

impl Line<'_> {
    /// Sends what the record says, at most `budget` bytes: from the start of `carry`, and from the
    /// file. The record is advanced. `gone` counts how many bytes of the carry went.
    pub fn send(
        &mut self,
        record: &mut Record,
        (carry, gone): (&[u8], &mut usize),
        file: Option<BorrowedFd<'_>>,
        budget: u64,
    ) -> Result<Sent, Fault> {
        let mut left = budget;
        while left > 0 {
            let before = *self.written;
            let result = match record.next() {
                Next::Nothing => return Ok(Sent::All),
                Next::Carry(length) => {
                    let here = carry.get(*gone..).unwrap_or_default();
                    let bytes = &here[..here.len().min(length)];
                    let more = record.remaining() > bytes.len() as u64;
                    self.send_bytes(bytes, more).map_err(Fault::Client)
                }
                Next::File { offset, length } => {
                    let length = length.min(left);
                    let more = record.remaining() > length;
                    match file {
                        Some(file) => self.send_file(file, (offset, length), more),
                        None => Err(Fault::File(shorter())),
                    }
                }
            };
            let sent = *self.written - before;
            left = left.saturating_sub(sent);
            *gone += record.advance(sent).unwrap_or(0);
            match result? {
                Sent::All if sent == 0 => return Err(Fault::File(shorter())),
                Sent::All => {}
                Sent::Full => return Ok(Sent::Full),
            }
        }
        Ok(Sent::All)
    }

    /// Sends what a record says that speaks of nothing but a file.
    pub fn send_record(
        &mut self,
        record: &mut Record,
        file: BorrowedFd<'_>,
    ) -> Result<Sent, Fault> {
        self.send(record, (&[], &mut 0), Some(file), u64::MAX)
    }

    /// Sends bytes; `more` follows at once.
    pub fn send_bytes(&mut self, mut bytes: &[u8], more: bool) -> io::Result<Sent> {
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::DONTWAIT, !self.sleeps);
        flags.set(SendFlags::MORE, more);
        while !bytes.is_empty() {
            match send(self.socket, bytes, flags) {
                Ok(count) => {
                    *self.written += count as u64;
                    bytes = &bytes[count..];
                    // It would have taken more if there had been room.
                    if !bytes.is_empty() && !self.sleeps {
                        return Ok(Sent::Full);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if !self.sleeps => return Ok(Sent::Full),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Sent::All)
    }

    /// Sends a part of a file; `more` follows at once.
    fn send_file(
        &mut self,
        file: BorrowedFd<'_>,
        (mut at, length): (u64, u64),
        more: bool,
    ) -> Result<Sent, Fault> {
        let end = at.saturating_add(length);
        while at < end {
            let left = end - at;
            if self.sleeps {
                let most = left.min(MAX_CALL) as usize;
                match rustix::fs::sendfile(self.socket, file, Some(&mut at), most) {
                    Ok(0) => return Err(Fault::File(shorter())),
                    Ok(count) => *self.written += count as u64,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(of_sendfile(error)),
                }
                continue;
            }
            let count = self.read(file, at, left.min(BLOCK))?;
            let block = std::mem::take(self.block);
            let before = *self.written;
            let sent = self.send_bytes(&block[..count], more || count as u64 != left);
            at += *self.written - before;
            *self.block = block;
            if sent.map_err(Fault::Client)? == Sent::Full {
                return Ok(Sent::Full);
            }
        }
        Ok(Sent::All)
    }

    /// Reads a part of a file into the block: at least one byte.
    fn read(&mut self, file: BorrowedFd<'_>, at: u64, length: u64) -> Result<usize, Fault> {
        if self.block.len() < BLOCK as usize {
            self.block.resize(BLOCK as usize, 0);
        }
        loop {
            match pread(file, &mut self.block[..length as usize], at) {
                Ok(0) => return Err(Fault::File(shorter())),
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Fault::File(error.into())),
            }
        }
    }
}

/// What sendfile(2) fails with may be the client's fault, or the file's.
fn of_sendfile(error: Errno) -> Fault {
    match error {
        Errno::PIPE
        | Errno::CONNRESET
        | Errno::CONNABORTED
        | Errno::NOTCONN
        | Errno::TIMEDOUT
        | Errno::AGAIN
        | Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::NETDOWN => Fault::Client(error.into()),
        _ => Fault::File(error.into()),
    }
}

fn shorter() -> io::Error {
    let text = "it is shorter than it was when it was opened";
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}
