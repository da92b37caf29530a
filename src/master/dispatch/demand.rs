//! What the size of a pool depends on: how many workers have nothing to do, and how many
//! connections wait for one. Pure.

use crate::master::dispatch::{Dispatcher, WorkerId};
use crate::master::time::Time;

impl<C> Dispatcher<C> {
    /// How many workers have nothing to do, those included that stay with a client that has nothing
    /// more for now.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.workers.idle()
    }

    /// How many connections wait for a worker.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Since when the connection that is first in the queue has waited.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Time> {
        self.ready
            .first()
            .map(|first| self.table.at(first).ready_at)
    }

    /// What the master holds for the connections that are lent.
    pub fn lent_payloads(&self) -> impl Iterator<Item = &C> {
        let firsts = self
            .workers
            .busy()
            .map(|worker| self.workers.at(worker).lent.first());
        let lent =
            firsts.flat_map(|first| std::iter::successors(first, |at| self.chains.after(*at)));
        lent.map(|index| &self.table.at(index).payload)
    }

    /// The worker that has had nothing to do for longest. Its caches are the coldest, so it is
    /// missed least.
    #[must_use]
    pub fn coldest(&self) -> Option<WorkerId> {
        self.workers.coldest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::dispatch::Limits;

    #[test]
    fn who_is_idle_and_who_waits() {
        let now = Time(1_000_000_000);
        let mut dispatcher = Dispatcher::new(Limits::default());
        let workers = [1, 2, 3].map(|_| dispatcher.worker_started(1));
        assert_eq!((dispatcher.idle(), dispatcher.coldest()), (0, None));
        for worker in workers {
            dispatcher.worker_ready(worker, now);
        }
        assert_eq!((dispatcher.idle(), dispatcher.waiting()), (3, 0));
        // The one that became idle last is the first to be lent to.
        assert_eq!(dispatcher.coldest(), Some(workers[0]));
        dispatcher.retire(workers[0]);
        assert_eq!(dispatcher.coldest(), Some(workers[1]));
        dispatcher.accepted((), true, now);
        assert_eq!(dispatcher.idle(), 1);
        dispatcher.retire(workers[1]);
        dispatcher.retire(workers[2]);
        assert_eq!((dispatcher.idle(), dispatcher.coldest()), (0, None));
        dispatcher.accepted((), true, now);
        assert_eq!(dispatcher.waiting(), 1);
        assert_eq!(dispatcher.waiting_since(), Some(now));
    }
}
