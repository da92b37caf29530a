//! The master and its workers: start them, lend to them, take their reports, take back, reap.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::channel::inbox::Lent;
use crate::channel::scoreboard::{Entry, RING, Sleep};
use crate::error::Plain;
use crate::master::Own;
use crate::master::connection::held::Held;
use crate::master::dispatch::table::{ConnectionId, State};
use crate::master::dispatch::{Dispatcher, Standing, Stray, TurnEnd, Verdict, WorkerId};
use crate::master::events::token::{Subject, Token};
use crate::master::listen::listener::Listener;
use crate::master::pool::generation::Incoming;
use crate::master::pool::{Accepting, Phase, Pool};
use crate::master::store::ledger::Stage;
use crate::master::time::Time;
use crate::master::workers::process::{Change, End, Process};
use crate::wire::{FromWorker, Lend, Outcome, Report};

impl Pool<'_> {
    /// Starts the workers that are wanted and not there.
    pub fn start_missing(&mut self, own: &mut Own, now: Time) {
        while matches!(
            self.phase,
            Phase::Coming | Phase::Serving | Phase::Stopping { .. }
        ) && let Some(post) = self.processes.due(now)
        {
            let next = self.incoming.as_ref().map(Incoming::plan);
            let plan = next
                .filter(|_| self.processes.is_of_next(post))
                .unwrap_or(&self.plan);
            let (settings, main) = (&plan.settings, Rc::clone(&plan.main));
            let worker = self.dispatcher.worker_started(settings.threads);
            let keep = [&own.inherited[..], &plan.keep].concat();
            let signals = &mut own.signals;
            let detach = || drop(signals.take());
            let started =
                self.processes
                    .start(post, worker, &keep, detach, (&*main, settings), now);
            self.upkeep.soon();
            match started {
                Ok(process) => {
                    if let Err(error) =
                        watch_worker(self.epoll.as_fd(), self.index, worker, process)
                    {
                        log::error!("cannot watch worker {process}: {}", Plain(&error));
                    }
                }
                Err(error) => {
                    self.dispatcher.worker_gone(worker, now);
                    log::error!("{error}; trying again");
                }
            }
        }
    }

    /// Takes the messages that a worker has sent.
    pub(in crate::master) fn hear(&mut self, worker: WorkerId, now: Time) {
        // No honest worker has more to say at a time than fits on its board; a rogue that talks
        // without end must not keep the master from the others.
        for _ in 0..=RING {
            let Some(process) = self.processes.get_mut(worker) else {
                return;
            };
            match process.end.receive(&mut self.messages) {
                Ok(Some(FromWorker::Report(report))) => {
                    if note_report(&mut self.dispatcher, worker, &report, None, now).is_err() {
                        let what = stray(report.id);
                        return self.end_rogue(worker, &what);
                    }
                    if process.count_turns(1) {
                        self.upkeep.soon();
                    }
                }
                // Too late: it is being ended.
                Ok(Some(FromWorker::Ready)) if process.condemned.is_some() => {}
                Ok(Some(FromWorker::Ready)) => {
                    process.ready = true;
                    log::info!("worker ready {process}");
                    self.on_ready(worker, now);
                }
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return self.end_rogue(worker, &format!("bad message: {error}"));
                }
                Err(error) => {
                    log::error!("cannot hear worker {process}: {}", Plain(&error));
                    return;
                }
            }
        }
    }

    /// Takes the reports that the moving workers have published.
    pub(in crate::master) fn collect_all(&mut self, now: Time) {
        let mut moving = std::mem::take(&mut self.moving);
        self.dispatcher.moving(&mut moving);
        for worker in &moving {
            self.collect(*worker, now);
        }
        self.moving = moving;
    }

    /// Takes the reports that a worker has published.
    fn collect(&mut self, worker: WorkerId, now: Time) {
        // A rogue that publishes without end gets no more attention than one that works.
        for _ in 0..RING {
            let Some(process) = self.processes.get_mut(worker) else {
                return;
            };
            let Some(entry) = process.board.collect() else {
                return;
            };
            let noted = entry.map(|entry| {
                let report = as_report(&entry);
                note_report(&mut self.dispatcher, worker, &report, Some(&entry), now)
                    .map(|()| process.count_turns(entry.turns))
                    .map_err(|Stray| report.id)
            });
            match noted {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => self.upkeep.soon(),
                Ok(Err(id)) => return self.end_rogue(worker, &stray(id)),
                Err(_) => return self.end_rogue(worker, "a malformed report"),
            }
        }
    }

    /// Kills a worker that says what no honest one does, and listens to it no more. What it has
    /// now is settled as after any other death.
    fn end_rogue(&mut self, worker: WorkerId, what: &str) {
        let Some(process) = self.processes.get_mut(worker) else {
            return;
        };
        if std::mem::replace(&mut process.ended, true) {
            return;
        }
        log::error!("worker {process} broke the protocol: {what}; killing it");
        let _ = kill(process.pid, Signal::SIGKILL);
        // It may ring without end.
        let _ = epoll::delete(&self.epoll, process.board.doorbell());
    }

    /// A worker has rung. It is to ring again unless it is one of those at whose boards the master looks anyway.
    pub(in crate::master) fn on_doorbell(&mut self, worker: WorkerId, now: Time) {
        self.collect(worker, now);
        self.hear(worker, now);
        self.attend(worker, now);
    }

    /// Asks a slow worker to ring for its next report, for the master no longer looks at its board by itself.
    fn attend(&mut self, worker: WorkerId, now: Time) {
        // A single report makes it a moving worker again; one that publishes anything else is a
        // rogue, and is not waited for.
        if self.dispatcher.is_unhurried(worker)
            && let Some(process) = self.processes.get(worker)
            && !process.board.sleep(Sleep::Light)
        {
            self.collect(worker, now);
        }
    }

    /// No worker may stay with its connection any more, for others wait.
    fn spare_nobody(&mut self) {
        if std::mem::take(&mut self.may_stay_told) {
            for process in self.processes.processes() {
                process.board.set_may_stay(false);
            }
        }
    }

    /// Asks all moving workers to ring for their next report. False when one has reported in the meantime: then the
    /// master must not sleep.
    pub(in crate::master) fn fall_asleep(&mut self) -> bool {
        self.dispatcher.moving(&mut self.moving);
        if self.dispatcher.wants_reports() {
            self.spare_nobody();
        }
        let dispatcher = &self.dispatcher;
        let holder = |id| match dispatcher.state(id) {
            Some(State::Lent(place)) => Some(place),
            _ => None,
        };
        self.awaited.retain(|id| holder(*id).is_some());
        // Whoever waits in the backlog needs the descriptor of a connection that has ended.
        let wanted = dispatcher.wants_reports() || self.accepting != Accepting::Yes;
        let mut boards = self
            .moving
            .iter()
            .filter_map(|worker| Some((worker.index(), &self.processes.get(*worker)?.board)));
        boards.all(|(place, board)| {
            // With nobody waiting, a parked connection is no news: the client's next bytes wake the
            // master, and then it looks at the boards. But they may have come already.
            let awaited = self.awaited.iter().any(|id| holder(*id) == Some(place));
            board.sleep(if awaited || wanted {
                Sleep::Light
            } else {
                Sleep::Deep
            })
        })
    }

    /// Wants no ringing any more.
    pub(in crate::master) fn wake_up(&mut self) {
        for process in self
            .moving
            .iter()
            .filter_map(|worker| self.processes.get(*worker))
        {
            process.board.wake();
        }
    }

    /// A worker says that it can serve. One of a generation that is not serving yet is only counted, and one of a
    /// generation that was given up is dying: its word was under way when it was killed.
    fn on_ready(&mut self, worker: WorkerId, now: Time) {
        let process = self.processes.get(worker);
        if process.is_some_and(|process| self.processes.is_member(process)) {
            self.dispatcher.worker_ready(worker, now);
            self.announce();
            self.upkeep.soon();
        }
    }

    /// Says where it listens, as soon as a worker can serve who comes.
    pub(in crate::master) fn announce(&mut self) {
        if !self.held_back && self.processes.members().any(|process| process.ready) {
            self.listeners.iter_mut().for_each(Listener::announce);
        }
    }

    /// A worker has made no progress within the patience: others get what lies in its inbox.
    pub(in crate::master) fn relieve(&mut self, worker: WorkerId, now: Time) {
        let Some(process) = self.processes.get(worker) else {
            return;
        };
        let waiting = process.inbox_length();
        if waiting == 0 && process.board.stays() {
            self.dispatcher.worker_stays(worker, now);
        } else if waiting == 0 {
            self.dispatcher.inbox_empty(worker, now);
        } else if waiting == self.dispatcher.lent(worker) as u64
            && self.dispatcher.excuse(worker, now)
        {
            // It has not even been woken: that is the kernel's scheduling, and may take a moment.
            return;
        } else {
            self.take_back(worker, now);
        }
        self.attend(worker, now);
    }

    /// Receives back whatever lies in a worker's inbox.
    fn take_back(&mut self, worker: WorkerId, now: Time) {
        while let Some(process) = self.processes.get_mut(worker) {
            match process.end.take_back(&mut self.messages) {
                Ok(Some(id)) => {
                    process.count_taken_back();
                    self.dispatcher.taken_back(worker, id.into());
                    note_ready(&mut self.dispatcher, id.into(), now);
                }
                Ok(None) => break,
                Err(error) => {
                    log::error!("cannot take back from worker {process}: {}", Plain(&error));
                    break;
                }
            }
        }
        self.dispatcher.inbox_empty(worker, now);
    }

    /// One of its workers has ended, was stopped or goes on; false when it is none of its.
    pub fn on_change(&mut self, pid: Pid, change: Change, now: Time) -> bool {
        let Some(worker) = self.processes.worker(pid) else {
            return false;
        };
        let Some(process) = self.processes.get_mut(worker) else {
            return false;
        };
        match change {
            Change::Ended(end) => self.settle(worker, end, now),
            Change::Stopped => {
                process.stopped = true;
                log::warn!("worker stopped {process}: others get what it has not begun");
                // It may have been stopped between its last message and the ring.
                self.hear(worker, now);
                self.dispatcher.worker_stopped(worker);
                if !self.is_wanted() {
                    self.rouse();
                }
            }
            Change::Continued => {
                process.stopped = false;
                log::info!("worker continued {process}");
                self.dispatcher.worker_continued(worker, now);
            }
        }
        true
    }

    /// A worker has ended: its last words, its connections, its successor.
    fn settle(&mut self, worker: WorkerId, end: End, now: Time) {
        self.dispatcher.worker_died(worker);
        self.carry_out(now);
        if let Some(process) = self.processes.get_mut(worker) {
            process.ended = true;
        }
        // What it said before it died counts, and what it never took up was never lent.
        self.hear(worker, now);
        self.collect(worker, now);
        self.take_back(worker, now);
        self.dispatcher.worker_gone(worker, now);
        if let Some(process) = self.processes.get(worker) {
            let expected = process.retiring || !self.is_wanted();
            if end == End::Exited(0) || expected && end == End::Killed(Signal::SIGKILL) {
                log::info!("worker retired {process}");
            } else {
                log::warn!("worker died {process}: {end}");
            }
            if self.is_next(process) {
                self.note_failure(process.to_string(), &end.to_string());
            }
        }
        // Its connections are examined while its process is still known by slot and pid.
        self.carry_out(now);
        if self.processes.bury(worker, now) && self.phase == Phase::Serving {
            self.note_early_death(end, now);
        }
        self.upkeep.soon();
    }

    /// Wants a worker no more: it finishes what it has, then exits.
    pub(in crate::master) fn let_go(&mut self, worker: WorkerId) {
        if let Some(process) = self.processes.get_mut(worker) {
            process.leaving = true;
        }
        self.dispatcher.retire(worker);
        self.upkeep.soon();
    }

    pub(in crate::master) fn lend(&mut self, worker: WorkerId, id: ConnectionId, now: Time) {
        let (turn, uncontended) = (
            self.dispatcher.turn_number(id),
            self.dispatcher.is_uncontended(),
        );
        let (Some(process), Some(held)) =
            (self.processes.get_mut(worker), self.dispatcher.payload(id))
        else {
            return self.dispatcher.lend_refused(worker, id, now);
        };
        let lend = Lend {
            id: id.into(),
            turn,
            peer: held.peer(),
            watched: held.is_watched(),
            carry: held.carry(),
        };
        process.board.set_may_stay(uncontended);
        self.may_stay_told |= uncontended;
        held.note_standing(Stage::Lent, &Standing::before(turn), now);
        match process.end.lend(lend, held.descriptor()) {
            Ok(Lent::Sent) => process.count_sent(),
            Ok(Lent::Refused) => self.refused(worker, id, now),
            Ok(Lent::Gone) => {
                self.refused(worker, id, now);
                self.retire(worker);
            }
            Err(error) => {
                log::error!(
                    "cannot lend {} to worker {process}: {}",
                    held.peer(),
                    Plain(&error)
                );
                self.refused(worker, id, now);
            }
        }
    }

    /// A lend did not go out.
    fn refused(&mut self, worker: WorkerId, id: ConnectionId, now: Time) {
        self.dispatcher.lend_refused(worker, id, now);
        note_ready(&mut self.dispatcher, id, now);
    }

    pub(in crate::master) fn examine(&mut self, id: ConnectionId, worker: WorkerId, now: Time) {
        let turn = self.dispatcher.turn_number(id);
        let Some(held) = self.dispatcher.payload(id) else {
            return;
        };
        let process = self.processes.get(worker);
        let board = process.map(|process| &process.board);
        let unreported = board.and_then(|board| board.unreported(id.into()));
        let pending_report = board.and_then(|board| board.pending_report(id.into()));
        // What was taken out of the inbox, and not counted as taken, was taken by the kernel while it ended the process.
        let unseen =
            process.is_some_and(|process| process.threads == 1 && process.inbox_length() > 0);
        let verdict = if unseen {
            Verdict::Untouched
        } else {
            held.examine(unreported, pending_report)
        };
        if let Some(process) = process {
            let consequence = match verdict {
                Verdict::Untouched => "nothing was read, so another worker gets it",
                Verdict::Served(_) => "the turn was over, so nothing is lost",
                Verdict::Consumed => "nothing was sent, so the client gets an error reply",
                Verdict::Sent => "something was sent, so it is closed",
                Verdict::Unknown => "what was sent is not known, so it is closed",
            };
            log::warn!(
                "worker {process} died in turn {turn} of {}: {consequence}",
                held.peer()
            );
        }
        self.dispatcher.examined(id, verdict, now);
    }

    /// Ends a worker that hangs.
    pub(in crate::master) fn end_worker(&mut self, worker: WorkerId, signal: Signal) {
        let Some(process) = self.processes.get(worker) else {
            return;
        };
        let limit = self.plan.settings.turn_timeout.unwrap_or_default();
        let limit = limit.as_secs_f64();
        log::warn!("worker hangs {process}: a turn takes longer than {limit} s; sending {signal}");
        if let Err(error) = kill(process.pid, signal) {
            log::error!("cannot end worker {process}: {}", error.desc());
        }
    }

    pub(in crate::master) fn retire(&mut self, worker: WorkerId) {
        self.dispatcher.retire(worker);
        let Some(process) = self.processes.get_mut(worker) else {
            return;
        };
        if !process.retiring {
            process.retiring = true;
            if let Err(error) = process.end.retire()
                && error.raw_os_error() != Some(libc::EPIPE)
            {
                log::error!("cannot retire worker {process}: {}", Plain(&error));
            }
        }
    }
}

/// Takes a report into the books, and tells the dispatcher. An entry of the board says more than a
/// message does.
fn note_report(
    dispatcher: &mut Dispatcher<Held>,
    worker: WorkerId,
    report: &Report<'_>,
    entry: Option<&Entry>,
    now: Time,
) -> Result<(), Stray> {
    let id = report.id.into();
    let end = TurnEnd {
        outcome: report.outcome,
        turns: entry.map_or(1, |entry| entry.turns),
        carries: !report.carry.is_empty(),
        answered: report.traffic.is_some_and(|traffic| traffic.written > 0),
        took: entry.map(|entry| entry.took),
    };
    if !dispatcher.is_lent(worker, id) {
        return Err(Stray);
    }
    if let Some(held) = dispatcher.payload(id) {
        held.note(report);
    }
    dispatcher.report(worker, id, end, now)?;
    if report.outcome == Outcome::Again {
        note_ready(dispatcher, id, now);
    }
    Ok(())
}

/// Notes that a connection waits for a worker, if it does and is stored.
fn note_ready(dispatcher: &mut Dispatcher<Held>, id: ConnectionId, now: Time) {
    let standing = dispatcher.standing(id, now);
    if let Some(standing) = standing.filter(|standing| standing.ready)
        && let Some(held) = dispatcher.payload(id)
    {
        held.note_standing(Stage::Ready, &standing, now);
    }
}

fn as_report(entry: &Entry) -> Report<'static> {
    Report {
        id: entry.id,
        outcome: entry.outcome,
        traffic: Some(entry.traffic),
        carry: &[],
    }
}

fn watch_worker(
    epoll: BorrowedFd<'_>,
    pool: u8,
    worker: WorkerId,
    process: &Process,
) -> io::Result<()> {
    let subject = Subject::Doorbell(worker);
    let data = EventData::new_u64(Token { pool, subject }.encode());
    // Each ring is an event of its own, and the counter need not be read. The socketpair is not watched: the worker
    // rings for its messages too. An epoll set on the sending side would be called for each message that the worker
    // takes, since that makes room to send (unix_write_space in the kernel), and its lock is one that all share.
    let flags = EventFlags::IN | EventFlags::ET;
    Ok(epoll::add(epoll, process.board.doorbell(), data, flags)?)
}

fn stray(id: u64) -> String {
    format!("a report of connection {id}, which it does not have")
}
