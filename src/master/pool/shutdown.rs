//! How a pool comes to its end: stop accepting, finish what is in hand, close the parked, let the workers go; all of it
//! bounded by the grace period.

use nix::sys::signal::{Signal, kill};

use crate::master::pool::{Accepting, Phase, Pool};
use crate::master::time::Time;

impl Pool<'_> {
    /// Begins to stop.
    pub fn stop(&mut self, now: Time) {
        if self.phase != Phase::Serving {
            return;
        }
        self.abandon(now);
        let until = now.after(self.plan.settings.grace);
        self.phase = Phase::Stopping { until };
        self.processes.end_relief();
        self.close_listeners(|_| true, now);
        self.keep_what_has_input(now);
        self.dispatcher.stop();
        self.rouse();
    }

    /// Lets stopped workers go on: none of them could finish what it has, nor exit.
    pub(in crate::master) fn rouse(&mut self) {
        for process in self.processes.processes_mut() {
            if std::mem::take(&mut process.stopped) && !process.ended {
                log::info!("worker {process} is to go on, to come to its end");
                // ESRCH: it has just ended.
                let _ = kill(process.pid, Signal::SIGCONT);
            }
        }
    }

    /// Ends at once.
    pub fn quit(&mut self) {
        self.phase = Phase::Over;
        self.end_workers();
    }

    /// A parked client whose request has come but was not noticed yet is answered all the same.
    fn keep_what_has_input(&mut self, now: Time) {
        let parked: Vec<_> = self.dispatcher.parked().collect();
        for id in parked {
            if self
                .dispatcher
                .payload(id)
                .is_some_and(|held| held.has_input())
            {
                self.dispatcher.readable(id, now);
            }
        }
    }

    /// Does what is due: goes on to the next phase when this one is done or has lasted for too long.
    pub fn advance(&mut self, now: Time) {
        if let Accepting::Exhausted { until } = self.accepting
            && until <= now
        {
            self.try_again(now);
        }
        self.end_former(now);
        match self.phase {
            Phase::Stopping { until } if self.dispatcher.is_empty() || until <= now => {
                self.let_workers_go(now);
            }
            // Before that, the master knows whether this pool may still be needed.
            Phase::Leaving { until } if until <= now => self.let_workers_go(now),
            Phase::Retiring { until }
                if self.processes.processes().next().is_none() || until <= now =>
            {
                self.phase = Phase::Over;
                self.end_workers();
            }
            _ => {}
        }
    }

    /// Nothing more is to be served.
    pub fn let_workers_go(&mut self, now: Time) {
        let (Phase::Stopping { until } | Phase::Leaving { until }) = self.phase else {
            return;
        };
        let unserved = self.dispatcher.connections();
        if unserved > 0 {
            log::warn!("the grace period is over: closing {unserved} connections");
        }
        for worker in self.processes.resize(0) {
            self.retire(worker);
        }
        self.phase = Phase::Retiring { until };
        self.rouse();
        self.advance(now);
    }

    /// Kills and reaps what workers there are.
    fn end_workers(&mut self) {
        self.listeners.clear();
        for process in self.processes.processes() {
            log::debug!("killing worker {process}");
        }
        self.processes.end_all();
    }
}
