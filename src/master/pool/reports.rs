//! Hearing what workers say: messages, and reports on their boards. Asking them to ring before the
//! master sleeps.

use crate::channel::scoreboard::{Entry, Malformed, RING, Sleep};
use crate::error::Plain;
use crate::master::connection::descriptors;
use crate::master::connection::held::Held;
use crate::master::connection::luggage::Luggage;
use crate::master::dispatch::table::{ConnectionId, State};
use crate::master::dispatch::{Dispatcher, Owes, Stray, TurnEnd, WorkerId};
use crate::master::snapshot::Place;
use crate::master::time::Time;
use crate::master::workers::channel::{Fault, Said};
use crate::master::workers::process::SaidTwice;
use crate::service::ServiceProfile;
use crate::wire::{Outcome, Report};

use super::Pool;

impl Pool<'_> {
    /// A worker has rung. It is to ring again unless it is one of those at whose boards the master
    /// looks anyway.
    pub(super) fn on_worker(&mut self, worker: WorkerId, now: Time) {
        self.collect(worker, now);
        self.receive(worker, now);
        self.ask_to_ring(worker, now);
    }

    /// Takes the reports that the moving workers have published. All others ring for each.
    pub(super) fn collect_all(&mut self, now: Time) {
        let mut moving = std::mem::take(&mut self.attention.moving);
        self.dispatcher.moving(&mut moving);
        for worker in &moving {
            self.collect(*worker, now);
        }
        self.attention.moving = moving;
    }

    /// Takes the reports that a worker has published.
    pub(super) fn collect(&mut self, worker: WorkerId, now: Time) {
        // A rogue that publishes without end gets no more attention than one that works.
        for _ in 0..RING {
            let Some(process) = self.workers.get_mut(worker) else {
                return;
            };
            match process.channel.next_published() {
                None => return,
                Some(Ok(entry)) => {
                    let dispatcher = &mut self.dispatcher;
                    let profile = &self.plan.profile;
                    let said = (&entry.report(), None, Some(&entry));
                    if end_turn(dispatcher, worker, said, profile, now).is_err() {
                        return self.condemn(worker, &stray(entry.id), now);
                    }
                    if process.count_turns(entry.turns) {
                        self.workers.schedule_check();
                    }
                }
                Some(Err(Malformed)) => return self.condemn(worker, "a malformed report", now),
            }
        }
    }

    /// Takes the messages that a worker has sent.
    pub(super) fn receive(&mut self, worker: WorkerId, now: Time) {
        self.receive_into_buffer(worker, false, now);
        // Carries are the clients', also those that came with a message that was refused.
        self.buffers.message.wipe();
    }

    /// Takes the messages that a dead worker has left, also if there may be no descriptor for what
    /// came with them: then its turn counts as one that it has not reported.
    pub(super) fn receive_last(&mut self, worker: WorkerId, now: Time) {
        self.receive_into_buffer(worker, true, now);
        self.buffers.message.wipe();
    }

    fn receive_into_buffer(&mut self, worker: WorkerId, last: bool, now: Time) {
        // No honest worker has more to say at a time than fits on its board.
        for _ in 0..=RING {
            let Some(process) = self.workers.get_mut(worker) else {
                return;
            };
            let room = last || descriptors::count() <= self.dispatcher.descriptors();
            match process
                .channel
                .next_message(&mut self.buffers.message, room)
            {
                Ok(None) => return,
                Ok(Some(Said::Laden)) => return self.keep_waiting(worker),
                Ok(Some(Said::Ready)) => self.on_ready(worker, now),
                Ok(Some(Said::Turn(report, luggage))) => {
                    let profile = &self.plan.profile;
                    let said = (&report, luggage.map(Luggage::from), None);
                    if end_turn(&mut self.dispatcher, worker, said, profile, now).is_err() {
                        let what = stray(report.id);
                        return self.condemn(worker, &what, now);
                    }
                    if process.count_turns(1) {
                        self.workers.schedule_check();
                    }
                }
                Err(Fault::Protocol(what)) => return self.condemn(worker, &what, now),
                Err(Fault::System(error)) => {
                    return log::error!("cannot hear worker {process}: {}", Plain(&error));
                }
            }
        }
    }

    /// A worker says that it can serve. One of a generation that does not serve yet is only
    /// counted.
    fn on_ready(&mut self, worker: WorkerId, now: Time) {
        let Some(process) = self.workers.get_mut(worker) else {
            return;
        };
        match process.become_ready() {
            Ok(true) => {}
            Ok(false) => return,
            Err(SaidTwice) => return self.condemn(worker, "it says twice that it is ready", now),
        }
        log::info!("worker ready {process}");
        self.workers.schedule_check();
        let process = self.workers.get(worker);
        if process.is_some_and(|process| self.workers.is_member(process)) {
            self.dispatcher.worker_ready(worker, now);
            self.announce();
        }
    }

    /// Kills a worker that says what no honest one does. It is listened to no more and lent nothing
    /// more; what it has now is settled as after any other death.
    #[cold]
    fn condemn(&mut self, worker: WorkerId, what: &str, now: Time) {
        if let Some(process) = self.workers.get_mut(worker)
            && process.condemn(&self.epoll, now)
        {
            log::error!("worker {process} broke the protocol: {what}; killing it");
            self.dispatcher.worker_died(worker);
        }
    }

    // ---- before the master sleeps ---------------------------------------------------------------

    /// Asks a slow worker to ring for its next report, because the master no longer looks at its
    /// board by itself.
    pub(super) fn ask_to_ring(&mut self, worker: WorkerId, now: Time) {
        // A single report makes it a moving worker again; one that publishes anything else is a
        // rogue, and is not waited for.
        if self.dispatcher.is_unhurried(worker)
            && let Some(process) = self.workers.get(worker)
            && !process.channel.sleep(Sleep::Light)
        {
            self.collect(worker, now);
        }
    }

    /// Asks all moving workers to ring for their next report. False when one has reported in the
    /// meantime: then the master must not sleep.
    pub fn fall_asleep(&mut self) -> bool {
        // Another pool may have given up what is wanted here.
        if self.can_receive_luggage() || self.dispatcher.waits_in_vain(descriptors::count()) {
            return false;
        }
        let wanted = self.wants_reports();
        let (dispatcher, attention) = (&self.dispatcher, &mut self.attention);
        dispatcher.moving(&mut attention.moving);
        if wanted && std::mem::take(&mut attention.may_stay) {
            // Others wait.
            for process in self.workers.all() {
                process.channel.set_may_stay(false);
            }
        }
        let holder = |id| match dispatcher.state(id) {
            Some(State::Lent(place)) => Some(place),
            _ => None,
        };
        attention.awaited.retain(|id| holder(*id).is_some());
        attention.moving.iter().all(|worker| {
            // With nobody waiting, a parked connection is no news: the client's next bytes wake the
            // master, and then it looks at the boards. But they may have come already.
            let place = Some(worker.index());
            let awaited = attention.awaited.iter().any(|id| holder(*id) == place);
            let sleep = match awaited || wanted {
                true => Sleep::Light,
                false => Sleep::Deep,
            };
            let process = self.workers.get(*worker);
            process.is_none_or(|process| process.channel.sleep(sleep))
        })
    }

    /// Whether something waits for the end of any turn: in the dispatcher, in the backlog for a
    /// place that nobody gives up, or aside for one of its client.
    fn wants_reports(&self) -> bool {
        self.dispatcher.wants_reports() || !self.listeners.accepts() || !self.aside.is_empty()
    }

    /// Wants no ringing any more.
    pub fn wake_up(&self) {
        let moving = self.attention.moving.iter();
        for process in moving.filter_map(|worker| self.workers.get(*worker)) {
            process.channel.wake();
        }
    }
}

#[cold]
fn stray(id: u64) -> String {
    format!("a report of connection {id}, which it does not have")
}

/// Counts a report, and tells the dispatcher. An entry of the board says more than a message.
fn end_turn(
    dispatcher: &mut Dispatcher<Held>,
    worker: WorkerId,
    (report, luggage, entry): (&Report<'_>, Option<Luggage>, Option<&Entry>),
    profile: &ServiceProfile,
    now: Time,
) -> Result<(), Stray> {
    let id = report.id.into();
    let mut end = TurnEnd {
        outcome: report.outcome,
        turns: entry.map_or(1, |entry| entry.turns),
        owes: owes(report, profile),
        answered: report.traffic.is_some_and(|traffic| traffic.written > 0),
        read: 0,
        taken: 0,
        took: entry.map(|entry| entry.took),
    };
    dispatcher.report(worker, id, now, |held| {
        if report.outcome == Outcome::Close && held.would_lose(report, entry.is_some()) {
            end.outcome = Outcome::Linger;
        }
        end.read = held.count(report, luggage, profile.whole_responses);
        if report.outcome == Outcome::ParkWrite {
            end.taken = held.taken();
        }
        end
    })?;
    if report.outcome == Outcome::Again {
        store_ready(dispatcher, id, now);
    }
    Ok(())
}

/// What the client owes when this is the report of a turn.
fn owes(report: &Report<'_>, profile: &ServiceProfile) -> Owes {
    if report.extras.body {
        Owes::Body
    } else if report.carry.is_empty() || report.carry == &*profile.blank {
        Owes::Nothing
    } else {
        Owes::Head
    }
}

/// Writes down that a connection waits for a worker, if it does and is stored.
pub(super) fn store_ready(dispatcher: &Dispatcher<Held>, id: ConnectionId, now: Time) {
    if let Some(held) = dispatcher.payload_of(id)
        && held.kept().is_some()
        && let Some(progress) = dispatcher.progress(id, now)
        && progress.ready
    {
        held.store(Place::Ready, &progress, now);
    }
}
