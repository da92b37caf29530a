//! The worker's loop: take a connection out of the inbox, serve one turn, report.

mod threads;

use std::io;
use std::os::fd::OwnedFd;

use crate::inbox::{Assignment, MessageBuffer, WorkerEnd};
use crate::scoreboard::{Entry, Publisher, Urgency};
use crate::seat::Seat;
use crate::service::{Buffer, Connection, Service, Turn};
use crate::wire::{FromWorker, Outcome, Report};

pub use threads::serve as serve_in_threads;

/// Serves until the master wants no more of this worker.
///
/// # Errors
/// When the inbox fails; the master is gone then, or this worker is of no use.
pub fn serve(seat: Seat<'_>, service: &mut dyn Service) -> io::Result<()> {
    let Seat { slot, inbox, board } = seat;
    let mut reporter = Reporter {
        inbox: &inbox,
        board,
    };
    let mut messages = MessageBuffer::default();
    let mut buffer = Buffer::default();
    inbox.send(&FromWorker::Ready)?;
    loop {
        match inbox.receive(&mut messages)? {
            Assignment::Serve(lend, socket) => {
                reporter.board.took();
                let mut connection = Connection::lent(socket, &lend, slot, buffer);
                let outcome = turn(service, &mut connection);
                buffer = reporter.give_back(connection, outcome)?;
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

/// The two ways to report: the board, and for what does not fit there, the socketpair.
struct Reporter<'a> {
    inbox: &'a WorkerEnd,
    board: Publisher<'a>,
}

impl Reporter<'_> {
    /// Ends the borrow, then says so: the order matters, for the master closes its own descriptor at once, and the
    /// client sees the end of the connection only when the last one is closed. Returns the buffer to use next.
    fn give_back(&mut self, connection: Connection, outcome: Outcome) -> io::Result<Buffer> {
        let (id, traffic) = (connection.id(), connection.traffic());
        let outcome = match outcome {
            Outcome::Park if connection.is_drained() => Outcome::ParkDrained,
            other => other,
        };
        let urgency = match outcome {
            Outcome::ParkDrained if connection.is_watched() => Urgency::None,
            // The client has been told already; the master's descriptor can wait a little.
            Outcome::Close => Urgency::None,
            _ => Urgency::Urgent,
        };
        if !outcome.keeps() {
            connection.finish();
        }
        let (socket, buffer): (OwnedFd, Buffer) = connection.into_parts();
        drop(socket);
        let carry = if outcome.keeps() { buffer.bytes() } else { &[] };
        let entry = Entry {
            id,
            outcome,
            turns: 1,
            traffic,
        };
        if !carry.is_empty() || !self.board.publish(&entry, urgency) {
            let traffic = Some(traffic);
            self.inbox.send(&FromWorker::Report(Report {
                id,
                outcome,
                traffic,
                carry,
            }))?;
        }
        Ok(buffer)
    }
}
