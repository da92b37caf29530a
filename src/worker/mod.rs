//! The worker's loop: take a connection out of the inbox, serve one turn, report.

use std::io;
use std::os::fd::OwnedFd;

use crate::inbox::{Assignment, MessageBuffer};
use crate::scoreboard::{Entry, Urgency};
use crate::seat::Seat;
use crate::service::{Buffer, Connection, Service, Turn};
use crate::wire::{FromWorker, Outcome, Report};

/// Serves until the master wants no more of this worker.
///
/// # Errors
/// When the inbox fails; the master is gone then, or this worker is of no use.
pub fn serve(seat: &mut Seat<'_>, service: &mut dyn Service) -> io::Result<()> {
    let mut messages = MessageBuffer::default();
    let mut buffer = Buffer::default();
    seat.inbox.send(&FromWorker::Ready)?;
    loop {
        match seat.inbox.receive(&mut messages)? {
            Assignment::Serve(lend, socket) => {
                seat.board.took();
                let mut connection = Connection::lent(socket, &lend, seat.slot, buffer);
                let outcome = turn(service, &mut connection);
                buffer = give_back(seat, connection, outcome)?;
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

/// Ends the borrow, then says so: the order matters, for the master closes its own descriptor at once, and the client
/// sees the end of the connection only when the last one is closed.
fn give_back(seat: &mut Seat<'_>, connection: Connection, outcome: Outcome) -> io::Result<Buffer> {
    let (id, traffic) = (connection.id(), connection.traffic());
    let outcome = match outcome {
        Outcome::Park if connection.is_drained() => Outcome::ParkDrained,
        other => other,
    };
    let urgency = match outcome {
        Outcome::ParkDrained if connection.is_watched() => Urgency::None,
        _ => Urgency::Urgent,
    };
    let (socket, buffer): (OwnedFd, Buffer) = connection.into_parts();
    drop(socket);
    let carry = if outcome.keeps() { buffer.bytes() } else { &[] };
    let entry = Entry {
        id,
        outcome,
        turns: 1,
        traffic,
    };
    if !carry.is_empty() || !seat.board.publish(&entry, urgency) {
        let traffic = Some(traffic);
        seat.inbox.send(&FromWorker::Report(Report {
            id,
            outcome,
            traffic,
            carry,
        }))?;
    }
    Ok(buffer)
}
