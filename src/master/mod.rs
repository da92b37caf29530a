//! The master: accepts connections, holds them, and lends them to workers.
//!
//! One thread, one epoll set, one loop: events go to the [`pool`]s, each of which has a [`dispatch`]er and carries out
//! what that decides. The master never runs service code and parses no protocol.

mod accepting;
pub mod chains;
mod clients;
pub mod connections;
mod control;
pub mod dispatch;
mod ending;
mod generation;
mod held;
mod lending;
pub mod listener;
pub mod pool;
pub mod processes;
mod reload;
mod signals;
pub mod time;
mod token;
pub mod wheel;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::error::{Error, Result};
use crate::sys;
use listener::Listener;
use pool::{Plan, Pool};
use reload::Reload;
use signals::Signals;
use time::Time;
use token::{Subject, Token};

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
}

/// What the master has to itself, and no worker may keep.
pub struct Own {
    epoll: Rc<OwnedFd>,
    /// `None` in a worker process, which has detached itself from the master's signals.
    signals: Option<Signals>,
    /// Descriptors that were open before this master made its own; workers keep them.
    inherited: Vec<RawFd>,
}

/// Runs a server until it is told to stop. `bound` are listeners that exist already; what else the plans want is bound
/// here.
///
/// # Errors
/// When the master can't be set up. Once it serves, it reports trouble in the log and goes on.
pub fn run<'a>(plans: Vec<Plan<'a>>, bound: Vec<Listener>, source: &'a Source<'a>) -> Result<()> {
    let mut inherited = sys::process::open_descriptors();
    inherited.retain(|fd| {
        bound
            .iter()
            .all(|listener| listener.as_fd().as_raw_fd() != *fd)
    });
    let failed = |what: &'static str| move |error: io::Error| Error::new(what, error);
    let epoll =
        epoll::create(CreateFlags::CLOEXEC).map_err(|e| failed("create an epoll set")(e.into()))?;
    let signals = Signals::catch().map_err(failed("catch signals"))?;
    let data = EventData::new_u64(Token::SIGNALS.encode());
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
    };
    master.set_up(plans, bound)?;
    master.serve();
    Ok(())
}

impl<'a> Master<'a> {
    fn now(&self) -> Time {
        // From one hour on, so that nothing that was never set seems to lie in the future.
        Time::default().after(self.begin.elapsed() + Duration::from_secs(3600))
    }

    fn set_up(&mut self, plans: Vec<Plan<'a>>, mut bound: Vec<Listener>) -> Result<()> {
        let room = self.room(&plans);
        let asked: Vec<_> = bound.iter().map(Listener::asked).collect();
        let missing = reload::bind_missing(&plans, &asked)?;
        bound.extend(missing);
        for (index, plan) in plans.into_iter().enumerate() {
            let (size, epoll) = (plan.settings.workers, Rc::clone(&self.own.epoll));
            let mut pool = Pool::new(index as u8, plan, size, room, epoll);
            pool.listen_on(reload::take_wanted(&mut bound, pool.addresses()))?;
            self.pools.push(Some(pool));
        }
        Ok(())
    }

    fn pools(&mut self) -> impl Iterator<Item = &mut Pool<'a>> {
        self.pools.iter_mut().flatten()
    }

    /// How many connections leave enough descriptors for the workers and their replacements, and for a reload.
    fn room(&self, plans: &[Plan<'_>]) -> usize {
        let limit =
            getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| soft as usize);
        let workers: usize = plans.iter().map(|plan| plan.settings.workers).sum();
        // Both ends of a socketpair, and a doorbell; while a worker is started, its own copy of its end too. At a reload
        // each worker has a successor beside it.
        let kept_back = (4 + 3) * workers + 4 * 2 + SPARE_DESCRIPTORS;
        let open = self.own.inherited.len();
        limit.saturating_sub(open + kept_back).max(1)
    }

    // ---- the loop ---------------------------------------------------------------------------------------------

    fn serve(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let now = self.now();
            for pool in self.pools.iter_mut().flatten() {
                pool.start_missing(&mut self.own, now);
                pool.carry_out(now);
                pool.advance(now);
            }
            self.advance(now);
            if self.is_over() {
                break;
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
                let due = self.pools.iter().flatten().filter_map(Pool::next_due).min();
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
        if subject == Subject::Signals {
            self.on_signals(now);
        } else if let Some(Some(pool)) = self.pools.get_mut(usize::from(pool)) {
            pool.on_event(subject, event.flags, now);
        }
    }
}
