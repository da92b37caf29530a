//! A server with one pool: the short way to start.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use super::pool::{Pool, default_settings};
use super::pools::plan_all;
use super::start::{MAIN, Prepared};
use crate::config::{Address, Confinement, Settings};
use crate::error::{Error, Result};
use crate::service::Service;

/// A server that is bound to its addresses and not running yet.
///
/// ```no_run
/// use batond::{Connection, Server, Service, Turn};
///
/// struct Hello;
///
/// impl Service for Hello {
///     fn turn(&mut self, connection: &mut Connection) -> std::io::Result<Turn> {
///         std::io::Write::write_all(connection, b"hello\n")?;
///         Ok(Turn::Linger)
///     }
/// }
///
/// fn main() -> batond::Result<()> {
///     Server::bind("127.0.0.1:8080")?.workers(4).run(|| Hello)
/// }
/// ```
#[derive(Debug)]
pub struct Server {
    prepared: Prepared,
    addresses: Vec<Address>,
    settings: Settings,
    confinement: Confinement,
}

impl Server {
    /// A server without an address.
    pub(super) fn with(prepared: Prepared) -> Self {
        Self {
            prepared,
            addresses: Vec::new(),
            settings: default_settings(),
            confinement: Confinement::default(),
        }
    }

    /// Binds another address.
    ///
    /// # Errors
    /// As for [`Server::bind`]; and when this address is bound already, unless its port is 0.
    pub fn and<A>(mut self, address: A) -> Result<Self>
    where
        A: TryInto<Address, Error: Display>,
    {
        let address = parse(address)?;
        // Of port 0 there may be several, because each is another port.
        if address.port() != Some(0) && self.addresses.contains(&address) {
            return Err(Error::because(
                format!("listen on {address}"),
                "it is listed twice",
            ));
        }
        self.prepared.listen_on(address.clone(), &self.settings)?;
        self.addresses.push(address);
        Ok(self)
    }

    /// How many workers serve, from 1. The default is twice the number of processors, and at least
    /// four.
    #[must_use]
    pub fn workers(self, count: usize) -> Self {
        self.settings(|settings| settings.workers = count)
    }

    /// How many turns each worker serves at the same time, a thread each, from 1 to
    /// [`MAX_THREADS`](crate::config::MAX_THREADS). The default is one. Each thread makes a service
    /// of its own.
    #[must_use]
    pub fn threads(self, count: usize) -> Self {
        self.settings(|settings| settings.threads = count)
    }

    /// Changes any of the settings.
    ///
    /// ```no_run
    /// # fn main() -> batond::Result<()> {
    /// let server = batond::Server::bind("127.0.0.1:8080")?.settings(|settings| {
    ///     settings.idle_timeout = None;
    ///     settings.max_connections = 1000;
    /// });
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.settings = self.settings.within_bounds();
        self
    }

    /// How long a graceful stop may take. The default is 30 seconds.
    #[must_use]
    pub fn grace(self, limit: Duration) -> Self {
        self.settings(|settings| settings.grace = limit)
    }

    /// How long a single read from or write to a client may sleep inside a turn, at least a
    /// millisecond. The default is 60 seconds.
    #[must_use]
    pub fn client_timeout(self, limit: Duration) -> Self {
        self.settings(|settings| settings.client_timeout = limit)
    }

    /// What the workers give up before they serve: the user that they run as, what they see of the
    /// file system, how much they may use. The default is nothing. The master keeps its own
    /// privileges, and whatever it bound with them.
    ///
    /// [`Server::run`] checks all of it before the first fork, and fails if something is wrong.
    /// Each worker is confined before it makes its service. One that can't be confined any more,
    /// because its directory is gone for instance, exits with an error in the log, and is replaced
    /// like one that died. A worker keeps the descriptors that were open before `run`, even those
    /// of directories outside of its own root.
    ///
    /// ```no_run
    /// # use batond::Echo;
    /// use batond::Server;
    /// use batond::config::Confinement;
    ///
    /// fn main() -> batond::Result<()> {
    ///     let confinement = Confinement {
    ///         user: Some("nobody".to_owned()),
    ///         no_new_privs: true,
    ///         ..Confinement::default()
    ///     };
    ///     Server::bind(":80")?.confinement(confinement).run(Echo::new)
    /// }
    /// ```
    #[must_use]
    pub fn confinement(mut self, confinement: Confinement) -> Self {
        self.confinement = confinement;
        self
    }

    /// The TCP addresses that the server is bound to, with the real port where port 0 was asked
    /// for.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.prepared.local_addresses()
    }

    /// Serves until it is told to stop by a signal. Each worker process makes its own service with
    /// `make`, after the fork. Call it from the main thread of a program without other threads, and
    /// start no thread before it: forking a process with threads is not safe.
    ///
    /// The signals that a server obeys (SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2,
    /// SIGTTIN, SIGTTOU, SIGCHLD) are its own from now on, and so are the process's children.
    /// SIGHUP starts new workers with the same `make`. Descriptors that are open now stay open in
    /// the workers.
    ///
    /// # Errors
    /// When the settings contradict each other, the workers can't be confined, or the master can't
    /// be set up. Once it serves, it reports trouble in the log and goes on.
    pub fn run<S: Service>(self, make: impl Fn() -> S + Sync) -> Result<()> {
        let mut pool = Pool::new(MAIN, make)
            .settings(|settings| *settings = self.settings)
            .confinement(self.confinement);
        for address in self.addresses {
            pool = pool.listen(address);
        }
        let plans = plan_all(vec![pool], self.prepared.control())?;
        self.prepared.serve(plans.clone(), &|| Ok(plans.clone()))
    }
}

/// Parses an address, or takes one as it is.
pub(super) fn parse<A>(address: A) -> Result<Address>
where
    A: TryInto<Address, Error: Display>,
{
    let parsed = address.try_into();
    parsed.map_err(|error| Error::because("listen", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_bound_once_unless_its_port_is_0() {
        let directory = tempfile::tempdir().unwrap();
        let socket = Address::Unix(directory.path().join("socket"));
        let server = Server::bind("127.0.0.1:0").and_then(|server| server.and("127.0.0.1:0"));
        let server = server.and_then(|server| server.and(socket.clone()));
        let server = server.unwrap();
        let addresses = server.local_addresses();
        assert_eq!(addresses.len(), 2);
        assert_ne!(addresses[0], addresses[1]);
        let error = server.and(socket.clone()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("cannot listen on {socket}: it is listed twice")
        );
    }
}
