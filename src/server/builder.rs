//! What is said of a server as a process, before it binds anything: where it is found, and which
//! master it takes over from.

use std::fmt::Display;
use std::path::PathBuf;

use super::pool::Pool;
use super::pools::Pools;
use super::single::{Server, parse};
use super::start::Prepared;
use crate::config::Address;
use crate::error::Result;

/// A server as a process among others, before it is bound to anything: its control socket, its pid
/// file, the master that it takes over from. It becomes a [`Server`] with one pool, by
/// [`bind`](ServerBuilder::bind), or one with several [`Pools`], by
/// [`pools`](ServerBuilder::pools).
///
/// ```no_run
/// use batond::{Echo, Server};
///
/// fn main() -> batond::Result<()> {
///     Server::builder()
///         .control("/run/echo/control")
///         .pid_file("/run/echo/pid")
///         .bind("127.0.0.1:7000")?
///         .workers(2)
///         .run(Echo::new)
/// }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct ServerBuilder {
    control: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    takeover: Option<PathBuf>,
}

impl Server {
    /// A builder for what must be said before the first address is bound: control socket, pid file,
    /// takeover, several pools.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// Binds the first address: `127.0.0.1:8080`, `[::1]:8080`, `:8080`, `localhost:0`,
    /// `unix:/path`, or `fd:NAME` for the sockets that systemd passes under this name.
    ///
    /// # Errors
    /// When the address is malformed or can't be bound.
    pub fn bind<A>(address: A) -> Result<Self>
    where
        A: TryInto<Address, Error: Display>,
    {
        Self::builder().bind(address)
    }
}

impl ServerBuilder {
    /// Hands over to a new master that asks for it on a Unix socket at this path. The socket is
    /// made when the server runs, with permissions for its user alone, and removed at the end.
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        self.control = Some(path.into());
        self
    }

    /// Writes the number of the master process into this file when the server runs, and removes
    /// the file at the end.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pid_file = Some(path.into());
        self
    }

    /// Takes over from the master that listens on this control socket, with all of its listeners
    /// and connections. When that master has started this program itself (SIGUSR2), the server
    /// takes over from it in any case, and this path is not used.
    pub fn takeover(mut self, control: impl Into<PathBuf>) -> Self {
        self.takeover = Some(control.into());
        self
    }

    /// A server with one pool, bound to its first address as by [`Server::bind`].
    ///
    /// This connects to the old master, if the server is to take over, and takes what systemd
    /// passes out of the environment. Call it once in a process, before it has threads.
    ///
    /// # Errors
    /// When the address is malformed or can't be bound, the old master refuses or is gone, or what
    /// systemd passes makes no sense.
    pub fn bind<A>(self, address: A) -> Result<Server>
    where
        A: TryInto<Address, Error: Display>,
    {
        let address = parse(address)?;
        Server::with(self.prepare()?).and(address)
    }

    /// A server with the pools that `source` returns, bound to all of their addresses.
    ///
    /// The source is asked at once, and anew at each SIGHUP: it is the place to read a
    /// configuration. The server then goes over to the new pools without closing a connection of
    /// those that stay, by their names. When the source fails or panics, or something is wrong with
    /// its pools, the reload changes nothing and the error is logged.
    ///
    /// At a reload the source runs twice: first in a child of the master, which may wait for files
    /// and servers for 30 seconds, then in the master, between events, if the child came to its
    /// end. Users, groups and host names are looked up in the child alone. What the source itself
    /// waits for (a file, [`http::Files::open`](crate::http::Files::open)), clients wait for too,
    /// should it take long the second time. The child has the descriptors that a worker has, and
    /// what it changes in memory is lost. The source must not start threads.
    ///
    /// As [`bind`](ServerBuilder::bind), this connects to the old master and looks into the
    /// environment. Call it once in a process, before it has threads.
    ///
    /// # Errors
    /// What the source fails with; when something is wrong with a pool ([`Pool`] says what), when
    /// there are none or more than 128, or two have a name or an address in common; when an address
    /// can't be bound; and as for [`bind`](ServerBuilder::bind).
    ///
    /// ```no_run
    /// use batond::{Echo, Pool, Server};
    ///
    /// fn main() -> batond::Result<()> {
    ///     let server = Server::builder().pools(|| {
    ///         Ok(vec![
    ///             Pool::new("in", Echo::new).listen("127.0.0.1:0"),
    ///             Pool::new("out", Echo::new).listen(":7000"),
    ///         ])
    ///     })?;
    ///     println!("listening on {:?}", server.local_addresses());
    ///     server.run()
    /// }
    /// ```
    pub fn pools<'a>(
        self,
        source: impl FnMut() -> Result<Vec<Pool<'a>>> + 'a,
    ) -> Result<Pools<'a>> {
        Pools::bind(self.prepare()?, source)
    }

    fn prepare(self) -> Result<Prepared> {
        Prepared::new(self.control, self.pid_file, self.takeover.as_deref())
    }
}
