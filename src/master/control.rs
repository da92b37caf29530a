//! What the master does on a signal.

use super::pool::{Phase, Pool};
use super::signals::{Request, Signals};
use super::time::Time;
use super::{Master, processes};

impl Master<'_> {
    pub(super) fn on_signals(&mut self, now: Time) {
        let requests = self
            .own
            .signals
            .as_mut()
            .map(Signals::requests)
            .unwrap_or_default();
        for request in requests {
            match request {
                Request::Reap => self.reap(now),
                Request::Stop { interrupt } => self.stop(interrupt, now),
                Request::Quit => self.quit("SIGQUIT"),
                Request::Reload => self.reload(now),
                // A server that stops has no use for more, and lets all of them go anyway.
                Request::Grow | Request::Shrink if self.stopping.is_some() => {}
                Request::Grow => self.pools().for_each(|pool| pool.resize_by(1)),
                Request::Shrink => self.pools().for_each(|pool| pool.resize_by(-1)),
            }
        }
    }

    /// Looks which workers have ended, were stopped or go on.
    fn reap(&mut self, now: Time) {
        while let Some((pid, change)) = processes::next_change() {
            let _ = self.pools().any(|pool| pool.on_change(pid, change, now));
        }
    }

    fn stop(&mut self, interrupt: bool, now: Time) {
        match &mut self.stopping {
            Some(interrupts) => {
                *interrupts += u32::from(interrupt);
                if *interrupts >= 2 {
                    self.quit("a second SIGINT");
                }
            }
            None => {
                let grace = self.pools().map(|pool| pool.plan.settings.grace).max();
                let grace = grace.unwrap_or_default().as_secs();
                log::info!("stopping: at most {grace} s for what is in hand");
                self.stopping = Some(u32::from(interrupt));
                self.give_up_reload("the server stops");
                self.pools().for_each(|pool| pool.stop(now));
            }
        }
    }

    fn quit(&mut self, why: &str) {
        log::info!("stopping at once: {why}");
        self.stopping.get_or_insert(0);
        self.quitting = true;
        self.pools().for_each(Pool::quit);
    }

    /// Forgets the pools that have come to their end.
    pub(super) fn advance(&mut self, now: Time) {
        self.advance_reload(now);
        for place in &mut self.pools {
            if place.as_ref().is_some_and(|pool| pool.phase == Phase::Over) {
                *place = None;
            }
        }
        if self.is_over() && !self.quitting {
            log::info!("stopped");
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.pools.iter().all(Option::is_none)
    }
}

impl Pool<'_> {
    fn resize_by(&mut self, change: isize) {
        let size = self.processes.size().saturating_add_signed(change);
        if size == 0 {
            log::warn!("the last worker stays");
            return;
        }
        log::info!("pool size {size}");
        for worker in self.processes.resize(size) {
            self.dispatcher.retire(worker);
        }
    }
}
