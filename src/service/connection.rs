//! A client's connection, as a service sees it for one turn.

mod gathering;

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::writev;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::service::baggage::Baggage;
use crate::service::buffer::Buffer;
use crate::service::keeping::Keeping;
use crate::service::turn::Turn;
use crate::sys;
use crate::wire::{Extras, Lend, MAX_CARRY, Outcome, Peer, Traffic};

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
/// sleeps. Writing is unbuffered and sleeps until the kernel has taken everything. A sleep that
/// lasts longer than the connection's timeout ([`Connection::set_timeouts`]) fails with
/// [`TimedOut`](io::ErrorKind::TimedOut).
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

    /// Adds to the buffer what the client has sent so far, without sleeping.
    ///
    /// # Errors
    /// Any error of recv(2); [`OutOfMemory`](io::ErrorKind::OutOfMemory) when the buffer holds 64
    /// KiB already, in which case the service has to consume some of it or close the connection.
    pub fn fill(&mut self) -> io::Result<Fill> {
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

    /// Sends as many of `bytes` as the kernel takes without sleeping, and returns how many these
    /// were; 0 means that there is no room now.
    ///
    /// # Errors
    /// Any error of send(2), most often `BrokenPipe`.
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.transmit(bytes, SendFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    /// Sends all of `bytes`, as the last act of a turn: the service must then return `then` without
    /// reading or writing any more.
    ///
    /// This is [`Write::write_all`], or [`Connection::write_more`] if the connection ends. In
    /// addition, if the worker is killed before it can report, the master can tell whether
    /// everything was sent, and if so the client notices nothing.
    ///
    /// # Errors
    /// Any error of send(2), and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn write_last(&mut self, bytes: &[u8], then: Turn) -> io::Result<()> {
        if let Some(pending_report) = self.pending_report
            && self.may_be_foreseen()
        {
            let mut traffic = self.traffic;
            traffic.written += bytes.len() as u64;
            pending_report.write_ahead(self.id, then.outcome(), traffic);
        }
        match then {
            Turn::Close | Turn::Linger => self.write_more(bytes),
            _ => self.write_all(bytes),
        }
    }

    /// Writes the report of the turn ahead, as the connection stands now, if it is one that can be.
    pub(crate) fn write_ahead(&self, outcome: Outcome) {
        if let Some(pending_report) = self.pending_report
            && self.may_be_foreseen()
        {
            pending_report.write_ahead(self.id, outcome, self.traffic);
        }
    }

    /// Whether the report can be told from the outcome and the counters alone, since nothing
    /// travels with the connection that was not there before.
    fn may_be_foreseen(&self) -> bool {
        self.buffer().is_empty() && self.baggage.extras() == Extras::default()
    }

    /// Sets where reports are written ahead of the last call of a turn.
    pub(crate) fn set_write_ahead(&mut self, pending_report: &'static dyn WriteAhead) {
        self.pending_report = Some(pending_report);
    }

    /// Sends all of `bytes`, but lets the kernel hold back the last packet if it is short (send(2),
    /// MSG_MORE). Use it when more follows at once: the file after a head
    /// ([`Connection::send_file`]), or the end of the connection after its last bytes
    /// ([`Turn::Close`], [`Turn::Linger`]).
    ///
    /// # Errors
    /// Any error of send(2), and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn write_more(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self
                .transmit(bytes, SendFlags::MORE)
                .map_err(slept_too_long)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn transmit(&mut self, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
        self.transmit_with(|socket| send(socket, bytes, flags | SendFlags::NOSIGNAL))
    }

    fn transmit_with(
        &mut self,
        call: impl Fn(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match call(&self.socket) {
                Ok(count) => {
                    self.traffic.written += count as u64;
                    return Ok(count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends `length` bytes of `file`, from `offset` on, without copying them through this process
    /// (sendfile(2)).
    ///
    /// # Errors
    /// Any error of sendfile(2); [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) when the file is
    /// shorter.
    pub fn send_file(&mut self, file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            // One call transfers at most 0x7ffff000 bytes (sendfile(2)).
            let chunk = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(0x7fff_f000);
            match rustix::fs::sendfile(&self.socket, &file, Some(&mut at), chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.traffic.written += count as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(slept_too_long(error.into())),
            }
        }
        Ok(())
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

    /// Whether another pool has passed the connection on ([`Turn::Pass`]), so that it goes back
    /// there with [`Turn::Home`].
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
        self.drained = false;
    }

    /// Whether the client has sent something that nobody has read.
    pub(crate) fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(&self.socket).is_ok_and(|unread| unread > 0)
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

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.transmit(bytes, SendFlags::empty())
            .map_err(slept_too_long)
    }

    /// Sends the parts as one piece, for example a head and a body in one packet, without copying
    /// them together.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // writev(2) has no flag against SIGPIPE, but a Rust program ignores that signal.
        self.transmit_with(|socket| writev(socket, parts))
            .map_err(slept_too_long)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
