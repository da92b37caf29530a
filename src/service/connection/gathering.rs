//! What a connection offers to a service that gathers what its client sends: it looks at bytes
//! before it takes them, and puts them into the luggage in between. So a worker that dies loses
//! nothing: what it has not taken is still in the kernel, and what it has taken is in the luggage.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, pread, pwrite};
use rustix::net::{RecvFlags, recv};

use super::{Connection, Fill, READ_SIZE};
use crate::service::keeping::{Keeping, MAX_IN_MEMORY};
use crate::sys;
use crate::wire::Peer;

/// How much is copied at a time from one file to another.
const COPY_SIZE: usize = 64 * 1024;

impl Connection {
    /// Looks at what the client has sent so far, without sleeping, and leaves it where it is. It
    /// does not look at the buffer, which comes before that.
    ///
    /// # Errors
    /// Any error of recv(2).
    pub(crate) fn peek(&mut self, into: &mut [u8]) -> io::Result<Fill> {
        loop {
            match recv(
                &self.socket,
                &mut *into,
                RecvFlags::PEEK | RecvFlags::DONTWAIT,
            ) {
                Ok((_, 0)) if !into.is_empty() => return Ok(Fill::End),
                Ok((_, count)) => return Ok(Fill::Bytes(count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.drained = true;
                    return Ok(Fill::Empty);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the first `count` bytes that the client has sent, which a [`Connection::peek`] has
    /// shown; `all` says that it has shown no more. What is in `scratch` is lost, and it must have
    /// room for them.
    ///
    /// # Errors
    /// Any error of recv(2).
    pub(crate) fn take_peeked(
        &mut self,
        mut count: usize,
        all: bool,
        scratch: &mut [u8],
    ) -> io::Result<()> {
        // On TCP, MSG_TRUNC takes without copying (tcp(7)).
        let flags = match self.peer {
            Peer::Inet(_) => RecvFlags::DONTWAIT | RecvFlags::TRUNC,
            Peer::Unix => RecvFlags::DONTWAIT,
        };
        // A peek at a Unix socket may show less than there is.
        self.drained = all && self.peer != Peer::Unix;
        while count > 0 {
            match recv(&self.socket, &mut scratch[..count], flags) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, taken)) => {
                    self.traffic.read += taken as u64;
                    count -= taken;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Keeps only the first `length` bytes of the buffer: the others are in the luggage.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.buffer.truncate(length);
    }

    /// Makes a file the luggage that has room for `length` bytes: a short one in memory, a long one
    /// on the disk.
    ///
    /// # Errors
    /// What making the file fails with.
    pub(crate) fn make_luggage(&mut self, length: u64) -> io::Result<()> {
        let file = self.file_for(length)?;
        self.baggage.set_luggage(file);
        Ok(())
    }

    fn file_for(&self, length: u64) -> io::Result<OwnedFd> {
        if length <= MAX_IN_MEMORY {
            return Keeping::memory_file();
        }
        let file = self.keeping.unlinked_file()?;
        match sys::luggage::is_acceptable(&file) {
            true => Ok(file),
            // The master would not take it: closing a file of that file system may sleep.
            false => Keeping::memory_file(),
        }
    }

    /// Puts the luggage into a file that has room for `length` bytes: its first `present` bytes,
    /// which are all that is in it.
    ///
    /// # Errors
    /// What making, reading and writing the files fails with.
    pub(crate) fn move_luggage(&mut self, present: u64, length: u64) -> io::Result<()> {
        let luggage = self.baggage.luggage().ok_or_else(lost)?;
        let file = self.file_for(length)?;
        let mut bytes = vec![0; COPY_SIZE];
        let mut at = 0;
        while at < present {
            let most = usize::try_from(present - at).map_or(COPY_SIZE, |left| left.min(COPY_SIZE));
            let count = read_at(luggage, &mut bytes[..most], at)?;
            write_at(&file, &bytes[..count], at)?;
            at += count as u64;
        }
        self.baggage.set_luggage(file);
        Ok(())
    }

    /// Writes all of `bytes` into the luggage, at this place.
    ///
    /// # Errors
    /// Any error of pwrite(2); `NotFound` if there is no luggage.
    pub(crate) fn write_to_luggage(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        write_at(self.luggage().ok_or_else(lost)?, bytes, at)
    }

    /// Reads bytes of the luggage, from this place on: as many as fit, or as are there.
    ///
    /// # Errors
    /// Any error of pread(2); `UnexpectedEof` if it ends there, `NotFound` if there is no luggage.
    pub(crate) fn read_from_luggage(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        read_at(self.luggage().ok_or_else(lost)?, into, at)
    }

    /// Adds to the buffer at most `most` bytes of the luggage, from this place on. Returns how many
    /// these are.
    ///
    /// # Errors
    /// As [`Connection::read_from_luggage`].
    pub(crate) fn fill_from_luggage(&mut self, at: u64, most: u64) -> io::Result<usize> {
        let luggage = self.baggage.luggage().ok_or_else(lost)?;
        let room = usize::try_from(most).map_or(READ_SIZE, |most| most.min(READ_SIZE));
        let count = read_at(luggage, self.buffer.room(room), at)?;
        self.buffer.grow(count);
        Ok(count)
    }
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the connection has no luggage")
}

fn write_at(file: impl rustix::fd::AsFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match pwrite(&file, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn read_at(file: impl rustix::fd::AsFd, into: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match pread(&file, &mut *into, at) {
            Ok(0) if !into.is_empty() => {
                let text = "the luggage is shorter than what was put into it";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            Ok(count) => return Ok(count),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
