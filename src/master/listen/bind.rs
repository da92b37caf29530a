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
    if let Address::Unix(path) = address {
        return sys::socket_path::check(path).map_err(failed);
    }
    for mut one in inet_addresses(address)? {
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

/// Refuses addresses that overlap: the kernel lets one of them be bound. Those of Unix sockets are
/// paths, for which this does not look, and only a service manager knows what it passes.
///
/// # Errors
/// When two overlap, or a name that has its port in common with another address stands for none.
pub fn refuse_overlaps<'a>(addresses: impl IntoIterator<Item = &'a Address>) -> Result<()> {
    let has_port = |address: &&Address| address.port().is_some_and(|port| port != 0);
    let addresses: Vec<_> = addresses.into_iter().filter(has_port).collect();
    for (index, other) in addresses.iter().enumerate() {
        let before = addresses[..index].iter();
        for one in before.filter(|one| one.port() == other.port()) {
            let (ones, others) = (inet_addresses(one)?, inet_addresses(other)?);
            let overlaps = |a: &SocketAddr| others.iter().any(|b| takes_in(a, b) || takes_in(b, a));
            if ones.iter().any(overlaps) {
                let attempt = format!("listen on {one} and on {other}");
                return Err(Error::because(attempt, "they have an address in common"));
            }
        }
    }
    Ok(())
}

/// Whether a socket that is bound to `wide` takes the connections to `narrow`, too, which has the
/// same port. One for every IPv6 address takes IPv4, as [`inet`] makes it.
fn takes_in(wide: &SocketAddr, narrow: &SocketAddr) -> bool {
    wide == narrow || wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
}

/// The socket addresses that are to be bound for an address.
///
/// # Errors
/// When a name stands for none.
fn inet_addresses(address: &Address) -> Result<Vec<SocketAddr>> {
    match address {
        Address::Inet(address) => Ok(vec![*address]),
        Address::Any(port) => Ok(vec![Address::any(*port)]),
        Address::Name(name, port) => resolve(name, *port),
        Address::Unix(_) | Address::Inherited(_) => Ok(Vec::new()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_addresses_overlap() {
        let overlap = |texts: [&str; 2]| {
            let addresses = texts.map(|text| text.parse().unwrap());
            refuse_overlaps(&addresses).is_err()
        };
        for (one, other, expected) in [
            ("127.0.0.1:8", ":8", true),
            ("[::1]:8", ":8", true),
            ("[::1]:8", "[::]:8", true),
            ("127.0.0.1:8", "[::]:8", true),
            ("0.0.0.0:8", "[::]:8", true),
            ("0.0.0.0:8", "127.0.0.1:8", true),
            ("[::]:8", ":8", true),
            ("0.0.0.0:8", "[::1]:8", false),
            ("127.0.0.1:8", "127.0.0.2:8", false),
            ("127.0.0.1:8", ":9", false),
            ("127.0.0.1:0", ":0", false),
            ("unix:8", ":8", false),
            ("fd:8", ":8", false),
        ] {
            assert_eq!(overlap([one, other]), expected, "{one} {other}");
            assert_eq!(overlap([other, one]), expected, "{other} {one}");
        }
    }
}
