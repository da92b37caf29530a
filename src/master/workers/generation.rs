//! The generation of workers that is to follow the one that serves: what it is to be, and whether it
//! can be.

use super::slots::Slots;
use crate::master::plan::Plan;
use crate::master::time::Time;

/// A generation that does not serve yet.
pub struct Incoming<'a> {
    /// The slots that its workers are started in.
    pub slots: Slots,
    plan: Plan<'a>,
    /// When it is given up.
    until: Time,
    /// Why it can't be.
    failure: Option<String>,
}

impl<'a> Incoming<'a> {
    /// A generation that has as long to become ready as the plan says.
    #[must_use]
    pub fn new(slots: Slots, plan: Plan<'a>, now: Time) -> Self {
        Self {
            slots,
            until: now.after(plan.settings.start_timeout),
            failure: None,
            plan,
        }
    }

    /// What the pool is to be.
    #[must_use]
    pub fn plan(&self) -> &Plan<'a> {
        &self.plan
    }

    /// One of its workers has ended, so nothing comes of the others.
    pub fn fail(&mut self, worker: &str, how: &str) {
        let failure = format!("a new worker ({worker}) {how} before all were ready");
        self.failure.get_or_insert(failure);
    }

    /// Whether the pool can go over to it, if this many of its workers are ready.
    ///
    /// # Errors
    /// Why it never can: one of its workers has died, or was not ready in time.
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

    /// When it is given up, if not all of its workers are ready. A generation that is ready waits for
    /// those of other pools, which may have more time.
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
