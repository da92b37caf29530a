//! Turns that take longer than they may. Pure.
//!
//! The clock of a hang runs only while the master runs: a master that was suspended, and finds that
//! much time has passed at once, takes nobody for hung on that account.

use std::time::Duration;

use crate::master::dispatch::table::State;
use crate::master::dispatch::workers::{Pace, Tenure};
use crate::master::dispatch::{Action, Dispatcher};
use crate::master::time::Time;

/// The longest time between two looks at the turns under way.
const SELDOM: Duration = Duration::from_secs(1);
/// The shortest.
const OFTEN: Duration = Duration::from_millis(20);

impl<C> Dispatcher<C> {
    /// How long to wait between two looks, if there is a limit at all.
    fn interval(&self) -> Option<Duration> {
        self.limits
            .turn
            .map(|limit| (limit / 8).clamp(OFTEN, SELDOM))
    }

    /// When to look next.
    pub(super) fn next_look(&self) -> Option<Time> {
        let interval = self.interval()?;
        self.workers.busy().next()?;
        Some(self.hang_checked.after(interval))
    }

    /// Ends workers whose turn takes too long.
    pub(super) fn end_hung(&mut self, now: Time) {
        let (Some(limit), Some(interval)) = (self.limits.turn, self.interval()) else {
            return;
        };
        let passed = now.since(self.hang_checked);
        if passed < interval {
            return;
        }
        self.hang_checked = now;
        let busy: Vec<u32> = self.workers.busy().collect();
        if passed > 3 * interval {
            // Either nobody was busy, or the master did not run for a while: the turns get that
            // time back.
            self.forgive(&busy, passed - interval);
        }
        for worker in busy {
            if self.workers.at(worker).pace == Pace::Staying {
                // It may have gone on without saying so: it is looked at anew.
                self.workers.moved(worker, now, |_| {});
                continue;
            }
            if self.workers.at(worker).tenure != Tenure::Dead {
                self.end_if_hung(worker, limit, now);
            }
        }
    }

    fn forgive(&mut self, busy: &[u32], time: Duration) {
        for worker in busy {
            let mut next = self.workers.at(*worker).lent.first();
            while let Some(index) = next {
                next = self.chains.after(index);
                let connection = self.table.at_mut(index);
                connection.started = connection.started.after(time).min(self.hang_checked);
            }
        }
    }

    fn end_if_hung(&mut self, worker: u32, limit: Duration, now: Time) {
        // The first one lent is the one that has been under service for longest.
        let Some(first) = self.workers.at(worker).lent.first() else {
            return;
        };
        let connection = self.table.at_mut(first);
        if connection.started.after(limit) > now {
            return;
        }
        debug_assert_eq!(connection.state, State::Lent(worker));
        connection.hung = true;
        let id = self.workers.id(worker);
        self.workers.dismiss(worker, Tenure::Dead);
        self.actions.push(Action::TakeBack(id));
        self.actions.push(Action::End(id));
    }
}
