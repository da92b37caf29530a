//! Which worker serves which connection, next. Pure: events and the time in, actions out; no
//! descriptor, no clock, no system call.
//!
//! The dispatcher owns the state of every connection and the order in which they are served. The
//! master tells it what happened through the event functions, then carries out the [`Action`]s it
//! finds, and does nothing of its own accord. Each event costs the same, whatever the number of
//! connections and workers.
//!
//! **Pack, then spread.** A ready connection goes to a worker that is awake and moving while few
//! wait there, else to an idle one, else it stays in the ready queue. Waking a sleeping worker is
//! what costs most. How many may wait behind a turn (the depth) follows from how long turns take,
//! so that none waits for longer than the patience; and if a turn outlasts the patience all the
//! same, what waits behind it is taken back and lent elsewhere.

mod average;
pub mod chains;
mod demand;
mod due;
mod endings;
mod hang;
mod passing;
mod room;
pub mod table;
#[cfg(test)]
mod tests;
mod transitions;
mod visits;
mod vocabulary;
pub mod wheel;
mod workers;

use crate::master::dispatch::chains::{Chains, List};
use crate::master::dispatch::table::{ConnectionId, Due, State, Table};
use crate::master::dispatch::wheel::Wheel;
use crate::master::time::Time;
use crate::wire::Outcome;
use average::Average;
use workers::{Pace, Tenure, Workers};

pub use vocabulary::{
    Action, Canned, Departure, Excess, Interest, Late, Lending, Limits, Look, Owes, Progress,
    Stray, TimeLeft, TurnEnd, Verdict,
};
pub use workers::{MAX_DEPTH, WorkerId};

/// How many times the patience a worker is left alone behind whose turn nothing waits. It may just
/// not have been seen to have reported.
const RELAXED: u32 = 8;

/// The state of all connections and workers of a pool.
#[derive(Debug)]
pub struct Dispatcher<C> {
    limits: Limits,
    table: Table<C>,
    /// Links of connections. On the first track, each is in the ready queue, in a worker's `lent`
    /// or in a slot of the wheel; on the second, those that are idle or linger are in the order in
    /// which they came to be so.
    chains: Chains,
    ready: List,
    wheel: Wheel,
    idle: List<1>,
    lingering: List<1>,
    workers: Workers,
    turn: Average,
    /// How many connections are lent.
    lent: usize,
    /// How many connections are with another dispatcher, and come back.
    away: usize,
    /// How many connections in the table are another dispatcher's, those that linger not counted.
    guests: usize,
    departures: Vec<Departure<C>>,
    /// When the turns under way were last looked at for hung ones.
    hang_checked: Time,
    /// When a worker on probation was last tried before its time.
    tried: Time,
    next_order: u64,
    /// How many descriptors others have of those that there are.
    elsewhere: usize,
    paused: bool,
    stopping: bool,
    lending: Lending,
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
            idle: List::default(),
            lingering: List::default(),
            workers: Workers::default(),
            turn,
            lent: 0,
            away: 0,
            guests: 0,
            departures: Vec::new(),
            hang_checked: Time::default(),
            tried: Time::default(),
            next_order: 0,
            elsewhere: 0,
            paused: false,
            stopping: false,
            lending: Lending::Yes,
            actions: Vec::new(),
        }
    }

    /// Goes by other limits from now on. What waits already keeps the deadline that it has.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.trim_lingering();
        self.resume_if_room();
    }

    /// What is to be done, in this order. The caller gives the emptied vector back with
    /// [`Dispatcher::reuse`].
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

    /// What the master holds for a connection, to look at.
    #[must_use]
    pub fn payload_of(&self, id: ConnectionId) -> Option<&C> {
        self.table.get(id).map(|connection| &connection.payload)
    }

    /// What the master holds for all connections.
    pub fn payloads(&self) -> impl Iterator<Item = &C> {
        let ids = self.table.ids();
        ids.map(|id| &self.table.at(id.index()).payload)
    }

    /// Where a connection is, and what the master holds for it, found in one look.
    pub fn state_and_payload(&mut self, id: ConnectionId) -> Option<(State, &mut C)> {
        let connection = self.table.get_mut(id)?;
        Some((connection.state, &mut connection.payload))
    }

    /// What a lend of the connection takes, found in one look: which turn it is in, since when it
    /// has been ready for that, and what the master holds for it.
    pub fn lendable(&mut self, id: ConnectionId) -> Option<(u64, Time, &mut C)> {
        let connection = self.table.get_mut(id)?;
        let (turn, ready_at) = (connection.turns, connection.ready_at);
        Some((turn, ready_at, &mut connection.payload))
    }

    /// Which turn a connection is in, from 1.
    #[must_use]
    pub fn turn_number(&self, id: ConnectionId) -> u64 {
        self.table.get(id).map_or(0, |connection| connection.turns)
    }

    /// Where a connection is.
    #[must_use]
    pub fn state(&self, id: ConnectionId) -> Option<State> {
        self.table.get(id).map(|connection| connection.state)
    }

    /// Whether something waits for the end of any turn: a ready connection, the end of service, or
    /// another master.
    #[must_use]
    pub fn wants_reports(&self) -> bool {
        self.stopping || self.lending != Lending::Yes || !self.ready.is_empty()
    }

    /// Whether the connection is lent to the worker.
    #[must_use]
    fn is_lent(&self, worker: WorkerId, id: ConnectionId) -> bool {
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

    /// Whether something is lent to the worker, and a report from it is not expected at any moment.
    #[must_use]
    pub fn is_unhurried(&self, worker: WorkerId) -> bool {
        self.workers
            .get(worker)
            .is_some_and(|w| matches!(w.pace, Pace::Slow | Pace::Staying))
    }

    /// Whether there is so little to do that each busy connection can have a worker for itself.
    #[must_use]
    pub fn is_uncontended(&self) -> bool {
        self.ready.is_empty() && self.lent <= self.limits.few && self.lent <= self.workers.idle()
    }

    /// A slow worker has served what it was lent, and stays with that connection to wait for its
    /// next request: it can be lent more as if it were idle.
    pub fn worker_stays(&mut self, worker: WorkerId, now: Time) {
        let Some(state) = self.workers.get(worker) else {
            return;
        };
        if state.pace == Pace::Slow
            && state.lent.len() == 1
            && let Some(index) = state.lent.first()
        {
            self.table.at_mut(index).started = now;
            self.workers.set_pace(worker.index(), Pace::Staying);
            self.schedule(now);
        }
    }

    /// How many connections are lent to the worker.
    #[must_use]
    pub fn lent(&self, worker: WorkerId) -> usize {
        self.workers.get(worker).map_or(0, |w| w.lent.len())
    }

    /// Gives a worker that has yet to take up anything another span of patience, unless it has had
    /// enough of them. Nobody gains if there is no other worker to take its connections.
    pub fn extend_patience(&mut self, worker: WorkerId, now: Time) -> bool {
        let alone = self.workers.next(self.depth()).is_none();
        self.workers.get(worker).is_some()
            && self.workers.extend_patience(worker.index(), now, alone)
    }

    /// The names of all connections that wait for a worker, the first one first.
    pub fn ready(&self) -> Vec<ConnectionId> {
        let ready = std::iter::successors(self.ready.first(), |index| self.chains.after(*index));
        ready.map(|index| self.table.id(index)).collect()
    }

    /// The names of all parked connections.
    pub fn parked(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.table
            .ids()
            .filter(|id| self.table.at(id.index()).state == State::Parked)
    }

    // ---- connections: what happens to them ------------------------------------------------------

    /// A connection was accepted. `ready` says that it can have its first turn at once.
    pub fn accepted(&mut self, payload: C, ready: bool, now: Time) -> ConnectionId {
        let id = self.admit(payload);
        if ready {
            self.make_ready(id.index(), now);
        } else {
            self.park(id.index(), Interest::Input, now);
        }
        id
    }

    /// A connection was accepted that is one too many for its client, which is told so.
    pub fn turned_away(&mut self, payload: C, now: Time) -> ConnectionId {
        let id = self.admit(payload);
        self.linger(id.index(), Some(Canned::Overloaded(Excess::PerClient)), now);
        id
    }

    fn admit(&mut self, payload: C) -> ConnectionId {
        let id = self.table.insert(payload);
        self.chains.admit(id.index());
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

    // ---- workers: what they say ---------------------------------------------------------------

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

    /// A worker reports the end of a turn. What that means is for `end` to say, which is shown what
    /// the master holds for the connection.
    ///
    /// # Errors
    /// [`Stray`] when that connection is not lent to that worker.
    pub fn report(
        &mut self,
        worker: WorkerId,
        id: ConnectionId,
        now: Time,
        end: impl FnOnce(&mut C) -> TurnEnd,
    ) -> Result<(), Stray> {
        let connection = self
            .table
            .get_mut(id)
            .filter(|connection| connection.state == State::Lent(worker.index()))
            .filter(|_| self.workers.get(worker).is_some())
            .ok_or(Stray)?;
        let end = end(&mut connection.payload);
        let took = end.took.unwrap_or(now.since(connection.started));
        self.turn.add(took);
        connection.due = (connection.due).after(&end, connection.ready_at, &self.limits, now);
        (connection.replays, connection.hung) = (0, false);
        // The worker's word: whatever it claims, the count stays one.
        connection.turns = connection
            .turns
            .saturating_add(end.turns.saturating_sub(1))
            .min(u64::MAX - 1);
        let index = id.index();
        self.return_from(worker.index(), index, now);
        self.end_turn(index, end, now);
        self.schedule(now);
        Ok(())
    }

    /// A lend could not be sent because the kernel had no room for it: the connection stays ready,
    /// and this worker gets nothing more until it has reported.
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
        if let Some(state) = self.workers.get(worker) {
            let free = !state.lent.is_empty() && state.lent.len() < state.capacity;
            if free && state.pace == Pace::Slow {
                // Some of its threads have a long turn, and others are free.
                self.workers.moved(worker.index(), now, |_| {});
            }
            self.settle_untouched(worker.index(), now);
            self.schedule(now);
        }
    }

    /// A worker is to finish what it has, then exit; a stopped one when it goes on.
    pub fn retire(&mut self, worker: WorkerId) {
        if self
            .workers
            .get(worker)
            .is_some_and(|w| matches!(w.tenure, Tenure::Serving | Tenure::Stopped))
        {
            self.workers.dismiss(worker.index(), Tenure::Retiring);
            self.retire_if_done(worker.index());
        }
    }

    /// A worker's process was stopped by a signal: it is lent nothing until it goes on, and others
    /// get what it has not taken up.
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

    /// A worker's process has ended: it is lent nothing more. Its last reports and what lies in its
    /// inbox are to be settled next, then [`Dispatcher::worker_gone`].
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
            Verdict::Untouched | Verdict::Consumed | Verdict::Resumable { .. }
                if connection.hung =>
            {
                self.linger(id.index(), Some(Canned::TimedOut), now);
            }
            _ if let Some(replays) = verdict.replays_after(connection.replays) => {
                connection.replays = replays;
                connection.turns -= 1;
                self.requeue(id.index());
                self.schedule(now);
            }
            Verdict::Untouched | Verdict::Consumed | Verdict::Resumable { .. } => {
                self.linger(id.index(), Some(Canned::Crashed), now)
            }
            Verdict::Served(outcome) => {
                (connection.replays, connection.hung) = (0, false);
                connection.due = Due::after_lost_report(outcome, &self.limits, now);
                match outcome {
                    Outcome::Again => self.make_ready(id.index(), now),
                    Outcome::Home if connection.guest => self.depart(id.index(), false),
                    Outcome::Park | Outcome::ParkDrained | Outcome::Home | Outcome::Pass => {
                        self.park(id.index(), Interest::Input, now);
                    }
                    Outcome::ParkWrite => self.park(id.index(), Interest::Output, now),
                    Outcome::Close | Outcome::Linger => self.linger(id.index(), None, now),
                }
            }
            Verdict::Sent | Verdict::Unknown => self.linger(id.index(), None, now),
        }
    }

    // ---- time, and the end ----------------------------------------------------------------------

    /// Time has passed: notices whatever is due.
    pub fn tick(&mut self, now: Time) {
        if self.lending == Lending::Frozen {
            return;
        }
        let overdue = self.overdue().is_some_and(|time| time <= now);
        if overdue {
            self.tried = now;
        }
        self.workers.end_probation(now, overdue);
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
        self.end_hung(now);
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
        let end_probation = self.workers.next_probation_end();
        let end_probation =
            end_probation.map(|time| self.overdue().map_or(time, |overdue| overdue.min(time)));
        [
            stale,
            shed,
            self.wheel.next(),
            end_probation,
            self.next_look(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Ends service: parked connections close, the ready ones are still served, each for one turn.
    /// Guests stay until they are served.
    pub fn stop(&mut self, now: Time) {
        self.stopping = true;
        if !self.paused {
            self.paused = true;
            self.actions.push(Action::PauseAccepting);
        }
        let ours = |id: &ConnectionId| !self.is_guest(*id);
        let parked: Vec<_> = self.parked().filter(ours).collect();
        for id in parked {
            self.unpark(id.index());
            self.close(id.index());
        }
        let lingering: Vec<_> = self.lingering().collect();
        for id in lingering {
            self.linger_on(id.index(), now);
        }
    }

    /// Whether no connection is left, neither one that lingers nor one that is away.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.len() + self.away == 0
    }
}
