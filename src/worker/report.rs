//! One turn of a service, and the report of it: over the scoreboard, or in a message what does not
//! fit there.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};

use super::orphans::{self, Orphan};
use crate::channel::inbox::WorkerEnd;
use crate::channel::scoreboard::{Entry, PendingReport, Publisher, Urgency};
use crate::channel::start::Linger;
use crate::service::{Baggage, Buffer, Connection, Service, Turn, WriteAhead};
use crate::sys::tcp::SURE_TO_ARRIVE;
use crate::wire::{self, Extras, FromWorker, LuggageChange, Outcome, Report, Traffic};

/// How long a worker that has nothing else to do waits at its connection for the client's next
/// request before it gives the connection back.
const STAY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// Runs the service once, or sends on what the client has not taken of an earlier turn. An error of
/// the service closes the connection, when all is sent that was written before.
pub(super) fn turn(service: &mut dyn Service, connection: &mut Connection) -> Outcome {
    if connection.sends_on() {
        return connection.send_on(false);
    }
    let outcome = match service.turn(connection) {
        Ok(Turn::Pass(pool)) => pass(connection, pool),
        Ok(turn) => turn.outcome(),
        Err(error) => {
            let (peer, number) = (connection.peer(), connection.turn());
            log::debug!("closing {peer}: its turn {number} failed: {error}");
            Outcome::Close
        }
    };
    connection.settle(outcome)
}

/// Another pool is to go on with the connection. If the worker has served it before without a
/// report in between, the request goes back first: a report that passes a connection on says that
/// nothing was sent.
#[cold]
fn pass(connection: &mut Connection, pool: &str) -> Outcome {
    match wire::pool_word(pool) {
        _ if connection.is_behind() => {
            log::error!("cannot pass a connection to pool {pool:?}: it is being answered already");
            Outcome::Close
        }
        Some(_) if connection.has_written_before_only() => Outcome::Home,
        Some(word) => {
            connection.baggage_mut().pool = word;
            Outcome::Pass
        }
        None => {
            log::error!("cannot pass a connection to pool {pool:?}: the name is too long");
            Outcome::Close
        }
    }
}

/// What a worker did with a connection while it had it.
pub(super) struct Served {
    pub(super) outcome: Outcome,
    pub(super) turns: u64,
    /// How long the last turn took.
    pub(super) took: Duration,
}

impl WriteAhead for PendingReport {
    fn write_ahead(&self, id: u64, outcome: Outcome, traffic: Traffic) {
        self.store(&Entry {
            id,
            outcome,
            turns: 1,
            traffic,
            took: Duration::ZERO,
        });
    }
}

/// The worker's two ways to report.
pub(super) struct Reporter<'a> {
    inbox: &'a WorkerEnd,
    pub(super) board: Publisher<'a>,
    /// Connections that were over when the master was gone.
    orphans: Vec<Orphan>,
}

impl<'a> Reporter<'a> {
    pub(super) fn new(inbox: &'a WorkerEnd, board: Publisher<'a>) -> Self {
        Self {
            inbox,
            board,
            orphans: Vec::new(),
        }
    }

    /// Sends a message and rings, because the master does not watch the socketpair.
    pub(super) fn send(
        &mut self,
        message: &FromWorker<'_>,
        luggage: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        self.inbox.send(message, luggage)?;
        self.board.ring();
        Ok(())
    }

    /// Reports what takes a message: on the board if it is short, else on the socketpair.
    fn tell(&mut self, report: &Report<'_>, luggage: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let message = FromWorker::Report(*report);
        if luggage.is_none() {
            let header = message.header();
            let note = report.extras.note.unwrap_or_default();
            let parts = [header.as_bytes(), note, report.carry];
            if self.board.publish_text(report.id, &parts) {
                return Ok(());
            }
        }
        self.inbox.send(&message, luggage)?;
        let announced = Entry::of_message(report.id);
        if !self.board.publish(&announced, Urgency::Urgent) {
            self.board.ring();
        }
        Ok(())
    }

    /// Waits at the connection for the client's next request, if the worker has nothing else to do.
    /// Returns whether the request has come, in which case the next turn begins without the master.
    pub(super) fn stay(&mut self, connection: &Connection, outcome: Outcome, turns: u64) -> bool {
        let idle = outcome == Outcome::Park
            && connection.is_drained()
            && connection.buffer().is_empty()
            && !connection.is_watched()
            && connection.baggage().is_empty();
        if !idle || !self.board.may_stay() {
            return false;
        }
        self.board.begin_stay(&Entry {
            id: connection.id(),
            outcome: Outcome::Park,
            turns,
            traffic: connection.traffic(),
            took: Duration::ZERO,
        });
        let mut waits = [
            PollFd::new(connection, PollFlags::IN | PollFlags::RDHUP),
            PollFd::new(self.inbox, PollFlags::IN),
        ];
        let woken = poll(&mut waits, Some(&STAY)).is_ok_and(|count| count > 0);
        let comes = woken && waits[0].revents() == PollFlags::IN && waits[1].revents().is_empty();
        self.board.end_stay();
        comes
    }

    /// Reports the turn, and closes this worker's descriptor of the connection. The order matters.
    /// A connection that is kept is closed here before the report, because the master may lend it
    /// to another worker, or close it, as soon as it has the report. One that is over is ended
    /// after the report, because a client that sees the end may come again at once, and must not be
    /// turned away because this connection still counts. Returns the buffer, so that the next
    /// connection can use it.
    pub(super) fn give_back(
        &mut self,
        mut connection: Connection,
        served: &Served,
    ) -> io::Result<Buffer> {
        let outcome = match served.outcome {
            // Nobody else is there who would send on.
            _ if connection.sends_on() && self.inbox.is_abandoned() => connection.send_on(true),
            outcome => outcome,
        };
        let outcome = match outcome {
            Outcome::Park if connection.is_drained() => Outcome::ParkDrained,
            // Closing would reset the connection, and could destroy what was sent.
            Outcome::Close if !connection.is_drained() && connection.has_unread() => {
                Outcome::Linger
            }
            other => other,
        };
        let urgency = match outcome {
            Outcome::ParkDrained if connection.is_watched() => Urgency::None,
            // The connection is ended below for the client, so the master's descriptor may stay
            // open a little longer.
            Outcome::Close => Urgency::None,
            _ => Urgency::Urgent,
        };
        connection.write_ahead(outcome);
        let entry = Entry {
            id: connection.id(),
            outcome,
            turns: served.turns,
            traffic: connection.traffic(),
            took: served.took,
        };
        let peer = connection.peer();
        let (socket, buffer, baggage): (OwnedFd, Buffer, Baggage) = connection.into_parts();
        let mut report = entry.report();
        let over = if outcome.keeps() {
            report.carry = buffer.bytes();
            report.extras = baggage.extras();
            drop(socket);
            None
        } else {
            Some(socket)
        };
        let is_plain = report.carry.is_empty() && report.extras == Extras::default();
        if !is_plain || !self.board.publish(&entry, urgency) {
            let comes = report.extras.luggage == LuggageChange::New;
            let luggage = baggage.luggage().filter(|_| comes);
            self.tell(&report, luggage)?;
        }
        self.board.clear_unreported();
        if let Some(socket) = over {
            // Closing alone would not end it, because the master has a descriptor of its own, and
            // may be late with the report. An error means that it has ended already.
            let _ = shutdown(&socket, Shutdown::Write);
            let may_lose = outcome == Outcome::Linger || entry.traffic.written > SURE_TO_ARRIVE;
            if may_lose && self.inbox.is_abandoned() {
                self.orphans.push(Orphan {
                    socket,
                    peer,
                    heard: None,
                });
            }
        }
        Ok(buffer)
    }

    /// The worker has had its last turn. If the master is gone, it takes leave of the clients.
    pub(super) fn end(self, linger: Linger) {
        orphans::linger(self.orphans, linger);
    }
}
