//! The generation of workers that should replace the one that serves: its plan, and whether it is
//! ready or has failed.

use super::slots::Slots;
use crate::master::plan::Plan;
use crate::master::time::Time;

/// A generation that does not serve yet.
pub struct Incoming<'a> {
    /// The slots for which its workers are started.
    pub slots: Slots,
    plan: Plan<'a>,
    /// The time at which the generation is given up.
    until: Time,
    /// Why the generation never comes to serve.
    failure: Option<String>,
}

impl<'a> Incoming<'a> {
    /// A generation that has the plan's start timeout to become ready.
    #[must_use]
    pub fn new(slots: Slots, plan: Plan<'a>, now: Time) -> Self {
        Self {
            slots,
            until: now.after(plan.settings.start_timeout),
            failure: None,
            plan,
        }
    }

    /// The plan by which the pool serves once this generation has taken over.
    #[must_use]
    pub fn plan(&self) -> &Plan<'a> {
        &self.plan
    }

    /// One of its workers has ended, so the others never come to serve.
    pub fn fail(&mut self, worker: &str, how: &str) {
        let failure = format!("a new worker ({worker}) {how} before all were ready");
        self.failure.get_or_insert(failure);
    }

    /// Whether the pool can go over to this generation, if this many of its workers are ready.
    ///
    /// # Errors
    /// Why the pool never can: a worker of the generation has died, or was not ready in time.
    pub fn is_ready(&self, ready: usize, now: Time) -> Result<bool, String> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let whole = ready >= self.slots.size();
        if !whole && self.until <= now {
            let limit = self.plan.settings.start_timeout.as_secs_f64();
            let name = &self.plan.name;
            return Err(format!(
                "the new workers of pool {name} are not ready within {limit} s"
            ));
        }
        Ok(whole)
    }

    /// The time at which the generation is given up, unless all of its workers are ready: then it
    /// waits for those of other pools, which may have more time.
    #[must_use]
    pub fn due(&self, ready: usize) -> Option<Time> {
        (ready < self.slots.size()).then_some(self.until)
    }

    /// The parts that the pool goes on with.
    #[must_use]
    pub fn into_parts(self) -> (Slots, Plan<'a>) {
        (self.slots, self.plan)
    }
}
