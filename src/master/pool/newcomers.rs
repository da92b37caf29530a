//! New connections: accepting them when all else of a round is done, making room for them, and
//! counting those of each client.

use super::aside::{Aside, MOST_ASIDE};
use super::{Phase, Pool};
use crate::config::Address;
use crate::master::connection::held::Held;
use crate::master::listen::clients::is_same_client;
use crate::master::listen::listeners::{BATCH, Listeners, Newcomer, Room};
use crate::master::time::Time;

impl Pool<'_> {
    /// Accepts connections where some wait.
    pub(super) fn welcome_newcomers(&mut self, now: Time) {
        self.settle_aside(now, false);
        if self.listeners.is_knocked_at() {
            self.drop_the_gone_if_crowded(now);
        }
        while let Some(index) = self.listeners.next_knocking() {
            self.accept_from(index, now);
        }
    }

    /// Accepts some of the connections that wait at a listener, after others have given way to
    /// them. True when more may wait, and there may be room for them.
    fn accept_from(&mut self, index: usize, now: Time) -> bool {
        // Else others would give way to somebody who does not come.
        if !self.listeners.takes() {
            return false;
        }
        if self.dispatcher.is_full() {
            // To ask how many wait is a call of its own.
            self.make_room(self.listeners.waiting(index), now);
        }
        if self.dispatcher.is_full() {
            self.dispatcher.pause_if_full();
            self.carry_out(now);
            return false;
        }
        let before = self.aside.len();
        let (listeners, welcome) = self.accepting(now);
        let more = listeners.accept(index, now, welcome);
        self.uncount_aside(before);
        more
    }

    /// Lets others give way to so many newcomers, if there is no room for them.
    fn make_room(&mut self, newcomers: usize, now: Time) {
        if self.dispatcher.is_full() {
            let before = self.dispatcher.connections();
            self.dispatcher.make_room(newcomers);
            self.carry_out(now);
            if self.dispatcher.is_full() || self.dispatcher.connections() < before {
                self.kept_out(before, now);
            }
        }
    }

    // ---- one too many for its client ------------------------------------------------------------

    /// When those that were put aside are looked at next.
    pub(super) fn next_aside(&self) -> Option<Time> {
        let looks = self.aside.iter().map(|one| one.next_look);
        looks.min()
    }

    /// Puts nobody aside any more: the pool stops, or another master accepts.
    pub(super) fn end_aside(&mut self, now: Time) {
        self.settle_aside(now, true);
        self.carry_out(now);
    }

    /// Whether it is certain by now that all connections of the client still count.
    fn has_waited(&self, one: &mut Aside, now: Time) -> bool {
        let peer = one.held.peer();
        let mut lent = self.dispatcher.lent_payloads();
        // Of one that is away nothing is known here.
        let away = self.dispatcher.away() > 0;
        one.has_waited(now, || {
            away || lent.any(|held| is_same_client(held.peer(), peer))
        })
    }

    /// Admits those that were put aside and whose clients have room now, and turns those away whose
    /// time is over: all others if that is to be settled at once.
    fn settle_aside(&mut self, now: Time, at_once: bool) {
        for mut one in std::mem::take(&mut self.aside) {
            let peer = one.held.peer();
            let last = at_once || self.has_waited(&mut one, now);
            if self.listeners.clients().enter(peer) {
                self.make_room(1, now);
                // If nobody gives way it stays all the same: it has its descriptor already, and is
                // not one too many for its client.
                let ready = self.is_ready(&one.held, one.deferred);
                self.dispatcher.accepted(one.held, ready, now);
            } else if last {
                log::debug!("{peer} has too many connections");
                self.dispatcher.turned_away(one.held, now);
            } else {
                self.listeners.clients().leave(peer);
                self.aside.push(one);
            }
        }
    }

    // ---- accepting ------------------------------------------------------------------------------

    /// With nobody to serve it, a client that has not said anything is not to wait in the queue,
    /// and be turned away from there.
    fn is_trusting(&self) -> bool {
        self.plan.profile.tolerates_empty_turns && self.workers.any_serving()
    }

    fn is_ready(&self, held: &Held, deferred: bool) -> bool {
        deferred && self.is_trusting() || self.plan.profile.speaks_first || held.has_input()
    }

    /// The listeners, and what becomes of a connection that they accept.
    fn accepting(&mut self, now: Time) -> (&mut Listeners, impl FnMut(Newcomer) -> Room) {
        let trusting = self.is_trusting();
        let (dispatcher, plan, aside) = (&mut self.dispatcher, &self.plan, &mut self.aside);
        let speaks_first = plan.profile.speaks_first;
        let serving = self.phase == Phase::Serving;
        let welcome = move |newcomer: Newcomer| {
            log::debug!("accepted {}", newcomer.peer);
            let held = Held::new(newcomer.socket, newcomer.peer);
            if newcomer.admitted {
                let likely = newcomer.deferred && trusting;
                let ready = likely || speaks_first || held.has_input();
                dispatcher.accepted(held, ready, now);
            } else if serving && aside.len() < MOST_ASIDE {
                aside.push(Aside::new(held, newcomer.deferred, now));
            } else {
                log::debug!("{} has too many connections", newcomer.peer);
                dispatcher.turned_away(held, now);
            }
            match dispatcher.is_full() {
                false => Room::Left,
                true => Room::Taken,
            }
        };
        (&mut self.listeners, welcome)
    }

    /// Those that were put aside from this one on do not count until they are looked at again.
    fn uncount_aside(&mut self, from: usize) {
        for one in &self.aside[from..] {
            self.listeners.clients().leave(one.held.peer());
        }
    }

    /// Closes listeners, after taking what waits in their backlogs, as far as there is room: the
    /// kernel resets a connection that waits there when its listener is closed, and its client may
    /// have sent a request already.
    pub fn close_listeners(&mut self, unwanted: impl Fn(&Address) -> bool, now: Time) {
        // The number of rounds is limited, because clients may come as fast as they are accepted.
        let rounds = self.plan.settings.backlog.unsigned_abs() as usize / BATCH + 1;
        for index in 0..self.listeners.all().len() {
            if !unwanted(self.listeners.all()[index].asked()) {
                continue;
            }
            for _ in 0..rounds {
                // Nobody gives way to nobody.
                let over = !self.listeners.somebody_waits(index);
                if over || !self.accept_from(index, now) {
                    break;
                }
            }
        }
        for listener in self.listeners.give_away(unwanted) {
            log::debug!("no longer listening on {listener}");
        }
    }

    /// Accepts again after a descriptor was missing, if there are some.
    pub(super) fn accept_again(&mut self, now: Time) {
        if self.workers.hold_reserve() {
            self.listeners.resume();
        } else {
            self.listeners.postpone(now);
        }
    }

    /// Says where the pool listens, as soon as a worker can serve.
    pub(super) fn announce(&mut self) {
        if self.workers.any_serving() {
            self.listeners.announce();
        }
    }
}
