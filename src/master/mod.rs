//! The master: accepts connections, holds them, and lends them to workers.
//!
//! One thread, one epoll set, one loop: events go to the [`pool`]s, each of which has a [`dispatch`]er and carries out
//! what that decides. The master never runs service code and parses no protocol.

mod connection;
pub mod dispatch;
pub mod events;
pub mod listen;
pub mod office;
mod orders;
pub mod pool;
mod reload;
pub mod store;
pub mod succession;
pub mod time;
pub mod workers;

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::error::{Error, Result};
use crate::sys;
use events::signals::Signals;
use events::token::{Subject, Token};
use office::control_socket::Control;
use office::pid_file::PidFile;
use office::service_manager::Manager;
use pool::{Plan, Pool};
use reload::Reload;
use store::Store;
use succession::inherited::Heritage;
use succession::{Condemned, Launch, Orphans, Successor, Takeover};
use time::Time;
use workers::autoscale::Bounds;

/// How many events are taken out of the epoll set at a time.
const EVENTS: usize = 256;

/// Descriptors that are kept back for the master itself.
const SPARE_DESCRIPTORS: usize = 8;

/// How many pools there may be, those included that are being drained.
pub const MAX_POOLS: usize = 256;

/// Where the plans of all pools come from when they are to be made anew.
pub type Source<'a> = dyn Fn() -> Result<Vec<Plan<'a>>> + 'a;

/// See the module.
pub struct Master<'a> {
    /// By their index.
    pools: Vec<Option<Pool<'a>>>,
    source: &'a Source<'a>,
    reload: Option<Reload>,
    own: Own,
    begin: Instant,
    /// It was told to stop, and by how many SIGINT.
    stopping: Option<u32>,
    /// It ends without waiting for anything.
    quitting: bool,
    launch: Launch,
    offices: Offices,
    control: Option<Control>,
    pid_file: Option<PidFile>,
    manager: Manager,
    /// What the manager keeps for this master, if it does.
    store: Option<Store>,
    /// What a master that was killed had lent.
    orphans: Option<Orphans>,
    /// Another master takes over from this one.
    takeover: Option<Takeover>,
    /// Those that were to take over, and failed.
    condemned: Vec<Condemned>,
    /// This master takes over from another one.
    successor: Option<Successor>,
}

/// Where a master can be found, as long as it is the one in charge.
#[derive(Debug, Clone, Default)]
pub struct Offices {
    /// The socket over which a new master takes over.
    pub control: Option<PathBuf>,
    /// The file that names its process.
    pub pid_file: Option<PathBuf>,
}

/// What a master begins with.
pub struct Beginning<'a> {
    /// What the pools are to be.
    pub plans: Vec<Plan<'a>>,
    /// Listeners that exist already (what else the plans want is bound), and the master from which it takes over.
    pub heritage: Heritage,
    /// Where it can be found.
    pub offices: Offices,
}

/// What the master has to itself, and no worker may keep.
pub struct Own {
    epoll: Rc<OwnedFd>,
    /// `None` in a worker process, which has detached itself from the master's signals.
    signals: Option<Signals>,
    /// Descriptors that were open before this master made its own; workers keep them.
    inherited: Vec<RawFd>,
}

/// Runs a server until it is told to stop.
///
/// # Errors
/// When the master can't be set up. Once it serves, it reports trouble in the log and goes on.
pub fn run<'a>(beginning: Beginning<'a>, source: &'a Source<'a>) -> Result<()> {
    let Beginning {
        plans,
        mut heritage,
        offices,
    } = beginning;
    let own = heritage.descriptors();
    let mut inherited = sys::process::open_descriptors();
    // What belongs to a plan goes with it.
    let kept: Vec<RawFd> = plans.iter().flat_map(|plan| plan.keep.clone()).collect();
    inherited.retain(|fd| !own.contains(fd) && !kept.contains(fd));
    let failed = |what: &'static str| move |error: io::Error| Error::new(what, error);
    let epoll =
        epoll::create(CreateFlags::CLOEXEC).map_err(|e| failed("create an epoll set")(e.into()))?;
    let signals = Signals::catch().map_err(failed("catch signals"))?;
    let data = EventData::new_u64(Token::own(Subject::Signals).encode());
    epoll::add(&epoll, &signals, data, EventFlags::IN)
        .map_err(|error| failed("watch the signals")(error.into()))?;
    let mut master = Master {
        pools: Vec::new(),
        source,
        reload: None,
        own: Own {
            epoll: Rc::new(epoll),
            signals: Some(signals),
            inherited,
        },
        begin: Instant::now(),
        stopping: None,
        quitting: false,
        launch: Launch::of_this_program(),
        offices,
        control: None,
        pid_file: None,
        takeover: None,
        condemned: Vec::new(),
        manager: Manager::new(heritage.notifier.take(), heritage.successor.is_none()),
        store: None,
        orphans: None,
        successor: heritage.successor.take(),
    };
    master.set_up(plans, heritage)?;
    let result = master.serve();
    master.clear_store();
    result
}

impl<'a> Master<'a> {
    fn now(&self) -> Time {
        // From one hour on, so that nothing that was never set seems to lie in the future.
        Time::default().after(self.begin.elapsed() + Duration::from_secs(3600))
    }

    fn set_up(&mut self, plans: Vec<Plan<'a>>, mut heritage: Heritage) -> Result<()> {
        let room = self.room(&plans);
        for (plan, address, before) in reload::wanted(&plans) {
            heritage.listen_on(address, before, plan.settings.backlog)?;
        }
        heritage.close_unused();
        let legacy = std::mem::take(&mut heritage.legacy);
        let mut bound = heritage.listeners;
        self.open_store(room, self.now());
        for (index, plan) in plans.into_iter().enumerate() {
            let (size, epoll) = (plan.settings.workers, Rc::clone(&self.own.epoll));
            let mut pool = Pool::new(index as u8, plan, size, room, epoll);
            pool.store = self.store.clone();
            pool.held_back = self.successor.is_some();
            pool.listen_on(reload::take_wanted(&mut bound, pool.addresses(), &[]))?;
            self.pools.push(Some(pool));
        }
        self.prepare_office(self.successor.is_some())?;
        self.inherit(legacy, self.now());
        Ok(())
    }

    /// Prepares to be found, so that what may fail has failed before this master is in charge.
    fn prepare_office(&mut self, replace: bool) -> Result<()> {
        if let Some(path) = &self.offices.control {
            self.control = Some(Control::prepare(path, replace)?);
        }
        if let Some(path) = &self.offices.pid_file {
            self.pid_file = Some(PidFile::prepare(path)?);
        }
        if self.successor.is_none() && !replace {
            self.publish_office()?;
        }
        Ok(())
    }

    /// Can be found from now on. A master in charge does not give up because it can't.
    fn take_office(&mut self) {
        if let Err(error) = self.publish_office() {
            log::error!("{error}");
        }
        self.manager.take_charge();
    }

    fn publish_office(&mut self) -> Result<()> {
        if let Some(control) = &mut self.control {
            control.publish()?;
            let data = EventData::new_u64(Token::own(Subject::Control).encode());
            epoll::add(&*self.own.epoll, &control, data, EventFlags::IN)
                .map_err(|error| Error::new(format!("watch {control}"), io::Error::from(error)))?;
        }
        self.pid_file.as_ref().map_or(Ok(()), PidFile::publish)
    }

    fn pools(&mut self) -> impl Iterator<Item = &mut Pool<'a>> {
        self.pools.iter_mut().flatten()
    }

    /// How many connections leave enough descriptors for the workers and their replacements, and for a reload.
    fn room(&self, plans: &[Plan<'_>]) -> usize {
        let limit =
            getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| soft as usize);
        let most = |plan: &Plan<'_>| Bounds::most_of(&plan.settings);
        let workers: usize = plans.iter().map(most).sum();
        // Both ends of a socketpair, and a doorbell; while a worker is started, its own copy of its end too. At a reload
        // each worker has a successor beside it.
        let kept_back = (4 + 3) * workers + 4 * 2 + SPARE_DESCRIPTORS;
        let open = self.own.inherited.len();
        limit.saturating_sub(open + kept_back).max(1)
    }

    // ---- the loop ---------------------------------------------------------------------------------------------

    fn serve(&mut self) -> Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let now = self.now();
            for pool in self.pools.iter_mut().flatten() {
                pool.tend(now);
                pool.start_missing(&mut self.own, now);
                pool.carry_out(now);
                pool.advance(now);
            }
            if let Err(error) = self.advance(now) {
                self.pools().for_each(Pool::quit);
                return Err(error);
            }
            self.tend_store(now);
            if self.is_over() {
                self.end_takeover();
                return Ok(());
            }
            let mut may_sleep = true;
            for pool in self.pools() {
                // Each of them is asked: those that may sleep are woken below.
                may_sleep &= pool.fall_asleep();
            }
            self.wait(&mut events, may_sleep.then_some(now));
            self.pools().for_each(Pool::wake_up);
            let now = self.now();
            for event in events.drain(..) {
                self.on_event(event, now);
            }
            self.pools().for_each(|pool| pool.tick(now));
        }
    }

    /// Waits for events: until the next thing is due, or not at all without `now`.
    fn wait(&self, events: &mut Vec<Event>, now: Option<Time>) {
        let timeout = match now {
            None => Some(Duration::ZERO),
            Some(now) => {
                let due = self.pools.iter().flatten().filter_map(Pool::next_due);
                let due = due
                    .chain(self.change_due())
                    .chain(self.manager.next_due())
                    .chain(self.store.as_ref().and_then(Store::due))
                    .min();
                due.map(|due| due.since(now))
            }
        };
        let timeout = timeout.map(|wait| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
        });
        match epoll::wait(
            &*self.own.epoll,
            rustix::buffer::spare_capacity(events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => log::error!("cannot wait for events: {error}"),
        }
    }

    fn on_event(&mut self, event: Event, now: Time) {
        let Token { pool, subject } = Token::decode(event.data.u64());
        match subject {
            Subject::Signals => self.on_signals(now),
            Subject::Control => self.on_control(now),
            Subject::Takeover => self.on_takeover(now),
            Subject::Succession => self.on_predecessor(now),
            Subject::Orphans => self.advance_orphans(now),
            _ => {
                if let Some(Some(pool)) = self.pools.get_mut(usize::from(pool)) {
                    pool.on_event(subject, event.flags, now);
                }
            }
        }
    }
}
