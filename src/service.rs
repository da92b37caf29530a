//! What a service is: one turn on one borrowed connection.
//!
//! A [`Service`] lives in a worker process. The master hands it a [`Connection`] when the client has sent something; the
//! service reads, answers, and says with a [`Turn`] what is to become of the connection. Between turns the connection
//! belongs to the master and occupies no worker, so a service keeps nothing about a client from one turn to the next,
//! except the bytes that it leaves unconsumed in the connection's buffer: they come along with the next turn.

use std::borrow::Cow;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::writev;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::wire::{Lend, MAX_CARRY, Outcome, Traffic};

pub use crate::wire::Peer;

/// How many bytes one [`Connection::fill`] asks the kernel for.
const READ_SIZE: usize = 16 * 1024;

/// Serves connections, a turn at a time, inside a worker process.
///
/// The worker makes its service after the fork, so a service may hold whatever its process needs: a database
/// connection, a cache, a thread. A panic or an abort ends the worker and costs the request in hand, nothing else.
pub trait Service {
    /// Serves one turn: from "the client has sent something" to "nothing more to do for now".
    ///
    /// # Errors
    /// An error closes the connection; it is logged at debug level, for a client that goes away is no event.
    fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn>;

    /// What the master must know of the service without running it.
    #[must_use]
    fn profile() -> ServiceProfile
    where
        Self: Sized,
    {
        ServiceProfile::default()
    }
}

/// What is to become of a connection when its turn is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Wait for the client's next bytes. What is left in the buffer comes along with them.
    Park,
    /// Wait until the client has taken enough of what was sent that more can be sent.
    ParkForWriting,
    /// There is more to do at once (a further request in the buffer): come back after the others that wait.
    Again,
    /// Over. The client has sent nothing that was not read.
    Close,
    /// Over, but the client may still be sending. The master drains it for a while, so that the last bytes sent are
    /// not lost to a reset (RFC 9112 §9.6), then closes it.
    Linger,
}

impl Turn {
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Park => Outcome::Park,
            Self::ParkForWriting => Outcome::ParkWrite,
            Self::Again => Outcome::Again,
            Self::Close => Outcome::Close,
            Self::Linger => Outcome::Linger,
        }
    }
}

/// What the master must know of a service without running it: when a connection is ready for its first turn, and what
/// to send in the service's name when no worker can. An empty reply means that the connection is just closed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceProfile {
    /// The service greets its client: a connection is ready at once, not when the client has sent something.
    pub speaks_first: bool,
    /// A turn that finds nothing to read does no harm: the service begins with [`Connection::fill`], which never
    /// sleeps. Saves the master a look at each connection before it lends it.
    pub tolerates_empty_turns: bool,
    /// Sent when the worker died during the turn, having read the request but sent nothing.
    pub crashed: Cow<'static, [u8]>,
    /// Sent when a turn took longer than the limit.
    pub timed_out: Cow<'static, [u8]>,
    /// Sent when there is no room for the connection, or it has waited too long for a worker.
    pub overloaded: Cow<'static, [u8]>,
    /// Sent when the client did not complete its request in time.
    pub request_timeout: Cow<'static, [u8]>,
}

/// What a [`Connection::fill`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// This many bytes were added to the buffer, at least one.
    Bytes(usize),
    /// The client has sent nothing more so far.
    Empty,
    /// The client has ended its side of the connection.
    End,
}

/// Told what a turn will have moved, and what is to become of the connection, before the call that makes it true.
pub(crate) trait WriteAhead: Send + Sync + std::fmt::Debug {
    /// See the trait.
    fn write_ahead(&self, id: u64, outcome: Outcome, traffic: Traffic);
}

/// A client's connection, borrowed from the master for one turn.
///
/// Reading goes through a buffer, [`Connection::buffer`], that holds what was read and not yet consumed, first of all
/// the carry of the turn before. [`Read`] takes from the buffer first, then from the client, and sleeps until the client
/// sends; [`Connection::fill`] never sleeps. Writing is unbuffered and sleeps until the kernel has taken everything.
/// A client that lets a sleep last longer than the listener's timeouts gets the error
/// [`TimedOut`](io::ErrorKind::TimedOut).
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    id: u64,
    turn: u64,
    peer: Peer,
    watched: bool,
    slot: u32,
    buffer: Buffer,
    traffic: Traffic,
    pending_report: Option<Arc<dyn WriteAhead>>,
    /// The last read found less than it asked for, so nothing was left behind it (epoll(7), Q9).
    drained: bool,
}

/// Initialized memory that is used again by one connection after the other, and the part of it that holds unconsumed
/// bytes.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    fn set(&mut self, bytes: &[u8]) {
        (self.start, self.end) = (0, 0);
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.end = bytes.len();
    }

    fn consume(&mut self, count: usize) {
        assert!(
            count <= self.end - self.start,
            "consumed more than the buffer holds"
        );
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// `count` bytes of memory behind the unconsumed ones. What is stored there counts once `end` is moved.
    fn room(&mut self, count: usize) -> &mut [u8] {
        if self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.memory.len() < self.end + count {
            self.memory.resize(self.end + count, 0);
        }
        &mut self.memory[self.end..self.end + count]
    }
}

impl Connection {
    /// A connection as it was lent. `buffer` is one to be used again; what it holds is discarded.
    pub(crate) fn lent(socket: OwnedFd, lend: &Lend<'_>, slot: u32, mut buffer: Buffer) -> Self {
        buffer.set(lend.carry);
        let Lend {
            id,
            turn,
            peer,
            watched,
            ..
        } = *lend;
        Self {
            socket,
            id,
            turn,
            peer,
            watched,
            slot,
            buffer,
            traffic: Traffic::default(),
            pending_report: None,
            drained: false,
        }
    }

    /// A connection outside any server, in its first turn: to test a service with one end of a socket pair.
    pub fn adopt(socket: impl Into<OwnedFd>, peer: Peer) -> Self {
        let lend = Lend {
            id: 0,
            turn: 1,
            peer,
            watched: false,
            carry: b"",
        };
        Self::lent(socket.into(), &lend, 0, Buffer::default())
    }

    /// The client.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Which turn of this connection this is, from 1.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// The slot of the worker that serves this turn, from 0. A replacement gets the slot of the worker it replaces.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// What was read and not yet consumed.
    #[must_use]
    pub fn buffer(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Drops the first `count` bytes of the buffer.
    ///
    /// # Panics
    /// When the buffer holds fewer.
    pub fn consume(&mut self, count: usize) {
        self.buffer.consume(count);
    }

    /// Adds what the client has sent so far to the buffer, without sleeping.
    ///
    /// # Errors
    /// What recv(2) fails with; [`OutOfMemory`](io::ErrorKind::OutOfMemory) when the buffer holds 64 KiB already: a
    /// service consumes, or gives up.
    pub fn fill(&mut self) -> io::Result<Fill> {
        match self.receive(RecvFlags::DONTWAIT) {
            Ok(0) => Ok(Fill::End),
            Ok(count) => Ok(Fill::Bytes(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Fill::Empty),
            Err(error) => Err(error),
        }
    }

    /// Like [`Connection::fill`], but sleeps until the client sends something or ends; never [`Fill::Empty`].
    ///
    /// # Errors
    /// As [`Connection::fill`], and [`TimedOut`](io::ErrorKind::TimedOut).
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
                "64 KiB were read and not consumed",
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
        self.buffer.end += count;
        self.traffic.read += count as u64;
        Ok(count)
    }

    /// Sends `bytes`, or as much of them as fits without sleeping; returns how many were sent, 0 when none fit.
    ///
    /// # Errors
    /// What send(2) fails with, `BrokenPipe` above all.
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.transmit(bytes, SendFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    /// Sends all of `bytes`, after which the service returns `then` without reading or writing more. Like
    /// [`Write::write_all`], or [`Connection::write_more`] if the connection ends; and if the worker is killed before
    /// it can report, the master can tell whether everything was sent, and the client loses nothing.
    ///
    /// # Errors
    /// What send(2) fails with, and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn write_last(&mut self, bytes: &[u8], then: Turn) -> io::Result<()> {
        if let Some(pending_report) = &self.pending_report
            && self.buffer().is_empty()
        {
            let mut traffic = self.traffic;
            traffic.written += bytes.len() as u64;
            pending_report.write_ahead(self.id, then.outcome(), traffic);
        }
        match then {
            Turn::Close | Turn::Linger => self.write_more(bytes),
            Turn::Park | Turn::ParkForWriting | Turn::Again => self.write_all(bytes),
        }
    }

    /// Notes that the turn is over with this outcome, though nobody has reported it yet.
    pub(crate) fn write_ahead(&self, outcome: Outcome) {
        if let Some(pending_report) = &self.pending_report {
            pending_report.write_ahead(self.id, outcome, self.traffic);
        }
    }

    /// Has `pending_report` told of the last calls of turns.
    pub(crate) fn with_write_ahead(mut self, pending_report: Option<Arc<dyn WriteAhead>>) -> Self {
        self.pending_report = pending_report;
        self
    }

    /// Sends all of `bytes` and lets the kernel hold back a last, short packet, for more follows at once (send(2),
    /// MSG_MORE): a head in front of [`Connection::send_file`], or the end of the connection behind its last bytes,
    /// which [`Turn::Close`] and [`Turn::Linger`] send.
    ///
    /// # Errors
    /// What send(2) fails with, and [`TimedOut`](io::ErrorKind::TimedOut).
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

    /// Sends `length` bytes of `file` from `offset` on without copying them through this process (sendfile(2)).
    ///
    /// # Errors
    /// What sendfile(2) fails with; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) when the file ends before.
    pub fn send_file(&mut self, file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            // The kernel moves at most 0x7ffff000 bytes a call.
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

    /// Bounds how long a later sleep in a read or a write on this connection may last. The bound stays with the
    /// connection in its later turns.
    ///
    /// # Errors
    /// What setsockopt(2) fails with.
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

    /// The next turn begins without a report in between.
    pub(crate) fn next_turn(&mut self) {
        self.turn += 1;
        self.drained = false;
    }

    /// Tells the client that nothing more follows. Closing would not, for the master has a descriptor of its own. An
    /// error means that the client knows.
    pub(crate) fn finish(&self) {
        let _ = shutdown(&self.socket, Shutdown::Write);
    }

    /// The connection's name in the report.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The master watches the connection while it is lent.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Everything that the client had sent was read when last something was read.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained
    }

    /// What this turn has moved so far.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Takes the connection apart; dropping the socket ends the borrow.
    pub(crate) fn into_parts(self) -> (OwnedFd, Buffer) {
        (self.socket, self.buffer)
    }
}

/// A sleep that the socket's own timeout ended shows as EAGAIN (socket(7), SO_RCVTIMEO): say what it is.
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

    /// Sends the parts as one piece: a head and a body in one packet, with neither copied.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // There is no flag against SIGPIPE here, but Rust programs ignore that signal.
        self.transmit_with(|socket| writev(socket, parts))
            .map_err(slept_too_long)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        (Connection::adopt(ours, Peer::Unix), theirs)
    }

    #[test]
    fn fill_adds_to_the_buffer_and_never_sleeps() {
        let (mut connection, mut client) = pair();
        assert_eq!(connection.fill().unwrap(), Fill::Empty);
        client.write_all(b"abc").unwrap();
        assert_eq!(connection.fill().unwrap(), Fill::Bytes(3));
        client.write_all(b"de").unwrap();
        assert_eq!(connection.fill().unwrap(), Fill::Bytes(2));
        connection.consume(1);
        assert_eq!(connection.buffer(), b"bcde");
        drop(client);
        assert_eq!(connection.fill().unwrap(), Fill::End);
        assert_eq!(
            connection.traffic(),
            Traffic {
                read: 5,
                written: 0
            }
        );
    }

    #[test]
    fn a_buffer_never_grows_past_what_the_wire_carries() {
        let (mut connection, mut client) = pair();
        let block = [b'x'; 8192];
        let error = loop {
            client.write_all(&block).unwrap();
            match connection.fill() {
                Ok(_) => assert!(connection.buffer().len() <= MAX_CARRY),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(connection.buffer().len(), MAX_CARRY);
    }

    #[test]
    fn parts_and_pieces_arrive_in_order_and_are_counted() {
        let (mut connection, mut client) = pair();
        connection.write_more(b"head ").unwrap();
        let parts = [IoSlice::new(b"and "), IoSlice::new(b"body")];
        assert_eq!(connection.write_vectored(&parts).unwrap(), 8);
        assert_eq!(connection.traffic().written, 13);
        drop(connection);
        let mut received = String::new();
        client.read_to_string(&mut received).unwrap();
        assert_eq!(received, "head and body");
    }

    #[test]
    fn a_sleep_past_the_timeout_says_that_the_client_took_too_long() {
        let (mut connection, _client) = pair();
        connection
            .set_timeouts(Some(Duration::from_millis(10)), None)
            .unwrap();
        let error = connection.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
