//! Unix sockets in the file system: what is at a path, and binding one with its permissions.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Stat, fstat, openat, rename, renameat_with, statat,
    unlink,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with,
};
use rustix::process::umask;
use rustix::rand::{GetRandomFlags, getrandom};

use super::directory;

/// What is at a path at which a Unix socket is to be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// There is no file.
    Nothing,
    /// The file of a socket that is closed.
    Stale,
    /// The file of a socket that a process has, whether it listens there or not yet.
    Live,
}

/// The address of the socket at a path.
///
/// # Errors
/// When the path is too long for one, or has a NUL in it.
pub fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|error| match error {
        // And a NUL, which the kernel can do without, but most clients cannot (unix(7)).
        Errno::NAMETOOLONG => io::Error::new(
            io::ErrorKind::InvalidFilename,
            "File name too long: the path of a socket has at most 107 bytes",
        ),
        _ => error.into(),
    })
}

/// Finds out what is at a path. It never sleeps, and no process notices it.
///
/// # Errors
/// When no socket can be bound there, because the path is too long for an address or a file of
/// another kind is there; and when it is not permitted to look.
pub fn occupant(path: &Path) -> io::Result<Occupant> {
    let address = address(path)?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::other("the path exists and is not a socket"));
        }
        Ok(_) => {}
    }
    match probe(&address) {
        Ok(()) | Err(Errno::PROTOTYPE | Errno::PERM) => Ok(Occupant::Live),
        Err(Errno::CONNREFUSED) => Ok(Occupant::Stale),
        Err(Errno::NOENT) => Ok(Occupant::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// Asks whether a process has the socket at an address, in a way that the process does not notice:
/// a datagram socket is connected without a handshake, so that no backlog and no process takes
/// part.
///
/// # Errors
/// EPERM for a datagram socket that is connected to another one; EPROTOTYPE for a socket of another
/// type, because the kernel compares the types first (unix(7)); ECONNREFUSED if no process has it;
/// and what else connect(2) fails with.
pub fn probe(address: &SocketAddrUnix) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    connect(socket, address)
}

/// Checks whether a socket can be bound at a path when the process that may have one there has
/// closed it.
///
/// # Errors
/// As for [`occupant`], and a directory that can't be used.
pub fn check(path: &Path) -> io::Result<()> {
    occupant(path)?;
    directory::check(path)
}

/// Makes way for a socket: removes the file of one that is closed. Of two servers that start at the
/// same time, one can have bound its socket there since the other has looked, so the file is moved
/// aside first, and back again if it turns out to be another one. True if one was removed.
///
/// # Errors
/// `AddrInUse` if a process has a socket there, and what [`occupant`] and rename(2) fail
/// with.
pub fn make_way(path: &Path) -> io::Result<bool> {
    // As long as this is open, no other file can get the same inode number.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match occupant(path)? {
        Occupant::Nothing => Ok(false),
        Occupant::Stale => remove(path, &file),
        Occupant::Live => Err(Errno::ADDRINUSE.into()),
    }
}

/// Removes what is at a path, if it is this file. True if it was there.
fn remove(path: &Path, file: &OwnedFd) -> io::Result<bool> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{:016x}", u64::from_ne_bytes(random)));
    match rename(path, &aside) {
        // Another server has removed it.
        Err(Errno::NOENT) => return Ok(false),
        moved => moved?,
    }
    let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
    let moved = statat(CWD, &aside, AtFlags::SYMLINK_NOFOLLOW).map(identity)?;
    if moved == identity(fstat(file)?) {
        unlink(&aside)?;
        return Ok(true);
    }
    renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE)?;
    Err(Errno::ADDRINUSE.into())
}

/// The address of a path: as an absolute path, if it has room for that, because the kernel shows it
/// in /proc/net/unix as it was bound, where programs that clean up look for it.
fn address_to_show(path: &Path) -> io::Result<SocketAddrUnix> {
    let absolute = std::path::absolute(path)?;
    address(&absolute).or_else(|_| address(path))
}

/// Binds a socket to a path. The file has this mode from the first moment on; without one, it has
/// what the umask leaves of 0777.
///
/// The umask of the process is another one meanwhile, so it must have a single thread.
///
/// # Errors
/// What bind(2) fails with, and a path that is too long for an address.
pub fn bind_to(socket: impl AsFd, path: &Path, mode: Option<u32>) -> io::Result<()> {
    let address = address_to_show(path)?;
    let before = mode.map(|mode| umask(Mode::from_raw_mode(!mode & 0o777)));
    let bound = bind(socket, &address);
    if let Some(before) = before {
        umask(before);
    }
    Ok(bound?)
}

/// The mode of a file that [`bind_to`] makes without one.
///
/// The umask of the process is another one for a moment, so it must have a single thread.
#[must_use]
pub fn default_mode() -> u32 {
    let mask = umask(Mode::empty());
    umask(mask);
    0o777 & !mask.bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use rustix::net::{accept, listen};

    #[test]
    fn a_socket_is_found_whatever_its_type_and_state() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let found = || occupant(&path).unwrap();
        assert_eq!(found(), Occupant::Nothing);
        fs::write(&path, "text").unwrap();
        occupant(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        for kind in [SocketType::STREAM, SocketType::SEQPACKET, SocketType::DGRAM] {
            let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
            let socket = socket.unwrap();
            bind_to(&socket, &path, None).unwrap();
            assert_eq!(found(), Occupant::Live, "{kind:?}, bound");
            if kind != SocketType::DGRAM {
                listen(&socket, 1).unwrap();
                assert_eq!(found(), Occupant::Live, "{kind:?}, listening");
            }
            drop(socket);
            assert_eq!(found(), Occupant::Stale, "{kind:?}, closed");
            fs::remove_file(&path).unwrap();
        }
        let (one, _other) = UnixDatagram::pair().unwrap();
        drop(one);
        let long = directory.path().join("n".repeat(120));
        let refused = occupant(&long).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidFilename);
    }

    #[test]
    fn a_file_that_has_taken_the_place_of_a_stale_one_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let stale = openat(CWD, &path, OFlags::PATH, Mode::empty()).unwrap();
        // Another server is faster.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        let refused = remove(&path, &stale).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(make_way(&path).unwrap_err().kind(), refused.kind());
        drop(other);
        assert!(make_way(&path).unwrap());
        assert!(!make_way(&path).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        fs::write(&path, "text").unwrap();
        make_way(&path).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"text");
    }

    #[test]
    fn a_full_backlog_is_no_obstacle_and_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, 0).unwrap();
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        // A stream that connects now would sleep until somebody accepts.
        assert_eq!(occupant(&path).unwrap(), Occupant::Live);
        drop(accept(&listener).unwrap());
        drop(client);
        listener.set_nonblocking(true).unwrap();
        assert_eq!(accept(&listener).unwrap_err(), Errno::AGAIN);
    }
}
