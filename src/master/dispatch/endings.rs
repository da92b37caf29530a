//! How connections end: because the client has gone, because its time is over, or after a while in
//! which they linger. Pure.

use std::time::Duration;

use crate::master::dispatch::due::Over;
use crate::master::dispatch::table::{ConnectionId, Due, State};
use crate::master::dispatch::{Action, Canned, Dispatcher, Interest, Late, Look, WorkerId};
use crate::master::time::Time;

/// When the server stops, a client that has been silent for so long is not sending any more.
const PAUSE: Duration = Duration::from_secs(1);

impl<C> Dispatcher<C> {
    /// The client of a connection that is not lent has gone, and wants no answer.
    pub fn hung_up(&mut self, id: ConnectionId) {
        match self.table.get(id).map(|connection| connection.state) {
            Some(State::Parked) => self.unpark(id.index()),
            Some(State::Lingering) => self.end_lingering(id.index()),
            Some(State::Ready) => self.chains.remove(&mut self.ready, id.index()),
            Some(State::Lent(_) | State::Examined) | None => return,
        }
        self.close(id.index());
    }

    /// A connection that waits is not served any more, because its client seems to have gone and
    /// the server stops.
    pub fn give_up(&mut self, id: ConnectionId, now: Time) {
        if self.state(id) == Some(State::Ready) {
            self.chains.remove(&mut self.ready, id.index());
            self.linger(id.index(), Some(Canned::Stopping), now);
        }
    }

    /// The client of a connection that was to be lent has gone, or gets this reply: the worker
    /// never gets it. That is no progress of a worker which has others, and may hang in the turn of
    /// one.
    pub fn withdraw(
        &mut self,
        worker: WorkerId,
        id: ConnectionId,
        reply: Option<Canned>,
        now: Time,
    ) {
        if self.is_lent(worker, id) {
            if self.lent(worker) == 1 {
                self.return_from(worker.index(), id.index(), now);
            } else {
                self.unlend(worker.index(), id.index());
            }
            match reply {
                Some(_) => self.linger(id.index(), reply, now),
                None => self.close(id.index()),
            }
            self.schedule(now);
        }
    }

    /// A parked connection is over for the server, and something that was sent may not have reached
    /// the client yet.
    pub fn finish(&mut self, id: ConnectionId, now: Time) {
        if self.state(id) == Some(State::Parked) {
            self.unpark(id.index());
            self.linger(id.index(), None, now);
        }
    }

    /// The time of a parked or lingering connection is over, and the master has looked at it. A
    /// client that owes the rest of a request is told so, and an idle one is closed; what the
    /// kernel has yet to deliver lingers, within the total. A client that does not take a response
    /// is cut off. Returns for which bound the client was too slow, if it was.
    pub fn expired(&mut self, id: ConnectionId, look: Look, now: Time) -> Option<Late> {
        let index = id.index();
        let connection = self.table.get_mut(id)?;
        match connection.state {
            State::Lingering if look.unread => self.actions.push(Action::Drain(id)),
            State::Lingering if look.unsent => self.linger_on(index, now),
            State::Lingering => {
                self.end_lingering(index);
                self.close(index);
            }
            State::Parked => return self.expired_parked(id, look, now),
            State::Ready | State::Lent(_) | State::Examined => {}
        }
        None
    }

    fn expired_parked(&mut self, id: ConnectionId, look: Look, now: Time) -> Option<Late> {
        let index = id.index();
        let due = &mut self.table.at_mut(index).due;
        // Of a client that is to read, it does not matter what it sends.
        let reads = matches!(due, Due::Reading { .. });
        if look.unread && !reads {
            self.readable(id, now);
            return None;
        }
        let over = due.over(&look, &self.limits, now);
        let limit = due.limit(&self.limits, now);
        self.unpark(index);
        match over {
            Over::Not => {
                self.wait_for(index, limit, now);
            }
            Over::Late(Late::Head | Late::Body | Late::SilentBody) => {
                self.linger(index, Some(Canned::RequestTimeout), now);
            }
            Over::Late(Late::Reader) => self.cut_off(index),
            Over::Idle if reads => self.cut_off(index),
            Over::Idle if look.unsent => self.linger(index, None, now),
            Over::Idle => self.close(index),
        }
        match over {
            Over::Late(late) => Some(late),
            Over::Not | Over::Idle => None,
        }
    }

    /// A lingering connection was drained; `ended` says that the client has sent its last byte.
    pub fn drained(&mut self, id: ConnectionId, ended: bool, now: Time) {
        if self
            .table
            .get(id)
            .is_some_and(|connection| connection.state == State::Lingering)
        {
            if ended {
                self.end_lingering(id.index());
                self.close(id.index());
            } else {
                self.linger_on(id.index(), now);
                self.actions.push(Action::Arm(id, Interest::Input));
            }
        }
    }

    /// The master could not watch, answer or drain the connection: it is of no more use.
    pub fn broken(&mut self, id: ConnectionId) {
        self.hung_up(id);
    }

    // ---- lingering ------------------------------------------------------------------------------

    /// The connection is over for its client, which is told why if there is a reply. Whatever it
    /// still sends is drained: until its end, until it is silent for too long, and in any case for
    /// no longer than the total.
    pub(super) fn linger(&mut self, index: u32, reply: Option<Canned>, now: Time) {
        self.end_visit(index);
        self.wait(index, State::Lingering, now.after(self.limits.linger), now);
        self.table.at_mut(index).linger_end = now.after(self.limits.linger_total);
        self.chains.push_back(&mut self.lingering, index);
        self.actions
            .push(Action::Linger(self.table.id(index), reply));
        self.trim_lingering();
        self.resume_if_room();
    }

    /// A lingering client has sent something, or is yet to be sent something: it has time again,
    /// within the total.
    pub(super) fn linger_on(&mut self, index: u32, now: Time) {
        let silence = match self.stopping {
            true => self.limits.linger.min(PAUSE),
            false => self.limits.linger,
        };
        let end = self.table.at(index).linger_end;
        let deadline = now.after(silence).min(end);
        let before = self.table.at(index).deadline;
        self.wheel.remove(&mut self.chains, index, before);
        self.wait(index, State::Lingering, deadline, now);
    }

    pub(super) fn trim_lingering(&mut self) {
        while self.lingering.len() > self.limits.lingering && self.end_oldest_lingering() {}
    }

    pub(super) fn end_oldest_lingering(&mut self) -> bool {
        let Some(index) = self.lingering.first() else {
            return false;
        };
        self.end_lingering(index);
        self.close(index);
        true
    }

    /// Takes a lingering connection out of the lists that it is in.
    pub(super) fn end_lingering(&mut self, index: u32) {
        let deadline = self.table.at(index).deadline;
        self.wheel.remove(&mut self.chains, index, deadline);
        self.chains.remove(&mut self.lingering, index);
    }
}
