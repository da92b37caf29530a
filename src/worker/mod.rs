//! The worker's loop: take a connection out of the inbox, serve one turn, report.

use std::io;
use std::os::fd::OwnedFd;

use crate::inbox::{Assignment, MessageBuffer, Seat, WorkerEnd};
use crate::service::{Buffer, Connection, Service, Turn};
use crate::wire::{FromWorker, Outcome, Report};

/// Serves until the master wants no more of this worker.
///
/// # Errors
/// When the inbox fails; the master is gone then, or this worker is of no use.
pub fn serve(seat: &Seat, service: &mut dyn Service) -> io::Result<()> {
    let mut messages = MessageBuffer::default();
    let mut buffer = Buffer::default();
    seat.inbox.send(&FromWorker::Ready)?;
    loop {
        match seat.inbox.receive(&mut messages)? {
            Assignment::Serve(lend, socket) => {
                let mut connection = Connection::lent(socket, &lend, seat.slot, buffer);
                let outcome = turn(service, &mut connection);
                buffer = give_back(&seat.inbox, connection, outcome)?;
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
fn give_back(inbox: &WorkerEnd, connection: Connection, outcome: Outcome) -> io::Result<Buffer> {
    let (id, traffic) = (connection.id(), connection.traffic());
    let (socket, buffer): (OwnedFd, Buffer) = connection.into_parts();
    drop(socket);
    let carry = if outcome.keeps() { buffer.bytes() } else { &[] };
    inbox.send(&FromWorker::Report(Report {
        id,
        outcome,
        traffic: Some(traffic),
        carry,
    }))?;
    Ok(buffer)
}
