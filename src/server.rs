//! The builder that library users, and the command line, start from. It puts master and worker together.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::channel::start::WorkerHandles;
use crate::config::{Address, Confinement, Settings};
use crate::error::{Error, Result};
use crate::logging::{self, Role};
use crate::master::listen::listener;
use crate::master::pool::Plan;
use crate::master::succession::inherited::Heritage;
use crate::master::workers::process::MAIN;
use crate::master::{self, Beginning, Offices, Source};
use crate::service::Service;
use crate::sys::signals;
use crate::worker::{self, confine};

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
    listen: Vec<Address>,
    /// What it was started with, and what it has bound since.
    heritage: Option<Heritage>,
    settings: Settings,
    confinement: Confinement,
}

impl Server {
    /// Binds the first address: `127.0.0.1:8080`, `[::1]:8080`, `:8080`, `localhost:0`, `unix:/path`,
    /// or `fd:NAME` for the sockets that systemd passes under this name.
    ///
    /// # Errors
    /// When it is no address, or can't be bound.
    pub fn bind<A>(address: A) -> Result<Self>
    where
        A: TryInto<Address, Error: Display>,
    {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with(Settings::for_processors(processors)).and(address)
    }

    /// A server that listens nowhere yet.
    pub(crate) fn with(settings: Settings) -> Self {
        Self {
            listen: Vec::new(),
            heritage: None,
            settings,
            confinement: Confinement::default(),
        }
    }

    /// Binds one address more.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn and<A>(mut self, address: A) -> Result<Self>
    where
        A: TryInto<Address, Error: Display>,
    {
        let address = address
            .try_into()
            .map_err(|error| Error::because("listen", error.to_string()))?;
        let mut heritage = match self.heritage.take() {
            Some(heritage) => heritage,
            None => Heritage::claim(None)?,
        };
        let before = self.listen.iter().filter(|other| **other == address);
        let listening = heritage.listen_on(&address, before.count(), self.settings.backlog);
        self.heritage = Some(heritage);
        listening?;
        self.listen.push(address);
        Ok(self)
    }

    /// How many workers serve; at least one. Twice the number of processors and at least four, unless told.
    #[must_use]
    pub fn workers(self, count: usize) -> Self {
        self.settings(|settings| settings.workers = count)
    }

    /// How many turns each worker serves at the same time, a thread each, from 1 to 64; one, unless told. Each thread
    /// makes a service of its own.
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

    /// How long a graceful stop may take; 30 seconds, unless told.
    #[must_use]
    pub fn grace(mut self, limit: Duration) -> Self {
        self.settings.grace = limit;
        self
    }

    /// How long a single read from or write to a client may sleep inside a turn; 60 seconds, unless told.
    #[must_use]
    pub fn client_timeout(self, limit: Duration) -> Self {
        self.settings(|settings| settings.client_timeout = limit)
    }

    /// What the workers give up before they serve: the user that they run as, what they see of the file system, how much
    /// they may use; nothing, unless told. The master keeps its own privileges, and whatever it bound with them.
    ///
    /// [`Server::run`] checks all of it before the first fork, and fails with what is wrong. Each worker is confined
    /// before it makes its service; one that can't be (its directory is gone) ends with an error in the log, and is
    /// tried again like one that died. A worker keeps the descriptors that were open before `run`, those of directories
    /// outside of its own root too.
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

    /// The TCP addresses that it is bound to, with the real port where port 0 was asked for.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        let heritage = self.heritage.iter();
        let listeners = heritage.flat_map(|heritage| &heritage.listeners);
        listeners
            .filter(|listener| self.listen.contains(listener.asked()))
            .filter_map(listener::Listener::local_address)
            .collect()
    }

    /// Serves until it is told to stop by a signal. Each worker process makes its own service with `make`, after the
    /// fork. Call it from the main thread of a program without other threads, and start no thread before it: forking
    /// a process with threads is not safe.
    ///
    /// The signals that a server obeys (SIGTERM, SIGINT, SIGQUIT, SIGCHLD, SIGTTIN, SIGTTOU) are its own from now on,
    /// and so are the process's children; all signals are unblocked. Descriptors that are open now stay open in the
    /// workers.
    ///
    /// # Errors
    /// When the master can't be set up, or the workers can't be confined. Once it serves, it reports trouble in the log
    /// and goes on.
    pub fn run<S: Service>(self, make: impl Fn() -> S + Sync) -> Result<()> {
        let plan = plan(MAIN, self.listen, self.settings, &self.confinement, make)?;
        let heritage = self.heritage.unwrap_or_default();
        serve_pools(heritage, Offices::default(), &|| Ok(vec![plan.clone()]))
    }
}

/// A pool whose workers run the services that `make` makes, confined.
///
/// # Errors
/// When they can't be confined.
pub(crate) fn plan<'a, S: Service>(
    name: &str,
    listen: Vec<Address>,
    settings: Settings,
    confinement: &Confinement,
    make: impl Fn() -> S + Sync + 'a,
) -> Result<Plan<'a>> {
    let threads = settings.threads;
    let confinement = confine::Plan::new(confinement, threads)?;
    let main = move |seat: WorkerHandles<'_>| {
        logging::set_role(Role::Worker { slot: seat.slot });
        if let Err(error) = confinement.apply() {
            log::error!("{error}");
            return 1;
        }
        let served = match threads {
            1 => worker::serve(seat, &mut make()),
            count => worker::serve_in_threads(seat, count, &make),
        };
        exit_status(served)
    };
    Ok(Plan {
        name: name.into(),
        listen,
        settings,
        profile: S::profile(),
        main: Rc::new(main),
        keep: Vec::new(),
    })
}

/// Serves pools until it is told to stop. `plans` says what they are, now and at each reload.
pub(crate) fn serve_pools<'a>(
    heritage: Heritage,
    offices: Offices,
    plans: &'a Source<'a>,
) -> Result<()> {
    signals::reset_inherited().map_err(|error| Error::new("set up signals", error))?;
    raise_descriptor_limit();
    let beginning = Beginning {
        plans: plans()?,
        heritage,
        offices,
    };
    master::run(beginning, plans)
}

fn exit_status(result: io::Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        // The master is gone, and nobody is left to report to.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            log::error!("cannot go on: {error}");
            1
        }
    }
}

/// The master holds a descriptor per connection: it takes as many as it may have.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => log::debug!("up to {limit} descriptors"),
        Err(error) => log::warn!(
            "cannot raise the limit of open descriptors: {}",
            error.desc()
        ),
    }
}
