//! The file of a Unix socket, from bind(2) to its removal.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Plain;

/// The file of a Unix socket. It is removed on drop, if it still is the one that was made. (A
/// worker process drops nothing of the master's.)
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
    /// The file is not another process's too.
    unlink_on_drop: bool,
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is removed when this is dropped.
    pub fn set_unlink_on_drop(&mut self, unlink: bool) {
        self.unlink_on_drop = unlink;
    }

    /// The file that was just made at this path.
    ///
    /// # Errors
    /// What stat(2) fails with.
    pub fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device_and_inode: (metadata.dev(), metadata.ino()),
            unlink_on_drop: true,
        })
    }
}

impl fmt::Display for SocketFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.unlink_on_drop
            && let Ok(metadata) = fs::symlink_metadata(&self.path)
            && (metadata.dev(), metadata.ino()) == self.device_and_inode
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {}", self.path.display(), Plain(&error));
        }
    }
}
