//! Binding an address of the configuration: what stands in the way, and which sockets it takes.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};

use super::listener::{Bound, Listener};
use super::socket_file::SocketFile;
use crate::config::Address;
use crate::error::{Error, Result};
use crate::lookup;

/// Binds `address`; a name can stand for several, so this makes several listeners.
///
/// # Errors
/// When one of them can't be bound: in use, not permitted, not an address of this machine.
pub fn bind_all(address: &Address, backlog: i32) -> Result<Vec<Listener>> {
    let failed = |cause: io::Error| Error::new(format!("listen on {address}"), cause);
    let listeners: io::Result<Vec<Listener>> = match address {
        Address::Inet(inet_address) => inet(address, *inet_address, backlog).map(|new| vec![new]),
        Address::Any(port) => any(address, *port, backlog).map(|new| vec![new]),
        Address::Name(name, port) => {
            let all = resolve(name, *port)?.into_iter();
            all.map(|one| inet(address, one, backlog)).collect()
        }
        Address::Unix(path) => {
            clear(path)?;
            unix(path, backlog).map(|new| vec![new])
        }
        Address::Inherited(_) => {
            let cause = "no socket with this name was passed to this process";
            return Err(Error::because(format!("listen on {address}"), cause));
        }
    };
    listeners.map_err(failed)
}

/// The addresses that a name stands for, each once. At a reload they are those that the planner has
/// found.
///
/// # Errors
/// When it stands for none, or nobody can be asked.
pub fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let attempt = || format!("listen on {name}:{port}");
    let found = lookup::value(&format!("host name {name}:{port}"), || {
        let found = (name, port).to_socket_addrs();
        let found = found.map_err(|error| Error::new(attempt(), error))?;
        let mut addresses: Vec<_> = found.collect();
        addresses.sort_unstable();
        addresses.dedup();
        let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        Ok(texts.join(" ").into_bytes())
    })?;
    let text = String::from_utf8_lossy(&found);
    let addresses = text.split_ascii_whitespace().map(str::parse);
    addresses
        .collect::<Result<_, _>>()
        .map_err(|_| Error::because(attempt(), "malformed address"))
}

/// Every address of this machine: one IPv6 socket takes IPv4 too, where the machine has IPv6 at all.
fn any(asked: &Address, port: u16, backlog: i32) -> io::Result<Listener> {
    match inet(asked, Address::any(port), backlog) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            inet(asked, SocketAddr::from(([0, 0, 0, 0], port)), backlog)
        }
        result => result,
    }
}

fn inet(asked: &Address, address: SocketAddr, backlog: i32) -> io::Result<Listener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if let SocketAddr::V6(v6) = address {
        sockopt::set_ipv6_v6only(&socket, !v6.ip().is_unspecified())?;
    }
    bind(&socket, &address)?;
    listen(&socket, backlog)?;
    let bound = TcpListener::from(socket.try_clone()?).local_addr()?;
    Ok(Listener::new(socket, asked.clone(), Bound::Inet(bound)))
}

fn unix(path: &Path, backlog: i32) -> io::Result<Listener> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let file = SocketFile::at(path)?;
    let socket = OwnedFd::from(listener);
    listen(&socket, backlog)?;
    let asked = Address::Unix(path.to_owned());
    Ok(Listener::new(socket, asked, Bound::Unix(file)))
}

/// Makes way for a Unix socket: what is at its path is removed only if it is a socket on which nobody listens.
fn clear(path: &Path) -> Result<()> {
    let attempt = || format!("listen on unix:{}", path.display());
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::new(attempt(), error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::because(
            attempt(),
            "the path exists and is not a socket",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| Error::new(attempt(), error))
        }
        Ok(_) => Err(Error::because(attempt(), "another process listens there")),
        Err(error) => Err(Error::new(attempt(), error)),
    }
}
