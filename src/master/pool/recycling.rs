//! Recycling: a worker that has lived for long enough is followed by a fresh one, one at a time in a pool, and never at
//! the cost of one that serves.
//!
//! The successor is started in the same slot. When it is ready, the old one finishes what it has and exits. If the
//! successor dies before, the old one serves on, and another successor is tried after a delay.

use crate::master::dispatch::WorkerId;
use crate::master::pool::Pool;
use crate::master::time::Time;
use crate::master::workers::lifetime::Reason;

/// A worker that is being recycled.
#[derive(Debug, Clone, Copy)]
pub struct Recycling {
    worker: WorkerId,
    why: Reason,
    /// Since it was told to finish: until when nobody else is recycled while it does.
    until: Option<Time>,
}

impl Pool<'_> {
    /// Goes on with recycling as far as possible; says when it goes on if nothing happens.
    pub(in crate::master) fn recycle(&mut self, now: Time) -> Option<Time> {
        if let Some(under_way) = self.upkeep.recycling.take() {
            self.upkeep.recycling = self.go_on(under_way, now);
        }
        if let Some(Recycling { until, .. }) = self.upkeep.recycling {
            return until;
        }
        self.processes.end_relief();
        if self.incoming.is_some() {
            // The whole generation is about to go.
            return None;
        }
        let serving = self.processes.members().filter(|process| process.serves());
        let spent = serving
            .filter_map(|process| Some((process.born, process.worker, process.is_spent(now)?)));
        if let Some((_, worker, why)) = spent.min_by_key(|(born, ..)| *born) {
            self.processes.relieve(worker);
            let until = None;
            self.upkeep.recycling = Some(Recycling { worker, why, until });
            return None;
        }
        let serving = self.processes.members().filter(|process| process.serves());
        serving.filter_map(|process| process.life.end()).min()
    }

    /// `None` when it is over.
    fn go_on(&mut self, recycling: Recycling, now: Time) -> Option<Recycling> {
        let Recycling { worker, why, until } = recycling;
        let process = self.processes.members().find(|p| p.worker == worker)?;
        if until.is_some() {
            return Some(recycling).filter(|_| until > Some(now));
        }
        if !process.serves() {
            return None;
        }
        let ready = self.processes.successor(process).is_some_and(|p| p.ready);
        if !ready {
            return Some(recycling);
        }
        log::info!("worker recycled {process}: {why}");
        self.processes.end_relief();
        self.let_go(worker);
        let until = Some(now.after(self.plan.settings.grace));
        Some(Recycling { worker, why, until })
    }
}
