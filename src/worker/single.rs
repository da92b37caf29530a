//! The loop of a worker that serves one turn at a time: receive a connection, serve, report.

use std::io;
use std::time::{Duration, Instant};

use crate::channel::inbox::{Assignment, MessageBuffer, WorkerEnd};
use crate::channel::start::WorkerHandles;
use crate::service::{Buffer, Connection, Keeping, Service};
use crate::wire::FromWorker;
use crate::worker::report::{Reporter, Served, turn};

/// How long a worker may keep a connection without a report when it serves several turns of it in a
/// row. The limit exists because other connections may have come to wait for this worker meanwhile.
const KEEP: Duration = Duration::from_millis(20);

/// Serves until the master asks this worker to exit or is gone.
///
/// # Errors
/// An error of the inbox, after which this worker can serve no more.
pub fn serve(
    handles: WorkerHandles<'_>,
    keeping: &'static Keeping,
    service: &mut dyn Service,
) -> io::Result<()> {
    let WorkerHandles {
        slot,
        inbox,
        board,
        linger,
    } = handles;
    let mut reporter = Reporter::new(&inbox, board);
    let served = serve_all(&inbox, (slot, keeping), &mut reporter, service);
    reporter.end(linger);
    served
}

fn serve_all(
    inbox: &WorkerEnd,
    (slot, keeping): (u32, &'static Keeping),
    reporter: &mut Reporter<'_>,
    service: &mut dyn Service,
) -> io::Result<()> {
    // It lasts as long as this process, so that no connection need count who has it.
    let pending_report = &*Box::leak(Box::new(reporter.board.pending_report()));
    let mut messages = MessageBuffer::default();
    let mut buffer = Buffer::default();
    reporter.send(&FromWorker::Ready { luggage: true }, None)?;
    loop {
        match inbox.receive(&mut messages)? {
            Assignment::Serve(lend, borrowed) => {
                reporter.board.count_taken();
                let mut connection =
                    Connection::lent(borrowed.into(), &lend, slot, keeping, buffer);
                connection.set_write_ahead(pending_report);
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
