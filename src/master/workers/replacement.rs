//! A worker of a pool that is being replaced while it serves: how far that has come. Pure.
//!
//! The replacement is started in the same slot. When it is ready, the old worker finishes what it has
//! and exits. If the replacement dies before, the old one serves on, and another replacement is tried
//! after a delay. In a pool one worker is replaced at a time.

use super::lifetime::Reason;
use crate::master::dispatch::WorkerId;
use crate::master::time::Time;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Replacement {
    /// The worker that is to go.
    pub worker: WorkerId,
    /// Why it is to go.
    pub why: Reason,
    /// How far that has come.
    pub step: Step,
}

/// How far a replacement has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A second worker is to be started in the slot, no earlier than then.
    Wanted {
        /// The earliest time.
        from: Time,
    },
    /// There is a second worker, which is not ready yet.
    Started,
    /// The old worker is finishing. Until then nobody else is replaced while it does.
    Draining {
        /// When its time is over.
        until: Time,
    },
}

impl Replacement {
    /// A worker that is to be replaced, for this reason.
    #[must_use]
    pub fn of(worker: WorkerId, why: Reason) -> Self {
        let from = Time::default();
        let step = Step::Wanted { from };
        Self { worker, why, step }
    }

    /// When the second worker is to be started.
    #[must_use]
    pub fn start_due(&self) -> Option<Time> {
        match self.step {
            Step::Wanted { from } => Some(from),
            Step::Started | Step::Draining { .. } => None,
        }
    }

    /// When the next worker may be replaced, whatever becomes of this one.
    #[must_use]
    pub fn over_at(&self) -> Option<Time> {
        match self.step {
            Step::Draining { until } => Some(until),
            Step::Wanted { .. } | Step::Started => None,
        }
    }
}
