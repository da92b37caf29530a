//! What the dispatcher's events have in common: a connection goes from one state into another.
//! Pure.

use std::time::Duration;

use crate::master::dispatch::chains::Chains;
use crate::master::dispatch::due::NEVER;
use crate::master::dispatch::table::{Connection, Due, State};
use crate::master::dispatch::wheel::TICK;
use crate::master::dispatch::workers::{self, Pace, Tenure};
use crate::master::dispatch::{
    Action, Canned, Dispatcher, Excess, Interest, Lending, MAX_DEPTH, Owes, RELAXED, TurnEnd,
};
use crate::master::time::Time;
use crate::wire::Outcome;

impl<C> Dispatcher<C> {
    pub(super) fn end_turn(&mut self, index: u32, end: TurnEnd, now: Time) {
        match end.outcome {
            Outcome::Again => self.make_ready(index, now),
            Outcome::Pass => self.depart(index, true),
            Outcome::Home if self.table.at(index).guest => {
                self.depart(index, end.owes != Owes::Nothing);
            }
            // What is left belongs to a request that nobody has looked at.
            Outcome::Home if end.owes != Owes::Nothing && end.answered => {
                self.make_ready(index, now);
            }
            Outcome::Park | Outcome::ParkDrained | Outcome::Home => {
                let interest = match end.outcome {
                    Outcome::ParkDrained => Interest::NewInput,
                    _ => Interest::Input,
                };
                self.park(index, interest, now);
            }
            Outcome::ParkWrite => self.park(index, Interest::Output, now),
            Outcome::Close => self.close(index),
            Outcome::Linger => self.linger(index, end.reply, now),
        }
    }

    pub(super) fn deadline_passed(&mut self, index: u32, now: Time) {
        let connection = self.table.at(index);
        let state = connection.state;
        if state == State::Parked || connection.linger_end > now {
            // It stays where it is until the master has looked.
            self.wait(index, state, now.after(TICK), now);
            self.actions.push(Action::Expire(self.table.id(index)));
        } else {
            // The wheel has let it go already.
            self.chains.remove(&mut self.lingering, index);
            self.close(index);
        }
    }

    /// Parks the connection, for as long as its client has for what is due.
    pub(super) fn park(&mut self, index: u32, interest: Interest, now: Time) {
        let limit = self.table.at(index).due.limit(&self.limits, now);
        self.park_for(index, interest, limit, now);
    }

    pub(super) fn park_for(
        &mut self,
        index: u32,
        interest: Interest,
        limit: Option<Duration>,
        now: Time,
    ) {
        let due = self.wait_for(index, limit, now);
        self.actions
            .push(Action::Arm(self.table.id(index), interest));
        let takes_place = !due.is_owed() && !self.table.at(index).guest;
        if interest != Interest::Output && takes_place {
            self.begin_idleness(index);
        }
    }

    /// Sets the deadline of a parked connection.
    pub(super) fn wait_for(&mut self, index: u32, limit: Option<Duration>, now: Time) -> Due {
        // Without a limit the deadline is never: the wheel sees it once a round.
        let deadline = limit.map_or(NEVER, |limit| now.after(limit));
        self.wait(index, State::Parked, deadline, now).due
    }

    pub(super) fn wait(
        &mut self,
        index: u32,
        state: State,
        deadline: Time,
        now: Time,
    ) -> &Connection<C> {
        let deadline = deadline.max(self.wheel.earliest(now));
        self.wheel.add(&mut self.chains, index, deadline);
        let connection = self.table.at_mut(index);
        (connection.state, connection.deadline) = (state, deadline);
        connection
    }

    pub(super) fn unpark(&mut self, index: u32) {
        let deadline = self.table.at(index).deadline;
        self.wheel.remove(&mut self.chains, index, deadline);
        self.end_idleness(index);
    }

    /// Puts the connection at the end of the ready queue, or turns it away if that is full. In the
    /// middle of a response it has its place, for there is no answer that would make it smaller.
    pub(super) fn make_ready(&mut self, index: u32, now: Time) {
        if self.is_queue_full() && !self.table.at(index).is_read_from() {
            self.linger(index, Some(Canned::Overloaded(Excess::Queue)), now);
            return;
        }
        let connection = self.table.at_mut(index);
        connection.state = State::Ready;
        connection.ready_at = now;
        connection.order = self.next_order;
        self.next_order += 1;
        self.chains.push_back(&mut self.ready, index);
        self.schedule(now);
    }

    /// Puts the connection back to its place in the ready queue: before all that came after it.
    /// Only others that were put back can be before it, so the search is short.
    pub(super) fn requeue(&mut self, index: u32) {
        let order = self.table.at(index).order;
        self.table.at_mut(index).state = State::Ready;
        let mut next = self.ready.first();
        while let Some(other) = next.filter(|other| self.table.at(*other).order < order) {
            next = self.chains.after(other);
        }
        match next {
            Some(next) => self.chains.insert_before(&mut self.ready, next, index),
            None => self.chains.push_back(&mut self.ready, index),
        }
    }

    /// Turns away what has waited for too long.
    pub(super) fn shed(&mut self, now: Time) {
        let Some(bound) = self.limits.queue_wait else {
            return;
        };
        while let Some(first) = self.ready.first() {
            if self.table.at(first).ready_at.after(bound) > now {
                break;
            }
            self.chains.remove(&mut self.ready, first);
            self.linger(first, Some(Canned::Overloaded(Excess::QueueWait)), now);
        }
    }

    /// What has waited for longest of what an answer can turn away.
    pub(super) fn next_to_shed(&self) -> Option<u32> {
        let mut ready = self.chains.iter(&self.ready);
        ready.find(|index| !self.table.at(*index).is_read_from())
    }

    /// When the first ready connection has waited for so long that a worker on probation is tried
    /// all the same, or another one because the last was tried in vain.
    pub(super) fn overdue(&self) -> Option<Time> {
        let first = self.ready.first()?;
        let since = self.table.at(first).ready_at.max(self.tried);
        Some(since.after(self.limits.patience * RELAXED))
    }

    /// How many connections a worker may have before it is passed over: as many average turns as
    /// fit into the patience.
    pub(super) fn depth(&self) -> usize {
        self.turn.fit_into(self.limits.patience).clamp(1, MAX_DEPTH)
    }

    pub(super) fn schedule(&mut self, now: Time) {
        if self.lending != Lending::Yes {
            return;
        }
        while let Some(index) = self.ready.first() {
            let Some(worker) = self.workers.next(self.depth()) else {
                break;
            };
            self.chains.remove(&mut self.ready, index);
            self.lend(worker, index, now);
        }
    }

    pub(super) fn lend(&mut self, worker: u32, index: u32, now: Time) {
        let connection = self.table.at_mut(index);
        connection.state = State::Lent(worker);
        self.lent += 1;
        connection.started = now;
        connection.hung = false;
        connection.turns += 1;
        let chains = &mut self.chains;
        let add = |worker: &mut workers::Worker| {
            if worker.lent.len() >= worker.capacity && worker.waiting.is_none() {
                worker.waiting = Some(index);
            }
            chains.push_back(&mut worker.lent, index);
        };
        if matches!(self.workers.at(worker).pace, Pace::Idle | Pace::Staying) {
            self.workers.moved(worker, now, add);
        } else {
            self.workers.changed(worker, add);
        }
        self.actions
            .push(Action::Lend(self.workers.id(worker), self.table.id(index)));
    }

    /// Takes a connection out of what is lent to a worker, because the worker has reported it.
    pub(super) fn return_from(&mut self, worker: u32, index: u32, now: Time) {
        self.lent -= 1;
        let (chains, table) = (&mut self.chains, &mut self.table);
        self.workers.moved(worker, now, |worker| {
            if let Some(next) = take_out(chains, worker, index) {
                table.at_mut(next).started = now;
            }
        });
        self.retire_if_done(worker);
    }

    /// Takes a connection out of what is lent to a worker, which has not reported it.
    pub(super) fn unlend(&mut self, worker: u32, index: u32) {
        self.lent -= 1;
        let chains = &mut self.chains;
        self.workers.changed(worker, |worker| {
            take_out(chains, worker, index);
        });
    }

    /// A worker from which connections were taken: if it has none left, it did not take up a single
    /// one.
    pub(super) fn settle_untouched(&mut self, worker: u32, now: Time) {
        let state = self.workers.at(worker);
        if state.lent.is_empty() && matches!(state.pace, Pace::Moving | Pace::Slow) {
            self.workers.put_on_probation(worker, now);
            self.retire_if_done(worker);
        }
    }

    pub(super) fn retire_if_done(&mut self, worker: u32) {
        let state = self.workers.at(worker);
        if state.tenure == Tenure::Retiring && state.lent.is_empty() {
            self.actions.push(Action::Retire(self.workers.id(worker)));
        }
    }

    /// Ends a connection in the middle of a response that its client does not take. It does not
    /// linger: what the kernel has yet to send would stay there for as long as the client likes.
    pub(super) fn cut_off(&mut self, index: u32) {
        let id = self.table.id(index);
        self.end_visit(index);
        let payload = self.table.remove(index);
        self.actions.push(Action::Reset(id, payload));
        self.resume_if_room();
    }

    pub(super) fn close(&mut self, index: u32) {
        let id = self.table.id(index);
        self.end_visit(index);
        let payload = self.table.remove(index);
        self.actions.push(Action::Close(id, payload));
        self.resume_if_room();
    }
}

/// Takes a connection out of what is lent to a worker. The first one that waited can be taken up in
/// its place, and is returned, unless it was waiting itself.
fn take_out(chains: &mut Chains, worker: &mut workers::Worker, index: u32) -> Option<u32> {
    let waiting = worker.waiting;
    let waited = waiting.is_some_and(|first| chains.is_at_or_after(first, index));
    if waiting == Some(index) || !waited {
        worker.waiting = waiting.and_then(|first| chains.after(first));
    }
    chains.remove(&mut worker.lent, index);
    waiting.filter(|_| !waited)
}
