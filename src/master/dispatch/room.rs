//! Which connections count, and which give way when there is no room for another one. Pure.
//!
//! A guest from another pool counts at its home. A connection that lingers is over for its client
//! and does not count any more. It has a descriptor all the same, so there is a limit for those
//! that linger, and the one that has lingered for longest goes first: at that limit, and when a
//! newcomer needs its descriptor.
//!
//! A parked connection is *idle* when its client owes nothing and is owed nothing: it is between
//! two requests, or has yet to begin its first one. With as many connections as there may be, the
//! one that has been idle for longest gives way to a newcomer. One that is ready, lent, or waits
//! for writing never does, and neither does one whose client has sent part of a request: it has the
//! time for the rest of it (`head`), and its end would cost that request.
//!
//! Descriptors that are no connections' count too: luggage, and whatever other pools have. The pool
//! says how many there are; for want of one, an idle connection gives way as well. When there is
//! none and no worker can go on without one, one that is not idle gives way.
//!
//! Both kinds are in lists in the order in which they came there, so that each step costs the same
//! whatever their number.

use crate::master::dispatch::table::ConnectionId;
use crate::master::dispatch::{Action, Canned, Dispatcher, Excess, WorkerId};
use crate::master::time::Time;

impl<C> Dispatcher<C> {
    /// How many connections count: those that are away too, but no guests, and none that linger.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.table.len() + self.away - self.guests - self.lingering.len()
    }

    /// How many connections are not over, guests included.
    #[must_use]
    pub fn unserved(&self) -> usize {
        self.table.len() + self.away - self.lingering.len()
    }

    /// The names of the connections that linger, the one that has done so for longest first.
    pub fn lingering(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        let lingering = self.chains.iter(&self.lingering);
        lingering.map(|index| self.table.id(index))
    }

    /// Whether there is no room for a further connection unless another one gives way.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.connections() >= self.limits.connections || self.is_out_of_descriptors()
    }

    /// Whether there is no descriptor for a further connection.
    fn is_out_of_descriptors(&self) -> bool {
        self.table.len() + self.elsewhere >= self.limits.descriptors
    }

    /// How many descriptors there are for connections, and for what counts with them.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.limits.descriptors
    }

    /// So many descriptors are in use in all, those of connections included.
    pub fn set_in_use(&mut self, all: usize) {
        let elsewhere = all.saturating_sub(self.table.len());
        if elsewhere != std::mem::replace(&mut self.elsewhere, elsewhere) {
            self.resume_if_room();
        }
    }

    /// Whether newcomers wait for room, and would have some if it were known how many descriptors
    /// are in use.
    #[must_use]
    pub fn waits_in_vain(&self, in_use: usize) -> bool {
        self.paused && !self.stopping && self.table.len() + self.elsewhere > in_use
    }

    /// Whether a newcomer, or the next request, is kept out or turned away if nothing changes.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.is_full() || self.is_queue_full()
    }

    pub(super) fn is_queue_full(&self) -> bool {
        self.ready.len() >= self.limits.queue && self.workers.next(self.depth()).is_none()
    }

    pub(super) fn can_make_room(&self) -> bool {
        if self.connections() >= self.limits.connections {
            !self.idle.is_empty()
        } else {
            !self.lingering.is_empty() || !self.idle.is_empty()
        }
    }

    /// Newcomers wait, and there is no room for so many: others give way, as far as they can. The
    /// master looks at an idle one before that, because its client may have sent something that has
    /// not been noticed yet.
    pub fn make_room(&mut self, newcomers: usize) {
        let free = self.limits.connections.saturating_sub(self.connections());
        let gone = self.expire_idle(newcomers.saturating_sub(free));
        let room = free + gone;
        let in_use = self.table.len() + self.elsewhere - gone;
        let free = self.limits.descriptors.saturating_sub(in_use);
        self.free_descriptors(newcomers.min(room).saturating_sub(free));
    }

    /// Others give way, as far as they can, so that there are so many more descriptors.
    pub fn free_descriptors(&mut self, mut short: usize) {
        while short > 0 && self.end_oldest_lingering() {
            short -= 1;
        }
        self.expire_idle(short);
    }

    /// Every worker that serves waits for a descriptor, so that nothing else ends: others give way,
    /// so that there are so many more. Who waits for a worker is turned away, the one that has
    /// waited for longest first. If none does, the one is ended whose last turn is longest ago.
    pub fn force_room(&mut self, short: usize, now: Time) {
        for _ in 0..short {
            if let Some(index) = self.next_to_shed() {
                self.chains.remove(&mut self.ready, index);
                self.linger(index, Some(Canned::Overloaded(Excess::Descriptors)), now);
            } else if let Some(index) = self.longest_without_a_turn() {
                self.unpark(index);
                match self.table.at(index).is_read_from() {
                    // No answer fits into the middle of another one.
                    true => self.cut_off(index),
                    false => {
                        self.linger(index, Some(Canned::Overloaded(Excess::Descriptors)), now);
                    }
                }
            }
        }
    }

    /// Whether no other worker than these will end a turn.
    #[must_use]
    pub fn are_all_serving(&self, these: &[WorkerId]) -> bool {
        let mut serving = self
            .workers
            .ids()
            .filter(|id| self.workers.may_end_a_turn(*id));
        serving.all(|worker| these.contains(&worker))
    }

    fn longest_without_a_turn(&self) -> Option<u32> {
        let parked = self.parked().map(|id| id.index());
        parked.min_by_key(|index| self.table.at(*index).started)
    }

    /// The connections that have been idle for longest give way. Returns how many do.
    fn expire_idle(&mut self, most: usize) -> usize {
        let mut count = 0;
        while count < most
            && let Some(index) = self.idle.first()
        {
            self.end_idleness(index);
            self.actions.push(Action::Expire(self.table.id(index)));
            count += 1;
        }
        count
    }

    /// Nobody has given way to a newcomer that waits: accepting pauses until somebody can. It does
    /// not pause before one waits, so that to be at the limit costs nothing and is not told of.
    pub fn pause_if_full(&mut self) {
        if !self.paused && self.is_full() && !self.can_make_room() {
            self.paused = true;
            self.actions.push(Action::PauseAccepting);
        }
    }

    pub(super) fn resume_if_room(&mut self) {
        if self.paused && !self.stopping && (!self.is_full() || self.can_make_room()) {
            self.paused = false;
            self.actions.push(Action::ResumeAccepting);
        }
    }

    pub(super) fn begin_idleness(&mut self, index: u32) {
        self.chains.push_back(&mut self.idle, index);
        self.resume_if_room();
    }

    pub(super) fn end_idleness(&mut self, index: u32) {
        self.chains.remove_if_linked(&mut self.idle, index);
    }
}
