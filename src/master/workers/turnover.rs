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
    // ---- generations ------------------------------------------------------------------------------

    /// Wants a whole new generation, by this plan, beside the one that serves. Until each of its
    /// workers is ready nothing changes, and if one of them fails nothing will.
    pub fn prepare(&mut self, plan: Plan<'a>, now: Time) {
        // What demand has made of the old generation is not to begin anew with the next one.
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

    /// When the new generation is given up.
    pub(super) fn incoming_due(&self) -> Option<Time> {
        self.incoming.as_ref()?.due(self.incoming_ready())
    }

    /// What the pool is to be once the new generation serves, if there is one.
    #[must_use]
    pub fn incoming_plan(&self) -> Option<&Plan<'a>> {
        self.incoming.as_ref().map(Incoming::plan)
    }

    /// A worker has ended. If it was of the new generation, nothing comes of that.
    pub fn fail_incoming(&mut self, worker: &str, how: &str) {
        if let Some(incoming) = &mut self.incoming {
            incoming.fail(worker, how);
        }
    }

    /// The new generation serves from now on, and what it is to be is returned. The old one has
    /// until then to finish; workers that were replaced before keep the time that they have.
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
            self.let_go(worker, dispatcher, until);
        }
        self.schedule_check();
        Some(plan)
    }

    /// Gives the new generation up, and kills what there is of it: it serves nobody.
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

    // ---- one worker -------------------------------------------------------------------------------

    /// Goes on with replacing workers whose life is over. Says when it goes on if nothing happens.
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
            // The whole generation is about to go.
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

    /// `None` when it is over.
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
        self.let_go(worker, dispatcher, until);
        let step = Step::Draining { until };
        Some(Replacement { worker, why, step })
    }

    /// Wants no second worker in a slot any more.
    pub fn end_replacement(&mut self) {
        self.replacement = None;
    }
}
