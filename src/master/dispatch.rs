//! Who serves what, next. Pure: events and the time in, actions out; no descriptor, no clock, no system call.
//!
//! The dispatcher owns the state of every connection and the order in which they are served. The master tells it what
//! happened through the event functions, then carries out the [`Action`]s it finds, and does nothing of its own accord.
//! Each event costs the same, whatever the number of connections and workers.
//!
//! **Pack, then spread.** A ready connection goes to a worker that is awake and moving while few wait there, else to
//! an idle one, else it stays in the ready queue. Waking a sleeping worker is what costs most. How many may wait
//! behind a turn (the depth) follows from how long turns take, so that none waits for longer than the patience; and if
//! a turn outlasts the patience all the same, what waits behind it is taken back and lent elsewhere.

mod average;
#[cfg(test)]
mod tests;
mod workers;

use std::time::Duration;

use super::chains::{Chains, List};
use super::connections::{ConnectionId, State, Table};
use super::time::Time;
use super::wheel::Wheel;
use crate::wire::Outcome;
use average::Average;
use workers::{Pace, Tenure, Workers};

pub use workers::{MAX_DEPTH, WorkerId};

/// How many times the patience a worker is left alone behind whose turn nothing waits. It may just not have been seen
/// to have reported.
const RELAXED: u32 = 8;

/// The bounds within which the dispatcher works.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a lent connection may wait behind another one.
    pub patience: Duration,
    /// The most connections at a time; accepting pauses there.
    pub connections: usize,
    /// The most connections in the ready queue; more are answered as overload.
    pub queue: usize,
    /// The longest time in the ready queue, if there is a bound.
    pub queue_wait: Option<Duration>,
    /// How long a client may be silent between requests.
    pub idle: Option<Duration>,
    /// How long a client may take for the head of a request, from its first byte.
    pub head: Option<Duration>,
    /// How long a finished connection is drained.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            patience: Duration::from_micros(500),
            connections: usize::MAX,
            queue: usize::MAX,
            queue_wait: None,
            idle: None,
            head: None,
            linger: Duration::from_secs(2),
        }
    }
}

/// What a parked connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read.
    Input,
    /// There is something to read that had not come when the turn ended.
    NewInput,
    /// The client takes something.
    Output,
}

/// A reply that the master sends in the service's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canned {
    /// The worker died after it had read the request.
    Crashed,
    /// There is no room, or no worker came in time.
    Overloaded,
    /// The client did not complete its request in time.
    RequestTimeout,
}

/// What the kernel says of a turn whose worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was read and nothing was sent.
    Untouched,
    /// Something was read, nothing was sent.
    Consumed,
    /// Something was sent.
    Sent,
    /// Nobody has counted.
    Unknown,
}

/// What the master is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<C> {
    /// Lend the connection to the worker.
    Lend(WorkerId, ConnectionId),
    /// Receive back what still is in the worker's inbox; say so with [`Dispatcher::taken_back`], and at the end with
    /// [`Dispatcher::inbox_empty`].
    TakeBack(WorkerId),
    /// Watch for the client.
    Arm(ConnectionId, Interest),
    /// Send the reply if there is one, end the sending side, and watch for the client's last bytes.
    Linger(ConnectionId, Option<Canned>),
    /// Discard what the client has sent; say with [`Dispatcher::drained`] whether that was all.
    Drain(ConnectionId),
    /// Its worker died during the turn: ask the kernel what came of it, say so with [`Dispatcher::examined`].
    Examine(ConnectionId, WorkerId),
    /// Tell the worker to exit.
    Retire(WorkerId),
    /// The connection is over, and this is what the master held for it. Dropping it closes it.
    Close(ConnectionId, C),
    /// Stop accepting connections.
    PauseAccepting,
    /// Accept connections again.
    ResumeAccepting,
}

/// A report that names what the worker does not have: it is ignored, and the worker is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray;

/// What a report says, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub struct TurnEnd {
    /// What is to become of the connection.
    pub outcome: Outcome,
    /// How many turns the worker served in a row, at least one.
    pub turns: u64,
    /// It has bytes that were read and not consumed.
    pub carries: bool,
    /// Something was sent to the client, so that what is carried belongs to a new request.
    pub answered: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Dispatcher<C> {
    limits: Limits,
    table: Table<C>,
    /// Links of connections: each is in the ready queue, in a worker's `lent` or in a slot of the wheel.
    chains: Chains,
    ready: List,
    wheel: Wheel,
    workers: Workers,
    turn: Average,
    next_order: u64,
    paused: bool,
    stopping: bool,
    actions: Vec<Action<C>>,
}

impl<C> Dispatcher<C> {
    /// A dispatcher with no connection and no worker.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let turn = Average::new(limits.patience);
        Self {
            limits,
            table: Table::default(),
            chains: Chains::default(),
            ready: List::default(),
            wheel: Wheel::default(),
            workers: Workers::default(),
            turn,
            next_order: 0,
            paused: false,
            stopping: false,
            actions: Vec::new(),
        }
    }

    /// What is to be done, in this order. The caller gives the emptied vector back with [`Dispatcher::reuse`].
    #[must_use]
    pub fn take_actions(&mut self) -> Vec<Action<C>> {
        std::mem::take(&mut self.actions)
    }

    /// Takes the memory of a carried-out list of actions back.
    pub fn reuse(&mut self, mut actions: Vec<Action<C>>) {
        if self.actions.is_empty() {
            actions.clear();
            self.actions = actions;
        }
    }

    /// What the master holds for a connection.
    pub fn payload(&mut self, id: ConnectionId) -> Option<&mut C> {
        self.table
            .get_mut(id)
            .map(|connection| &mut connection.payload)
    }

    /// Which turn a connection is in, from 1.
    #[must_use]
    pub fn turn_number(&self, id: ConnectionId) -> u64 {
        self.table.get(id).map_or(0, |connection| connection.turns)
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no room for further connections.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.paused
    }

    /// Where a connection is.
    #[must_use]
    pub fn state(&self, id: ConnectionId) -> Option<State> {
        self.table.get(id).map(|connection| connection.state)
    }

    /// Whether something waits for the end of any turn: a ready connection, or the end of service.
    #[must_use]
    pub fn wants_reports(&self) -> bool {
        self.stopping || !self.ready.is_empty()
    }

    /// Whether the connection is lent to the worker.
    #[must_use]
    pub fn is_lent(&self, worker: WorkerId, id: ConnectionId) -> bool {
        let lent_to = State::Lent(worker.index());
        self.workers.get(worker).is_some()
            && self
                .table
                .get(id)
                .is_some_and(|connection| connection.state == lent_to)
    }

    /// The workers from which a report may come at any moment.
    pub fn moving(&self, workers: &mut Vec<WorkerId>) {
        workers.clear();
        workers.extend(self.workers.moving());
    }

    /// Whether something is lent to the worker and it makes no progress.
    #[must_use]
    pub fn is_slow(&self, worker: WorkerId) -> bool {
        self.workers
            .get(worker)
            .is_some_and(|w| w.pace == Pace::Slow)
    }

    /// How many connections are lent to the worker.
    #[must_use]
    pub fn lent(&self, worker: WorkerId) -> usize {
        self.workers.get(worker).map_or(0, |w| w.lent.len())
    }

    /// Gives a worker that has yet to take up anything another span of patience, unless it has had enough of them.
    /// Nobody gains if there is no other worker to take its connections.
    pub fn excuse(&mut self, worker: WorkerId, now: Time) -> bool {
        let alone = self.workers.next(self.depth()).is_none();
        self.workers.get(worker).is_some() && self.workers.excuse(worker.index(), now, alone)
    }

    /// The names of all parked connections.
    pub fn parked(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.table
            .ids()
            .filter(|id| self.table.at(id.index()).state == State::Parked)
    }

    // ---- connections: what happens to them --------------------------------------------------------------------

    /// A connection was accepted. `ready` says that it can have its first turn at once.
    pub fn accepted(&mut self, payload: C, ready: bool, now: Time) -> ConnectionId {
        let id = self.table.insert(payload);
        self.chains.admit(id.index());
        if ready {
            self.make_ready(id.index(), now);
        } else {
            self.park(id.index(), Interest::Input, self.limits.idle, now);
        }
        if !self.paused && self.table.len() >= self.limits.connections {
            self.paused = true;
            self.actions.push(Action::PauseAccepting);
        }
        id
    }

    /// The client of a parked connection has sent or taken something, or of a lingering one.
    pub fn readable(&mut self, id: ConnectionId, now: Time) {
        match self.table.get(id).map(|connection| connection.state) {
            Some(State::Parked) => {
                self.unpark(id.index());
                self.make_ready(id.index(), now);
            }
            Some(State::Lingering) => self.actions.push(Action::Drain(id)),
            // An event that was under way when something else ended the wait.
            Some(State::Ready | State::Lent(_) | State::Examined) | None => {}
        }
    }

    /// The client of a parked or lingering connection has gone, leaving nothing to read and wanting no answer.
    pub fn hung_up(&mut self, id: ConnectionId) {
        if let Some(State::Parked | State::Lingering) = self.table.get(id).map(|c| c.state) {
            self.unpark(id.index());
            self.close(id.index());
        }
    }

    /// A lingering connection was drained; `ended` says that the client has sent its last byte.
    pub fn drained(&mut self, id: ConnectionId, ended: bool) {
        if self
            .table
            .get(id)
            .is_some_and(|connection| connection.state == State::Lingering)
        {
            if ended {
                self.unpark(id.index());
                self.close(id.index());
            } else {
                self.actions.push(Action::Arm(id, Interest::Input));
            }
        }
    }

    /// The master could not watch, answer or drain the connection: it is of no more use.
    pub fn broken(&mut self, id: ConnectionId) {
        self.hung_up(id);
    }

    // ---- workers: what they say -------------------------------------------------------------------------------

    /// A worker was started. It is lent nothing before it says that it is ready.
    pub fn worker_started(&mut self, capacity: usize) -> WorkerId {
        self.workers.add(capacity)
    }

    /// A worker says that it can serve.
    pub fn worker_ready(&mut self, worker: WorkerId, now: Time) {
        if self
            .workers
            .get(worker)
            .is_some_and(|w| w.pace == Pace::Starting)
        {
            self.workers.set_pace(worker.index(), Pace::Idle);
            self.schedule(now);
        }
    }

    /// A worker reports the end of a turn.
    ///
    /// # Errors
    /// [`Stray`] when that connection is not lent to that worker.
    pub fn report(
        &mut self,
        worker: WorkerId,
        id: ConnectionId,
        end: TurnEnd,
        now: Time,
    ) -> Result<(), Stray> {
        if !self.is_lent(worker, id) {
            return Err(Stray);
        }
        let connection = self.table.at_mut(id.index());
        self.turn.add(now.since(connection.started));
        if !end.carries || end.answered {
            connection.partial_since = None;
        }
        connection.replayed = false;
        connection.turns += end.turns.saturating_sub(1);
        let index = id.index();
        self.return_from(worker.index(), index, now);
        self.end_turn(index, end, now);
        self.schedule(now);
        Ok(())
    }

    /// A lend could not be sent because the kernel had no room for it: the connection stays ready, and this worker
    /// gets nothing more until it has reported.
    pub fn lend_refused(&mut self, worker: WorkerId, id: ConnectionId, now: Time) {
        self.taken_back(worker, id);
        if self.workers.get(worker).is_some() {
            self.workers
                .changed(worker.index(), |worker| worker.full = true);
            self.settle_untouched(worker.index(), now);
        }
        self.schedule(now);
    }

    /// A connection was received back from a worker's inbox.
    pub fn taken_back(&mut self, worker: WorkerId, id: ConnectionId) {
        if !self.is_lent(worker, id) {
            return;
        }
        self.unlend(worker.index(), id.index());
        let connection = self.table.at_mut(id.index());
        connection.turns -= 1;
        self.requeue(id.index());
    }

    /// The inbox of a worker holds nothing more that can be taken back.
    pub fn inbox_empty(&mut self, worker: WorkerId, now: Time) {
        if self.workers.get(worker).is_some() {
            self.settle_untouched(worker.index(), now);
            self.schedule(now);
        }
    }

    /// A worker is to finish what it has, then exit.
    pub fn retire(&mut self, worker: WorkerId) {
        if self
            .workers
            .get(worker)
            .is_some_and(|w| w.tenure == Tenure::Serving)
        {
            self.workers.dismiss(worker.index(), Tenure::Retiring);
            self.retire_if_done(worker.index());
        }
    }

    /// A worker's process was stopped by a signal: it is lent nothing until it goes on, and others get what it has not
    /// taken up.
    pub fn worker_stopped(&mut self, worker: WorkerId) {
        if self
            .workers
            .get(worker)
            .is_some_and(|w| w.tenure == Tenure::Serving)
        {
            self.workers.dismiss(worker.index(), Tenure::Stopped);
            self.actions.push(Action::TakeBack(worker));
        }
    }

    /// A stopped worker goes on.
    pub fn worker_continued(&mut self, worker: WorkerId, now: Time) {
        if self
            .workers
            .get(worker)
            .is_some_and(|w| w.tenure == Tenure::Stopped)
        {
            self.workers.dismiss(worker.index(), Tenure::Serving);
            self.schedule(now);
        }
    }

    /// A worker's process has ended: it is lent nothing more. Its last reports and what lies in its inbox are to be
    /// settled next, then [`Dispatcher::worker_gone`].
    pub fn worker_died(&mut self, worker: WorkerId) {
        if self.workers.get(worker).is_some() {
            self.workers.dismiss(worker.index(), Tenure::Dead);
        }
    }

    /// A dead worker is settled: whatever is still lent to it was under service.
    pub fn worker_gone(&mut self, worker: WorkerId, now: Time) {
        while let Some(index) = self.workers.get(worker).and_then(|w| w.lent.first()) {
            self.unlend(worker.index(), index);
            self.table.at_mut(index).state = State::Examined;
            self.actions
                .push(Action::Examine(self.table.id(index), worker));
        }
        self.workers.remove(worker);
        self.schedule(now);
    }

    /// What the kernel says of a connection whose worker died.
    pub fn examined(&mut self, id: ConnectionId, verdict: Verdict, now: Time) {
        let Some(connection) = self.table.get_mut(id) else {
            return;
        };
        if connection.state != State::Examined {
            return;
        }
        match verdict {
            Verdict::Untouched if !connection.replayed => {
                connection.replayed = true;
                connection.turns -= 1;
                self.requeue(id.index());
                self.schedule(now);
            }
            Verdict::Untouched | Verdict::Consumed => {
                self.linger(id.index(), Some(Canned::Crashed), now)
            }
            Verdict::Sent | Verdict::Unknown => self.close(id.index()),
        }
    }

    // ---- time, and the end ------------------------------------------------------------------------------------

    /// Time has passed: notices whatever is due.
    pub fn tick(&mut self, now: Time) {
        let overdue = self.overdue().is_some_and(|time| time <= now);
        self.workers.pardon(now, overdue);
        while let Some((index, progress)) = self.workers.stalest() {
            if progress.after(self.limits.patience) > now {
                break;
            }
            self.workers.set_pace(index, Pace::Slow);
            self.actions.push(Action::TakeBack(self.workers.id(index)));
        }
        let table = &self.table;
        for index in self
            .wheel
            .turn(&mut self.chains, now, |index| table.at(index).deadline)
        {
            self.deadline_passed(index, now);
        }
        self.shed(now);
        self.schedule(now);
    }

    /// When [`Dispatcher::tick`] next has something to do, if nothing else happens.
    #[must_use]
    pub fn next_tick(&self) -> Option<Time> {
        let stale = self.workers.stalest().map(|(_, progress)| {
            let waits = self.workers.any_waiting();
            let patience = self.limits.patience * if waits { 1 } else { RELAXED };
            progress.after(patience)
        });
        let shed = self.limits.queue_wait.and_then(|wait| {
            let first = self.ready.first()?;
            Some(self.table.at(first).ready_at.after(wait))
        });
        let pardon = self.workers.next_pardon();
        let pardon = pardon.map(|time| self.overdue().map_or(time, |overdue| overdue.min(time)));
        [stale, shed, self.wheel.next(), pardon]
            .into_iter()
            .flatten()
            .min()
    }

    /// Ends service: parked connections close, the ready ones are still served, each for one turn.
    pub fn stop(&mut self) {
        self.stopping = true;
        if !self.paused {
            self.paused = true;
            self.actions.push(Action::PauseAccepting);
        }
        let parked: Vec<_> = self.parked().collect();
        for id in parked {
            self.unpark(id.index());
            self.close(id.index());
        }
    }

    /// Whether nothing is left to serve or to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    // ---- what the events have in common -----------------------------------------------------------------------

    fn end_turn(&mut self, index: u32, end: TurnEnd, now: Time) {
        match end.outcome {
            Outcome::Again => self.make_ready(index, now),
            Outcome::Park | Outcome::ParkDrained | Outcome::ParkWrite if self.stopping => {
                self.close(index)
            }
            Outcome::Park | Outcome::ParkDrained => {
                let limit = if end.carries {
                    self.owed(index, now)
                } else {
                    self.limits.idle
                };
                let interest = match end.outcome {
                    Outcome::ParkDrained => Interest::NewInput,
                    _ => Interest::Input,
                };
                self.park(index, interest, limit, now);
            }
            Outcome::ParkWrite => self.park(index, Interest::Output, self.limits.idle, now),
            Outcome::Close => self.close(index),
            Outcome::Linger => self.linger(index, None, now),
        }
    }

    /// How much longer the client may take for the rest of the request that it has begun.
    fn owed(&mut self, index: u32, now: Time) -> Option<Duration> {
        let connection = self.table.at_mut(index);
        let since = *connection.partial_since.get_or_insert(connection.ready_at);
        self.limits
            .head
            .map(|limit| limit.saturating_sub(now.since(since)))
    }

    fn deadline_passed(&mut self, index: u32, now: Time) {
        let connection = self.table.at(index);
        match connection.state {
            State::Parked if connection.partial_since.is_some() => {
                self.linger(index, Some(Canned::RequestTimeout), now);
            }
            _ => self.close(index),
        }
    }

    fn park(&mut self, index: u32, interest: Interest, limit: Option<Duration>, now: Time) {
        // Without a limit the deadline is never: the wheel sees it once a round.
        let deadline = limit.map_or(Time(u64::MAX / 2), |limit| now.after(limit));
        self.wait(index, State::Parked, deadline, now);
        self.actions
            .push(Action::Arm(self.table.id(index), interest));
    }

    fn linger(&mut self, index: u32, reply: Option<Canned>, now: Time) {
        self.wait(index, State::Lingering, now.after(self.limits.linger), now);
        self.actions
            .push(Action::Linger(self.table.id(index), reply));
    }

    fn wait(&mut self, index: u32, state: State, deadline: Time, now: Time) {
        let deadline = deadline.max(self.wheel.earliest(now));
        let connection = self.table.at_mut(index);
        connection.state = state;
        connection.deadline = deadline;
        self.wheel.add(&mut self.chains, index, deadline);
    }

    fn unpark(&mut self, index: u32) {
        self.wheel
            .remove(&mut self.chains, index, self.table.at(index).deadline);
    }

    /// Puts the connection at the end of the ready queue, or turns it away if that is full.
    fn make_ready(&mut self, index: u32, now: Time) {
        if self.ready.len() >= self.limits.queue && self.workers.next(self.depth()).is_none() {
            self.linger(index, Some(Canned::Overloaded), now);
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

    /// Puts the connection back to its place in the ready queue: before all that came after it. Only others that were
    /// put back can be before it, so the search is short.
    fn requeue(&mut self, index: u32) {
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
    fn shed(&mut self, now: Time) {
        let Some(bound) = self.limits.queue_wait else {
            return;
        };
        while let Some(first) = self.ready.first() {
            if self.table.at(first).ready_at.after(bound) > now {
                break;
            }
            self.chains.remove(&mut self.ready, first);
            self.linger(first, Some(Canned::Overloaded), now);
        }
    }

    /// When the first ready connection has waited for so long that even a suspect worker is tried.
    fn overdue(&self) -> Option<Time> {
        let first = self.ready.first()?;
        Some(
            self.table
                .at(first)
                .ready_at
                .after(self.limits.patience * RELAXED),
        )
    }

    /// How many connections a worker may have before it is passed over: as many average turns as fit into the
    /// patience.
    fn depth(&self) -> usize {
        self.turn.fit_into(self.limits.patience).clamp(1, MAX_DEPTH)
    }

    fn schedule(&mut self, now: Time) {
        while let Some(index) = self.ready.first() {
            let Some(worker) = self.workers.next(self.depth()) else {
                break;
            };
            self.chains.remove(&mut self.ready, index);
            self.lend(worker, index, now);
        }
    }

    fn lend(&mut self, worker: u32, index: u32, now: Time) {
        let connection = self.table.at_mut(index);
        connection.state = State::Lent(worker);
        connection.started = now;
        connection.turns += 1;
        let chains = &mut self.chains;
        let add = |worker: &mut workers::Worker| {
            if worker.lent.len() >= worker.capacity && worker.waiting.is_none() {
                worker.waiting = Some(index);
            }
            chains.push_back(&mut worker.lent, index);
        };
        if self.workers.at(worker).pace == Pace::Idle {
            self.workers.moved(worker, now, add);
        } else {
            self.workers.changed(worker, add);
        }
        self.actions
            .push(Action::Lend(self.workers.id(worker), self.table.id(index)));
    }

    /// Takes a connection out of what is lent to a worker, because the worker has reported it.
    fn return_from(&mut self, worker: u32, index: u32, now: Time) {
        let (chains, table) = (&mut self.chains, &mut self.table);
        self.workers.moved(worker, now, |worker| {
            if let Some(next) = take_out(chains, worker, index) {
                table.at_mut(next).started = now;
            }
        });
        self.retire_if_done(worker);
    }

    /// Takes a connection out of what is lent to a worker, without the worker's doing.
    fn unlend(&mut self, worker: u32, index: u32) {
        let chains = &mut self.chains;
        self.workers.changed(worker, |worker| {
            take_out(chains, worker, index);
        });
    }

    /// A worker from which connections were taken: if it has none left, it did not take up a single one.
    fn settle_untouched(&mut self, worker: u32, now: Time) {
        let state = self.workers.at(worker);
        if state.lent.is_empty() && matches!(state.pace, Pace::Moving | Pace::Slow) {
            self.workers.suspect(worker, now);
            self.retire_if_done(worker);
        }
    }

    fn retire_if_done(&mut self, worker: u32) {
        let state = self.workers.at(worker);
        if state.tenure == Tenure::Retiring && state.lent.is_empty() {
            self.actions.push(Action::Retire(self.workers.id(worker)));
        }
    }

    fn close(&mut self, index: u32) {
        let id = self.table.id(index);
        let payload = self.table.remove(index);
        self.actions.push(Action::Close(id, payload));
        if self.paused && !self.stopping && self.table.len() < self.limits.connections {
            self.paused = false;
            self.actions.push(Action::ResumeAccepting);
        }
    }
}

/// Takes a connection out of what is lent to a worker. The first one that waited can be taken up in its place, and is
/// returned, unless it was waiting itself.
fn take_out(chains: &mut Chains, worker: &mut workers::Worker, index: u32) -> Option<u32> {
    let waiting = worker.waiting;
    let waited = waiting.is_some_and(|first| chains.is_at_or_after(first, index));
    if waiting == Some(index) || !waited {
        worker.waiting = waiting.and_then(|first| chains.after(first));
    }
    chains.remove(&mut worker.lent, index);
    waiting.filter(|_| !waited)
}
