//! The socket between two masters, with its messages and their descriptors.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

use super::messages::{FromNew, FromOld, ROOM, VERSION};
use crate::error::Plain;
use crate::fdpass::{self, Wait};
use crate::master::snapshot::{Malformed, Packing};
use crate::sys;
use crate::sys::unforked::Unforked;

/// How long one master waits for the other at the most, in all.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How much longer the hand-over of so many connections may take: by the work that it is, not by
/// what the other master does.
#[must_use]
pub fn longer_for(connections: usize) -> Duration {
    const EACH: Duration = Duration::from_micros(100);
    EACH * u32::try_from(connections).unwrap_or(u32::MAX)
}

/// After what time a master that waits for the other one looks again whether it is told to stop. A
/// signal ends the wait itself, unless it comes right before.
const LOOK: Duration = Duration::from_millis(100);

/// How many messages are taken at a time while this master serves: clients have something to say,
/// too.
pub const BATCH: usize = 64;

/// One master's end.
#[derive(Debug)]
pub struct Session {
    socket: OwnedFd,
    version: u32,
    told_to_stop: Arc<AtomicBool>,
}

/// The descriptors that come with a message: one, and luggage.
pub type Along = (Option<OwnedFd>, Option<OwnedFd>);

/// A buffer that takes any message. Processes that are forked from this one do not have it.
#[derive(Debug)]
pub struct Buffer(Unforked);

impl Default for Buffer {
    fn default() -> Self {
        Self(Unforked::zeroed(ROOM))
    }
}

impl Session {
    /// A session over a connected SEQPACKET socket.
    ///
    /// # Errors
    /// What getsockopt(2) and setsockopt(2) fail with.
    pub fn over(socket: OwnedFd) -> io::Result<Self> {
        if sockopt::socket_send_buffer_size(&socket)? < 2 * ROOM {
            sockopt::set_socket_send_buffer_size(&socket, ROOM)?;
        }
        Ok(Self {
            socket,
            version: VERSION,
            told_to_stop: Arc::default(),
        })
    }

    /// Two ends, for two masters on this machine.
    ///
    /// # Errors
    /// What socketpair(2) fails with.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The old master gives descriptors and takes none.
        sys::rights::refuse_descriptors(&ours)?;
        Ok((Self::over(ours)?, theirs))
    }

    /// Speaks this version of the protocol from now on.
    pub fn set_version(&mut self, version: u32) {
        self.version = version;
    }

    /// No longer waits for the other one from the moment on when this is set: what would wait fails
    /// with `Interrupted`.
    pub fn wait_unless(&mut self, told_to_stop: Arc<AtomicBool>) {
        self.told_to_stop = told_to_stop;
    }

    /// The process that made the other end; 0 if it is in another PID namespace (unix(7)).
    #[must_use]
    pub fn peer(&self) -> Pid {
        let peer = getsockopt(&self.socket, PeerCredentials);
        Pid::from_raw(peer.map_or(0, |peer| peer.pid()))
    }

    /// Sends what the old master says. Waits until `deadline` while the other one is behind, and
    /// not at all without one.
    ///
    /// # Errors
    /// What sendmsg(2) fails with; `TimedOut` at the deadline, and `WouldBlock` without one.
    pub fn send_to_new(
        &self,
        message: &FromOld,
        descriptors: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let header = message.header(self.version);
        let rest = match message {
            FromOld::Connection(_, snapshot) => [&*snapshot.packed.note, &*snapshot.carry],
            _ => [&[][..]; 2],
        };
        self.send(&header, rest, descriptors, deadline)
    }

    /// The version of the protocol that is spoken.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Sends what the new master says, as [`send_to_new`](Self::send_to_new) does.
    ///
    /// # Errors
    /// As [`Session::send_to_new`].
    pub fn send_to_old(&self, message: &FromNew, deadline: Option<Instant>) -> io::Result<()> {
        self.send(&message.header(), [&[]; 2], &[], deadline)
    }

    /// Refuses the process at the other end, and closes this one. A close with unread bytes would
    /// overtake the refusal (the other end reads ECONNRESET first), so they are taken out, and no
    /// more can come.
    pub fn refuse(self, why: &str) {
        let _ = self.send_to_new(&FromOld::Refused(why.to_owned()), &[], None);
        let _ = shutdown(&self.socket, Shutdown::Read);
        let mut buffer = Buffer::default();
        while self.receive(&mut buffer, 0, None).is_ok() {}
    }

    fn send(
        &self,
        header: &str,
        [note, carry]: [&[u8]; 2],
        descriptors: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let data = [header.as_bytes(), note, carry].map(IoSlice::new);
        loop {
            match fdpass::send(&self.socket, &data, descriptors, Wait::Dont) {
                Ok(_) => return Ok(()),
                Err(error) if error.would_block() => self.wait_for(PollFlags::OUT, deadline)?,
                // The other one must take some of the descriptors first, which makes no event here.
                Err(error) if error.is_back_pressure() => {
                    std::thread::sleep(self.left(deadline)?.min(Duration::from_millis(1)));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait_for(&self, flags: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
        let timeout = Timespec::try_from(self.left(deadline)?.min(LOOK)).ok();
        // What has happened, or that a signal has come, shows in the call that follows.
        match event::poll(&mut [PollFd::new(&self.socket, flags)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// How much time is left until a deadline.
    fn left(&self, deadline: Option<Instant>) -> io::Result<Duration> {
        let deadline = deadline.ok_or(io::ErrorKind::WouldBlock)?;
        if self.told_to_stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")),
            false => Ok(left),
        }
    }

    /// What the new master says. Waits for it as [`send_to_new`](Self::send_to_new) does.
    ///
    /// # Errors
    /// What recvmsg(2) fails with; `TimedOut` at the deadline, `WouldBlock` without one,
    /// `UnexpectedEof` when the other one is gone, and `InvalidData`.
    pub fn recv_from_new(
        &self,
        buffer: &mut Buffer,
        deadline: Option<Instant>,
    ) -> io::Result<FromNew> {
        let (length, _) = self.receive(buffer, 0, deadline)?;
        FromNew::parse(&buffer.0[..length]).map_err(strange)
    }

    /// What the old master says, and the descriptors that came along: that of a listener, or of a
    /// connection and its luggage.
    ///
    /// # Errors
    /// As [`Session::recv_from_new`].
    pub fn recv_from_old(
        &self,
        buffer: &mut Buffer,
        deadline: Option<Instant>,
    ) -> io::Result<(FromOld, Along)> {
        let (length, descriptors) = self.receive(buffer, 2, deadline)?;
        let message = FromOld::parse(&buffer.0[..length], self.version);
        // What a client has sent is in the message now.
        buffer.0[..length].fill(0);
        let mut descriptors = descriptors.into_iter();
        let along = (descriptors.next(), descriptors.next());
        let message = message.map_err(strange)?;
        match (&message, &along.1) {
            (FromOld::Connection(_, snapshot), luggage)
                if luggage.is_some() == (snapshot.packed.luggage != Packing::None) => {}
            (FromOld::Connection(..), _) | (_, Some(_)) => return Err(strange(Malformed)),
            (_, None) => {}
        }
        Ok((message, along))
    }

    fn receive(
        &self,
        buffer: &mut Buffer,
        wanted: usize,
        deadline: Option<Instant>,
    ) -> io::Result<(usize, Vec<OwnedFd>)> {
        loop {
            match fdpass::receive(&self.socket, &mut buffer.0, wanted, Wait::Dont) {
                Ok(message) if message.length == 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(message) => return Ok((message.length, message.descriptors)),
                Err(error) if error.would_block() => self.wait_for(PollFlags::IN, deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn strange(Malformed: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed message")
}

/// Whether the other master has closed its end, or ended.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// What became of the other master, for the log: `the old master is gone`.
#[must_use]
pub fn reason(who: &str, error: &io::Error) -> String {
    match error.kind() {
        _ if is_gone(error) => format!("{who} is gone"),
        io::ErrorKind::TimedOut => format!("{who} is silent for {} s", PATIENCE.as_secs()),
        _ => format!("{who}: {}", Plain(error)),
    }
}
