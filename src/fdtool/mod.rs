//! The demo commands: `send-fd` opens files and passes their descriptors, `recv-fd` shows what
//! arrived. This file owns the socket that both meet on; [`receive`](mod@receive) and
//! [`send`](mod@send) are the two ends, [`show`] is what recv-fd prints.
//!
//! They speak with any program that sends at least one byte and one descriptor, among them the
//! scm_rights_send and scm_rights_recv of TLPI 61.13.3.

mod receive;
mod send;
mod show;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::info;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};

use crate::error::{Error, Result};

pub(crate) use receive::{Receive, receive};
pub(crate) use send::{Send, Source, send};

/// What scm_rights_send sends along with its descriptor, as a native int.
pub(crate) const TLPI_NUMBER: i32 = 12345;

/// How long send-fd waits for a receiver that does not take what it is sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How many senders may wait to be accepted.
const BACKLOG: i32 = 128;

/// Where both ends meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Stream,
    Datagram,
}

/// The receiver's end. Its path is removed on drop.
struct Bound {
    socket: OwnedFd,
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Creates the socket, for its owner only, and listens on it.
    fn listen(&self) -> Result<Bound> {
        let attempt = || format!("listen on {}", self.path.display());
        let failed = |errno: Errno| Error::new(attempt(), errno);
        let address = SocketAddrUnix::new(&self.path).map_err(failed)?;
        let socket = self.open().map_err(failed)?;
        // bind(2) gives the path the mode of the socket, less the umask: set it before, and there
        // is no moment at which others may connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_if_dead(&self.path, &address)
                    .map_err(|reason| Error::because(attempt(), reason))?;
                bind(&socket, &address)
            }
            other => other,
        }
        .map_err(failed)?;
        let meta = fs::symlink_metadata(&self.path).map_err(|e| Error::new(attempt(), e))?;
        let bound = Bound {
            socket,
            path: self.path.clone(),
            identity: (meta.dev(), meta.ino()),
        };
        if self.kind == Kind::Stream {
            listen(&bound.socket, BACKLOG).map_err(failed)?;
        }
        Ok(bound)
    }

    /// Connects to the receiver.
    fn connect(&self) -> Result<OwnedFd> {
        let attempt = || format!("connect to {}", self.path.display());
        let failed = |errno: Errno| {
            let hint = match errno {
                Errno::NOENT | Errno::CONNREFUSED => "is recv-fd running?",
                Errno::PROTOTYPE => "only one side was told -d, to use datagrams",
                Errno::AGAIN => "the receiver accepts nobody",
                _ => return Error::new(attempt(), errno),
            };
            let words = nix::errno::Errno::from_raw(errno.raw_os_error()).desc();
            Error::because(attempt(), format!("{words} ({hint})"))
        };
        let address = SocketAddrUnix::new(&self.path).map_err(failed)?;
        let socket = self.open().map_err(failed)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SEND_TIMEOUT))
            .map_err(failed)?;
        connect(&socket, &address).map_err(failed)?;
        Ok(socket)
    }

    fn open(&self) -> Result<OwnedFd, Errno> {
        let kind = match self.kind {
            Kind::Stream => SocketType::STREAM,
            Kind::Datagram => SocketType::DGRAM,
        };
        socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Someone may have put another socket there in the meantime: that one is not ours to
        // remove.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours {
            // A directory that has become read-only is no reason to fail after the work is done.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that a dead process left behind, and nothing else. An error says why not.
fn remove_if_dead(path: &Path, address: &SocketAddrUnix) -> Result<(), String> {
    let before = match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => meta,
        Ok(_) => return Err("something that is not a socket is in the way".into()),
        // Gone by itself, or never there: then bind says better what is wrong.
        Err(_) => return Ok(()),
    };
    // To connect a datagram socket is no event for the other side, whatever its type. If it is
    // alive, the answer is yes or "wrong type"; the kernel refuses only when no process has the
    // socket open.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probed = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .and_then(|probe| connect(probe, address));
    match probed {
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        Ok(()) | Err(Errno::PROTOTYPE | Errno::PERM) => {
            return Err("another process has this socket open".into());
        }
        Err(errno) => return Err(format!("cannot tell whether it is in use: {errno}")),
    }
    let same = fs::symlink_metadata(path).is_ok_and(|meta| {
        (meta.dev(), meta.ino(), meta.ctime_nsec())
            == (before.dev(), before.ino(), before.ctime_nsec())
    });
    if same && fs::remove_file(path).is_ok() {
        info!("replaced {}, which nobody listened on", path.display());
    }
    Ok(())
}
