//! The control socket, where a new master asks to take over, and who may ask.
//!
//! The socket is bound at its path itself, not beside it: the kernel shows in /proc/net/unix where
//! a socket was bound, and programs that clean up go by that (systemd-tmpfiles removes the file of
//! a socket that is not shown). So two masters can't have it at the same time. In a takeover the
//! new one takes the path when the old one has handed over, by removing the file and binding anew.
//! In the moment in between nobody is found there, which costs nobody a takeover: until the old
//! master has ended, whoever asks is refused anyway.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Pid, geteuid};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect, listen,
    socket_with,
};

use crate::error::{Error, Result};
use crate::master::listen::socket_file::SocketFile;
use crate::sys;
use crate::sys::socket_path::{Occupant, occupant};

/// The mode of the file: only this user may ask (and root).
const MODE: u32 = 0o600;

/// How many may wait to be heard.
const BACKLOG: i32 = 8;

/// Who waits to be heard.
#[derive(Debug)]
pub enum Asking {
    /// No one.
    Nobody,
    /// A process whose user may not ask. Its connection is closed.
    Stranger,
    /// A process, which has this connection.
    Process(OwnedFd),
}

/// See the module.
#[derive(Debug)]
pub struct ControlSocket {
    socket: OwnedFd,
    file: SocketFile,
}

impl ControlSocket {
    /// Checks whether the socket can be bound at this path when the master that may have one there
    /// has handed over.
    ///
    /// # Errors
    /// A file of another kind at the path, or a path or a directory that can't be used.
    pub fn check(path: &Path) -> Result<()> {
        sys::socket_path::check(path).map_err(|error| Error::new(attempt(path), error))
    }

    /// Checks the same for a master which has to leave all sockets alone but those of the master
    /// `other`.
    ///
    /// # Errors
    /// As for [`check`](Self::check), and a socket of anybody else.
    pub fn check_replace(path: &Path, other: Pid) -> Result<()> {
        Self::check(path)?;
        let found = find_replaceable(path, other).map(drop);
        found.map_err(|error| Error::new(attempt(path), error))
    }

    /// Binds the socket at this path, and listens.
    ///
    /// # Errors
    /// Another process that has a socket there, a file of another kind, and what bind(2)
    /// fails with.
    pub fn bind(path: &Path) -> Result<Self> {
        let bound = || {
            sys::socket_path::make_way(path).map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => io::Error::other(
                    "another master listens there; take over from it with --takeover",
                ),
                _ => error,
            })?;
            Self::bind_to(path)
        };
        bound().map_err(|error| Error::new(attempt(path), error))
    }

    /// Binds the socket at this path, in place of that of the master `other`, from which this one
    /// has taken over, if there is one.
    ///
    /// # Errors
    /// A socket of anybody else, a file of another kind, and what bind(2) fails with.
    pub fn replace(path: &Path, other: Pid) -> Result<Self> {
        let bound = || {
            if find_replaceable(path, other)? {
                fs::remove_file(path)?;
            }
            Self::bind_to(path)
        };
        bound().map_err(|error| Error::new(attempt(path), error))
    }

    fn bind_to(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // Nobody has a descriptor to give here, and to close one could take any time.
        sys::rights::refuse_descriptors(&socket)?;
        sys::socket_path::bind_to(&socket, path, Some(MODE))?;
        let file = SocketFile::at(path)?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket, file })
    }

    /// Whether the path leads to this socket no longer.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.file.is_lost()
    }

    /// Accepts the next connection.
    ///
    /// # Errors
    /// What accept(2) fails with. Who has connected may be waiting still.
    pub fn accept(&self) -> io::Result<Asking> {
        let socket =
            match rustix::io::retry_on_intr(|| accept_with(&self.socket, SocketFlags::CLOEXEC)) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN) => return Ok(Asking::Nobody),
                Err(error) => return Err(error.into()),
            };
        let peer = getsockopt(&socket, PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
            log::warn!(
                "control socket: refused process {} of user {}",
                peer.pid(),
                peer.uid()
            );
            return Ok(Asking::Stranger);
        }
        Ok(Asking::Process(socket))
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Display for ControlSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "control socket {}", self.file)
    }
}

/// Whether there is a socket at the path that may be removed: one that is closed, or one of the
/// process `other` (0 if that is in another PID namespace, as unix(7) has it).
///
/// # Errors
/// A socket that somebody else has, a file of another kind, and a path that can't be used.
fn find_replaceable(path: &Path, other: Pid) -> io::Result<bool> {
    let listener = listener_at(path);
    match occupant(path)? {
        Occupant::Nothing => Ok(false),
        Occupant::Live if listener != Some(other) => {
            Err(io::Error::other("another process has a socket there"))
        }
        Occupant::Live | Occupant::Stale => Ok(true),
    }
}

/// The process that listens on a control socket at this path. It sees somebody who comes and
/// goes without a word.
fn listener_at(path: &Path) -> Option<Pid> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).ok()?;
    connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    let listener = getsockopt(&socket, PeerCredentials).ok()?;
    Some(Pid::from_raw(listener.pid()))
}

fn attempt(path: &Path) -> String {
    format!("listen on control socket {}", path.display())
}
