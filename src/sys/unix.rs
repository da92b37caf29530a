//! Unix sockets in the file system: what is at a path, and binding one with its permissions.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with,
};
use rustix::process::umask;

/// What is at a path at which a Unix socket is to be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// There is no file.
    Nothing,
    /// The file of a socket that is closed.
    Stale,
    /// The file of a socket that a process has, whether it listens there or not yet.
    Live,
    /// A file of another kind.
    Foreign,
}

/// Finds out what is at a path. It never sleeps, and no process notices it.
///
/// # Errors
/// When that can't be known: the path is too long for an address, or not permitted.
pub fn occupant(path: &Path) -> io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Ok(Occupant::Foreign),
        Ok(_) => {}
    }
    // A datagram socket is connected without a handshake, so that no backlog and no process takes
    // part. The kernel compares the types first: EPROTOTYPE says that there is a socket of another
    // type (unix(7)).
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        // EPERM: a datagram socket that is connected to another one.
        Ok(()) | Err(Errno::PROTOTYPE | Errno::PERM) => Ok(Occupant::Live),
        Err(Errno::CONNREFUSED) => Ok(Occupant::Stale),
        Err(Errno::NOENT) => Ok(Occupant::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// The address of a path: as an absolute path, if it has room for that, because the kernel shows it in
/// /proc/net/unix as it was bound, where programs that clean up look for it.
fn address_to_show(path: &Path) -> io::Result<SocketAddrUnix> {
    let absolute = std::path::absolute(path)?;
    match SocketAddrUnix::new(&absolute) {
        Err(Errno::NAMETOOLONG) => Ok(SocketAddrUnix::new(path)?),
        address => Ok(address?),
    }
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
        assert_eq!(found(), Occupant::Foreign);
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
        assert_eq!(occupant(&long).unwrap(), Occupant::Nothing);
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
