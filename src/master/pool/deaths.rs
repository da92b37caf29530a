//! What becomes of a worker's affairs when its process ends, is stopped, or hangs.

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::master::child::{ChildEvent, Exit};
use crate::master::dispatch::table::{ConnectionId, State};
use crate::master::dispatch::{Verdict, WorkerId};
use crate::master::time::Time;
use crate::master::workers::process::{Departure, Stage};

use super::{Phase, Pool};

impl Pool<'_> {
    /// Something has happened to a child of the master; false when it is none of this pool's
    /// workers.
    pub fn on_child(&mut self, pid: Pid, event: ChildEvent, now: Time) -> bool {
        let Some(worker) = self.workers.by_pid(pid) else {
            return false;
        };
        let Some(process) = self.workers.get_mut(worker) else {
            return false;
        };
        match event {
            ChildEvent::Ended(exit) => self.settle(worker, exit, now),
            ChildEvent::Stopped => {
                process.child.set_stopped(true);
                log::warn!("worker stopped {process}: others get what it has not begun");
                // It may have been stopped between its last message and the ring.
                self.receive(worker, now);
                self.dispatcher.worker_stopped(worker);
                if !self.is_wanted() {
                    self.continue_stopped();
                } else if let Some(process) = self.workers.get_mut(worker)
                    && process.stage() > Stage::Serving
                {
                    process.continue_stopped();
                }
            }
            ChildEvent::Continued => {
                process.child.set_stopped(false);
                log::info!("worker continued {process}");
                self.dispatcher.worker_continued(worker, now);
            }
        }
        true
    }

    /// A worker has ended: its last words, its connections, its successor.
    fn settle(&mut self, worker: WorkerId, exit: Exit, now: Time) {
        self.dispatcher.worker_died(worker);
        self.carry_out(now);
        let Some(process) = self.workers.get_mut(worker) else {
            return;
        };
        let stage = process.mark_dead(now);
        // What it said before it died counts, and what it never took up was never lent.
        self.receive_last(worker, now);
        self.collect(worker, now);
        self.take_back(worker, now);
        let in_turn = self.dispatcher.lent(worker) > 0;
        self.dispatcher.worker_gone(worker, now);
        self.log_end(worker, exit, stage, in_turn);
        // Its connections are examined while its process is still known by slot and pid.
        self.carry_out(now);
        if self.workers.remove(worker, now) && self.phase == Phase::Serving {
            self.workers.count_early_death(exit, now);
        }
    }

    /// Logs whether a worker has ended in order or has died. A status of 0 says nothing by itself,
    /// because a service may exit in a turn, or before it is ready.
    fn log_end(&mut self, worker: WorkerId, exit: Exit, stage: Stage, in_turn: bool) {
        let Some(process) = self.workers.get(worker) else {
            return;
        };
        let asked = stage == Stage::Exiting && process.departure() != Departure::Early;
        let expected = match exit {
            Exit::Exited(0) => !in_turn && (asked || process.was_ready()),
            Exit::Killed(Signal::SIGKILL) => asked || !self.is_wanted(),
            Exit::Killed(Signal::SIGTERM) => asked,
            Exit::Exited(_) | Exit::Killed(_) => false,
        };
        if expected {
            log::info!("worker retired {process}");
        } else if !process.was_ready() {
            log::warn!("worker died {process}: {exit} before it was ready");
        } else if in_turn && exit == Exit::Exited(0) {
            log::warn!("worker died {process}: {exit} in a turn");
        } else {
            log::warn!("worker died {process}: {exit}");
        }
        if self.workers.is_incoming(process) {
            let name = process.to_string();
            self.workers.fail_incoming(&name, &exit.to_string());
        }
    }

    /// Looks what came of a turn whose worker died.
    pub(super) fn examine(&mut self, id: ConnectionId, worker: WorkerId, now: Time) {
        let turn = self.dispatcher.turn_number(id);
        let Some(held) = self.dispatcher.payload(id) else {
            return;
        };
        let process = self.workers.get(worker);
        let left_behind = process.map(|process| process.channel.left_behind(id.into()));
        let (unreported, pending) = left_behind.unwrap_or_default();
        // What was taken out of the inbox, and not counted as taken, was taken by the kernel while
        // it ended the process.
        let unseen = process.is_some_and(|process| {
            process.threads() == 1
                && process
                    .channel
                    .inbox_length()
                    .is_some_and(|count| count > 0)
        });
        let verdict = match unseen {
            true => held.examine_unseen(),
            false => held.examine(unreported, pending),
        };
        let (peer, unfinished) = (held.peer(), held.is_unfinished());
        self.dispatcher.examined(id, verdict, now);
        // It does not get any number of workers that die under it without a sign.
        let again = matches!(
            self.dispatcher.state(id),
            Some(State::Ready | State::Lent(_))
        );
        if let Some(process) = process {
            let consequence = match verdict {
                Verdict::Untouched if again => "nothing was read, so another worker gets it",
                Verdict::Resumable { .. } if again => "another worker goes on with it",
                Verdict::Served(_) => "the turn was over, so nothing is lost",
                Verdict::Untouched | Verdict::Resumable { .. } | Verdict::Consumed
                    if unfinished =>
                {
                    "a part of the response was sent, so it is closed"
                }
                Verdict::Untouched | Verdict::Resumable { .. } | Verdict::Consumed
                    if self.plan.profile.crashed.is_empty() =>
                {
                    "nothing was sent, so it is closed"
                }
                Verdict::Untouched | Verdict::Resumable { .. } | Verdict::Consumed => {
                    "nothing was sent, so the client gets an error reply"
                }
                Verdict::Sent => "something was sent, so it is closed",
                Verdict::Unknown => "what was sent is not known, so it is closed",
            };
            log::warn!("worker {process} died in turn {turn} of {peer}: {consequence}");
        }
    }

    /// Ends a worker of which a turn takes too long.
    pub(super) fn end_hung(&mut self, worker: WorkerId, now: Time) {
        let limit = self.plan.settings.turn_timeout.unwrap_or_default();
        let limit = limit.as_secs_f64();
        if let Some(process) = self.workers.get_mut(worker) {
            let signal = Signal::SIGTERM;
            log::warn!(
                "worker hangs {process}: a turn takes longer than {limit} s; sending {signal}"
            );
            process.child.end(signal, now);
            self.workers.schedule_check();
        }
    }
}
