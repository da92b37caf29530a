//! What the master does on a signal, and how it comes to its end: stop accepting, finish what is in hand, close the
//! parked, let the workers go; all of it bounded by the grace period.

use super::signals::{Request, Signals};
use super::time::Time;
use super::{ACCEPT_BATCH, Accepting, Master, Phase};

impl Master<'_> {
    pub(super) fn on_signals(&mut self, now: Time) {
        let requests = self
            .signals
            .as_mut()
            .map(Signals::requests)
            .unwrap_or_default();
        for request in requests {
            match request {
                Request::Reap => self.reap(now),
                Request::Stop { interrupt } => self.stop(interrupt, now),
                Request::Quit => self.quit("SIGQUIT"),
                // A server that stops has no use for more, and lets all of them go anyway.
                Request::Grow | Request::Shrink if self.phase != Phase::Serving => {}
                Request::Grow => self.resize(self.pool.size() + 1, now),
                Request::Shrink => self.resize(self.pool.size().saturating_sub(1), now),
            }
        }
    }

    fn resize(&mut self, size: usize, now: Time) {
        if size == 0 {
            log::warn!("the last worker stays");
            return;
        }
        log::info!("pool size {}", size);
        for worker in self.pool.resize(size) {
            self.dispatcher.retire(worker);
        }
        self.start_missing(now);
    }

    fn stop(&mut self, interrupt: bool, now: Time) {
        match &mut self.phase {
            Phase::Stopping { interrupts, .. } | Phase::Retiring { interrupts, .. } => {
                *interrupts += u32::from(interrupt);
                if *interrupts >= 2 {
                    self.quit("a second SIGINT");
                }
            }
            Phase::Over => {}
            Phase::Serving => {
                log::info!(
                    "stopping: at most {} s for what is in hand",
                    self.settings.grace.as_secs()
                );
                let until = now.after(self.settings.grace);
                self.phase = Phase::Stopping {
                    until,
                    interrupts: u32::from(interrupt),
                };
                self.accept_the_rest(now);
                self.listeners.clear();
                self.keep_what_has_input(now);
                self.dispatcher.stop();
            }
        }
    }

    /// Whoever is through to a backlog would be reset with it, and has perhaps sent its request.
    fn accept_the_rest(&mut self, now: Time) {
        let rounds = self.settings.backlog.unsigned_abs() as usize / ACCEPT_BATCH + 1;
        for index in 0..self.listeners.len() {
            // Others may come as fast as these are taken.
            let mut rounds = 0..rounds;
            while rounds.next().is_some() && self.on_listener(index, now) {}
        }
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

    fn quit(&mut self, why: &str) {
        log::info!("stopping at once: {why}");
        self.phase = Phase::Over;
        self.end_workers();
    }

    /// Goes on to the next phase when this one is done or has lasted for too long.
    pub(super) fn advance(&mut self, now: Time) {
        if let Accepting::Exhausted { until } = self.accepting
            && until <= now
        {
            self.try_again(now);
        }
        match self.phase {
            Phase::Stopping { until, interrupts } if self.dispatcher.is_empty() || until <= now => {
                let unserved = self.dispatcher.connections();
                if unserved > 0 {
                    log::warn!("the grace period is over: closing {unserved} connections");
                }
                let workers: Vec<_> = self.pool.resize(0);
                for worker in workers {
                    self.retire(worker);
                }
                self.phase = Phase::Retiring { until, interrupts };
                self.advance(now);
            }
            Phase::Retiring { until, .. }
                if self.pool.processes().next().is_none() || until <= now =>
            {
                self.phase = Phase::Over;
                self.end_workers();
                log::info!("stopped");
            }
            _ => {}
        }
    }

    /// Kills and reaps what workers there are.
    fn end_workers(&mut self) {
        self.listeners.clear();
        for process in self.pool.processes() {
            log::debug!("killing worker slot={} pid={}", process.slot, process.pid);
        }
        self.pool.end_all();
    }
}
