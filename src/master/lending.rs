//! The master and its workers: start them, lend to them, take their reports, take back, reap.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{Signal, kill};
use rustix::event::epoll::{self, EventData, EventFlags};

use super::connections::{ConnectionId, State};
use super::dispatch::{Dispatcher, Stray, TurnEnd, Verdict, WorkerId};
use super::held::Held;
use super::pool::{self, Change, End, Process};
use super::time::Time;
use super::token::Token;
use super::{Accepting, Master, Phase};
use crate::error::Plain;
use crate::inbox::Lent;
use crate::scoreboard::{Entry, RING, Sleep};
use crate::wire::{FromWorker, Lend, Report};

impl Master<'_> {
    pub(super) fn start_missing(&mut self, now: Time) {
        while matches!(self.phase, Phase::Serving | Phase::Stopping { .. })
            && let Some(slot) = self.pool.due(now)
        {
            let worker = self.dispatcher.worker_started(self.settings.threads);
            let (signals, main) = (&mut self.signals, self.main);
            let detach = || drop(signals.take());
            match self
                .pool
                .start(slot, worker, &self.inherited, detach, main, now)
            {
                Ok(process) => {
                    if let Err(error) = watch_worker(self.epoll.as_fd(), worker, process) {
                        log::error!("cannot watch worker slot={slot}: {}", Plain(&error));
                    }
                }
                Err(error) => {
                    self.dispatcher.worker_gone(worker, now);
                    log::error!("{error}; trying again");
                }
            }
        }
    }

    /// Takes what a worker has said.
    pub(super) fn on_worker(&mut self, worker: WorkerId, now: Time) {
        // No honest worker has more to say at a time than fits on its board; a rogue that talks
        // without end must not keep the master from the others.
        for _ in 0..=RING {
            let Some(process) = self.pool.get_mut(worker) else {
                return;
            };
            match process.end.receive(&mut self.messages) {
                Ok(Some(FromWorker::Report(report))) => {
                    if note_report(&mut self.dispatcher, worker, &report, None, now).is_err() {
                        let what = stray(report.id);
                        return self.end_rogue(worker, &what);
                    }
                }
                Ok(Some(FromWorker::Ready)) => {
                    process.ready = true;
                    log::info!("worker ready slot={} pid={}", process.slot, process.pid);
                    self.dispatcher.worker_ready(worker, now);
                    self.announce();
                }
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return self.end_rogue(worker, &format!("bad message: {error}"));
                }
                Err(error) => {
                    let slot = process.slot;
                    log::error!("cannot hear worker slot={slot}: {}", Plain(&error));
                    return;
                }
            }
        }
    }

    /// Takes the reports that the moving workers have published.
    pub(super) fn collect_all(&mut self, now: Time) {
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
            let Some(process) = self.pool.get(worker) else {
                return;
            };
            let Some(entry) = process.board.collect() else {
                return;
            };
            let noted = entry.map(|entry| {
                let report = as_report(&entry);
                note_report(&mut self.dispatcher, worker, &report, Some(&entry), now)
                    .map_err(|Stray| report.id)
            });
            match noted {
                Ok(Ok(())) => {}
                Ok(Err(id)) => return self.end_rogue(worker, &stray(id)),
                Err(_) => return self.end_rogue(worker, "a malformed report"),
            }
        }
    }

    /// Kills a worker that says what no honest one does, and listens to it no more. What it has
    /// now is settled as after any other death.
    fn end_rogue(&mut self, worker: WorkerId, what: &str) {
        let Some(process) = self.pool.get_mut(worker) else {
            return;
        };
        if std::mem::replace(&mut process.ended, true) {
            return;
        }
        let (slot, pid) = (process.slot, process.pid);
        log::error!("worker slot={slot} pid={pid} broke the protocol: {what}; killing it");
        let _ = kill(pid, Signal::SIGKILL);
        // Its end of the pair may be readable without end.
        let _ = epoll::delete(&self.epoll, &process.end);
    }

    /// A worker has rung. It is to ring again unless it is one of those at whose boards the master looks anyway.
    pub(super) fn on_doorbell(&mut self, worker: WorkerId, now: Time) {
        self.collect(worker, now);
        self.attend(worker, now);
    }

    /// Asks a slow worker to ring for its next report, for the master no longer looks at its board by itself.
    fn attend(&mut self, worker: WorkerId, now: Time) {
        // A single report makes it a moving worker again; one that publishes anything else is a
        // rogue, and is not waited for.
        if self.dispatcher.is_unhurried(worker)
            && let Some(process) = self.pool.get(worker)
            && !process.board.sleep(Sleep::Light)
        {
            self.collect(worker, now);
        }
    }

    /// No worker may stay with its connection any more, for others wait.
    fn spare_nobody(&mut self) {
        if std::mem::take(&mut self.spared) {
            for process in self.pool.processes() {
                process.board.spare(false);
            }
        }
    }

    /// Asks all moving workers to ring for their next report. False when one has reported in the meantime: then the
    /// master must not sleep.
    pub(super) fn fall_asleep(&mut self) -> bool {
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
            .filter_map(|worker| Some((worker.index(), &self.pool.get(*worker)?.board)));
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
    pub(super) fn wake_up(&mut self) {
        for process in self
            .moving
            .iter()
            .filter_map(|worker| self.pool.get(*worker))
        {
            process.board.wake();
        }
    }

    fn announce(&mut self) {
        if !self.announced {
            self.announced = true;
            for listener in &self.listeners {
                log::info!("listening on {listener}");
            }
        }
    }

    /// A worker has made no progress within the patience: others get what lies in its inbox.
    pub(super) fn relieve(&mut self, worker: WorkerId, now: Time) {
        let Some(process) = self.pool.get(worker) else {
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
        while let Some(process) = self.pool.get_mut(worker) {
            match process.end.take_back(&mut self.messages) {
                Ok(Some(id)) => {
                    process.count_taken_back();
                    self.dispatcher.taken_back(worker, id.into());
                }
                Ok(None) => break,
                Err(error) => {
                    let slot = process.slot;
                    log::error!(
                        "cannot take back from worker slot={slot}: {}",
                        Plain(&error)
                    );
                    break;
                }
            }
        }
        self.dispatcher.inbox_empty(worker, now);
    }

    /// Looks which workers have ended, were stopped or go on.
    pub(super) fn reap(&mut self, now: Time) {
        while let Some((pid, change)) = pool::next_change() {
            let Some(worker) = self.pool.worker(pid) else {
                continue;
            };
            let slot = self.pool.get(worker).map_or(0, |process| process.slot);
            match change {
                Change::Ended(end) => self.settle(worker, end, now),
                Change::Stopped => {
                    log::warn!(
                        "worker stopped slot={slot} pid={pid}: others get what it has not begun"
                    );
                    self.dispatcher.worker_stopped(worker);
                }
                Change::Continued => {
                    log::info!("worker continued slot={slot} pid={pid}");
                    self.dispatcher.worker_continued(worker, now);
                }
            }
        }
    }

    /// A worker has ended: its last words, its connections, its successor.
    fn settle(&mut self, worker: WorkerId, end: End, now: Time) {
        self.dispatcher.worker_died(worker);
        self.carry_out(now);
        if let Some(process) = self.pool.get_mut(worker) {
            process.ended = true;
        }
        // What it said before it died counts, and what it never took up was never lent.
        self.on_worker(worker, now);
        self.collect(worker, now);
        self.take_back(worker, now);
        self.dispatcher.worker_gone(worker, now);
        if let Some(process) = self.pool.get(worker) {
            let (slot, pid) = (process.slot, process.pid);
            let expected = process.retiring || self.phase != Phase::Serving;
            if end == End::Exited(0) || expected && end == End::Killed(Signal::SIGKILL) {
                log::info!("worker retired slot={slot} pid={pid}");
            } else {
                log::warn!("worker died slot={slot} pid={pid}: {end}");
            }
        }
        // Its connections are examined while its process is still known by slot and pid.
        self.carry_out(now);
        self.pool.bury(worker, now);
    }

    pub(super) fn lend(&mut self, worker: WorkerId, id: ConnectionId, now: Time) {
        let (turn, calm) = (self.dispatcher.turn_number(id), self.dispatcher.is_calm());
        let (Some(process), Some(held)) = (self.pool.get_mut(worker), self.dispatcher.payload(id))
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
        process.board.spare(calm);
        self.spared |= calm;
        match process.end.lend(lend, held.descriptor()) {
            Ok(Lent::Sent) => process.count_sent(),
            Ok(Lent::Refused) => self.dispatcher.lend_refused(worker, id, now),
            Ok(Lent::Gone) => {
                self.dispatcher.lend_refused(worker, id, now);
                self.retire(worker);
            }
            Err(error) => {
                log::error!(
                    "cannot lend {} to worker slot={}: {}",
                    held.peer(),
                    process.slot,
                    Plain(&error)
                );
                self.dispatcher.lend_refused(worker, id, now);
            }
        }
    }

    pub(super) fn examine(&mut self, id: ConnectionId, worker: WorkerId, now: Time) {
        let turn = self.dispatcher.turn_number(id);
        let Some(held) = self.dispatcher.payload(id) else {
            return;
        };
        let process = self.pool.get(worker);
        let board = process.map(|process| &process.board);
        let unreported = board.and_then(|board| board.unreported(id.into()));
        let foreseen = board.and_then(|board| board.foreseen(id.into()));
        // What was taken out of the inbox, and not counted as taken, was taken by the kernel while it ended the process.
        let unseen = process.is_some_and(|process| process.inbox_length() > 0);
        let verdict = if unseen && self.settings.threads == 1 {
            Verdict::Untouched
        } else {
            held.examine(unreported, foreseen)
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
                "worker slot={} pid={} died in turn {turn} of {}: {consequence}",
                process.slot,
                process.pid,
                held.peer()
            );
        }
        self.dispatcher.examined(id, verdict, now);
    }

    /// Ends a worker that hangs.
    pub(super) fn end_worker(&mut self, worker: WorkerId, signal: Signal) {
        let Some(process) = self.pool.get(worker) else {
            return;
        };
        let (slot, pid) = (process.slot, process.pid);
        let limit = self.settings.turn_timeout.unwrap_or_default().as_secs_f64();
        log::warn!(
            "worker hangs slot={slot} pid={pid}: a turn takes longer than {limit} s; sending {signal}"
        );
        if let Err(error) = kill(pid, signal) {
            log::error!("cannot end worker slot={slot} pid={pid}: {}", error.desc());
        }
    }

    pub(super) fn retire(&mut self, worker: WorkerId) {
        self.dispatcher.retire(worker);
        let Some(process) = self.pool.get_mut(worker) else {
            return;
        };
        if !process.retiring {
            process.retiring = true;
            if let Err(error) = process.end.retire()
                && error.raw_os_error() != Some(libc::EPIPE)
            {
                log::error!(
                    "cannot retire worker slot={}: {}",
                    process.slot,
                    Plain(&error)
                );
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
    dispatcher.report(worker, id, end, now)
}

fn as_report(entry: &Entry) -> Report<'static> {
    Report {
        id: entry.id,
        outcome: entry.outcome,
        traffic: Some(entry.traffic),
        carry: &[],
    }
}

fn watch_worker(epoll: BorrowedFd<'_>, worker: WorkerId, process: &Process) -> io::Result<()> {
    let data = EventData::new_u64(Token::Worker(worker).encode());
    epoll::add(epoll, &process.end, data, EventFlags::IN)?;
    // Each ring is an event of its own, and the counter need not be read.
    let data = EventData::new_u64(Token::Doorbell(worker).encode());
    epoll::add(
        epoll,
        process.board.doorbell(),
        data,
        EventFlags::IN | EventFlags::ET,
    )?;
    Ok(())
}

fn stray(id: u64) -> String {
    format!("a report of connection {id}, which it does not have")
}
