//! A worker of a pool that is being replaced while it serves: how far that has come. Pure.
//!
//! The replacement is started in the same slot. When it is ready, the old worker finishes what it
//! has and exits. If the replacement dies before, the old one serves on, and another replacement is
//! tried after a delay. In a pool one worker is replaced at a time.

use super::lifetime::Reason;
use crate::master::dispatch::WorkerId;
use crate::master::time::Time;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Replacement {
    /// The old worker.
    pub worker: WorkerId,
    /// Why the old worker is replaced.
    pub why: Reason,
    /// How far the replacement has come.
    pub step: Step,
}

/// How far the replacement has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A second worker should be started in the slot, at `from` or later.
    Wanted {
        /// The earliest time of that.
        from: Time,
    },
    /// A second worker was started and is not ready yet.
    Started,
    /// The old worker finishes its turns. No other worker is replaced before it has ended or
    /// `until` has come.
    Draining {
        /// When it no longer holds up the next replacement.
        until: Time,
    },
}

impl Replacement {
    /// The replacement of a worker, for this reason.
    #[must_use]
    pub fn of(worker: WorkerId, why: Reason) -> Self {
        let from = Time::default();
        let step = Step::Wanted { from };
        Self { worker, why, step }
    }

    /// The earliest time at which the second worker is started.
    #[must_use]
    pub fn start_due(&self) -> Option<Time> {
        match self.step {
            Step::Wanted { from } => Some(from),
            Step::Started | Step::Draining { .. } => None,
        }
    }

    /// The time from which another worker may be replaced, whatever becomes of this one.
    #[must_use]
    pub fn over_at(&self) -> Option<Time> {
        match self.step {
            Step::Draining { until } => Some(until),
            Step::Wanted { .. } | Step::Started => None,
        }
    }
}
