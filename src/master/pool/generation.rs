//! A pool's next generation of workers: it is started beside the one that serves, and takes its place when each of its
//! workers is ready. Until then nothing has changed, and if one of them fails nothing will.

use nix::sys::signal::{Signal, kill};

use crate::config::Address;
use crate::master::connection::held::Held;
use crate::master::pool::{Phase, Plan, Pool, limits_of};
use crate::master::time::Time;
use crate::master::workers::autoscale::Bounds;
use crate::master::workers::process::Process;

/// A generation that is not ready yet.
pub struct Incoming<'a> {
    plan: Plan<'a>,
    /// When it is given up.
    until: Time,
    /// Why it can't be.
    failure: Option<String>,
}

impl<'a> Incoming<'a> {
    /// What the pool is to be.
    pub fn plan(&self) -> &Plan<'a> {
        &self.plan
    }
}

impl<'a> Pool<'a> {
    /// Wants a new generation, by this plan.
    pub fn prepare(&mut self, plan: Plan<'a>, now: Time) {
        // What demand has made of the old generation is not to begin anew with the next one.
        let workers = plan.settings.workers;
        let size = Bounds::of(&plan.settings, workers).map_or(workers, |bounds| {
            self.processes.size().clamp(bounds.least, bounds.most)
        });
        self.processes.prepare_next(size);
        self.incoming = Some(Incoming {
            until: now.after(plan.settings.start_timeout),
            failure: None,
            plan,
        });
    }

    /// Whether it can go over to the new generation. `Err` says why it never can.
    ///
    /// # Errors
    /// The reason, when a worker of the new generation has died or was not ready in time.
    pub fn is_prepared(&self, now: Time) -> Result<bool, String> {
        let Some(incoming) = &self.incoming else {
            return Ok(true);
        };
        if let Some(failure) = &incoming.failure {
            return Err(failure.clone());
        }
        let ready = self.processes.next_is_ready();
        if !ready && incoming.until <= now {
            let limit = incoming.plan.settings.start_timeout.as_secs_f64();
            let name = &self.plan.name;
            return Err(format!(
                "the new workers of pool {name} are not ready within {limit} s"
            ));
        }
        Ok(ready)
    }

    /// The addresses where it is to listen from now on.
    pub fn addresses(&self) -> &[Address] {
        let plan = self.incoming.as_ref().map(|incoming| &incoming.plan);
        &plan.unwrap_or(&self.plan).listen
    }

    /// Goes over to the new generation; the old one finishes its turns, for as long as the grace period lasts.
    pub fn promote(&mut self, room: usize, now: Time) {
        let Some(Incoming { plan, .. }) = self.incoming.take() else {
            return;
        };
        if self.phase == Phase::Coming {
            self.phase = Phase::Serving;
        }
        let until = now.after(plan.settings.grace);
        self.dispatcher.set_limits(limits_of(&plan.settings, room));
        // What is to be closed already is not in the table any more, and must have left before the others are counted.
        self.carry_out(now);
        let peers = self.dispatcher.payloads().map(Held::peer);
        self.clients.set_limit(plan.settings.per_client, peers);
        self.upkeep.set_base(plan.settings.workers);
        self.plan = plan;
        self.processes.promote_next(until);
        self.outgoing = true;
        let ready: Vec<_> = self.processes.members().map(|p| p.worker).collect();
        for worker in ready {
            self.dispatcher.worker_ready(worker, now);
        }
        let former: Vec<_> = self.processes.former().map(|p| p.worker).collect();
        for worker in former {
            self.dispatcher.retire(worker);
        }
        self.carry_out(now);
    }

    /// Gives the new generation up, and ends what there is of it. A pool that was made for it goes too.
    pub fn abandon(&mut self, now: Time) {
        self.incoming = None;
        if self.phase == Phase::Coming {
            let until = now.after(self.plan.settings.grace);
            self.phase = Phase::Retiring { until };
        }
        self.upkeep.soon();
        for worker in self.processes.abandon_next() {
            if let Some(process) = self.processes.get_mut(worker) {
                process.retiring = true;
                // It serves nobody. ESRCH: it has just ended by itself.
                let _ = kill(process.pid, Signal::SIGKILL);
            }
        }
    }

    /// A worker of the new generation has ended, and nothing comes of the others.
    pub(in crate::master) fn note_failure(&mut self, process: String, how: &str) {
        if let Some(incoming) = &mut self.incoming {
            let failure = format!("a new worker ({process}) {how} before all were ready");
            incoming.failure.get_or_insert(failure);
        }
    }

    /// When something is due in a change of generations.
    pub(in crate::master) fn next_generation_due(&self) -> Option<Time> {
        // One that is ready waits for those of other pools, which may have more time.
        let incoming = self.incoming.as_ref();
        let incoming = incoming.filter(|_| !self.processes.next_is_ready());
        let until = incoming.map(|incoming| incoming.until);
        let former = || self.processes.former().filter_map(|p| p.until).min();
        let former = self.outgoing.then(former).flatten();
        [until, former].into_iter().flatten().min()
    }

    /// Ends what is left of former generations when the grace period is over.
    pub(in crate::master) fn end_former(&mut self, now: Time) {
        // The loop comes by here for every few requests, and mostly there are none.
        if !self.outgoing {
            return;
        }
        self.outgoing = self.processes.former().next().is_some();
        let due: Vec<_> = self
            .processes
            .former()
            .filter(|process| process.until.is_some_and(|until| until <= now))
            .map(|process| process.worker)
            .collect();
        for process in due {
            if let Some(process) = self.processes.get_mut(process) {
                process.until = None;
                log::warn!("the grace period is over: killing worker {process}");
                let _ = kill(process.pid, Signal::SIGKILL);
            }
        }
    }

    /// Whether a reload or an upgrade can begin.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Whether it is to serve when the reload under way is through.
    pub(in crate::master) fn is_wanted(&self) -> bool {
        matches!(self.phase, Phase::Coming | Phase::Serving)
    }

    /// A worker that was started belongs to the generation that is not serving yet.
    pub(in crate::master) fn is_next(&self, process: &Process) -> bool {
        self.processes.is_next(process)
    }
}
