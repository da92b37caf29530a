//! The file of a Unix socket: who may connect there, whether it is still there, and its removal.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, fstat, openat};

use crate::config::UnixAccess;
use crate::master::removal::{self, Identity, identity};
use crate::sys::{directory, socket_path};

/// The file of a Unix socket. It is removed on drop, if the path still leads to it. (A worker drops
/// nothing of the master's.)
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// `None` if the file was gone when this process learned of it.
    device_and_inode: Option<Identity>,
    /// The file does not belong to another master too.
    unlink_on_drop: bool,
}

impl SocketFile {
    /// Where the file was made.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets whether the file is removed when this is dropped.
    pub fn set_unlink_on_drop(&mut self, unlink: bool) {
        self.unlink_on_drop = unlink;
    }

    /// The file that was just made at this path.
    ///
    /// # Errors
    /// What stat(2) fails with, and `NotFound` if it is no socket.
    pub fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        if !metadata.file_type().is_socket() {
            return Err(replaced());
        }
        Ok(Self {
            path: path.to_owned(),
            device_and_inode: Some(identity(&metadata)),
            unlink_on_drop: true,
        })
    }

    /// The device and the inode, unless the file was gone when this process learned of it.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        self.device_and_inode
    }

    /// A file that was at this path once, and is gone.
    #[must_use]
    pub fn missing(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            device_and_inode: None,
            unlink_on_drop: false,
        }
    }

    /// Whether the path leads to the socket no longer, so that no new client can connect.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        // Without permission to look, nobody can say that it is.
        let lost = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => self.device_and_inode != Some(identity(&metadata)),
            Err(error) => lost(error),
        }
    }

    /// Gives the file the owner, the group and the mode that are asked for, where it has others.
    /// What was asked for `before` and is not any more is as if the file were made now. The path
    /// may be in a directory of somebody else, so nothing is done to a file that has taken its
    /// place.
    ///
    /// # Errors
    /// What chown(2) and chmod(2) fail with, and `NotFound` if the path leads elsewhere.
    pub fn grant(&self, access: &UnixAccess, before: Option<&UnixAccess>) -> io::Result<()> {
        let revoked = before.map_or_else(UnixAccess::default, |before| self.default_of(before));
        let access = access.clone().or(revoked);
        if access == UnixAccess::default() {
            return Ok(());
        }
        let owner = access.owner.as_deref().map(number).transpose()?;
        let group = access.group.as_deref().map(number).transpose()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, &self.path, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        if self.device_and_inode != Some((stat.st_dev, stat.st_ino)) {
            return Err(replaced());
        }
        let owner = owner.filter(|uid| *uid != stat.st_uid).map(Uid::from_raw);
        let group = group.filter(|gid| *gid != stat.st_gid).map(Gid::from_raw);
        if owner.is_some() || group.is_some() {
            chownat(&file, "", owner, group, AtFlags::EMPTY_PATH)?;
        }
        match access.mode {
            Some(mode) if mode != stat.st_mode & 0o777 => {
                // A descriptor of this kind is not enough for fchmod(2).
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                fs::set_permissions(path, PermissionsExt::from_mode(mode))
            }
            _ => Ok(()),
        }
    }

    /// What a new file at this path would have, of those properties that are set here.
    fn default_of(&self, set: &UnixAccess) -> UnixAccess {
        let group = || {
            // A directory with the set-group-ID bit passes its group on (inode(7)).
            let directory = fs::metadata(directory::of(&self.path)).ok();
            let passed_on = directory.filter(|directory| directory.mode() & libc::S_ISGID != 0);
            passed_on.map_or_else(|| getegid().as_raw(), |directory| directory.gid())
        };
        UnixAccess {
            mode: set.mode.map(|_| socket_path::default_mode()),
            owner: set.owner.as_ref().map(|_| geteuid().to_string()),
            group: set.group.as_ref().map(|_| group().to_string()),
        }
    }
}

fn replaced() -> io::Error {
    let reason = "another file has taken its place";
    io::Error::new(io::ErrorKind::NotFound, reason)
}

/// The number of a user or a group. Names were looked up before the pool came here, because the
/// master does not wait for a user database.
fn number(account: &str) -> io::Result<u32> {
    let number = account.parse();
    number.map_err(|_| io::Error::other(format!("{account:?} is not a number")))
}

impl fmt::Display for SocketFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(own) = self.device_and_inode
            && self.unlink_on_drop
        {
            removal::remove(&self.path, own);
        }
    }
}
