//! One worker process: the stage of its life, and what the master knows about it.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::channel::Channel;
use super::lifetime::{Lifetime, Reason};
use super::slots::SlotId;
use crate::config::Settings;
use crate::master::child::Child;
use crate::master::dispatch::WorkerId;
use crate::master::events::epoll::PoolEpoll;
use crate::master::plan::MAIN;
use crate::master::time::Time;

/// The age under which a death is an early one, unless the worker has served more than one
/// connection. The successor of a worker that died early waits. A worker that has served clients is
/// no sign of a service that cannot work, whatever has killed it.
pub const YOUNG: Duration = Duration::from_secs(1);

/// The stage of a worker's life. A worker goes from the top to the bottom, and never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not ready yet. It has its start timeout to become ready.
    Starting,
    /// It is lent connections.
    Serving,
    /// It is lent nothing more, and finishes the turns that it has.
    Draining,
    /// Asked to exit, or killed on purpose.
    Exiting,
    /// It has ended, or was killed because it broke the protocol: what it says no longer counts.
    Dead,
}

/// What the end of a process means for its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// No worker is wanted in the slot, or another one is there already.
    Unwanted,
    /// The worker was asked to go: another one follows at once.
    Expected,
    /// The worker died: another one follows at once.
    Sudden,
    /// The worker died at its start: another one follows after a delay.
    Early,
    /// The worker died soon after its start, with the first connection that it had taken up. That
    /// may be the fault of either: another one follows after a delay, or when somebody needs it.
    FirstTurn,
}

/// A worker has reported a second time that it is ready, which no honest one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaidTwice;

/// See the module.
#[derive(Debug)]
pub struct Process {
    /// The name of its pool, for the log.
    pool: Rc<str>,
    slot: SlotId,
    worker: WorkerId,
    /// The process as the kernel knows it, with the signals that are due.
    pub child: Child,
    /// How the master speaks to it.
    pub channel: Channel,
    stage: Stage,
    departure: Option<Departure>,
    /// Whether it has reported that it can serve, in time or not.
    was_ready: bool,
    /// How many turns the worker serves at the same time; other generations may differ.
    threads: usize,
    lifetime: Lifetime,
    turns: u64,
    /// Its memory when that was last looked up, in bytes.
    memory: u64,
    born: Time,
}

impl Process {
    /// A process that was just started.
    #[must_use]
    pub fn new(
        pool: &Rc<str>,
        slot: SlotId,
        worker: WorkerId,
        (child, channel): (Child, Channel),
        settings: &Settings,
        now: Time,
    ) -> Self {
        let seed = child.pid().as_raw().unsigned_abs().into();
        Self {
            pool: Rc::clone(pool),
            slot,
            worker,
            child,
            channel,
            stage: Stage::Starting,
            departure: None,
            was_ready: false,
            threads: settings.threads,
            lifetime: Lifetime::new(settings, seed, now),
            turns: 0,
            memory: 0,
            born: now,
        }
    }

    /// Its name in the dispatcher.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// The slot that it was started for, and the generation of that slot.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// The stage of its life.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether the worker is lent connections, unless a signal has stopped it.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// Whether the worker has ever reported that it can serve.
    #[must_use]
    pub fn was_ready(&self) -> bool {
        self.was_ready
    }

    /// The time of its start.
    #[must_use]
    pub fn born(&self) -> Time {
        self.born
    }

    /// How many turns the worker serves at the same time.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Whether its death would no longer be an early one.
    #[must_use]
    pub fn has_outlived_its_start(&self, now: Time) -> bool {
        let proved = self.turns.max(self.channel.taken()) > 1;
        let was_ready = self.stage > Stage::Starting && self.departure != Some(Departure::Early);
        was_ready && (now.since(self.born) >= YOUNG || proved)
    }

    // ---- its life -------------------------------------------------------------------------------

    /// The worker reports that it can serve. False when that comes too late to matter.
    ///
    /// # Errors
    /// The worker has reported it before.
    pub fn become_ready(&mut self) -> Result<bool, SaidTwice> {
        if std::mem::replace(&mut self.was_ready, true) {
            return Err(SaidTwice);
        }
        let in_time = self.stage == Stage::Starting;
        if in_time {
            self.stage = Stage::Serving;
            self.child.give_time();
        }
        Ok(in_time)
    }

    /// Counts turns that the worker has served, at least one. True when they are the last ones of
    /// its life.
    pub fn count_turns(&mut self, turns: u64) -> bool {
        self.turns = self.turns.saturating_add(turns.max(1));
        self.lifetime.is_served_by(self.turns, turns.max(1))
    }

    /// Why another worker should take its place, if one should.
    #[must_use]
    pub fn is_spent(&self, now: Time) -> Option<Reason> {
        self.lifetime.over(self.turns, self.memory, now)
    }

    /// The time at which the worker has reached its age limit, if it has one.
    #[must_use]
    pub fn spent_at(&self) -> Option<Time> {
        self.lifetime.end()
    }

    /// Whether the settings bound its memory.
    #[must_use]
    pub fn is_measured(&self) -> bool {
        self.lifetime.is_measured()
    }

    /// Looks up how much memory the worker has.
    pub fn measure(&mut self) {
        // If /proc does not say now, the next look may tell; the last known size stays until then.
        self.memory = super::memory::resident(self.child.pid()).unwrap_or(self.memory);
    }

    // ---- its end --------------------------------------------------------------------------------

    /// The worker is no longer wanted: it finishes its turns, and is killed at `until`.
    pub fn drain(&mut self, until: Time, now: Time) {
        self.end_start(now);
        self.continue_stopped();
        self.stage = self.stage.max(Stage::Draining);
        self.departure.get_or_insert(Departure::Unwanted);
        self.child.kill_at(until);
    }

    /// Asks the worker to exit, and kills it at `until`. A second call does nothing.
    ///
    /// # Errors
    /// What sendmsg(2) fails with. A worker that has closed its end is exiting anyway.
    pub fn retire(&mut self, until: Time, now: Time) -> io::Result<()> {
        if self.stage >= Stage::Exiting {
            return Ok(());
        }
        self.end_start(now);
        self.continue_stopped();
        self.stage = Stage::Exiting;
        self.departure.get_or_insert(Departure::Expected);
        self.child.kill_at(until);
        match self.channel.retire() {
            Err(error) if error.raw_os_error() != Some(libc::EPIPE) => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends a worker that is still starting: it has no turn to finish, and may not listen before it
    /// has started.
    fn end_start(&mut self, now: Time) {
        if self.stage == Stage::Starting {
            self.child.end(Signal::SIGTERM, now);
        }
    }

    /// Lets a worker go on that a signal has stopped, because it could neither finish its turn nor
    /// exit otherwise.
    pub fn continue_stopped(&mut self) {
        if self.stage != Stage::Dead && self.child.continue_stopped() {
            log::info!("resuming stopped worker {self}, so that it can exit");
        }
    }

    /// Kills the worker at once, because its generation never comes to serve.
    pub fn discard(&mut self) {
        self.stage = self.stage.max(Stage::Exiting);
        self.departure.get_or_insert(Departure::Expected);
        self.child.kill();
    }

    /// Sends the signal that is due. A worker that was not ready in time counts as dead at its
    /// start.
    pub fn escalate(&mut self, now: Time) {
        if self.stage == Stage::Starting {
            self.departure.get_or_insert(Departure::Early);
            self.stage = Stage::Exiting;
        }
        self.child.escalate(now);
    }

    /// Kills the worker because it broke the protocol, and ignores whatever else it says. False
    /// when it is dead already.
    pub fn condemn(&mut self, epoll: &PoolEpoll, now: Time) -> bool {
        if self.stage == Stage::Dead {
            return false;
        }
        self.mark_dead(now);
        self.child.kill();
        self.channel.unwatch(epoll);
        true
    }

    /// The worker has ended, or is about to. Returns the stage that it had reached.
    pub fn mark_dead(&mut self, now: Time) -> Stage {
        let departure = match self.has_outlived_its_start(now) {
            true => Departure::Sudden,
            false if self.was_ready && self.channel.taken() > 0 => Departure::FirstTurn,
            false => Departure::Early,
        };
        self.departure.get_or_insert(departure);
        std::mem::replace(&mut self.stage, Stage::Dead)
    }

    /// What the end of the worker means for its slot.
    #[must_use]
    pub fn departure(&self) -> Departure {
        self.departure.unwrap_or(Departure::Sudden)
    }
}

/// The worker as the log names it: by slot and pid, by pool if that has a name of its own, and by
/// generation after a reload.
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot={} pid={}", self.slot.slot, self.child.pid())?;
        if &*self.pool != MAIN {
            write!(f, " pool={}", self.pool)?;
        }
        if self.slot.generation > 0 {
            write!(f, " generation={}", self.slot.generation)?;
        }
        Ok(())
    }
}
