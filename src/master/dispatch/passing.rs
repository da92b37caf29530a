//! Giving connections to another master, and taking them from one. Pure.

use std::time::Duration;

use crate::master::dispatch::Dispatcher;
use crate::master::dispatch::table::{ConnectionId, Due, State};
use crate::master::dispatch::vocabulary::{Canned, Interest, Lending, Progress};
use crate::master::time::Time;
use crate::wire::Outcome;

/// A deadline that is this far away stands for none.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl<C> Dispatcher<C> {
    /// Lends, or no longer does.
    pub fn set_lending(&mut self, lending: Lending, now: Time) {
        self.lending = lending;
        self.schedule(now);
    }

    /// What can be passed on: the ready connections in their order, then the parked ones.
    #[must_use]
    pub fn passable(&self) -> Vec<ConnectionId> {
        let mut passable = self.ready();
        passable.extend(self.parked());
        passable
    }

    /// How a connection stands, if it is ready or parked.
    #[must_use]
    pub fn progress(&self, id: ConnectionId, now: Time) -> Option<Progress> {
        let connection = self.table.get(id)?;
        let ready = match connection.state {
            State::Ready => true,
            State::Parked => false,
            State::Lent(_) | State::Examined | State::Lingering => return None,
        };
        let remaining = Some(connection.deadline.since(now));
        let remaining = remaining.filter(|remaining| !ready && *remaining < NEVER);
        let (incomplete_for, time_left) = connection.due.told(now);
        Some(Progress {
            ready,
            turns: connection.turns,
            remaining,
            incomplete_for,
            time_left,
        })
    }

    /// Forgets a ready or parked connection: it is another master's.
    pub fn release(&mut self, id: ConnectionId) -> Option<C> {
        match self.table.get(id)?.state {
            State::Ready => self.chains.remove(&mut self.ready, id.index()),
            State::Parked => self.unpark(id.index()),
            State::Lent(_) | State::Examined | State::Lingering => return None,
        }
        self.end_visit(id.index());
        let payload = self.table.remove(id.index());
        self.resume_if_room();
        Some(payload)
    }

    /// Takes a connection over as it stood with another master. It may be another dispatcher's,
    /// and here for a request.
    pub fn adopt(
        &mut self,
        payload: C,
        (progress, guest): (&Progress, bool),
        interest: Interest,
        now: Time,
    ) -> ConnectionId {
        let id = self.admit(payload);
        self.guests += usize::from(guest);
        let connection = self.table.at_mut(id.index());
        connection.guest = guest;
        connection.turns = progress.turns;
        connection.due = match (interest, progress) {
            // The other master does not say, or did not have to know.
            (
                Interest::Output,
                Progress {
                    time_left: None,
                    ready: false,
                    ..
                },
            ) => Due::after_lost_report(Outcome::ParkWrite, &self.limits, now),
            _ => Due::adopted(progress.incomplete_for, progress.time_left, now),
        };
        if progress.ready {
            self.make_ready(id.index(), now);
        } else {
            self.park_for(id.index(), interest, progress.remaining, now);
        }
        id
    }

    /// Takes a connection over that was ending when its master died, or whose worker died with the
    /// master: it is over for its client, which is told why if there is a reply.
    pub fn adopt_over(&mut self, payload: C, reply: Option<Canned>, now: Time) {
        let id = self.admit(payload);
        self.linger(id.index(), reply, now);
    }
}
