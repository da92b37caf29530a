//! The sockets that clients connect to: bind, accept, and pause when there is no room.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, acceptfrom_with, bind, ipproto, listen,
    socket_with,
};

use crate::config::Address;
use crate::error::{Error, Plain, Result};
use crate::service::Peer;
use crate::sys::tcp;
use crate::systemd::{Kind, Local, kind};

/// One listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// The address that was asked for, as the configuration says it.
    asked: Address,
    bound: Bound,
    /// The log has said that it is listening.
    announced: bool,
    client_timeout: Duration,
    /// The kernel holds connections back until their clients have sent something.
    deferred: bool,
}

/// What a listener is bound to.
#[derive(Debug)]
enum Bound {
    Inet(SocketAddr),
    Unix(SocketFile),
    /// A Unix socket that somebody else has bound, and is to remove.
    Foreign(Local),
}

/// The file of a Unix socket. It is removed on drop, if it still is the one that was made. (A worker process drops
/// nothing of the master's.)
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
    /// It is this process's, to be removed at the end.
    owned: bool,
}

/// What came of one accept.
#[derive(Debug)]
pub enum Accepted {
    /// A connection.
    Connection(OwnedFd, Peer),
    /// No one is waiting.
    Nobody,
    /// The one that was waiting has gone; there may be others.
    Lost,
    /// No descriptor or no memory is left for it. It keeps waiting in the backlog.
    Exhausted(io::Error),
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bound {
            Bound::Inet(address) => address.fmt(f),
            Bound::Unix(file) => write!(f, "unix:{file}"),
            Bound::Foreign(name) => name.fmt(f),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Binds `address`; a name can stand for several, so this makes several listeners.
///
/// # Errors
/// When one of them can't be bound: in use, not permitted, not an address of this machine.
pub fn bind_all(address: &Address, backlog: i32) -> Result<Vec<Listener>> {
    let failed = |cause: io::Error| Error::new(format!("listen on {address}"), cause);
    let listeners: io::Result<Vec<Listener>> = match address {
        Address::Inet(inet_address) => inet(*inet_address, backlog).map(|new| vec![new]),
        Address::Any(port) => any(*port, backlog).map(|new| vec![new]),
        Address::Name(name, port) => resolve(name, *port)
            .and_then(|all| all.into_iter().map(|one| inet(one, backlog)).collect()),
        Address::Unix(path) => {
            clear(path)?;
            unix(path, backlog).map(|new| vec![new])
        }
        Address::Inherited(_) => {
            let cause = "no socket with this name was passed to this process";
            return Err(Error::because(format!("listen on {address}"), cause));
        }
    };
    let mut listeners = listeners.map_err(failed)?;
    for listener in &mut listeners {
        listener.asked = address.clone();
    }
    Ok(listeners)
}

/// Whether an address is bound more than so many times. Only port 0 can be, and is another port each time.
#[must_use]
pub fn is_bound<'a>(
    listeners: impl IntoIterator<Item = &'a Listener>,
    address: &Address,
    times: usize,
) -> bool {
    let mut same = listeners.into_iter().filter(|one| one.asked() == address);
    let Some(first) = same.next() else {
        return false;
    };
    // A name stands for several addresses, of which each is bound that often.
    address.port() != Some(0) || same.filter(|one| one.host() == first.host()).count() >= times
}

/// The addresses that a name stands for, each once.
///
/// # Errors
/// When it stands for none, or nobody can be asked.
pub fn resolve(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<_> = (name, port).to_socket_addrs()?.collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Whether this machine knows IPv6.
fn has_ipv6() -> bool {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None);
    socket.err() != Some(rustix::io::Errno::AFNOSUPPORT)
}

/// Every address of this machine: one IPv6 socket takes IPv4 too, where the machine has IPv6 at all.
fn any(port: u16, backlog: i32) -> io::Result<Listener> {
    match inet(Address::any(port), backlog) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            inet(SocketAddr::from(([0, 0, 0, 0], port)), backlog)
        }
        result => result,
    }
}

fn inet(address: SocketAddr, backlog: i32) -> io::Result<Listener> {
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
    Ok(Listener::new(
        socket,
        Address::Inet(address),
        Bound::Inet(bound),
    ))
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

fn set_timeouts(socket: impl AsFd, timeout: Duration) -> rustix::io::Result<()> {
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(timeout))
}

impl Listener {
    fn new(socket: OwnedFd, asked: Address, bound: Bound) -> Self {
        Self {
            socket,
            asked,
            bound,
            announced: false,
            client_timeout: Duration::ZERO,
            deferred: false,
        }
    }

    /// A listener that another master has, and with it the file of its Unix socket if `has_file` says so. That stays
    /// the other one's until it is [owned](Listener::own).
    ///
    /// # Errors
    /// When it is no listening socket.
    pub fn adopt(socket: OwnedFd, asked: Address, has_file: bool) -> Result<Self> {
        // If somebody has removed the file, there is nothing to remove later.
        let file = match &asked {
            Address::Unix(path) if has_file => SocketFile::at(path).ok(),
            _ => None,
        };
        let mut listener = Self::inherit(socket, asked)?;
        if let Some(file) = file {
            listener.bound = Bound::Unix(file);
            listener.disown();
        }
        Ok(listener)
    }

    /// The file of its Unix socket, if it has made one, is another master's now, and stays when this is dropped.
    pub fn disown(&mut self) {
        self.set_owned(false);
    }

    /// The file of its Unix socket is this process's own, and to be removed when this is dropped.
    pub fn own(&mut self) {
        self.set_owned(true);
    }

    fn set_owned(&mut self, owned: bool) {
        if let Bound::Unix(file) = &mut self.bound {
            file.owned = owned;
        }
    }

    /// Whether it has made a file for its Unix socket.
    #[must_use]
    pub fn has_file(&self) -> bool {
        matches!(self.bound, Bound::Unix(_))
    }

    /// The address that was asked for, as the configuration says it.
    #[must_use]
    pub fn asked(&self) -> &Address {
        &self.asked
    }

    /// Says in the log that it is listening, once.
    pub fn announce(&mut self) {
        if !std::mem::replace(&mut self.announced, true) {
            log::info!("listening on {self}");
        }
    }

    /// Listens on a socket that somebody else has bound, and passed to this process; `asked` is what the
    /// configuration calls it. Its backlog is theirs. So is the file of a Unix socket: it stays. O_NONBLOCK is set,
    /// for all who share the socket.
    ///
    /// # Errors
    /// When it is no listening TCP or Unix stream socket.
    pub fn inherit(socket: OwnedFd, asked: Address) -> Result<Self> {
        let attempt = || format!("listen on {asked}");
        let local = match kind(&socket) {
            Kind::Listening(local) => local,
            Kind::Connected(_) => {
                return Err(Error::because(attempt(), "it is a connected socket"));
            }
            Kind::Other(what) => return Err(Error::because(attempt(), format!("it is {what}"))),
        };
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| Error::new(attempt(), error))?;
        let bound = match local {
            Local::Inet(address) => Bound::Inet(address),
            name => Bound::Foreign(name),
        };
        Ok(Self::new(socket, asked, bound))
    }

    /// Whether it is bound to what an address asks for, whatever the configuration called it. Never for port 0,
    /// which asks for a new one; nor for a name, to be [`resolve`]d first; nor for `fd:NAME`, for a socket has no
    /// name.
    #[must_use]
    pub fn matches(&self, address: &Address) -> bool {
        match (address, &self.bound) {
            (Address::Inet(wanted), Bound::Inet(bound)) => {
                wanted.port() != 0
                    && wanted == bound
                    && (*wanted != Address::any(wanted.port()) || self.takes_ipv4())
            }
            (Address::Any(port), Bound::Inet(bound)) => {
                let every = match bound.ip() {
                    IpAddr::V6(ip) => ip.is_unspecified() && self.takes_ipv4(),
                    // What `any` makes of it where there is no IPv6.
                    IpAddr::V4(ip) => ip.is_unspecified() && !has_ipv6(),
                };
                *port != 0 && *port == bound.port() && every
            }
            (Address::Unix(wanted), Bound::Unix(file)) => *wanted == file.path,
            (Address::Unix(wanted), Bound::Foreign(Local::Path(path))) => wanted == path,
            (
                Address::Inet(_)
                | Address::Any(_)
                | Address::Unix(_)
                | Address::Name(..)
                | Address::Inherited(_),
                _,
            ) => false,
        }
    }

    /// Whether an IPv6 socket that is bound to every address takes IPv4 too. (Whoever passes one may have decided
    /// otherwise.)
    fn takes_ipv4(&self) -> bool {
        sockopt::ipv6_v6only(&self.socket) == Ok(false)
    }

    /// Sets what connections inherit from their listener, which saves the calls on each of them. With `defer`, the
    /// kernel holds connections back until their clients have sent something; not for a service that speaks first.
    ///
    /// # Errors
    /// What setsockopt(2) fails with.
    pub fn configure(&mut self, client_timeout: Duration, defer: Option<Duration>) -> Result<()> {
        self.client_timeout = client_timeout;
        let Bound::Inet(_) = self.bound else {
            return Ok(());
        };
        let options = || -> io::Result<()> {
            sockopt::set_tcp_nodelay(&self.socket, true)?;
            set_timeouts(&self.socket, client_timeout)?;
            tcp::defer_accept(&self.socket, defer.unwrap_or_default())
        };
        self.deferred = defer.is_some_and(|wait| !wait.is_zero());
        options().map_err(|error| Error::new(format!("set the options of {self}"), error))
    }

    /// Whether a new connection most likely has something to read.
    #[must_use]
    pub fn is_deferred(&self) -> bool {
        self.deferred
    }

    /// How many connections wait in the backlog, if the kernel tells.
    #[must_use]
    pub fn backlog(&self) -> Option<usize> {
        tcp::backlog(&self.socket).ok()
    }

    /// Takes one connection out of the backlog, without sleeping.
    ///
    /// # Errors
    /// What accept(2) fails with, but for the expected outcomes that [`Accepted`] names.
    pub fn accept(&self) -> io::Result<Accepted> {
        match acceptfrom_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok((socket, address)) => self.welcome(socket, address),
            Err(error) => match error.raw_os_error() {
                libc::EAGAIN => Ok(Accepted::Nobody),
                libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                    Ok(Accepted::Exhausted(error.into()))
                }
                // Errors of the new connection itself (accept(2), "Error handling"), and interruptions.
                libc::EINTR
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
                | libc::EOPNOTSUPP
                | libc::EPERM => Ok(Accepted::Lost),
                _ => Err(error.into()),
            },
        }
    }

    fn welcome(&self, socket: OwnedFd, address: Option<SocketAddrAny>) -> io::Result<Accepted> {
        match self.bound {
            Bound::Inet(_) => {
                match address.and_then(|address| SocketAddr::try_from(address).ok()) {
                    Some(address) => Ok(Accepted::Connection(socket, Peer::Inet(address))),
                    None => Ok(Accepted::Lost),
                }
            }
            Bound::Unix(_) | Bound::Foreign(_) => {
                // Unix sockets inherit no timeouts.
                set_timeouts(&socket, self.client_timeout)?;
                Ok(Accepted::Connection(socket, Peer::Unix))
            }
        }
    }

    /// The IP address that it is bound to, if it is one.
    #[must_use]
    pub fn host(&self) -> Option<IpAddr> {
        self.local_address().map(|address| address.ip())
    }

    /// The TCP address that it is bound to, with its real port.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self.bound {
            Bound::Inet(address) => Some(address),
            Bound::Unix(_) | Bound::Foreign(_) => None,
        }
    }
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that was just made at this path.
    ///
    /// # Errors
    /// What stat(2) fails with.
    pub fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device_and_inode: (metadata.dev(), metadata.ino()),
            owned: true,
        })
    }
}

impl fmt::Display for SocketFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.owned
            && let Ok(metadata) = fs::symlink_metadata(&self.path)
            && (metadata.dev(), metadata.ino()) == self.device_and_inode
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {}", self.path.display(), Plain(&error));
        }
    }
}

#[cfg(test)]
mod tests;
