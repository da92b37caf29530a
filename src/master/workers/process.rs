//! One worker process: how far it has come, and what is known of it.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::channel::Channel;
use super::lifetime::{Lifetime, Reason};
use super::slots::SlotId;
use crate::config::Settings;
use crate::master::child::Child;
use crate::master::dispatch::WorkerId;
use crate::master::events::epoll::PoolEpoll;
use crate::master::plan::MAIN;
use crate::master::time::Time;

/// A worker that lives for less than this, and dies of its first connection or before it is ready,
/// has died early: its successor waits. One that has served others is no sign of a service that can't
/// work, whatever has killed it.
pub const YOUNG: Duration = Duration::from_secs(1);

/// How far a worker process has come. It goes from the top to the bottom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not ready yet: it has until its start timeout.
    Starting,
    /// Lent connections.
    Serving,
    /// Lent nothing more; it finishes what it has.
    Draining,
    /// Asked to exit, or killed on purpose.
    Exiting,
    /// Ended, or killed because it broke the protocol: what it says no longer counts.
    Dead,
}

/// What the end of a process means for its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Nobody is wanted in the slot, or somebody else is there already.
    Unwanted,
    /// It was asked to go: another one follows at once.
    Expected,
    /// It died: another one follows at once.
    Sudden,
    /// It died at its start: another one follows after a delay.
    Early,
}

/// See the module.
#[derive(Debug)]
pub struct Process {
    /// The pool to which it belongs, for the log.
    pool: Rc<str>,
    /// Its slot, of the generation to which it belongs.
    slot: SlotId,
    worker: WorkerId,
    /// The process as the kernel knows it, with the signals that are due.
    pub child: Child,
    /// How it is spoken to.
    pub channel: Channel,
    stage: Stage,
    departure: Option<Departure>,
    /// How many turns it serves at the same time; other generations may differ.
    threads: usize,
    lifetime: Lifetime,
    turns: u64,
    /// How much memory it had when that was last looked up, in bytes.
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
            threads: settings.threads,
            lifetime: Lifetime::new(settings, seed, now),
            turns: 0,
            memory: 0,
            born: now,
        }
    }

    /// What the dispatcher calls it.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// Its slot.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// How far it has come.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether it is lent connections, unless a signal has stopped it.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// When it was started.
    #[must_use]
    pub fn born(&self) -> Time {
        self.born
    }

    /// How many turns it serves at the same time.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Whether it has lived long enough to have died early no more.
    #[must_use]
    pub fn has_outlived_its_start(&self, now: Time) -> bool {
        let proved = self.turns.max(self.channel.taken()) > 1;
        let was_ready = self.stage > Stage::Starting && self.departure != Some(Departure::Early);
        was_ready && (now.since(self.born) >= YOUNG || proved)
    }

    // ---- its life ---------------------------------------------------------------------------------

    /// It says that it can serve. False when that comes too late.
    pub fn become_ready(&mut self) -> bool {
        let in_time = self.stage == Stage::Starting;
        if in_time {
            self.stage = Stage::Serving;
            self.child.give_time();
        }
        in_time
    }

    /// Counts turns that it has served, at least one. True when they are the last ones of its life.
    pub fn count_turns(&mut self, turns: u64) -> bool {
        self.turns = self.turns.saturating_add(turns.max(1));
        self.lifetime.is_served_by(self.turns, turns.max(1))
    }

    /// Why another one is to take its place, if that is so.
    #[must_use]
    pub fn is_spent(&self, now: Time) -> Option<Reason> {
        self.lifetime.over(self.turns, self.memory, now)
    }

    /// When its life is over if nothing happens.
    #[must_use]
    pub fn spent_at(&self) -> Option<Time> {
        self.lifetime.end()
    }

    /// Whether its memory is bounded.
    #[must_use]
    pub fn is_measured(&self) -> bool {
        self.lifetime.is_measured()
    }

    /// Looks up how much memory it has.
    pub fn measure(&mut self) {
        // What can't be known now is known the next time.
        self.memory = super::memory::resident(self.child.pid()).unwrap_or(self.memory);
    }

    // ---- its end ----------------------------------------------------------------------------------

    /// It is wanted no more: it finishes what it has, until then at the latest.
    pub fn drain(&mut self, until: Time) {
        self.stage = self.stage.max(Stage::Draining);
        self.departure.get_or_insert(Departure::Unwanted);
        self.child.kill_at(until);
    }

    /// Asks it to exit, until then at the latest; once.
    ///
    /// # Errors
    /// What sendmsg(2) fails with. A worker that takes no more is exiting by itself.
    pub fn retire(&mut self, until: Time) -> io::Result<()> {
        if self.stage >= Stage::Exiting {
            return Ok(());
        }
        self.stage = Stage::Exiting;
        self.departure.get_or_insert(Departure::Expected);
        self.child.kill_at(until);
        match self.channel.retire() {
            Err(error) if error.raw_os_error() != Some(libc::EPIPE) => Err(error),
            _ => Ok(()),
        }
    }

    /// Kills it, because it was never to serve anybody.
    pub fn discard(&mut self) {
        self.stage = self.stage.max(Stage::Exiting);
        self.departure.get_or_insert(Departure::Expected);
        self.child.kill();
    }

    /// Sends the signal that is due. One that is not ready in time has had its start.
    pub fn escalate(&mut self, now: Time) {
        if self.stage == Stage::Starting {
            self.departure.get_or_insert(Departure::Early);
            self.stage = Stage::Exiting;
        }
        self.child.escalate(now);
    }

    /// Kills it because it broke the protocol, and listens to it no more. False when it is dead
    /// already.
    pub fn condemn(&mut self, epoll: &PoolEpoll, now: Time) -> bool {
        if self.stage == Stage::Dead {
            return false;
        }
        self.mark_dead(now);
        self.child.kill();
        self.channel.unwatch(epoll);
        true
    }

    /// It has ended, or is as good as that. Returns how far it had come.
    pub fn mark_dead(&mut self, now: Time) -> Stage {
        let departure = match self.has_outlived_its_start(now) {
            true => Departure::Sudden,
            false => Departure::Early,
        };
        self.departure.get_or_insert(departure);
        std::mem::replace(&mut self.stage, Stage::Dead)
    }

    /// What its end means for its slot.
    #[must_use]
    pub fn departure(&self) -> Departure {
        self.departure.unwrap_or(Departure::Sudden)
    }
}

/// As the log names it: by slot and pid; by pool too where there may be several, and by generation
/// after a reload.
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
