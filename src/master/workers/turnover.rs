//! How workers give way to others: a whole generation to the next one, and a worker that has lived
//! for long enough to a fresh one, never at the cost of one that serves.

use super::autoscale::Bounds;
use super::generation::Incoming;
use super::process::{Process, Stage};
use super::replacement::{Replacement, Step};
use super::slots::Slots;
use super::table::Workers;
use crate::master::dispatch::Dispatcher;
use crate::master::plan::Plan;
use crate::master::time::Time;

impl<'a> Workers<'a> {
    // ---- generations ----------------------------------------------------------------------------

    /// Starts a whole new generation by this plan, beside the one that serves. Nothing changes
    /// before all of its workers are ready, and nothing at all if one of them fails.
    pub fn prepare(&mut self, plan: Plan<'a>, now: Time) {
        // The new generation begins with the size that demand has given to the old one.
        let workers = plan.settings.workers;
        let bounds = Bounds::of(&plan.settings, workers);
        let size = bounds.map_or(workers, |bounds| {
            self.size().clamp(bounds.least, bounds.most)
        });
        self.last_generation += 1;
        let slots = Slots::new(self.last_generation, size);
        self.incoming = Some(Incoming::new(slots, plan, now));
        self.schedule_check();
    }

    /// Whether the pool can go over to the new generation, if there is one.
    ///
    /// # Errors
    /// Why it never can.
    pub fn is_prepared(&self, now: Time) -> Result<bool, String> {
        let incoming = self.incoming.as_ref();
        incoming.map_or(Ok(true), |incoming| {
            incoming.is_ready(self.incoming_ready(), now)
        })
    }

    /// How many workers of the new generation are ready.
    fn incoming_ready(&self) -> usize {
        let incoming = self.all().filter(|process| self.is_incoming(process));
        incoming.filter(|process| process.is_serving()).count()
    }

    /// The time at which the new generation is given up.
    pub(super) fn incoming_due(&self) -> Option<Time> {
        self.incoming.as_ref()?.due(self.incoming_ready())
    }

    /// The plan of the new generation, if there is one.
    #[must_use]
    pub fn incoming_plan(&self) -> Option<&Plan<'a>> {
        self.incoming.as_ref().map(Incoming::plan)
    }

    /// A worker of the new generation has ended, so the generation never comes to serve.
    pub fn fail_incoming(&mut self, worker: &str, how: &str) {
        if let Some(incoming) = &mut self.incoming {
            incoming.fail(worker, how);
        }
    }

    /// The new generation serves from now on, and its plan is returned. The old one has the grace
    /// period to finish; workers that were let go before keep their deadline.
    pub fn promote<C>(&mut self, dispatcher: &mut Dispatcher<C>, now: Time) -> Option<Plan<'a>> {
        let (slots, plan) = self.incoming.take()?.into_parts();
        let until = now.after(plan.settings.grace);
        self.current = slots;
        self.replacement = None;
        self.base = plan.settings.workers;
        let of_now: Vec<_> = self.members().map(Process::worker).collect();
        for worker in of_now {
            dispatcher.worker_ready(worker, now);
        }
        let former = self.all().filter(|process| !self.is_member(process));
        let former: Vec<_> = former.map(Process::worker).collect();
        for worker in former {
            self.let_go(worker, dispatcher, until, now);
        }
        self.schedule_check();
        Some(plan)
    }

    /// Gives the new generation up, and kills its workers, which serve nobody.
    pub fn abandon(&mut self) {
        let Some(incoming) = self.incoming.take() else {
            return;
        };
        let generation = incoming.slots.generation;
        for process in self.all_mut() {
            if process.slot().generation == generation {
                process.discard();
            }
        }
        self.schedule_check();
    }

    // ---- one worker -----------------------------------------------------------------------------

    /// Continues the replacement of workers whose life is over. Returns the next time that
    /// something is due if nothing happens.
    pub(super) fn recycle<C>(
        &mut self,
        plan: &Plan<'_>,
        dispatcher: &mut Dispatcher<C>,
        now: Time,
    ) -> Option<Time> {
        if let Some(under_way) = self.replacement.take() {
            let until = now.after(plan.settings.grace);
            self.replacement = self.go_on(under_way, dispatcher, until, now);
        }
        if let Some(replacement) = self.replacement {
            return replacement.over_at();
        }
        if self.incoming.is_some() {
            // The whole generation is about to be replaced.
            return None;
        }
        let serving = || self.members().filter(|process| process.is_serving());
        let spent = serving().filter_map(|process| Some((process, process.is_spent(now)?)));
        match spent.min_by_key(|(process, _)| process.born()) {
            Some((oldest, why)) => {
                self.replacement = Some(Replacement::of(oldest.worker(), why));
                None
            }
            None => serving().filter_map(Process::spent_at).min(),
        }
    }

    /// Continues one replacement; `None` when it is over.
    fn go_on<C>(
        &mut self,
        replacement: Replacement,
        dispatcher: &mut Dispatcher<C>,
        until: Time,
        now: Time,
    ) -> Option<Replacement> {
        let Replacement { worker, why, step } = replacement;
        let old = self.get(worker).filter(|old| self.is_member(old))?;
        if let Step::Draining { until } = step {
            return Some(replacement).filter(|_| until > now);
        }
        if !old.is_serving() {
            return None;
        }
        let is_second = |one: &Process| {
            one.slot() == old.slot() && one.worker() != worker && one.stage() == Stage::Serving
        };
        if !self.all().any(is_second) {
            return Some(replacement);
        }
        log::info!("worker recycled {old}: {why}");
        self.let_go(worker, dispatcher, until, now);
        let step = Step::Draining { until };
        Some(Replacement { worker, why, step })
    }

    /// Gives up the replacement under way, if there is one.
    pub fn end_replacement(&mut self) {
        self.replacement = None;
    }
}
