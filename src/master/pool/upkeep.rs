//! What a pool does for its workers when nothing happens: ends those that do not come to serve, looks at their age and
//! memory, and keeps as many as demand wants.
//!
//! Nothing of this is done per request. A look at all workers is taken when one of them has come, gone or served its
//! last turn, and when something is due by the clock; otherwise the loop passes by with a comparison.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::master::dispatch::WorkerId;
use crate::master::pool::recycling::Recycling;
use crate::master::pool::{Phase, Pool};
use crate::master::time::Time;
use crate::master::workers::autoscale::{Bounds, Change, Demand, Sizing};
use crate::master::workers::crash_loop::EarlyDeaths;
use crate::master::workers::memory;
use crate::master::workers::process::{End, MAIN, YOUNG};
use crate::master::workers::slots::LAST_DELAY;

/// How often the workers' memory is looked at.
const MEASURE: Duration = Duration::from_secs(1);

/// How long a worker that was not ready in time has to end by itself before it is killed.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Upkeep {
    /// When to look at all workers; `None` when there is nothing to look for.
    at: Option<Time>,
    /// When their memory was looked at.
    measured: Time,
    /// How many workers there are to be without any demand.
    base: usize,
    /// As of the last look.
    bounds: Option<Bounds>,
    size: usize,
    starting: usize,
    sizing: Sizing,
    deaths: EarlyDeaths,
    pub(in crate::master) recycling: Option<Recycling>,
}

impl Upkeep {
    /// The upkeep of a pool of this size.
    #[must_use]
    pub fn new(base: usize) -> Self {
        Self {
            at: Some(Time::default()),
            measured: Time::default(),
            base,
            bounds: None,
            size: base,
            starting: base,
            sizing: Sizing::default(),
            deaths: EarlyDeaths::default(),
            recycling: None,
        }
    }

    /// Something has changed about the workers: they are to be looked at before the master sleeps.
    pub fn soon(&mut self) {
        self.at = Some(Time::default());
    }

    /// Wants so many workers without any demand.
    pub fn set_base(&mut self, base: usize) {
        self.base = base;
        self.soon();
    }
}

impl Pool<'_> {
    /// Does what is due.
    pub fn tend(&mut self, now: Time) {
        if self.upkeep.at.is_some_and(|at| at <= now) {
            self.look_after_workers(now);
        }
        if self.phase == Phase::Serving
            && let Some(bounds) = self.upkeep.bounds
        {
            let demand = self.demand();
            match self.upkeep.sizing.look(&bounds, demand, now) {
                Change::None => {}
                Change::Grow(count) => self.resize(demand.size + count),
                Change::Shrink => self.give_one_up(),
            }
        }
    }

    /// When it is to be done if nothing happens.
    pub(in crate::master) fn next_upkeep(&self) -> Option<Time> {
        let sizing = || {
            let bounds = self.upkeep.bounds.as_ref()?;
            self.upkeep.sizing.next(bounds, self.demand())
        };
        let sizing = (self.phase == Phase::Serving).then(sizing).flatten();
        [self.upkeep.at, sizing].into_iter().flatten().min()
    }

    fn demand(&self) -> Demand {
        Demand {
            size: self.upkeep.size,
            starting: self.upkeep.starting,
            idle: self.dispatcher.idle(),
            waiting: self.dispatcher.waiting(),
            since: self.dispatcher.waiting_since(),
        }
    }

    fn look_after_workers(&mut self, now: Time) {
        self.upkeep.at = None;
        self.end_unready(now);
        let recycled = if self.phase == Phase::Serving {
            self.notice_recovery(now);
            self.measure(now);
            self.recycle(now)
        } else {
            None
        };
        self.take_census();
        let next = [self.upkeep.at, recycled, self.next_look(now)];
        self.upkeep.at = next.into_iter().flatten().min();
    }

    fn take_census(&mut self) {
        let size = self.processes.size();
        let serving = self.processes.members().filter(|process| process.serves());
        self.upkeep.starting = size.saturating_sub(serving.count());
        self.upkeep.size = size;
        self.upkeep.bounds = Bounds::of(&self.plan.settings, self.upkeep.base);
    }

    /// When to look at all workers again, apart from recycling.
    fn next_look(&self, now: Time) -> Option<Time> {
        let unready = self
            .processes
            .processes()
            .filter(|process| !process.ready && !process.ended && !self.processes.is_next(process));
        let late = unready.map(|process| process.condemned.unwrap_or(process.life.ready_by));
        let serving = self.phase == Phase::Serving;
        let measured = serving && self.processes.members().any(|p| p.life.is_measured());
        let measured = measured.then(|| self.upkeep.measured.after(MEASURE));
        let recovery = (serving && self.upkeep.deaths.is_loop()).then(|| now.after(YOUNG / 2));
        [late.min(), measured, recovery].into_iter().flatten().min()
    }

    // ---- workers that do not come to serve --------------------------------------------------------------------

    /// Ends workers that were started and are not ready in time. A coming generation has its own limit.
    fn end_unready(&mut self, now: Time) {
        let late = |worker: &WorkerId| {
            self.processes.get(*worker).is_some_and(|process| {
                let limit = process.condemned.unwrap_or(process.life.ready_by);
                !process.ready && !process.ended && limit <= now
            })
        };
        let processes = self.processes.processes();
        let unready = processes.filter(|process| !self.processes.is_next(process));
        let unready: Vec<_> = unready.map(|process| process.worker).filter(late).collect();
        for worker in unready {
            // If the master was suspended itself, it may have said so in the meantime.
            self.hear(worker, now);
            let Some(process) = self.processes.get_mut(worker) else {
                continue;
            };
            if process.ready {
                continue;
            }
            let again = process.condemned.replace(now.after(LAST_CHANCE)).is_some();
            let signal = match again {
                true => Signal::SIGKILL,
                false => Signal::SIGTERM,
            };
            let limit = self.plan.settings.start_timeout.as_secs_f64();
            log::warn!("worker {process} is not ready after {limit} s: sending {signal}");
            // ESRCH: it has just ended.
            let _ = kill(process.pid, signal);
        }
    }

    /// A worker has died at its start.
    pub(in crate::master) fn note_early_death(&mut self, end: End, now: Time) {
        if self.upkeep.deaths.note(now) {
            let (pool, most) = (&self.plan.name, LAST_DELAY.as_secs());
            log::error!(
                "workers of pool {pool} die at their start: {end}; trying again, in the end every {most} s"
            );
        }
    }

    /// Says when a worker has outlived its start after many had not.
    fn notice_recovery(&mut self, now: Time) {
        if !self.upkeep.deaths.is_loop() {
            return;
        }
        let alive = self.processes.members().filter(|process| !process.ended);
        let alive = alive.filter(|process| process.has_outlived_its_start(now));
        let youngest = alive.map(|process| process.born).max();
        if youngest.is_some_and(|born| self.upkeep.deaths.outlived(born)) {
            log::info!("workers of pool {} start again", self.plan.name);
        }
    }

    // ---- memory -----------------------------------------------------------------------------------------------

    /// Looks how much memory the workers have, if that matters and a while has passed.
    fn measure(&mut self, now: Time) {
        if self.upkeep.measured.after(MEASURE) > now {
            return;
        }
        self.upkeep.measured = now;
        for process in self.processes.processes_mut() {
            if process.life.is_measured() && process.serves() {
                // Who can't be measured now is measured the next time.
                process.memory = memory::resident(process.pid).unwrap_or(process.memory);
            }
        }
    }

    // ---- size -------------------------------------------------------------------------------------------------

    /// SIGTTIN and SIGTTOU: so many workers more or less, whatever the demand.
    pub(in crate::master) fn resize_by(&mut self, change: isize) {
        if !self.is_serving() {
            // It goes, or is not there yet.
            return;
        }
        let base = self.upkeep.base.saturating_add_signed(change);
        if base == 0 {
            log::warn!("the last worker stays");
            return;
        }
        self.upkeep.set_base(base);
        let size = match Bounds::of(&self.plan.settings, base) {
            None => base,
            Some(bounds) => {
                let size = self.processes.size().saturating_add_signed(change);
                size.clamp(bounds.least, bounds.most)
            }
        };
        self.resize(size);
    }

    fn resize(&mut self, size: usize) {
        for worker in self.processes.resize(size) {
            self.let_go(worker);
        }
        self.note_size();
    }

    /// Retires the worker that is missed least.
    fn give_one_up(&mut self) {
        let Some(coldest) = self.dispatcher.coldest() else {
            return;
        };
        for worker in self.processes.close_slot_of(coldest) {
            self.let_go(worker);
        }
        self.note_size();
    }

    fn note_size(&mut self) {
        let (idle, waiting) = (self.dispatcher.idle(), self.dispatcher.waiting());
        let size = self.processes.size();
        match &*self.plan.name {
            MAIN => log::info!("pool size {size}: {idle} idle, {waiting} waiting"),
            name => log::info!("pool size {size} pool={name}: {idle} idle, {waiting} waiting"),
        }
        self.take_census();
        self.upkeep.soon();
    }
}
