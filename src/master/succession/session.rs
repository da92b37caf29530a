//! The socket between two masters, with its messages and their descriptors.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

use super::messages::{FromNew, FromOld, ROOM, VERSION};
use crate::error::Plain;
use crate::fdpass::{self, Wait};
use crate::master::snapshot::Malformed;

/// How long one master waits for a word of the other while both hold still. Clients wait with them.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// One master's end.
#[derive(Debug)]
pub struct Session {
    socket: OwnedFd,
    version: u32,
}

/// A buffer that takes any message.
#[derive(Debug)]
pub struct Buffer(Box<[u8]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; ROOM].into())
    }
}

impl Session {
    /// A session over a connected SEQPACKET socket.
    ///
    /// # Errors
    /// What setsockopt(2) fails with.
    pub fn over(socket: OwnedFd) -> io::Result<Self> {
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        if sockopt::socket_send_buffer_size(&socket)? < 2 * ROOM {
            sockopt::set_socket_send_buffer_size(&socket, ROOM)?;
        }
        Ok(Self {
            socket,
            version: VERSION,
        })
    }

    /// Two ends, for two masters on this machine.
    ///
    /// # Errors
    /// What socketpair(2) fails with.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::over(ours)?, theirs))
    }

    /// Speaks this version of the protocol from now on.
    pub fn set_version(&mut self, version: u32) {
        self.version = version;
    }

    /// The process that made the other end, as far as this process can see it.
    #[must_use]
    pub fn peer(&self) -> Option<Pid> {
        let peer = getsockopt(&self.socket, PeerCredentials).ok()?;
        (peer.pid() > 0).then(|| Pid::from_raw(peer.pid()))
    }

    /// Sends what the old master says. Sleeps while the other one is behind.
    ///
    /// # Errors
    /// What sendmsg(2) fails with; `TimedOut` when the other one does not read.
    pub fn send_to_new(
        &self,
        message: &FromOld<'_>,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let carry = match message {
            FromOld::Connection(_, snapshot) => &*snapshot.carry,
            _ => &[],
        };
        self.send(&message.header(self.version), carry, descriptor)
    }

    /// Sends what the new master says.
    ///
    /// # Errors
    /// As [`Session::send_to_new`].
    pub fn send_to_old(&self, message: &FromNew) -> io::Result<()> {
        self.send(&message.header(), &[], None)
    }

    /// Refuses the process at the other end, and closes this one. A close with unread bytes would
    /// overtake the refusal (the other end reads ECONNRESET first), so they are taken out, and no
    /// more can come.
    pub fn refuse(self, why: &str) {
        let _ = self.send_to_new(&FromOld::Refused(why.to_owned()), None);
        let _ = shutdown(&self.socket, Shutdown::Read);
        let mut buffer = Buffer::default();
        while self.receive(&mut buffer, 0, Wait::Dont).is_ok() {}
    }

    fn send(
        &self,
        header: &str,
        carry: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let data = [IoSlice::new(header.as_bytes()), IoSlice::new(carry)];
        let descriptors = descriptor.as_slice();
        let end = Instant::now() + PATIENCE;
        loop {
            match fdpass::send(&self.socket, &data, descriptors, Wait::Block) {
                Ok(_) => return Ok(()),
                Err(error) if error.would_block() => return Err(silent()),
                // The other one must take some of the descriptors first, and does so all the time.
                Err(error) if error.is_back_pressure() && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the new master says.
    ///
    /// # Errors
    /// What recvmsg(2) fails with; `TimedOut` when it is silent for too long, `UnexpectedEof` when
    /// it is gone, and `InvalidData`.
    pub fn recv_from_new(&self, buffer: &mut Buffer) -> io::Result<FromNew> {
        let (length, _) = self.receive(buffer, 0, Wait::Block)?;
        FromNew::parse(&buffer.0[..length]).map_err(strange)
    }

    /// The same without sleeping; `None` when there is nothing yet.
    ///
    /// # Errors
    /// As [`Session::recv_from_new`].
    pub fn poll_new(&self, buffer: &mut Buffer) -> io::Result<Option<FromNew>> {
        match self.receive(buffer, 0, Wait::Dont) {
            Ok((length, _)) => FromNew::parse(&buffer.0[..length])
                .map(Some)
                .map_err(strange),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the old master says, and the descriptor that came along.
    ///
    /// # Errors
    /// As [`Session::recv_from_new`].
    pub fn recv_from_old<'a>(
        &self,
        buffer: &'a mut Buffer,
    ) -> io::Result<(FromOld<'a>, Option<OwnedFd>)> {
        let (length, descriptor) = self.receive(buffer, 1, Wait::Block)?;
        let message = FromOld::parse(&buffer.0[..length], self.version).map_err(strange)?;
        Ok((message, descriptor))
    }

    /// The same without sleeping; `None` when there is nothing yet.
    ///
    /// # Errors
    /// As [`Session::recv_from_new`].
    pub fn poll_old<'a>(
        &self,
        buffer: &'a mut Buffer,
    ) -> io::Result<Option<(FromOld<'a>, Option<OwnedFd>)>> {
        match self.receive(buffer, 1, Wait::Dont) {
            Ok((length, descriptor)) => {
                let message = FromOld::parse(&buffer.0[..length], self.version).map_err(strange)?;
                Ok(Some((message, descriptor)))
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive(
        &self,
        buffer: &mut Buffer,
        wanted: usize,
        wait: Wait,
    ) -> io::Result<(usize, Option<OwnedFd>)> {
        match fdpass::receive(&self.socket, &mut buffer.0, wanted, wait) {
            Ok(message) if message.length == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(mut message) => Ok((message.length, message.descriptors.pop())),
            Err(error) if error.would_block() => Err(silent()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer")
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
