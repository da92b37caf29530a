//! The directory of a path: which one it is, and whether a file can be made there.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

/// The directory that a path is in.
pub fn of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

/// What a path stands for, however it is written: the device and the inode of its directory, and
/// its name there. `None` if there is no such directory, or the path ends with `..`.
pub fn place(path: &Path) -> Option<(u64, u64, &OsStr)> {
    let directory = fs::metadata(of(path)).ok()?;
    Some((directory.dev(), directory.ino(), path.file_name()?))
}

/// Checks whether this process may make a file, or replace one, in the directory of a path.
///
/// # Errors
/// When the directory is none, is not there, or this process may not write to it; and when the
/// path ends with a slash, for then no file has it.
pub fn check(path: &Path) -> io::Result<()> {
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(Errno::ISDIR.into());
    }
    // With a dot, what is no directory is seen to be none.
    let directory = of(path).join(".");
    let needed = Access::WRITE_OK | Access::EXEC_OK;
    Ok(accessat(CWD, directory, needed, AtFlags::EACCESS)?)
}
