//! What the size of a pool depends on: how many workers have nothing to do, and how many connections wait for one. Pure.

use super::{Dispatcher, WorkerId};
use crate::master::time::Time;

impl<C> Dispatcher<C> {
    /// How many workers have nothing to do, those included that stay with a client that has nothing more for now.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.workers.idle()
    }

    /// How many connections wait for a worker.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Since when the first of them does.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Time> {
        self.ready
            .first()
            .map(|first| self.table.at(first).ready_at)
    }

    /// The worker that has had nothing to do for longest: the one that is missed least.
    #[must_use]
    pub fn coldest(&self) -> Option<WorkerId> {
        self.workers.coldest()
    }
}
