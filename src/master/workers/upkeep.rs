//! What time alone requires of a pool's workers: missing ones are started, those that do not become
//! ready or do not end are killed, age and memory are checked, and the size follows demand.
//!
//! Nothing here is done per request. All workers are looked at when one of them has come, gone or
//! served its last turn, and when something is due by the clock; otherwise each round of the loop
//! costs one comparison.

use std::time::Duration;

use super::autoscale::{Bounds, Demand, Resize};
use super::process::{Departure, Process, Stage, YOUNG};
use super::slots::LAST_DELAY;
use super::table::Workers;
use crate::master::child::Exit;
use crate::master::dispatch::{Dispatcher, WorkerId};
use crate::master::master_only::MasterOnly;
use crate::master::plan::{MAIN, Plan};
use crate::master::time::Time;

/// The time between two looks at the workers' memory.
const MEASURE: Duration = Duration::from_secs(1);

/// What a pool wants of its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wants {
    /// Missing workers are started.
    pub start: bool,
    /// The pool serves and goes on serving, so age, memory and size matter.
    pub serve: bool,
}

impl<'a> Workers<'a> {
    /// Does what is due.
    pub fn maintain<C>(
        &mut self,
        wants: Wants,
        plan: &Plan<'a>,
        dispatcher: &mut Dispatcher<C>,
        only: &mut MasterOnly,
        now: Time,
    ) {
        // A pool that stops may come to need a worker after all.
        if std::mem::replace(&mut self.starts, wants.start) != wants.start {
            self.schedule_check();
        }
        // Whoever sends requests that kill workers must not hold up the others.
        if self.patient && dispatcher.waiting() > 0 {
            self.patient = false;
            self.current.need(now);
            self.schedule_check();
        }
        if self.check_at.is_some_and(|at| at <= now) {
            self.check(wants, plan, dispatcher, only, now);
        }
        if wants.serve
            && let Some(bounds) = self.scaling.bounds
        {
            let demand = self.demand(dispatcher);
            match self.scaling.autoscale.look(&bounds, demand, now) {
                Resize::None => {}
                Resize::Grow(count) => self.scale(demand.size + count, plan, dispatcher, now),
                Resize::Shrink => self.give_one_up(plan, dispatcher, now),
            }
        }
    }

    /// The next time that something is due if nothing happens.
    #[must_use]
    pub fn next_due<C>(&self, wants: Wants, dispatcher: &Dispatcher<C>) -> Option<Time> {
        let scaling = self.scaling.bounds.as_ref().filter(|_| wants.serve);
        let scaling =
            scaling.and_then(|bounds| self.scaling.autoscale.next(bounds, self.demand(dispatcher)));
        [self.check_at, scaling].into_iter().flatten().min()
    }

    /// The starting workers which get a signal now unless they report that they are ready.
    #[must_use]
    pub fn late(&self, now: Time) -> Vec<WorkerId> {
        if self.check_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let due = |process: &&Process| process.child.due_signal(now).is_some();
        let starting = self.all().filter(|one| one.stage() == Stage::Starting);
        starting.filter(due).map(Process::worker).collect()
    }

    /// Looks at all workers.
    fn check<C>(
        &mut self,
        wants: Wants,
        plan: &Plan<'a>,
        dispatcher: &mut Dispatcher<C>,
        only: &mut MasterOnly,
        now: Time,
    ) {
        self.check_at = None;
        self.escalate(plan, now);
        let mut recycled = None;
        if wants.serve {
            self.log_recovery(now);
            self.measure(now);
            recycled = self.recycle(plan, dispatcher, now);
        }
        if wants.start {
            self.start_missing(plan, dispatcher, only, now);
        }
        self.recount(plan);
        let starts = self.next_start().filter(|_| wants.start);
        let measured = wants.serve && self.members().any(Process::is_measured);
        let measured = measured.then(|| self.measured.after(MEASURE));
        let recovery = (wants.serve && self.crash_loop.is_loop()).then(|| now.after(YOUNG / 2));
        let signals = self.all().filter_map(|process| process.child.due()).min();
        let due = [
            recycled,
            starts,
            measured,
            recovery,
            signals,
            self.incoming_due(),
        ];
        let again = due.into_iter().flatten().min();
        self.check_at = [self.check_at, again].into_iter().flatten().min();
    }

    /// Sends the signals that are due.
    fn escalate(&mut self, plan: &Plan<'_>, now: Time) {
        for process in self.all_mut() {
            let Some(signal) = process.child.due_signal(now) else {
                continue;
            };
            let settings = &plan.settings;
            let start = settings.start_timeout.as_secs_f64();
            match process.stage() {
                Stage::Serving => {
                    let limit = settings.turn_timeout.unwrap_or_default().as_secs_f64();
                    log::warn!(
                        "worker hangs {process}: a turn takes longer than {limit} s; sending {signal}"
                    );
                }
                Stage::Draining | Stage::Exiting
                    if !process.was_ready() && process.departure() != Departure::Early =>
                {
                    log::info!("killing worker {process}, which was still starting");
                }
                Stage::Draining => {
                    log::warn!("the grace period is over: killing worker {process} in its turn");
                }
                Stage::Exiting if process.departure() != Departure::Early => {
                    log::warn!("worker {process} was told to exit and does not: killing it");
                }
                Stage::Starting | Stage::Exiting | Stage::Dead => {
                    log::warn!("worker {process} is not ready after {start} s: sending {signal}");
                }
            }
            process.escalate(now);
        }
    }

    // ---- workers that die at their start --------------------------------------------------------

    /// Counts a worker that has died at its start.
    pub fn count_early_death(&mut self, exit: Exit, now: Time) {
        if self.crash_loop.count(now) {
            let (pool, most) = (&self.pool, LAST_DELAY.as_secs());
            log::error!(
                "workers of pool {pool} die at their start: {exit}; trying again, in the end every {most} s"
            );
        }
    }

    /// Logs that workers start again, once one of them has outlived its start after a crash loop.
    fn log_recovery(&mut self, now: Time) {
        if !self.crash_loop.is_loop() {
            return;
        }
        let alive = self.members().filter(|process| process.is_serving());
        let alive = alive.filter(|process| process.has_outlived_its_start(now));
        let youngest = alive.map(Process::born).max();
        if youngest.is_some_and(|born| self.crash_loop.outlived(born)) {
            log::info!("workers of pool {} start again", self.pool);
        }
    }

    // ---- memory ---------------------------------------------------------------------------------

    /// Looks up the memory of the workers whose memory is bounded, if [`MEASURE`] has passed.
    fn measure(&mut self, now: Time) {
        if self.measured.after(MEASURE) > now {
            return;
        }
        self.measured = now;
        for process in self.all_mut() {
            if process.is_measured() && process.is_serving() {
                process.measure();
            }
        }
    }

    // ---- size -----------------------------------------------------------------------------------

    fn recount(&mut self, plan: &Plan<'_>) {
        let size = self.size();
        let serving = self.members().filter(|process| process.is_serving());
        self.scaling.starting = size.saturating_sub(serving.count());
        self.scaling.size = size;
        self.scaling.bounds = Bounds::of(&plan.settings, self.base);
    }

    fn demand<C>(&self, dispatcher: &Dispatcher<C>) -> Demand {
        Demand {
            size: self.scaling.size,
            starting: self.scaling.starting,
            idle: dispatcher.idle(),
            waiting: dispatcher.waiting(),
            since: dispatcher.waiting_since(),
        }
    }

    /// SIGTTIN and SIGTTOU: this many workers more or less, whatever the demand.
    pub fn resize_by<C>(
        &mut self,
        change: isize,
        plan: &Plan<'_>,
        dispatcher: &mut Dispatcher<C>,
        now: Time,
    ) {
        let base = self.base.saturating_add_signed(change);
        if base == 0 {
            log::warn!(
                "SIGTTOU ignored: this is the last worker of pool {}",
                self.pool
            );
            return;
        }
        self.base = base;
        let size = match Bounds::of(&plan.settings, base) {
            None => base,
            Some(bounds) => {
                let size = self.size().saturating_add_signed(change);
                size.clamp(bounds.least, bounds.most)
            }
        };
        self.scale(size, plan, dispatcher, now);
    }

    fn scale<C>(
        &mut self,
        size: usize,
        plan: &Plan<'_>,
        dispatcher: &mut Dispatcher<C>,
        now: Time,
    ) {
        self.resize(size, dispatcher, now.after(plan.settings.grace), now);
        self.log_size(plan, dispatcher);
    }

    /// Retires the worker that has been idle for longest.
    fn give_one_up<C>(&mut self, plan: &Plan<'_>, dispatcher: &mut Dispatcher<C>, now: Time) {
        if let Some(coldest) = dispatcher.coldest() {
            let until = now.after(plan.settings.grace);
            self.close_slot_of(coldest, dispatcher, until, now);
            self.log_size(plan, dispatcher);
        }
    }

    fn log_size<C>(&mut self, plan: &Plan<'_>, dispatcher: &Dispatcher<C>) {
        let (idle, waiting) = (dispatcher.idle(), dispatcher.waiting());
        let size = self.size();
        match &*self.pool {
            MAIN => log::info!("pool size {size}: {idle} idle, {waiting} waiting"),
            name => log::info!("pool size {size} pool={name}: {idle} idle, {waiting} waiting"),
        }
        self.recount(plan);
        self.schedule_check();
    }
}
