//! The socket where a new master asks, and who may.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use crate::error::{Error, Result};
use crate::master::listen::socket_file::SocketFile;
use crate::sys;

/// The socket where a new master asks.
#[derive(Debug)]
pub struct ControlSocket {
    socket: OwnedFd,
    /// Where it is to be found.
    path: PathBuf,
    /// Where it is: beside that, until it is published.
    file: SocketFile,
}

impl ControlSocket {
    /// Listens beside a path, where only this user may ask; [`publish`](Self::publish) moves the socket there. One that is
    /// there already must belong to nobody, or to the master that is to be replaced.
    ///
    /// # Errors
    /// What bind(2) fails with, and when another program listens there.
    pub fn prepare(path: &Path, replace: bool) -> Result<Self> {
        let attempt = || attempt(path);
        if !replace && is_in_use(path) {
            return Err(Error::because(
                attempt(),
                "another master listens there; take over from it with --takeover",
            ));
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(Error::because(
                    attempt(),
                    "the path exists and is not a socket",
                ));
            }
            _ => {}
        }
        // Moved to its place later, so that there is no moment without a socket, nor one without its mode.
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let bound = || -> io::Result<(OwnedFd, SocketFile)> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            // Nobody has one to give here, and to close it could take any time.
            sys::unix::refuse_descriptors(&socket)?;
            let _ = fs::remove_file(&beside);
            bind(&socket, &SocketAddrUnix::new(&beside)?)?;
            let file = SocketFile::at(&beside)?;
            fs::set_permissions(&beside, PermissionsExt::from_mode(0o600))?;
            listen(&socket, 8)?;
            Ok((socket, file))
        };
        let (socket, file) = bound().map_err(|error| Error::new(attempt(), error))?;
        let path = path.to_owned();
        Ok(Self { socket, path, file })
    }

    /// Takes its place, from now on.
    ///
    /// # Errors
    /// What rename(2) fails with.
    pub fn publish(&mut self) -> Result<()> {
        let failed = |error: io::Error| Error::new(attempt(&self.path), error);
        fs::rename(self.file.path(), &self.path).map_err(failed)?;
        self.file = SocketFile::at(&self.path).map_err(failed)?;
        Ok(())
    }

    /// The next who asks, if he may.
    ///
    /// # Errors
    /// What accept(2) fails with.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let socket = match accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let peer = getsockopt(&socket, PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
            log::warn!(
                "control socket: refused process {} of user {}",
                peer.pid(),
                peer.uid()
            );
            return Ok(None);
        }
        log::info!("control socket: process {} asks", peer.pid());
        Ok(Some(socket))
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Display for ControlSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.display().fmt(f)
    }
}

fn attempt(path: &Path) -> String {
    format!("listen on control socket {}", path.display())
}

/// Whether a program has a socket there. One of another kind is told apart without disturbing it (unix(7), EPROTOTYPE).
fn is_in_use(path: &Path) -> bool {
    let attempt = || -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)
    };
    matches!(attempt(), Ok(()) | Err(rustix::io::Errno::PROTOTYPE))
}
