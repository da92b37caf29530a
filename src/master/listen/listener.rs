//! One socket that clients connect to: what it is bound to, its options, and accept(2).

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, acceptfrom_with, socket_with,
};

use super::socket_file::SocketFile;
use crate::config::{Address, UnixAccess};
use crate::error::{Error, Result};
use crate::service::Peer;
use crate::sys::socket_path::{Occupant, occupant};
use crate::sys::tcp;
use crate::systemd::{Kind, Local, kind};

/// One listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// The address that was asked for, as the configuration says it.
    asked: Address,
    bound: Bound,
    /// The log has said that the server listens here.
    announced: bool,
    client_timeout: Duration,
    /// Who may connect to the Unix socket, as it was set last.
    access: Option<UnixAccess>,
    /// The kernel holds connections back until their clients have sent something.
    deferred: bool,
}

/// What a listener is bound to.
#[derive(Debug)]
pub enum Bound {
    /// A TCP address, with its real port.
    Inet(SocketAddr),
    /// A Unix socket whose file this server has made.
    Unix(SocketFile),
    /// A Unix socket that another program has bound, and will remove.
    Foreign(Local),
}

/// What came of one accept.
#[derive(Debug)]
pub enum Accepted {
    Connection(OwnedFd, Peer),
    /// The backlog is empty.
    Nobody,
    /// The connection that was waiting has ended, as the error says; there may be others.
    Lost(io::Error),
    /// No descriptor or no memory is left for the connection, which stays in the backlog.
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

/// Whether the kernel has IPv6.
fn has_ipv6() -> bool {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None);
    socket.err() != Some(rustix::io::Errno::AFNOSUPPORT)
}

/// The file that another master has made for its socket. Somebody may have removed it; what is at
/// the path then is not the socket's, which shows if it is the file of a closed one. Else the other
/// master knows.
fn made_before(path: &Path) -> SocketFile {
    match occupant(path) {
        Ok(Occupant::Nothing | Occupant::Stale) => SocketFile::missing(path),
        Ok(Occupant::Live) | Err(_) => {
            SocketFile::at(path).unwrap_or_else(|_| SocketFile::missing(path))
        }
    }
}

fn set_timeouts(socket: impl AsFd, timeout: Duration) -> rustix::io::Result<()> {
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(timeout))
}

impl Listener {
    /// A socket that listens on `bound`, where the configuration says `asked`.
    #[must_use]
    pub fn new(socket: OwnedFd, asked: Address, bound: Bound) -> Self {
        Self {
            socket,
            asked,
            bound,
            announced: false,
            client_timeout: Duration::ZERO,
            access: None,
            deferred: false,
        }
    }

    /// A listener that another master has. With `has_file`, that one has made the file of the Unix
    /// socket, which becomes this listener's too. The file stays until
    /// [`set_unlink_on_drop`](Self::set_unlink_on_drop) says otherwise.
    ///
    /// # Errors
    /// When `socket` is not a listening socket.
    pub fn adopt(socket: OwnedFd, asked: Address, has_file: bool) -> Result<Self> {
        let file = match &asked {
            Address::Unix(path) if has_file => Some(made_before(path)),
            _ => None,
        };
        let mut listener = Self::inherit(socket, asked)?;
        if let Some(file) = file {
            listener.bound = Bound::Unix(file);
            listener.set_unlink_on_drop(false);
        }
        Ok(listener)
    }

    /// Sets whether the file of a Unix socket is removed when this is dropped. It must stay while
    /// another master has the same socket.
    pub fn set_unlink_on_drop(&mut self, unlink: bool) {
        if let Bound::Unix(file) = &mut self.bound {
            file.set_unlink_on_drop(unlink);
        }
    }

    /// Whether the socket has a file that this server has made.
    #[must_use]
    pub fn has_file(&self) -> bool {
        matches!(self.bound, Bound::Unix(_))
    }

    /// The device and the inode of that file, unless it was gone when this process learned of it.
    #[must_use]
    pub fn file(&self) -> Option<(u64, u64)> {
        match &self.bound {
            Bound::Unix(file) => file.identity(),
            Bound::Inet(_) | Bound::Foreign(_) => None,
        }
    }

    /// Whether the server has made a file for the socket and somebody has removed it, so that no
    /// new client can connect.
    #[must_use]
    pub fn has_lost_file(&self) -> bool {
        matches!(&self.bound, Bound::Unix(file) if file.is_lost())
    }

    /// The address that was asked for, as the configuration says it.
    #[must_use]
    pub fn asked(&self) -> &Address {
        &self.asked
    }

    /// Logs once that the server listens here.
    pub fn announce(&mut self) {
        if !std::mem::replace(&mut self.announced, true) {
            log::info!("listening on {self}");
        }
    }

    /// Listens on a socket that another program has bound and passed to this process; `asked` is
    /// what the configuration calls it. The other program determines the backlog, and owns the file
    /// of a Unix socket. O_NONBLOCK is set, which affects every process that shares the socket.
    ///
    /// # Errors
    /// When `socket` is not a listening TCP or Unix stream socket.
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

    /// Whether the socket is bound to what an address asks for, whatever the configuration called
    /// it. Never for port 0, which asks for a new port; nor for a host name, which has to be
    /// [`resolve`]d first; nor for `fd:NAME`, because the name is not a property of the socket.
    ///
    /// [`resolve`]: super::bind::resolve
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
                    // Without IPv6, such an address is bound as an IPv4 one (bind.rs, `any`).
                    IpAddr::V4(ip) => ip.is_unspecified() && !has_ipv6(),
                };
                *port != 0 && *port == bound.port() && every
            }
            (Address::Unix(wanted), Bound::Unix(file)) => wanted == file.path(),
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

    /// Whether an IPv6 socket that is bound to every address accepts IPv4 too. The program that
    /// passes one may have decided otherwise.
    fn takes_ipv4(&self) -> bool {
        sockopt::ipv6_v6only(&self.socket) == Ok(false)
    }

    /// Gives the file of the Unix socket, if the server has made one, the owner, the group and the
    /// mode that are asked for; the default ones, where they were asked for before.
    ///
    /// # Errors
    /// As for [`SocketFile::grant`].
    pub fn grant(&mut self, access: &UnixAccess) -> io::Result<()> {
        let Bound::Unix(file) = &self.bound else {
            return Ok(());
        };
        // What somebody has changed by hand since then stays.
        if self.access.as_ref() == Some(access) {
            return Ok(());
        }
        file.grant(access, self.access.as_ref())?;
        self.access = Some(access.clone());
        Ok(())
    }

    /// Whether its clients have addresses, by which they can be counted.
    #[must_use]
    pub fn knows_clients(&self) -> bool {
        matches!(self.bound, Bound::Inet(_))
    }

    /// Sets the options that connections inherit from their listener, which saves these calls for
    /// each connection. With `defer`, the kernel holds connections back until their clients have
    /// sent something, which is wrong for a service that speaks first.
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

    /// How many connections wait in the backlog, if the kernel says so.
    #[must_use]
    pub fn backlog(&self) -> Option<usize> {
        tcp::backlog(&self.socket).ok()
    }

    /// Takes one connection out of the backlog. Does not sleep.
    ///
    /// # Errors
    /// What accept(2) fails with, except for the outcomes that [`Accepted`] names.
    pub fn accept(&self) -> io::Result<Accepted> {
        match acceptfrom_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok((socket, address)) => self.welcome(socket, address),
            Err(error) => match error.raw_os_error() {
                libc::EAGAIN => Ok(Accepted::Nobody),
                libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                    Ok(Accepted::Exhausted(error.into()))
                }
                // An interruption, or an error of the new connection (accept(2), "Error handling").
                libc::EINTR
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
                | libc::EOPNOTSUPP => Ok(Accepted::Lost(error.into())),
                // EACCES and EPERM too: who forbids it (a security module, seccomp) leaves the
                // connection in the backlog.
                _ => Err(error.into()),
            },
        }
    }

    fn welcome(&self, socket: OwnedFd, address: Option<SocketAddrAny>) -> io::Result<Accepted> {
        match self.bound {
            Bound::Inet(_) => {
                match address.and_then(|address| SocketAddr::try_from(address).ok()) {
                    Some(address) => Ok(Accepted::Connection(socket, Peer::Inet(address))),
                    None => Ok(Accepted::Lost(io::ErrorKind::AddrNotAvailable.into())),
                }
            }
            Bound::Unix(_) | Bound::Foreign(_) => {
                // Unix sockets inherit no timeouts.
                set_timeouts(&socket, self.client_timeout)?;
                Ok(Accepted::Connection(socket, Peer::Unix))
            }
        }
    }

    /// The IP address of a TCP listener.
    #[must_use]
    pub fn host(&self) -> Option<IpAddr> {
        self.local_address().map(|address| address.ip())
    }

    /// The address of a TCP listener, with its real port.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self.bound {
            Bound::Inet(address) => Some(address),
            Bound::Unix(_) | Bound::Foreign(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
