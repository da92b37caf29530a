//! Removing a file that the master has made. Where the file system does not answer any more (NFS,
//! FUSE), nothing but a signal that kills ends lstat(2) and unlink(2): so a child calls them, and
//! the master waits for it no longer than [`LAST_CHANCE`].

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::child::{Child, Exit, LAST_CHANCE};
use crate::error::Plain;
use crate::sys::process::{spawn, with_signals_blocked};

/// Which file it is, by its device and its inode.
pub type Identity = (u64, u64);

/// The identity of the file that has this metadata.
#[must_use]
pub fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Removes the file at this path, if it is `own` still. When it can't be removed, the log says so.
pub fn remove(path: &Path, own: Identity) {
    let status = || match unlink(path, own) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO) as u8,
    };
    let removed = match with_signals_blocked(|_| spawn(&[], || {}, status)) {
        Ok(pid) => match Child::new(pid).end_within(LAST_CHANCE) {
            Some(Exit::Exited(0)) => Ok(()),
            Some(Exit::Exited(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Exit::Killed(_)) | None => Err(io::Error::other(format!(
                "no answer within {} s",
                LAST_CHANCE.as_secs()
            ))),
        },
        // Without a child: the file has to go.
        Err(_) => unlink(path, own),
    };
    if let Err(error) = removed {
        log::warn!("cannot remove {}: {}", path.display(), Plain(&error));
    }
}

fn unlink(path: &Path, own: Identity) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if identity(&there) == own => fs::remove_file(path),
        Ok(_) | Err(_) => Ok(()),
    }
}
