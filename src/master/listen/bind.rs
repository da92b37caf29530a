//! Binding an address of the configuration: what stands in its way, and which sockets it takes.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};

use super::listener::{Bound, Listener};
use super::socket_file::SocketFile;
use crate::config::{Address, Settings};
use crate::error::{Error, Result};
use crate::sys;

/// Binds `address`; a name can stand for several, so this makes several listeners.
///
/// # Errors
/// When one of them can't be bound: in use, not permitted, not an address of this machine.
pub fn bind_all(address: &Address, settings: &Settings) -> Result<Vec<Listener>> {
    let backlog = settings.backlog;
    let failed = |cause: io::Error| Error::new(format!("listen on {address}"), cause);
    let listeners: io::Result<Vec<Listener>> = match address {
        Address::Inet(inet_address) => inet(address, *inet_address, backlog).map(|new| vec![new]),
        Address::Any(port) => any(address, *port, backlog).map(|new| vec![new]),
        Address::Name(name, port) => resolve(name, *port).and_then(|all| {
            all.into_iter()
                .map(|one| inet(address, one, backlog))
                .collect()
        }),
        Address::Unix(path) => unix(path, settings).map(|new| vec![new]),
        Address::Inherited(_) => {
            let cause = "no socket with this name was passed to this process";
            return Err(Error::because(format!("listen on {address}"), cause));
        }
    };
    listeners.map_err(failed)
}

/// The addresses that a name stands for, each once.
///
/// # Errors
/// When it stands for none, or can't be looked up.
pub fn resolve(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<_> = (name, port).to_socket_addrs()?.collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Every address of this machine: one IPv6 socket takes IPv4 too, where the machine has IPv6 at
/// all.
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

fn unix(path: &Path, settings: &Settings) -> io::Result<Listener> {
    sys::socket_path::make_way(path).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::other("another process listens there"),
        io::ErrorKind::AlreadyExists => io::Error::other("the path exists and is not a socket"),
        _ => error,
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    sys::socket_path::bind_to(&socket, path, settings.unix.mode)?;
    let file = SocketFile::at(path)?;
    let asked = Address::Unix(path.to_owned());
    let mut listener = Listener::new(socket, asked, Bound::Unix(file));
    // Nobody can connect before listen(2), whoever the file belongs to until then.
    listener.grant(&settings.unix)?;
    listen(&listener, settings.backlog)?;
    Ok(listener)
}
