//! How a pool comes into service, and to its end: stop accepting, finish what is in hand, close the
//! parked, let the workers go; all of it bounded by the grace period.

use crate::master::child::Child;
use crate::master::connection::held::Held;
use crate::master::dispatch::table::ConnectionId;
use crate::master::dispatch::{Interest, Lending};
use crate::master::plan::Plan;
use crate::master::time::Time;
use crate::service::Peer;

use super::{Phase, Pool};

impl<'a> Pool<'a> {
    /// How far the pool has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether a reload or an upgrade can begin.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Whether the pool is to serve when the reload under way is through.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        matches!(self.phase, Phase::Coming | Phase::Serving)
    }

    /// Whether the pool only finishes what is lent, because another master has all else.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    /// Whether the pool is on its way to its end, and nothing brings it back.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        !self.is_serving() && !self.is_leaving()
    }

    /// Whether the pool stops, and still has something to serve.
    #[must_use]
    pub fn finishes(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. }) && self.dispatcher.unserved() > 0
    }

    /// Whether another pool that stops may yet pass something to this one, so that this one's
    /// workers are to stay.
    pub fn set_may_be_needed(&mut self, may_be: bool) {
        self.may_be_needed = may_be;
    }

    /// Whether nothing is left to serve.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.dispatcher.is_empty()
    }

    pub(super) fn phase_due(&self) -> Option<Time> {
        match self.phase {
            Phase::Stopping { until } | Phase::Leaving { until } | Phase::Retiring { until } => {
                Some(until)
            }
            Phase::Coming | Phase::Serving | Phase::Over => None,
        }
    }

    /// Until when a worker that is told to go now has time.
    pub(super) fn grace_until(&self, now: Time) -> Time {
        self.phase_due()
            .unwrap_or_else(|| now.after(self.plan.settings.grace))
    }

    // ---- a new generation -----------------------------------------------------------------------

    /// The pool is nothing without the reload for which it was made.
    pub fn await_reload(&mut self) {
        self.phase = Phase::Coming;
    }

    /// Wants a new generation of workers, by this plan.
    pub fn prepare(&mut self, plan: Plan<'a>, now: Time) {
        self.workers.prepare(plan, now);
    }

    /// Goes over to the new generation; the old one finishes its turns, for as long as the grace
    /// period lasts. `away` are the clients whose connections are with other pools.
    pub fn promote(&mut self, room: usize, away: Vec<Peer>, now: Time) {
        let Some(plan) = self.workers.incoming_plan() else {
            return;
        };
        if self.phase == Phase::Coming {
            self.phase = Phase::Serving;
        }
        let per_client = plan.settings.per_client;
        self.dispatcher.set_limits(plan.limits(room));
        // What is to be closed already is not in the table any more, and must have left before the
        // others are counted.
        self.carry_out(now);
        let counted = |held: &&Held| !held.is_ending() && held.visit().is_none();
        let peers = self.dispatcher.payloads().filter(counted).map(Held::peer);
        let peers = peers.chain(away);
        self.listeners.clients().set_limit(per_client, peers);
        if let Some(plan) = self.workers.promote(&mut self.dispatcher, now) {
            self.plan = plan;
        }
        self.carry_out(now);
    }

    /// Gives the new generation up. A pool that was made for it goes too.
    pub fn abandon(&mut self, now: Time) {
        if self.phase == Phase::Coming {
            let until = self.grace_until(now);
            self.phase = Phase::Retiring { until };
        }
        self.workers.abandon();
    }

    /// SIGTTIN and SIGTTOU: so many workers more or less.
    pub fn resize_by(&mut self, change: isize, now: Time) {
        // A pool that goes, or is not there yet, has another size.
        if self.is_serving() {
            let dispatcher = &mut self.dispatcher;
            self.workers.resize_by(change, &self.plan, dispatcher, now);
        }
    }

    // ---- the end --------------------------------------------------------------------------------

    /// Begins to stop.
    pub fn stop(&mut self, now: Time) {
        if self.phase != Phase::Serving {
            return;
        }
        self.abandon(now);
        let until = self.grace_until(now);
        self.phase = Phase::Stopping { until };
        self.workers.end_replacement();
        self.close_listeners(|_| true, now);
        self.end_aside(now);
        self.answer_what_has_come(now);
        self.drop_what_nobody_awaits(now);
        self.dispatcher.stop(now);
        self.hurry(now);
        self.continue_stopped();
    }

    /// Lets stopped workers go on: none of them could finish what it has, nor exit.
    pub(super) fn continue_stopped(&mut self) {
        for process in self.workers.all_mut() {
            process.continue_stopped();
        }
    }

    /// A parked client whose request has come and was not noticed yet is answered all the same, and
    /// one that has yet to take the rest of an answer goes on.
    fn answer_what_has_come(&mut self, now: Time) {
        let goes_on = |held: &Held| held.is_unfinished() || held.has_input();
        let parked: Vec<_> = self.dispatcher.parked().collect();
        for id in parked {
            if !self.is_guest_served(id) {
                self.end_parked(id, goes_on, now);
            }
        }
    }

    /// A parked connection is over because the pool stops, unless there is input for a last turn.
    /// What the kernel has yet to deliver would be lost if the client sent something to a closed
    /// connection: then it lingers.
    pub(super) fn end_parked(&mut self, id: ConnectionId, input: fn(&Held) -> bool, now: Time) {
        let Some(held) = self.held(id) else { return };
        if input(held) {
            self.dispatcher.readable(id, now);
        } else if held.has_unsent() {
            self.dispatcher.finish(id, now);
        } else {
            self.dispatcher.hung_up(id);
        }
    }

    /// A connection that lingers holds up the pool's end until its client has all that was sent. A
    /// client that goes on sending has its time all the same: it does not look for the answer yet,
    /// and a reset could destroy that.
    fn hurry(&mut self, now: Time) {
        let lingering: Vec<_> = self.dispatcher.lingering().collect();
        for id in lingering {
            self.arm(id, Interest::Input, now);
        }
    }

    /// Goes on to the next phase when this one is done or has lasted for too long.
    pub(super) fn advance_phase(&mut self, now: Time) {
        match self.phase {
            Phase::Stopping { until } => {
                let needed = self.dispatcher.unserved() > 0 || self.may_be_needed;
                if !needed || until <= now {
                    self.let_workers_go(now);
                }
            }
            // Before that, the master knows whether this pool may still be needed.
            Phase::Leaving { until } if until <= now => self.let_workers_go(now),
            Phase::Retiring { until } => {
                let done = self.workers.all().next().is_none() && self.dispatcher.is_empty();
                if done || until <= now {
                    self.end();
                }
            }
            _ => {}
        }
    }

    /// Nothing more is to be served.
    pub fn let_workers_go(&mut self, now: Time) {
        let (Phase::Stopping { until } | Phase::Leaving { until }) = self.phase else {
            return;
        };
        let unserved = self.dispatcher.unserved() - self.dispatcher.away();
        if unserved > 0 {
            log::warn!("the grace period is over: closing {unserved} connections");
        }
        self.phase = Phase::Retiring { until };
        let all: Vec<_> = self.workers.all().map(|one| one.worker()).collect();
        self.workers.resize(0, &mut self.dispatcher, until, now);
        for worker in all {
            self.retire(worker, now);
        }
        self.continue_stopped();
        self.advance_phase(now);
    }

    fn end(&mut self) {
        self.phase = Phase::Over;
        for episode in self.overload.end() {
            log::warn!("{episode}");
        }
    }

    /// Ends at once: kills what workers there are, and returns them to be reaped.
    pub fn quit(&mut self) -> Vec<Child> {
        self.end();
        self.listeners.drop_all();
        self.workers.kill_all()
    }

    // ---- beside another master ------------------------------------------------------------------

    /// Holds still, so that another master can be told how everything stands.
    pub fn freeze(&mut self, now: Time) {
        self.listeners.hold_back();
        self.end_aside(now);
        self.dispatcher.set_lending(Lending::Frozen, now);
        // What was decided before is done: it says what a connection waits for.
        self.carry_out(now);
    }

    /// Goes on as before.
    pub fn thaw(&mut self, now: Time) {
        self.return_from_leave(now);
        self.dispatcher.set_lending(Lending::Yes, now);
        self.listeners.set_unlink_on_drop(true, |_| true);
        self.begin_accepting();
    }

    /// Serves what it has, whatever another master does. That one still accepts.
    pub fn return_from_leave(&mut self, now: Time) {
        if self.is_leaving() {
            self.phase = Phase::Serving;
            self.workers.schedule_check();
            self.dispatcher.set_lending(Lending::Yes, now);
        }
    }

    /// Serves no more, but for what is lent. Listeners that the other master has not kept are
    /// closed, and what waits there goes to it with the rest.
    pub fn leave(&mut self, is_kept: impl Fn(&crate::config::Address) -> bool, now: Time) {
        let until = self.grace_until(now);
        self.phase = Phase::Leaving { until };
        self.dispatcher.set_lending(Lending::PassingOn, now);
        // There may be room for more now.
        self.carry_out(now);
        self.listeners.begin();
        self.close_listeners(|address| !is_kept(address), now);
        self.listeners.hold_back();
        self.continue_stopped();
    }

    /// Accepts again after another master did, or for the first time.
    pub fn begin_accepting(&mut self) {
        self.listeners.begin();
        self.announce();
    }
}
