//! Binding an address of the configuration: what stands in its way, and which sockets it takes.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};
use rustix::thread::{CapabilitySet, capabilities};

use super::listener::{Bound, Listener};
use super::socket_file::SocketFile;
use crate::config::{Address, Settings};
use crate::error::{Error, Result};
use crate::lookup;
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
        Address::Name(name, port) => {
            let all = resolve(name, *port)?.into_iter();
            all.map(|one| inet(address, one, backlog)).collect()
        }
        Address::Unix(path) => unix(path, settings).map(|new| vec![new]),
        Address::Inherited(_) => {
            let cause = "no socket with this name was passed to this process";
            return Err(Error::because(format!("listen on {address}"), cause));
        }
    };
    listeners.map_err(failed)
}

/// Whether `address` could be bound if nobody else has it: the machine has it, this user may bind
/// its port, nothing but a socket is at its path. It is not bound, because that could be in the way
/// of a server that starts meanwhile.
///
/// # Errors
/// Why it could not.
pub fn check(address: &Address) -> Result<()> {
    let failed = |cause: io::Error| Error::new(format!("listen on {address}"), cause);
    let addresses = match address {
        Address::Inet(inet_address) => vec![*inet_address],
        Address::Any(port) => vec![Address::any(*port)],
        Address::Name(name, port) => resolve(name, *port)?,
        Address::Unix(path) => return sys::socket_path::check(path).map_err(failed),
        // Only the service manager knows.
        Address::Inherited(_) => return Ok(()),
    };
    for mut one in addresses {
        if is_privileged(one.port()) {
            return Err(failed(io::Error::from_raw_os_error(libc::EACCES)));
        }
        one.set_port(0);
        match inet(address, one, 1) {
            Err(error)
                if error.raw_os_error() == Some(libc::EAFNOSUPPORT)
                    && matches!(address, Address::Any(_)) => {}
            result => drop(result.map_err(failed)?),
        }
    }
    Ok(())
}

/// Whether this process may not bind a TCP port because it is one of the low ones (ip(7)).
fn is_privileged(port: u16) -> bool {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first.ok().and_then(|text| text.trim().parse().ok());
    let may = capabilities(None).is_ok_and(|sets| {
        let needed = CapabilitySet::NET_BIND_SERVICE;
        sets.effective.contains(needed)
    });
    port != 0 && port < first.unwrap_or(1024) && !may
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
