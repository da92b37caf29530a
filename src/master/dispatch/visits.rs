//! Connections that another pool serves for a request, and that come home after it. Pure.
//!
//! A connection is in the table of one dispatcher at any moment. While it is *away*, its home
//! counts it among its connections, so that there are no more clients than there may be, and does
//! not end before it is back or over. Where it is, it is a *guest*: it waits in the queue and has
//! its turns like any other, and takes no place of a connection. It is never idle there, for
//! nobody gains a place by its end. When it is over it lingers where it is, and does not count for
//! its home any more.

use crate::master::dispatch::Dispatcher;
use crate::master::dispatch::table::ConnectionId;
use crate::master::dispatch::vocabulary::{Canned, Departure, Interest};
use crate::master::time::Time;

impl<C> Dispatcher<C> {
    /// The turn of a connection has ended with its way to another dispatcher.
    pub(super) fn depart(&mut self, index: u32, ready: bool) {
        let connection = self.table.at(index);
        let (turns, due) = (connection.turns, connection.due);
        let homewards = self.end_visit(index);
        if !homewards {
            self.away += 1;
        }
        self.departures.push(Departure {
            payload: self.table.remove(index),
            homewards,
            ready,
            turns,
            due,
        });
        self.resume_if_room();
    }

    /// A guest is none any more: it leaves, or is over. False if it was none.
    pub(super) fn end_visit(&mut self, index: u32) -> bool {
        let guest = std::mem::take(&mut self.table.at_mut(index).guest);
        self.guests -= usize::from(guest);
        guest
    }

    /// Whether some connection has left for another dispatcher, and was not taken yet.
    #[must_use]
    pub fn has_departures(&self) -> bool {
        !self.departures.is_empty()
    }

    /// The connections that leave, in their order.
    #[must_use]
    pub fn take_departures(&mut self) -> Vec<Departure<C>> {
        std::mem::take(&mut self.departures)
    }

    /// How many connections of this dispatcher are with another one.
    #[must_use]
    pub fn away(&self) -> usize {
        self.away
    }

    /// Whether the connection is another dispatcher's, and here for a request.
    #[must_use]
    pub fn is_guest(&self, id: ConnectionId) -> bool {
        self.table
            .get(id)
            .is_some_and(|connection| connection.guest)
    }

    /// Whether the client of a connection owes the rest of a request.
    #[must_use]
    pub fn owes(&self, id: ConnectionId) -> bool {
        let connection = self.table.get(id);
        connection.is_some_and(|connection| connection.due.is_owed())
    }

    /// A connection of another dispatcher comes to have its request served.
    pub fn arrived(&mut self, visitor: Departure<C>, now: Time) -> ConnectionId {
        let id = self.take_in(visitor.payload, visitor.turns);
        self.guests += 1;
        let connection = self.table.at_mut(id.index());
        connection.guest = true;
        connection.due = visitor.due;
        self.make_ready(id.index(), now);
        id
    }

    /// A connection that was away is back, between two requests.
    pub fn came_home(&mut self, returned: Departure<C>, now: Time) -> ConnectionId {
        self.away -= 1;
        let id = self.take_in(returned.payload, returned.turns);
        if returned.ready {
            self.make_ready(id.index(), now);
        } else {
            self.park(id.index(), Interest::Input, now);
        }
        id
    }

    /// A connection cannot go where it was to go: it is over, and its client is told why if there
    /// is a reply. It ends in the dispatcher which it was about to leave.
    pub fn turned_back(
        &mut self,
        departure: Departure<C>,
        reply: Option<Canned>,
        now: Time,
    ) -> ConnectionId {
        if !departure.homewards {
            self.away -= 1;
        }
        let id = self.take_in(departure.payload, departure.turns);
        self.linger(id.index(), reply, now);
        id
    }

    /// A connection is with another dispatcher, as another master has left it.
    pub fn adopt_away(&mut self) {
        self.away += 1;
    }

    /// A connection that was away is over.
    pub fn ended_away(&mut self) {
        self.away -= 1;
        self.resume_if_room();
    }

    fn take_in(&mut self, payload: C, turns: u64) -> ConnectionId {
        let id = self.admit(payload);
        self.table.at_mut(id.index()).turns = turns;
        id
    }
}
