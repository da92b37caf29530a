//! Files without a name: no other process can open one, and it is gone with its last descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    Access, AtFlags, CWD, MemfdFlags, Mode, OFlags, accessat, memfd_create, openat, unlinkat,
};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::sys::luggage::is_local;

/// A directory in which files without a name are made.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// Opens a directory in which this process may make files.
    ///
    /// # Errors
    /// When there is none, or this process may not reach it or write to it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, path, flags, Mode::empty())?;
        let needed = Access::WRITE_OK | Access::EXEC_OK;
        accessat(&directory, ".", needed, AtFlags::EACCESS)?;
        Ok(Self(directory))
    }

    /// Whether it is on a file system that is of this machine ([`is_local`]).
    #[must_use]
    pub fn is_local(&self) -> bool {
        is_local(&self.0)
    }

    /// A new file, to read and to write, which takes room on the disk of the directory.
    ///
    /// # Errors
    /// Any error of openat(2) and unlinkat(2).
    pub fn file(&self) -> io::Result<OwnedFd> {
        // With O_EXCL nobody can give it a name later.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(&self.0, ".", flags, Mode::RUSR | Mode::WUSR) {
            // What a file system without such files says, and a kernel that does not know the flag.
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => self.removed_file(),
            file => Ok(file?),
        }
    }

    /// A file that has a name for a moment.
    fn removed_file(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let mut number = [0; 16];
        getrandom(&mut number, GetRandomFlags::empty())?;
        let name = format!(".batond-{:032x}", u128::from_ne_bytes(number));
        let file = openat(&self.0, &name, flags, Mode::RUSR | Mode::WUSR)?;
        unlinkat(&self.0, &name, AtFlags::empty())?;
        Ok(file)
    }
}

/// A new file in memory, to read and to write. Its name is for /proc only.
///
/// # Errors
/// Any error of memfd_create(2).
pub fn memory_file(name: &str, flags: MemfdFlags) -> io::Result<OwnedFd> {
    let flags = flags | MemfdFlags::CLOEXEC;
    // The kernel may insist on files without the right to be executed (vm.memfd_noexec), or not
    // know of that right.
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?),
        file => Ok(file?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{fcntl_get_seals, fstat};
    use rustix::io::{pread, pwrite};
    use std::fs;

    fn holds_bytes(file: &OwnedFd) {
        assert_eq!(fstat(file).unwrap().st_nlink, 0);
        assert_eq!(pwrite(file, b"kept", 10).unwrap(), 4);
        let mut bytes = [0; 14];
        assert_eq!(pread(file, &mut bytes, 0).unwrap(), 14);
        assert_eq!(&bytes, b"\0\0\0\0\0\0\0\0\0\0kept");
    }

    #[test]
    fn a_file_has_no_name_however_it_is_made() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path()).unwrap();
        for file in [directory.file(), directory.removed_file()] {
            holds_bytes(&file.unwrap());
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        }
        holds_bytes(&memory_file("test", MemfdFlags::empty()).unwrap());
    }

    #[test]
    fn a_file_in_memory_is_seen_to_be_one() {
        let memory = memory_file("test", MemfdFlags::empty()).unwrap();
        assert!(fcntl_get_seals(memory).is_ok());
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        let reason = |path: &Path| Directory::open(path).unwrap_err().raw_os_error();
        assert_eq!(reason(&file), Some(libc::ENOTDIR));
        assert_eq!(reason(&place.path().join("gone")), Some(libc::ENOENT));
    }
}
