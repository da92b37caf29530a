//! One pool as a library user describes it: a name, addresses, settings, and what its workers run.

use std::fmt::{self, Display};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use super::body_dir::BodyDir;
use super::socket_owner;
use super::start::Plan;
use crate::channel::start::WorkerHandles;
use crate::config::keys::contradiction;
use crate::config::{Address, Confinement, Settings, name_fault};
use crate::error::{Error, Plain, Result};
use crate::logging::{self, Role};
use crate::service::{Keeping, Service, ServiceProfile};
use crate::sys::processors;
use crate::worker::{self, confine};

/// One pool of a server: workers that run one service, and the addresses where its clients come
/// from. [`ServerBuilder::pools`](crate::ServerBuilder::pools) takes them.
///
/// A pool is a description alone. Whatever is wrong with it (a malformed address, a user who
/// doesn't exist, settings that contradict each other) is the error of the start or of the reload
/// that is to use it, before any worker is forked.
///
/// ```
/// use batond::{Echo, Pool};
///
/// let pool = Pool::new("echo", Echo::new)
///     .listen("127.0.0.1:7000")
///     .listen("unix:/run/echo.sock")
///     .workers(2)
///     .settings(|settings| settings.idle_timeout = None);
/// ```
#[derive(Clone)]
pub struct Pool<'a> {
    pub(super) name: String,
    pub(super) listen: Vec<Address>,
    /// The pools to which the service passes requests.
    pub(super) passes_to: Vec<String>,
    /// What is wrong with the first address that couldn't be parsed.
    bad_address: Option<String>,
    settings: Settings,
    confinement: Confinement,
    /// The owners of the descriptors that the workers of this pool keep.
    keep: Vec<Rc<dyn AsFd + 'a>>,
    profile: ServiceProfile,
    serve: Rc<Serve<'a>>,
}

/// Makes the services of a worker process, one for each of so many threads, and serves.
type Serve<'a> = dyn Fn(WorkerHandles<'_>, &'static Keeping, usize) -> io::Result<()> + 'a;

impl<'a> Pool<'a> {
    /// A pool that listens nowhere yet, with the settings of [`Settings::for_processors`]. Each
    /// worker process makes its own service with `make`, after the fork; with several
    /// [threads](Pool::threads), one for each of them.
    ///
    /// The log calls the pool by its name: 1 to 64 ASCII letters, digits, hyphens, underscores and
    /// dots. A pool keeps its connections in a reload if the new one has
    /// the same name.
    pub fn new<S: Service>(name: impl Into<String>, make: impl Fn() -> S + Sync + 'a) -> Self {
        let serve = move |handles: WorkerHandles<'_>, keeping, threads| match threads {
            1 => worker::serve(handles, keeping, &mut make()),
            count => worker::serve_in_threads(handles, keeping, count, &make),
        };
        Self {
            name: name.into(),
            listen: Vec::new(),
            passes_to: Vec::new(),
            bad_address: None,
            settings: default_settings(),
            confinement: Confinement::default(),
            keep: Vec::new(),
            profile: S::profile(),
            serve: Rc::new(serve),
        }
    }

    /// Listens on this address, too: `127.0.0.1:8080`, `[::1]:8080`, `:8080`, `localhost:0`,
    /// `unix:/path`, or `fd:NAME` for the sockets that systemd passes under this name. A pool needs
    /// at least one unless it is another one's [fallback](Pool::fallback), and no other pool may
    /// have the same one, except for port 0, which is another port each time.
    #[must_use]
    pub fn listen<A>(mut self, address: A) -> Self
    where
        A: TryInto<Address, Error: Display>,
    {
        match address.try_into() {
            Ok(address) => self.listen.push(address),
            Err(error) => {
                self.bad_address.get_or_insert(error.to_string());
            }
        }
        self
    }

    /// Says that the service of this pool has the pool of that name answer what it does not answer
    /// itself ([`Turn::Pass`](crate::Turn::Pass),
    /// [`Files::fallback`](crate::http::Files::fallback)). The server starts only if there is such
    /// a pool, and if that one passes nothing on itself. It need not listen anywhere.
    ///
    /// ```no_run
    /// # fn main() -> batond::Result<()> {
    /// use batond::http::{Files, Http, Request, Response};
    /// use batond::{Pool, Server};
    ///
    /// let files = Files::open("/srv/www".as_ref())?.fallback("app");
    /// let pools = || {
    ///     let files = files.clone();
    ///     let site = Pool::new("site", move || Http::new(files.clone())).listen(":8080");
    ///     let answer = |request: &mut Request<'_>| Response::text(request.path().to_owned());
    ///     let app = Pool::new("app", move || Http::new(answer));
    ///     Ok(vec![site.fallback("app"), app])
    /// };
    /// Server::builder().pools(pools)?.run()
    /// # }
    /// ```
    #[must_use]
    pub fn fallback(mut self, pool: impl Into<String>) -> Self {
        self.passes_to.push(pool.into());
        self
    }

    /// How many workers serve, from 1. The default is twice the number of processors, and at least
    /// four.
    #[must_use]
    pub fn workers(self, count: usize) -> Self {
        self.settings(|settings| settings.workers = count)
    }

    /// How many turns each worker serves at the same time, a thread each, from 1 to
    /// [`MAX_THREADS`](crate::config::MAX_THREADS). The default is one.
    #[must_use]
    pub fn threads(self, count: usize) -> Self {
        self.settings(|settings| settings.threads = count)
    }

    /// Changes any of the settings. Values that are out of bounds are brought to the nearest bound
    /// ([`Settings::within_bounds`]).
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.settings = self.settings.within_bounds();
        self
    }

    /// What the workers give up before they serve. The default is nothing. See
    /// [`Server::confinement`](crate::Server::confinement).
    #[must_use]
    pub fn confinement(mut self, confinement: Confinement) -> Self {
        self.confinement = confinement;
        self
    }

    /// Leaves a descriptor open in the workers of this pool, and of no other: of a directory, a
    /// shared file, a socket. The pool takes the `owner` of the descriptor, so that it stays open
    /// as long as workers are started; this may be a clone of what the service uses, an `Arc` or a
    /// reference.
    ///
    /// A worker also keeps whatever was open when the server started to run and is not kept for
    /// another pool. So this is for what a reload opens, and for what belongs to one pool alone.
    ///
    /// ```no_run
    /// # fn main() -> batond::Result<()> {
    /// use batond::Pool;
    /// use batond::http::{Files, Http};
    ///
    /// let files = Files::open("/srv/www".as_ref())?;
    /// let served = files.clone();
    /// let pool = Pool::new("site", move || Http::new(served.clone())).keep(files);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn keep(mut self, owner: impl AsFd + 'a) -> Self {
        self.keep.push(Rc::new(owner));
        self
    }

    /// The pool as the master knows it.
    ///
    /// # Errors
    /// What is wrong with the pool by itself, or why its workers can't be confined.
    pub(super) fn plan(self) -> Result<Plan<'a>> {
        if let Some(reason) = self.fault() {
            return Err(self.refused(&reason));
        }
        let unix = socket_owner::numbered(&self.settings.unix, &self.listen);
        let unix = unix.map_err(|reason| self.refused(&reason))?;
        let threads = self.settings.threads;
        let confinement = confine::Plan::new(&self.confinement, threads)?;
        let settings = &self.settings;
        let chroot = self.confinement.chroot.as_deref();
        let body_dir = BodyDir::find(settings.body_dir.as_deref(), chroot)?;
        let limits = (settings.max_body.unwrap_or(u64::MAX), settings.max_spool);
        let (serve, owners) = (self.serve, self.keep);
        let keep = owners.iter().map(|owner| owner.as_fd().as_raw_fd());
        let keep = keep.collect();
        let main = move |handles: WorkerHandles<'_>| {
            // The closure owns them, so that the descriptors stay open as long as it can be called.
            let _ = &owners;
            logging::set_role(Role::Worker { slot: handles.slot });
            body_dir.prepare(&owners);
            if let Err(error) = confinement.apply() {
                log::error!("{error}");
                return 1;
            }
            let keeping = body_dir.open(handles.slot, limits);
            exit_status(serve(handles, keeping, threads))
        };
        Ok(Plan {
            name: self.name.into(),
            listen: self.listen,
            settings: Settings {
                unix,
                ..self.settings
            },
            profile: self.profile,
            main: Rc::new(main),
            keep,
        })
    }

    /// Whether no address was given.
    pub(super) fn listens_nowhere(&self) -> bool {
        self.listen.is_empty() && self.bad_address.is_none()
    }

    fn fault(&self) -> Option<String> {
        if let Some(reason) = name_fault(&self.name) {
            return Some(format!("name: {reason}"));
        }
        if let Some(reason) = &self.bad_address {
            return Some(format!("listen: {reason}"));
        }
        contradiction(&self.settings).map(|(setting, reason)| format!("{setting}: {reason}"))
    }

    /// The error that this pool can't be used.
    pub(super) fn refused(&self, reason: &str) -> Error {
        Error::because(format!("use pool {:?}", self.name), reason)
    }
}

impl fmt::Debug for Pool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("listen", &self.listen)
            .field("settings", &self.settings)
            .field("confinement", &self.confinement)
            .finish_non_exhaustive()
    }
}

/// The settings of a pool that was told none.
pub(super) fn default_settings() -> Settings {
    Settings::for_processors(processors::available())
}

fn exit_status(result: io::Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        // The master is gone, and nobody is left to report to.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            log::error!("cannot go on: {}", Plain(&error));
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::UnixAccess;
    use crate::services::Echo;

    #[track_caller]
    fn assert_refused(pool: Pool<'_>, expected: &str) {
        match pool.plan() {
            Ok(plan) => panic!("a pool that needs {expected:?} is {}", plan.name),
            Err(error) => assert_eq!(error.to_string(), expected),
        }
    }

    #[test]
    fn a_pool_that_is_wrong_by_itself_says_why() {
        let pool = || Pool::new("web", Echo::new);
        let no_port = pool().listen(":0").listen("localhost").listen("x:y");
        assert_refused(
            no_port,
            "cannot use pool \"web\": listen: the port is missing; an address looks like \
             127.0.0.1:8080, [::1]:8080, :8080, unix:/path or fd:NAME",
        );
        let settings = |settings: &mut Settings| settings.max_workers = Some(1);
        assert_refused(
            pool().listen(":0").workers(2).settings(settings),
            "cannot use pool \"web\": max-workers: 1 is less than workers, which is 2",
        );
        assert_refused(
            Pool::new("a\nb", Echo::new).listen(":0"),
            "cannot use pool \"a\\nb\": name: expected 1 to 64 letters, digits, hyphens, \
             underscores and dots",
        );
        let nameless = Pool::new("", Echo::new).listen(":0").plan().err();
        let reason = nameless.expect("a name is needed").to_string();
        assert!(
            reason.starts_with("cannot use pool \"\": name: expected 1 to 64 "),
            "{reason}"
        );
    }

    #[test]
    fn the_master_gets_the_numbers_of_those_who_own_its_sockets() {
        let access = |owner: &str, group: &str| UnixAccess {
            mode: Some(0o660),
            owner: Some(owner.to_owned()),
            group: Some(group.to_owned()),
        };
        let pool = |access: UnixAccess| {
            // Without a file, so that it takes no privileges.
            let pool = Pool::new("web", Echo::new).listen(":0");
            pool.settings(|settings| settings.unix = access)
        };
        let plan = pool(access("root", "54321")).plan().unwrap();
        assert_eq!(plan.settings.unix, access("0", "54321"));
        assert_refused(
            pool(access("0", "no-such-group")),
            "cannot use pool \"web\": cannot find unix-group \"no-such-group\": there is none",
        );
    }

    #[test]
    fn a_plan_owns_the_descriptors_that_its_workers_keep() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (number, owner) = (ours.as_raw_fd(), Arc::new(ours));
        let owned = Arc::downgrade(&owner);
        let plan = Pool::new("web", Echo::new).listen(":0").keep(owner);
        let plan = plan.plan().unwrap();
        assert_eq!(plan.keep, [number]);
        let copy = plan.clone();
        drop(plan);
        assert!(owned.upgrade().is_some());
        drop(copy);
        assert!(owned.upgrade().is_none());
    }
}
