//! The worker's loop: take a connection out of the inbox, serve one turn, report.

pub mod confine;
mod threads;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::channel::inbox::{Assignment, MessageBuffer, WorkerEnd};
use crate::channel::scoreboard::{Entry, PendingReport, Publisher, Urgency};
use crate::channel::start::WorkerHandles;
use crate::service::{Buffer, Connection, Service, Turn, WriteAhead};
use crate::wire::{FromWorker, Outcome, Report, Traffic};

pub use threads::serve as serve_in_threads;

/// How long a worker may keep a connection altogether, when it serves several turns without a report in between. Others
/// may have come to wait for it meanwhile.
const KEEP: Duration = Duration::from_millis(20);

/// How long a worker with nothing else to do waits for its client's next request before it gives the connection back.
const STAY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// Serves until the master wants no more of this worker.
///
/// # Errors
/// When the inbox fails; the master is gone then, or this worker is of no use.
pub fn serve(seat: WorkerHandles<'_>, service: &mut dyn Service) -> io::Result<()> {
    let WorkerHandles { slot, inbox, board } = seat;
    let mut reporter = Reporter {
        inbox: &inbox,
        board,
    };
    let pending_report: Arc<dyn WriteAhead> = Arc::new(reporter.board.pending_report());
    let mut messages = MessageBuffer::default();
    let mut buffer = Buffer::default();
    reporter.send(&FromWorker::Ready)?;
    loop {
        match inbox.receive(&mut messages)? {
            Assignment::Serve(lend, socket) => {
                reporter.board.took();
                let mut connection = Connection::lent(socket, &lend, slot, buffer)
                    .with_write_ahead(Some(Arc::clone(&pending_report)));
                let mut turns = 1;
                let lent = Instant::now();
                let mut begin = lent;
                let (outcome, took) = loop {
                    let outcome = turn(service, &mut connection);
                    let took = begin.elapsed();
                    if begin + took >= lent + KEEP || !reporter.stay(&connection, outcome, turns) {
                        break (outcome, took);
                    }
                    connection.next_turn();
                    turns += 1;
                    begin = Instant::now();
                };
                let served = Served {
                    outcome,
                    turns,
                    took,
                };
                buffer = reporter.give_back(connection, &served)?;
            }
            Assignment::Retire => return Ok(()),
        }
    }
}

fn turn(service: &mut dyn Service, connection: &mut Connection) -> Outcome {
    match service.turn(connection) {
        Ok(turn) => turn.outcome(),
        Err(error) => {
            log::debug!("{}: turn {}: {error}", connection.peer(), connection.turn());
            Turn::Close.outcome()
        }
    }
}

/// What a worker did with a connection that it was lent.
struct Served {
    outcome: Outcome,
    turns: u64,
    /// How long the last turn took.
    took: Duration,
}

impl WriteAhead for PendingReport {
    fn write_ahead(&self, id: u64, outcome: Outcome, traffic: Traffic) {
        self.note(&Entry {
            id,
            outcome,
            turns: 1,
            traffic,
            took: Duration::ZERO,
        });
    }
}

/// The two ways to report: the board, and for what does not fit there, the socketpair.
struct Reporter<'a> {
    inbox: &'a WorkerEnd,
    board: Publisher<'a>,
}

impl Reporter<'_> {
    /// Sends a message, and rings: the master does not watch the socketpair.
    fn send(&mut self, message: &FromWorker<'_>) -> io::Result<()> {
        self.inbox.send(message)?;
        self.board.ring();
        Ok(())
    }

    /// With nothing else to do, waits for the client's next request before it reports: whether it has come. Then the
    /// next turn begins without the master's doing.
    fn stay(&mut self, connection: &Connection, outcome: Outcome, turns: u64) -> bool {
        let idle = outcome == Outcome::Park
            && connection.is_drained()
            && connection.buffer().is_empty()
            && !connection.is_watched();
        if !idle || !self.board.may_stay() {
            return false;
        }
        self.board.stay(&Entry {
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
        self.board.go_on();
        comes
    }

    /// Ends the borrow, then says so: the order matters, for the master closes its own descriptor at once, and the
    /// client sees the end of the connection only when the last one is closed. Returns the buffer to use next.
    fn give_back(&mut self, connection: Connection, served: &Served) -> io::Result<Buffer> {
        let (id, traffic) = (connection.id(), connection.traffic());
        let outcome = match served.outcome {
            Outcome::Park if connection.is_drained() => Outcome::ParkDrained,
            other => other,
        };
        let urgency = match outcome {
            Outcome::ParkDrained if connection.is_watched() => Urgency::None,
            // The client has been told already; the master's descriptor can wait a little.
            Outcome::Close => Urgency::None,
            _ => Urgency::Urgent,
        };
        if connection.buffer().is_empty() {
            connection.write_ahead(outcome);
        }
        if !outcome.keeps() {
            connection.finish();
        }
        let (socket, buffer): (OwnedFd, Buffer) = connection.into_parts();
        drop(socket);
        let carry = if outcome.keeps() { buffer.bytes() } else { &[] };
        let entry = Entry {
            id,
            outcome,
            turns: served.turns,
            traffic,
            took: served.took,
        };
        if !carry.is_empty() || !self.board.publish(&entry, urgency) {
            let traffic = Some(traffic);
            self.send(&FromWorker::Report(Report {
                id,
                outcome,
                traffic,
                carry,
            }))?;
        }
        self.board.reported();
        Ok(buffer)
    }
}
