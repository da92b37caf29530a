//! Doing what the dispatcher wants done, and telling it what clients do.

use std::borrow::Cow;

use crate::error::Plain;
use crate::master::connection::descriptors;
use crate::master::connection::held::Held;
use crate::master::dispatch::table::{ConnectionId, State};
use crate::master::dispatch::{Action, Canned, Interest};
use crate::master::events::epoll::EventFlags;
use crate::master::snapshot::Place;
use crate::master::time::Time;

use super::overload::Cause;
use super::visits::count_out;
use super::{Phase, Pool};

/// The client has ended both sides, or has reset the connection.
const GONE: EventFlags = EventFlags::ERR.union(EventFlags::HUP);

impl Pool<'_> {
    pub(super) fn on_connection(&mut self, id: ConnectionId, flags: EventFlags, now: Time) {
        let Some((state, held)) = self.dispatcher.state_and_payload(id) else {
            return;
        };
        if !matches!(state, State::Parked | State::Lingering) {
            if state == State::Ready && flags.intersects(GONE) {
                // Nobody would read the answer, and a stop need not wait for it.
                return self.dispatcher.hung_up(id);
            }
            // The worker may be reading just that: the connection is looked at again when the turn
            // is over. But if the worker has had its last look, the end of the turn is what the
            // client waits for.
            if held.keep_events(flags) && matches!(state, State::Lent(_)) {
                self.attention.awaited.push(id);
            }
            return;
        }
        if state == State::Lingering && flags == EventFlags::OUT {
            let loses_nothing = !held.goes_on() && !held.has_unread() && !held.has_unsent();
            if loses_nothing && self.is_ending() {
                self.dispatcher.hung_up(id);
            }
            return;
        }
        let gone = flags.intersects(EventFlags::ERR | EventFlags::HUP | EventFlags::RDHUP);
        // A client that has only gone needs no worker to say good-bye to it; and the event may be
        // about bytes that were read in the turn before.
        let certain = self.plan.profile.tolerates_empty_turns || flags.contains(EventFlags::OUT);
        if state == State::Parked && (gone || !certain) && !held.has_input() {
            if gone {
                self.dispatcher.hung_up(id);
            }
        } else {
            // That the client has ended its side is said once, and must be known when the turn is
            // over.
            let _ = held.keep_events(flags & EventFlags::RDHUP);
            self.drop_the_gone_if_crowded(now);
            self.dispatcher.readable(id, now);
        }
    }

    /// Does what the dispatcher wants done.
    pub fn carry_out(&mut self, now: Time) {
        loop {
            self.dispatcher.set_in_use(descriptors::count());
            let mut actions = self.dispatcher.take_actions();
            if actions.is_empty() {
                self.dispatcher.reuse(actions);
                return;
            }
            for action in actions.drain(..) {
                self.act(action, now);
            }
            self.dispatcher.reuse(actions);
        }
    }

    fn act(&mut self, action: Action<Held>, now: Time) {
        match action {
            Action::Lend(worker, id) => self.lend(worker, id, now),
            Action::TakeBack(worker) => self.take_back_from_slow(worker, now),
            Action::Arm(id, interest) => self.arm(id, interest, now),
            Action::Linger(id, reply) => self.linger(id, reply, now),
            Action::Expire(id) => {
                let look = self.dispatcher.payload_of(id).map(Held::look);
                let late = look.and_then(|look| self.dispatcher.expired(id, look, now));
                if let Some(late) = late {
                    self.suffer(Cause::Late(late), self.dispatcher.connections(), now);
                }
            }
            Action::Drain(id) => {
                let Some(held) = self.dispatcher.payload(id) else {
                    return;
                };
                let ended = held.drain(&mut self.buffers.drained).unwrap_or(true);
                self.dispatcher.drained(id, ended, now);
            }
            Action::Examine(id, worker) => self.examine(id, worker, now),
            Action::Retire(worker) => self.retire(worker, now),
            Action::End(worker) => self.end_hung(worker, now),
            Action::Close(_, held) => self.close(held, now),
            Action::Reset(_, held) => {
                held.give_up_unsent();
                self.close(held, now);
            }
            Action::PauseAccepting => self.listeners.pause(),
            Action::ResumeAccepting => self.listeners.resume(),
        }
    }

    fn close(&mut self, mut held: Held, now: Time) {
        log::debug!("closing {}", held.peer());
        if held.is_copied() {
            held.unwatch(&self.epoll);
        }
        if !held.is_ending() {
            count_out(&mut held, &mut self.listeners, &mut self.ended_visits);
        }
        drop(held);
        if self.listeners.is_exhausted() {
            self.accept_again(now);
        }
    }

    pub(super) fn arm(&mut self, id: ConnectionId, interest: Interest, now: Time) {
        let (uncontended, hurries) = (self.dispatcher.is_uncontended(), self.is_ending());
        let stopping = matches!(self.phase, Phase::Stopping { .. })
            && interest != Interest::Output
            && !self.is_guest_served(id);
        let Some((state, held)) = self.dispatcher.state_and_payload(id) else {
            return;
        };
        if stopping && state == State::Parked {
            // The server goes, and takes only what had come before it said so.
            return self.end_parked(id, Held::has_unread, now);
        }
        let watched = match state {
            State::Lingering if hurries && !held.goes_on() => held.watch_delivery(&self.epoll, id),
            _ => held.watch(&self.epoll, id, interest, uncontended),
        };
        if self.store.is_some() && state == State::Parked {
            self.keep(id, now);
        }
        match watched {
            Ok(noticed) if noticed.is_empty() => {}
            Ok(noticed) => self.on_connection(id, noticed, now),
            Err(error) => {
                if let Some(held) = self.dispatcher.payload(id) {
                    log::error!("cannot watch {}: {}", held.peer(), Plain(&error));
                }
                self.dispatcher.broken(id);
            }
        }
    }

    /// Has a parked connection kept that has had a turn, and writes down how it stands.
    fn keep(&mut self, id: ConnectionId, now: Time) {
        let progress = self.dispatcher.progress(id, now);
        let (Some(progress), Some(held)) = (progress, self.dispatcher.payload(id)) else {
            return;
        };
        if held.kept().is_none()
            && progress.turns > 0
            && let Some(store) = &self.store
            && let Ok(cookie) = held.cookie()
            && let Some(kept) = store.keep(cookie, self.id.key)
        {
            held.set_copied(Some(kept));
        }
        let Some(kept) = held.kept() else { return };
        let at = (self.epoll.pool(), id);
        kept.give(at.0, id);
        held.store(Place::Parked, &progress, now);
        // What it had before is forgotten by now.
        if let Some(number) = held.luggage_number() {
            kept.stow(number, at, now);
        }
    }

    /// Counts a client that is turned away or kept waiting, while there are so many connections.
    /// Says so if it is the first.
    pub(super) fn suffer(&mut self, cause: Cause, connections: usize, now: Time) {
        let settings = &self.plan.settings;
        if let Some(warning) = self.overload.count(cause, settings, connections, now) {
            log::warn!("{warning}");
        }
    }

    /// Says what is scarce no longer.
    pub(super) fn tell_what_is_over(&mut self, now: Time) {
        if self.overload.next_due().is_none_or(|due| due > now) {
            return;
        }
        // Who waits in a backlog because all is full is no news, and yet waits.
        if self.dispatcher.is_full() && self.listeners.anybody_waits() {
            self.overload.stays_full(now);
        }
        for ended in self.overload.ended(now) {
            log::warn!("{ended}");
        }
    }

    /// With so many connections there was no room for a further one.
    pub(super) fn kept_out(&mut self, connections: usize, now: Time) {
        let cause = match connections < self.plan.settings.max_connections {
            true => Cause::OpenFiles,
            false => Cause::MaxConnections,
        };
        self.suffer(cause, connections, now);
    }

    fn linger(&mut self, id: ConnectionId, reply: Option<Canned>, now: Time) {
        if let Some(cause) = reply.and_then(Cause::of) {
            self.suffer(cause, self.dispatcher.connections(), now);
        }
        let profile = &self.plan.profile;
        let last_words = match reply {
            None => &[][..],
            Some(Canned::Crashed) => &profile.crashed,
            Some(Canned::TimedOut) => &profile.timed_out,
            Some(Canned::Overloaded(_) | Canned::Stopping) => &profile.overloaded,
            Some(Canned::RequestTimeout) => &profile.request_timeout,
        };
        let Some(held) = self.dispatcher.payload(id) else {
            return;
        };
        held.enter(Place::Ending);
        // From here on it is over for the client, who may come again.
        count_out(held, &mut self.listeners, &mut self.ended_visits);
        // In the middle of a response, a reply would be taken for a part of it.
        let last_words = match held.is_unfinished() {
            true => Cow::default(),
            false => profile.dated(last_words),
        };
        // Without a reply there is nothing to wait for, unless something is still under way.
        let wordless = reply.is_some() && last_words.is_empty() && !held.has_unsent();
        if held.finish(&last_words).is_err() || wordless {
            self.dispatcher.broken(id);
        } else {
            self.arm(id, Interest::Input, now);
        }
    }
}
