//! The Unix socket on which sender and receiver meet: creating it, replacing one that a dead
//! process left behind, and removing it at the end.

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use log::info;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use crate::error::{Error, Result};
use crate::sys::socket_path;

/// How many senders may wait to be accepted.
const BACKLOG: i32 = 128;

/// Where the two commands meet.
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
pub(super) struct Bound {
    /// Left to the end of the process. Closing it here could sleep, because what is still queued in
    /// it may be a socket that lingers; a process that exits does not wait for that.
    socket: ManuallyDrop<OwnedFd>,
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Creates the socket, for its owner only, and listens on it.
    pub(super) fn listen(&self) -> Result<Bound> {
        let attempt = || format!("listen on {}", self.path.display());
        let failed = |errno: Errno| Error::new(attempt(), errno);
        let address = socket_path::address(&self.path);
        let address = address.map_err(|error| Error::new(attempt(), error))?;
        let socket = self.open().map_err(failed)?;
        // bind(2) gives the path the mode of the socket, less the umask. With the mode set before,
        // there is no moment at which others may connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        make_way(&self.path).map_err(|error| Error::new(attempt(), error))?;
        bind(&socket, &address).map_err(failed)?;
        let meta = fs::symlink_metadata(&self.path).map_err(|e| Error::new(attempt(), e))?;
        let bound = Bound {
            socket: ManuallyDrop::new(socket),
            path: self.path.clone(),
            identity: (meta.dev(), meta.ino()),
        };
        if self.kind == Kind::Stream {
            listen(bound.socket(), BACKLOG).map_err(failed)?;
        }
        Ok(bound)
    }

    pub(super) fn open(&self) -> Result<OwnedFd, Errno> {
        let kind = match self.kind {
            Kind::Stream => SocketType::STREAM,
            Kind::Datagram => SocketType::DGRAM,
        };
        socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
    }
}

impl Bound {
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
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

/// What stands at a path where a socket should be, if it is something else: `a regular file`.
pub(super) fn not_a_socket(kind: fs::FileType) -> Option<&'static str> {
    Some(match kind {
        _ if kind.is_socket() => return None,
        _ if kind.is_file() => "a regular file",
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_symlink() => "a symbolic link",
        _ if kind.is_char_device() => "a character device",
        _ if kind.is_block_device() => "a block device",
        _ => "no socket",
    })
}

/// Removes a socket that a dead process left behind, and nothing else.
fn make_way(path: &Path) -> io::Result<()> {
    let there = fs::symlink_metadata(path).ok();
    if let Some(what) = there.and_then(|there| not_a_socket(there.file_type())) {
        let reason = format!("something that is not a socket is in the way: {what}");
        return Err(io::Error::other(reason));
    }
    match socket_path::make_way(path) {
        Ok(true) => info!("replaced {}, which no process had open", path.display()),
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return Err(io::Error::other("another process has this socket open"));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
