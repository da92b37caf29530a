//! A client's connection, as a service sees it for one turn.

mod gathering;
mod sending;
mod writing;

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};

use crate::service::baggage::Baggage;
use crate::service::buffer::Buffer;
use crate::service::keeping::Keeping;
use crate::service::outgoing::kept::Kept;
use crate::sys;
use crate::wire::{Lend, MAX_CARRY, Outcome, Peer, Traffic};

/// How many bytes one [`Connection::fill`] asks the kernel for, at most.
const READ_SIZE: usize = 16 * 1024;

/// The longest note of a service, in bytes.
const MAX_SERVICE_NOTE: usize = 4096;

/// What a [`Connection::fill`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// This many bytes, at least one. They are in the buffer now.
    Bytes(usize),
    /// Nothing so far.
    Empty,
    /// The end: the client has shut down its sending side.
    End,
}

/// Stores the report of a turn before the call that completes the turn, in case the worker dies
/// before it can send the report.
pub(crate) trait WriteAhead: Sync + std::fmt::Debug {
    /// Stores the report that would be right if the next call completed in full.
    fn write_ahead(&self, id: u64, outcome: Outcome, traffic: Traffic);
}

/// A client's connection, borrowed from the master for one turn.
///
/// Reading goes through a buffer, [`Connection::buffer`], which holds what was read and not yet
/// consumed, beginning with the carry of the previous turn. [`Read`] takes bytes from the buffer
/// first, then from the client, and sleeps until the client sends; [`Connection::fill`] never
/// sleeps.
///
/// Writing ([`Write`](io::Write), [`Connection::send_file`]) does not sleep either. What the kernel
/// has no room for, because the client is slow to take it, is kept, and sent on when the turn is
/// over and the client has taken some: in turns that the service does not see, by any worker. The
/// service has the connection back when all is sent, with the turn that it had returned; if that
/// one closes the connection, it is closed then. More than 256 KiB at a time are kept before their
/// first byte is sent, so that not even a worker that is killed in the middle cuts them off. (On a
/// Unix socket it does: the kernel does not count there.)
///
/// Four writes sleep: what would be more than the limit `max-spool` with what is kept already; what
/// cannot be kept, because no file can be made or the service has [luggage](Self::luggage) of its
/// own (up to 16 KiB need none); what is still kept when the service makes a read that sleeps,
/// because the client may be waiting for just that; and any write on a connection outside of a
/// server ([`Connection::adopt`]).
///
/// A sleep that lasts longer than the connection's timeout ([`Connection::set_timeouts`]) fails
/// with [`TimedOut`](io::ErrorKind::TimedOut). Do not write to the descriptor ([`AsFd`]): that
/// would get in front of what is kept.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    id: u64,
    turn: u64,
    peer: Peer,
    watched: bool,
    slot: u32,
    keeping: &'static Keeping,
    buffer: Buffer,
    baggage: Baggage,
    traffic: Traffic,
    /// What was written in this turn, and the client has not taken.
    kept: Option<Box<Kept>>,
    /// What had been written when this turn began.
    written_before: u64,
    pending_report: Option<&'static dyn WriteAhead>,
    /// Whether the last read got fewer bytes than it asked for, and so emptied the socket
    /// (epoll(7), question 9).
    drained: bool,
}

impl Connection {
    /// A connection that a master has lent, with its luggage. It takes the memory of `buffer` over
    /// and discards the contents.
    pub(crate) fn lent(
        (socket, luggage): (OwnedFd, Option<OwnedFd>),
        lend: &Lend<'_>,
        slot: u32,
        keeping: &'static Keeping,
        mut buffer: Buffer,
    ) -> Self {
        buffer.set(lend.carry);
        let Lend {
            id,
            turn,
            peer,
            watched,
            ..
        } = *lend;
        let baggage = Baggage::lent(lend, luggage);
        Self {
            socket,
            id,
            turn,
            peer,
            watched,
            slot,
            keeping,
            buffer,
            baggage,
            traffic: Traffic::default(),
            kept: None,
            written_before: 0,
            pending_report: None,
            drained: false,
        }
    }

    /// A connection outside of any server, in its first turn, to test a service with one end of a
    /// socket pair.
    pub fn adopt(socket: impl Into<OwnedFd>, peer: Peer) -> Self {
        let descriptors = (socket.into(), None);
        let (keeping, buffer) = (Keeping::of_no_server(), Buffer::default());
        Self::lent(descriptors, &Lend::first(0, peer), 0, keeping, buffer)
    }

    /// The client at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The number of this turn of the connection, from 1.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// The slot of the worker that serves this turn, from 0. A worker that replaces another one
    /// gets its slot.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// How much is kept of what the client sends slowly, or does not take, and where.
    pub(crate) fn keeping(&self) -> &'static Keeping {
        self.keeping
    }

    /// The connection, as if its worker kept so much.
    #[cfg(test)]
    pub(crate) fn with_keeping(self, keeping: &'static Keeping) -> Self {
        Self { keeping, ..self }
    }

    /// The bytes that were read and not yet consumed.
    #[must_use]
    pub fn buffer(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Removes the first `count` bytes from the buffer.
    ///
    /// # Panics
    /// If the buffer holds fewer bytes.
    pub fn consume(&mut self, count: usize) {
        self.buffer.consume(count);
    }

    /// Puts bytes that were consumed in this turn back, in front of the buffer.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.buffer.prepend(bytes);
    }

    /// Adds to the buffer what the client has sent so far, without sleeping. A client that sends on
    /// and takes nothing is not read from: when more than 256 KiB of what was written are kept for
    /// it, this is [`Fill::Empty`].
    ///
    /// # Errors
    /// Any error of recv(2); [`OutOfMemory`](io::ErrorKind::OutOfMemory) when the buffer holds 64
    /// KiB already, in which case the service has to consume some of it or close the connection.
    pub fn fill(&mut self) -> io::Result<Fill> {
        if self.is_far_behind()? {
            self.drained = false;
            return Ok(Fill::Empty);
        }
        match self.receive(RecvFlags::DONTWAIT) {
            Ok(0) => Ok(Fill::End),
            Ok(count) => Ok(Fill::Bytes(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Fill::Empty),
            Err(error) => Err(error),
        }
    }

    /// Like [`Connection::fill`], but sleeps until the client sends something or shuts down its
    /// sending side. It never returns [`Fill::Empty`].
    ///
    /// # Errors
    /// Those of [`Connection::fill`], and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn fill_wait(&mut self) -> io::Result<Fill> {
        self.send_all()?;
        match self.receive(RecvFlags::empty()) {
            Ok(0) => Ok(Fill::End),
            Ok(count) => Ok(Fill::Bytes(count)),
            Err(error) => Err(slept_too_long(error)),
        }
    }

    fn receive(&mut self, flags: RecvFlags) -> io::Result<usize> {
        let room = MAX_CARRY - self.buffer().len();
        if room == 0 {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                "the buffer is full: the service has left 64 KiB unconsumed",
            ));
        }
        let room = self.buffer.room(READ_SIZE.min(room));
        let count = loop {
            match recv(&self.socket, &mut *room, flags) {
                Ok((_, count)) => break count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    self.drained = error == rustix::io::Errno::AGAIN;
                    return Err(error.into());
                }
            }
        };
        self.drained = count < room.len();
        self.buffer.grow(count);
        self.traffic.read += count as u64;
        Ok(count)
    }

    /// Limits how long a read or a write on this connection may sleep. `None` is no limit. The
    /// limits stay with the connection in its later turns.
    ///
    /// # Errors
    /// Any error of setsockopt(2).
    pub fn set_timeouts(
        &mut self,
        read: Option<Duration>,
        write: Option<Duration>,
    ) -> io::Result<()> {
        use rustix::net::sockopt::{Timeout, set_socket_timeout};
        set_socket_timeout(&self.socket, Timeout::Recv, read)?;
        set_socket_timeout(&self.socket, Timeout::Send, write)?;
        Ok(())
    }

    /// What the service has noted about this client, in this turn or an earlier one: empty if
    /// nothing. It travels with the connection, apart from the bytes that were read, and outlives a
    /// reload, an upgrade, and the death of a worker between turns.
    #[must_use]
    pub fn note(&self) -> &[u8] {
        self.baggage.note()
    }

    /// Notes something about this client, in place of what was noted before: at most 4 KiB, and an
    /// empty note is none.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) when it is longer; the note is as before then.
    pub fn set_note(&mut self, note: &[u8]) -> io::Result<()> {
        if note.len() > MAX_SERVICE_NOTE {
            let text = format!("the note has {} bytes; 4096 are the most", note.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.baggage.set_note(note);
        Ok(())
    }

    /// The descriptor that travels with the connection, if there is one.
    #[must_use]
    pub fn luggage(&self) -> Option<BorrowedFd<'_>> {
        self.baggage.luggage()
    }

    /// Has a descriptor travel with the connection, in place of the one before: a memory file
    /// (memfd_create(2)) or a plain file. The master closes it when the connection is over. Do not
    /// use its offset, which all processes share: say how far you are in the note, and use
    /// pread(2), pwrite(2) and [`Connection::send_file`].
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) when it is anything else, because the master
    /// must be able to close it without waiting for anybody.
    pub fn set_luggage(&mut self, luggage: impl Into<OwnedFd>) -> io::Result<()> {
        let luggage = luggage.into();
        if !sys::luggage::is_acceptable(&luggage) {
            let text = "luggage must be a memory file or a plain file on a local file system";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.baggage.set_luggage(luggage);
        Ok(())
    }

    /// Takes the luggage out: it travels no further.
    pub fn take_luggage(&mut self) -> Option<OwnedFd> {
        self.baggage.take_luggage()
    }

    /// Whether another pool has passed the connection on ([`Turn::Pass`](crate::Turn::Pass)), so
    /// that it goes back there with [`Turn::Home`](crate::Turn::Home).
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.baggage.away
    }

    /// What travels with the connection.
    pub(crate) fn baggage(&self) -> &Baggage {
        &self.baggage
    }

    /// What travels with the connection.
    pub(crate) fn baggage_mut(&mut self) -> &mut Baggage {
        &mut self.baggage
    }

    /// Begins the next turn without a report in between.
    pub(crate) fn next_turn(&mut self) {
        self.turn += 1;
        self.written_before = self.traffic.written;
        self.drained = false;
    }

    /// Whether the client has sent something that nobody has read.
    pub(crate) fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(&self.socket).is_ok_and(|unread| unread > 0)
    }

    /// How much is in the buffer, and what was read and written since the connection was lent.
    pub(crate) fn moved(&self) -> (usize, u64, u64) {
        let Traffic { read, written } = self.traffic;
        (self.buffer().len(), read, written)
    }

    /// The connection's id in the report.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether the master watches the connection while it is lent.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Whether the last read took everything that the client had sent until then, so that another
    /// one would be a wasted system call.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Whether something was written since the connection was lent, and nothing in this turn.
    pub(crate) fn has_written_before_only(&self) -> bool {
        self.traffic.written > 0 && self.traffic.written == self.written_before
    }

    /// The bytes that were moved since the connection was lent.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Takes the connection apart. Dropping the socket ends the borrow, and the buffer serves the
    /// next connection.
    pub(crate) fn into_parts(self) -> (OwnedFd, Buffer, Baggage) {
        (self.socket, self.buffer, self.baggage)
    }
}

/// Makes the error of a call that slept too long [`TimedOut`](io::ErrorKind::TimedOut). The kernel
/// returns EAGAIN when a timeout of the socket ends the sleep (socket(7), SO_RCVTIMEO).
fn slept_too_long(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::TimedOut, "the client took too long")
        }
        _ => error,
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.buffer().is_empty() && !into.is_empty() {
            self.fill_wait()?;
        }
        let count = into.len().min(self.buffer().len());
        into[..count].copy_from_slice(&self.buffer()[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
