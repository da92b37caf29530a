//! Connections that go to another pool for a request, and those that come from one.

use super::overload::Cause;
use super::reports::store_ready;
use super::{Phase, Pool};
use crate::master::connection::held::Held;
use crate::master::connection::visit::{PassFault, PoolId};
use crate::master::dispatch::table::ConnectionId;
use crate::master::dispatch::{Canned, Departure};
use crate::master::listen::listeners::Listeners;
use crate::master::time::Time;
use crate::service::Peer;

/// A connection counts for its client no longer: here, or with its own pool, which is told.
pub(super) fn count_out(
    held: &mut Held,
    listeners: &mut Listeners,
    ended_visits: &mut Vec<(PoolId, Peer)>,
) {
    match held.end_visit() {
        Some(home) => ended_visits.push((home, held.peer())),
        None => listeners.clients().leave(held.peer()),
    }
}

impl Pool<'_> {
    /// Which pool this is.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// Whether the pool has connections for others, or something to tell them.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        self.dispatcher.has_departures() || !self.ended_visits.is_empty()
    }

    /// The connections that leave this pool for others.
    #[must_use]
    pub fn take_departures(&mut self) -> Vec<Departure<Held>> {
        self.dispatcher.take_departures()
    }

    /// The clients of other pools whose connections have ended here.
    #[must_use]
    pub fn take_ended_visits(&mut self) -> Vec<(PoolId, Peer)> {
        std::mem::take(&mut self.ended_visits)
    }

    /// The pool is over, and what it still has of other pools ends with it.
    pub fn end_visits(&mut self) {
        let guests: Vec<_> = self.guests().collect();
        self.ended_visits.extend(guests);
    }

    /// Whether connections can come here, from their own pool or back from another one.
    #[must_use]
    pub fn takes_visitors(&self) -> bool {
        let stopping = matches!(self.phase, Phase::Stopping { .. });
        self.is_serving() || self.is_leaving() || stopping
    }

    /// The clients of the connections that are here and at home elsewhere.
    pub fn guests(&self) -> impl Iterator<Item = (PoolId, Peer)> {
        let guests = self.dispatcher.payloads();
        guests.filter_map(|held| Some((held.visit()?.home, held.peer())))
    }

    /// A connection of another pool comes to have its request served.
    pub fn on_arrival(&mut self, mut visitor: Departure<Held>, now: Time) {
        visitor.payload.move_kept(self.key());
        let id = self.dispatcher.arrived(visitor, now);
        self.settle_in(id, now);
    }

    /// A connection of this pool comes back from another one.
    pub fn on_return(&mut self, mut returned: Departure<Held>, now: Time) {
        returned.payload.go_home();
        returned.payload.move_kept(self.key());
        let id = self.dispatcher.came_home(returned, now);
        self.settle_in(id, now);
    }

    /// A connection that was about to leave can't go there, because its own pool has gone
    /// meanwhile, or for this fault.
    pub fn on_turned_back(
        &mut self,
        mut departure: Departure<Held>,
        fault: Option<PassFault>,
        now: Time,
    ) {
        if let Some(fault) = fault {
            let held = &mut departure.payload;
            let target = held.visit().map(|visit| visit.target.clone());
            held.go_home();
            let peer = held.peer();
            self.warn_of_pass(fault, &target.unwrap_or_default(), peer, now);
        }
        let reply = fault.map(|_| Canned::Crashed);
        let id = self.dispatcher.turned_back(departure, reply, now);
        self.settle_in(id, now);
    }

    /// A connection of this pool has ended in another one.
    pub fn on_ended_away(&mut self, peer: Peer, now: Time) {
        self.dispatcher.ended_away();
        self.listeners.clients().leave(peer);
        self.carry_out(now);
    }

    /// Writes down where a connection is now, and goes on with it.
    fn settle_in(&mut self, id: ConnectionId, now: Time) {
        if let Some(kept) = self.held(id).and_then(Held::kept) {
            kept.give(self.epoll.pool(), id);
        }
        store_ready(&self.dispatcher, id, now);
        self.carry_out(now);
    }

    /// A worker wants a connection passed on that can't be: its client gets the reply of a crash.
    #[cold]
    pub(super) fn warn_of_pass(&mut self, fault: PassFault, target: &str, peer: Peer, now: Time) {
        let (settings, connections) = (&self.plan.settings, self.dispatcher.connections());
        let cause = Cause::Passing(fault);
        if let Some(warning) = self.overload.count(cause, settings, connections, now) {
            log::warn!("{warning}; the first one is {peer}, for pool {target:?}");
        }
    }

    /// Whether the client of a guest is in the middle of its request, which is finished also when
    /// the pool stops.
    pub(super) fn is_guest_served(&self, id: ConnectionId) -> bool {
        let unfinished = self.held(id).is_some_and(Held::is_unfinished);
        self.dispatcher.is_guest(id) && (unfinished || self.dispatcher.owes(id))
    }
}
