//! Hearing what workers say: messages, and reports on their boards. Asking them to ring before the
//! master sleeps.

use std::rc::Rc;

use crate::channel::scoreboard::{Entry, Malformed, RING, Sleep};
use crate::error::Plain;
use crate::master::connection::descriptors;
use crate::master::connection::held::Held;
use crate::master::connection::luggage::Luggage;
use crate::master::connection::visit::{PassFault, PoolId};
use crate::master::dispatch::table::{ConnectionId, State};
use crate::master::dispatch::{Canned, Dispatcher, Owes, Stray, TurnEnd, WorkerId};
use crate::master::snapshot::Place;
use crate::master::time::Time;
use crate::master::workers::channel::{Fault, Said};
use crate::master::workers::process::SaidTwice;
use crate::service::{Peer, ServiceProfile};
use crate::wire::{LuggageChange, Outcome, Report};

use super::Pool;

/// Where a message of a worker is.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// In the buffer already, with so many bytes: it was on the board.
    Board(usize),
    /// On the socketpair; `last` says that the worker is dead.
    Socket { last: bool },
}

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
            match process.channel.next_published(&mut self.buffers.message) {
                None => return,
                Some(Ok(entry)) if entry.is_of_message() => {
                    self.receive_announced(worker, &entry, now);
                }
                Some(Ok(entry)) => {
                    let dispatcher = &mut self.dispatcher;
                    let service = ((self.id, &self.plan.name), &self.plan.profile);
                    let said = (&entry.report(), None, Some(&entry));
                    if end_turn(dispatcher, worker, said, service, now).is_err() {
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
        self.receive_all(worker, false, now);
    }

    /// Takes the messages that a dead worker has left, also if there may be no descriptor for what
    /// came with them: then its turn counts as one that it has not reported.
    pub(super) fn receive_last(&mut self, worker: WorkerId, now: Time) {
        self.receive_all(worker, true, now);
    }

    fn receive_all(&mut self, worker: WorkerId, last: bool, now: Time) {
        // No honest worker has more to say at a time than fits on its board.
        let mut most = 0..=RING;
        while most.next().is_some() && self.hear(worker, Source::Socket { last }, now) {}
        // Carries are the clients', also those that came with a message that was refused.
        self.buffers.message.wipe();
    }

    /// Takes a message of a worker that its board announces.
    fn receive_announced(&mut self, worker: WorkerId, entry: &Entry, now: Time) {
        let source = match entry.text_length() {
            Some(length) => Source::Board(length),
            None => Source::Socket { last: false },
        };
        self.hear(worker, source, now);
        self.buffers.message.wipe();
    }

    /// Takes the next message of a worker. False when there is none, or when no more is to be taken
    /// now.
    fn hear(&mut self, worker: WorkerId, source: Source, now: Time) -> bool {
        let Some(process) = self.workers.get_mut(worker) else {
            return false;
        };
        let (channel, buffer) = (&mut process.channel, &mut self.buffers.message);
        let said = match source {
            Source::Board(length) => channel.published_message(buffer, length),
            Source::Socket { last } => {
                let room = last || descriptors::count() <= self.dispatcher.descriptors();
                channel.next_message(buffer, room)
            }
        };
        match said {
            Ok(None) => return false,
            Ok(Some(Said::Laden)) => {
                self.keep_waiting(worker);
                return false;
            }
            Ok(Some(Said::Ready)) => self.on_ready(worker, now),
            Ok(Some(Said::Turn(report, luggage))) => {
                let service = ((self.id, &self.plan.name), &self.plan.profile);
                let said = (&report, luggage.map(Luggage::from), None);
                let ended = end_turn(&mut self.dispatcher, worker, said, service, now);
                let Ok(refused) = ended else {
                    let what = stray(report.id);
                    self.condemn(worker, &what, now);
                    return false;
                };
                let target = refused.map(|_| report.extras.pool.to_owned());
                if process.count_turns(1) {
                    self.workers.schedule_check();
                }
                if let Some(((fault, peer), target)) = refused.zip(target) {
                    self.warn_of_pass(fault, &target, peer, now);
                }
            }
            Err(Fault::Protocol(what)) => {
                self.condemn(worker, &what, now);
                return false;
            }
            Err(Fault::System(error)) => {
                log::error!("cannot hear worker {process}: {}", Plain(&error));
                return false;
            }
        }
        true
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
    /// meantime: then the master must not sleep. `wanted_elsewhere` says that another pool waits
    /// for the end of a turn here.
    pub fn fall_asleep(&mut self, wanted_elsewhere: bool) -> bool {
        // Another pool may have given up what is wanted here.
        if self.can_receive_luggage() || self.dispatcher.waits_in_vain(descriptors::count()) {
            return false;
        }
        let wanted = wanted_elsewhere || self.wants_reports();
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

    /// Whether the pool waits for the end of some turn, and has connections with other pools.
    #[must_use]
    pub fn wants_reports_of_others(&self) -> bool {
        self.dispatcher.away() > 0 && self.wants_reports()
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
/// Returns the fault of a report that passes the connection to another pool and may not, and the
/// connection's client.
fn end_turn(
    dispatcher: &mut Dispatcher<Held>,
    worker: WorkerId,
    (report, luggage, entry): (&Report<'_>, Option<Luggage>, Option<&Entry>),
    ((pool, name), profile): ((PoolId, &Rc<str>), &ServiceProfile),
    now: Time,
) -> Result<Option<(PassFault, Peer)>, Stray> {
    let id = report.id.into();
    let mut end = TurnEnd {
        outcome: report.outcome,
        turns: entry.map_or(1, |entry| entry.turns),
        owes: owes(report, profile),
        answered: report.traffic.is_some_and(|traffic| traffic.written > 0),
        reply: None,
        read: 0,
        taken: 0,
        took: entry.map(|entry| entry.took),
    };
    let mut refused = None;
    dispatcher.report(worker, id, now, |held| {
        if report.outcome == Outcome::Pass {
            refused = pass_on(held, report, (pool, name), &mut end);
        }
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
    Ok(refused)
}

/// Sends a connection on its way to another pool, or refuses to.
#[cold]
fn pass_on(
    held: &mut Held,
    report: &Report<'_>,
    home: (PoolId, &Rc<str>),
    end: &mut TurnEnd,
) -> Option<(PassFault, Peer)> {
    let luggage = held.luggage().is_some() && report.extras.luggage == LuggageChange::None;
    let fault = if held.visit().is_some() {
        Some(PassFault::Away)
    } else if held.is_unfinished() || held.has_answered(report) {
        Some(PassFault::Answered)
    } else {
        luggage.then_some(PassFault::Luggage)
    };
    match fault {
        None => held.set_out(report.extras.pool, home),
        Some(_) => (end.outcome, end.reply) = (Outcome::Linger, Some(Canned::Crashed)),
    }
    Some((fault?, held.peer()))
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
