//! What the master does on a signal.

use std::process::Command;

use crate::error::{Plain, Result};
use crate::logging;
use crate::master::Master;
use crate::master::events::signals::{Request, Signals};
use crate::master::pool::{Phase, Pool};
use crate::master::succession::{Condemned, Session, Takeover};
use crate::master::time::Time;
use crate::master::workers::process;
use crate::master::workers::process::Change;

impl Master<'_> {
    pub(in crate::master) fn on_signals(&mut self, now: Time) {
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
                Request::Quit => self.quit("SIGQUIT", now),
                Request::Reload => self.reload(now),
                Request::Reopen => reopen_log(),
                Request::Upgrade => self.upgrade(now),
                // A server that stops has no use for more, and lets all of them go anyway.
                Request::Grow | Request::Shrink if self.stopping.is_some() => {}
                Request::Grow => self.pools().for_each(|pool| pool.resize_by(1)),
                Request::Shrink => self.pools().for_each(|pool| pool.resize_by(-1)),
            }
        }
    }

    /// Looks which workers have ended, were stopped or go on.
    fn reap(&mut self, now: Time) {
        while let Some((pid, change)) = process::next_change() {
            let ours = self.pools().any(|pool| pool.on_change(pid, change, now));
            if !ours && let Change::Ended(end) = change {
                self.on_stranger(pid, &end.to_string(), now);
            }
        }
    }

    pub(in crate::master) fn stop(&mut self, interrupt: bool, now: Time) {
        match &mut self.stopping {
            Some(interrupts) => {
                *interrupts += u32::from(interrupt);
                if *interrupts >= 2 {
                    self.quit("a second SIGINT", now);
                }
            }
            None => {
                let grace = self.pools().map(|pool| pool.plan.settings.grace).max();
                let grace = grace.unwrap_or_default().as_secs();
                log::info!("stopping: at most {grace} s for what is in hand");
                self.manager.stopping();
                self.stopping = Some(u32::from(interrupt));
                self.give_up_reload("the server stops", now);
                self.give_up_takeover("the server stops", now);
                self.tell_of_stop();
                self.pools().for_each(|pool| pool.stop(now));
                self.relist();
            }
        }
    }

    fn quit(&mut self, why: &str, now: Time) {
        log::info!("stopping at once: {why}");
        self.stopping.get_or_insert(0);
        self.quitting = true;
        self.give_up_takeover("the server stops", now);
        self.pools().for_each(Pool::quit);
    }

    /// SIGUSR2: starts the program anew, to take over.
    fn upgrade(&mut self, now: Time) {
        if let Some(why) = self.why_not() {
            return log::warn!("upgrade refused: {why}");
        }
        let started = Session::pair().and_then(|(ours, theirs)| {
            let (signals, keep) = (&mut self.own.signals, &self.own.inherited);
            let manager = &self.manager;
            let introduce = |command: &mut Command| manager.introduce(command);
            let detach = || drop(signals.take());
            let child = self.launch.start(&theirs, keep, introduce, detach)?;
            Ok((ours, child))
        });
        match started {
            Ok((session, child)) => {
                log::info!("upgrading: started {} pid={child}", self.launch);
                self.begin_takeover(session, Some(child), now);
            }
            Err(error) => log::error!(
                "upgrade refused: cannot start {}: {}",
                self.launch,
                Plain(&error)
            ),
        }
    }

    /// When a change of masters is due for something.
    pub(in crate::master) fn change_due(&self) -> Option<Time> {
        // It waits for one pool after the other. When all are ready it waits for nothing.
        let succession = self.successor.as_ref().and_then(|successor| {
            let mut pools = self.pools.iter().flatten();
            let slow = pools.find(|pool| !pool.processes.is_whole())?;
            successor.due(slow.plan.settings.start_timeout)
        });
        let takeover = self.takeover.as_ref().and_then(Takeover::due);
        let condemned = self.condemned.iter().map(Condemned::due).min();
        [succession, takeover, condemned, self.orphans_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Forgets the pools that have come to their end, and goes on with what changes.
    ///
    /// # Errors
    /// When this master was to take over and can't.
    pub(in crate::master) fn advance(&mut self, now: Time) -> Result<()> {
        self.advance_reload(now);
        self.advance_takeover(now);
        self.advance_succession(now)?;
        if self.orphans_due().is_some_and(|due| due <= now) {
            self.advance_orphans(now);
        }
        if self.in_charge()
            && self
                .pools()
                .filter(|pool| pool.is_serving())
                .all(|pool| pool.serves())
        {
            self.manager.ready();
        }
        self.manager.tick(now);
        for place in &mut self.pools {
            if place.as_ref().is_some_and(|pool| pool.phase == Phase::Over) {
                *place = None;
            }
        }
        if self.is_over() && !self.quitting {
            log::info!("stopped");
        }
        Ok(())
    }

    /// Whether this master is the one that serves, as far as it knows.
    fn in_charge(&self) -> bool {
        let taking_over = self.successor.as_ref().is_some_and(|s| !s.reigns());
        !taking_over && self.stopping.is_none() && self.reload.is_none()
    }

    pub(in crate::master) fn is_over(&self) -> bool {
        self.pools.iter().all(Option::is_none)
    }
}

/// SIGUSR1: somebody has moved the log file away.
fn reopen_log() {
    match logging::reopen() {
        Ok(()) => log::info!("log file opened anew"),
        Err(error) => log::error!("{error}"),
    }
}
