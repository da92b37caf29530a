//! The directory of a path, and whether a file can be made there.

use std::io;
use std::os::unix::ffi::OsStrExt;
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
