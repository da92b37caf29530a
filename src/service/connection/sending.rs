//! The end of a turn in which more was written than the client has taken, and the turns that send
//! it on.

use std::io;

use super::Connection;
use crate::service::outgoing::complaints::warn_of_file;
use crate::service::outgoing::kept::Kept;
use crate::service::outgoing::record::{Record, SLOW};
use crate::service::outgoing::transmit::{Fault, Line, Sent};
use crate::service::outgoing::{AT_ONCE, BUDGET, UNSENT, UNSENT_AT_FIRST};
use crate::sys::tcp;
use crate::wire::{MAX_CARRY, Outcome};

impl Connection {
    /// Whether so much is kept that no more is to be read.
    pub(super) fn is_far_behind(&mut self) -> io::Result<bool> {
        let far = |kept: &Option<Box<Kept>>| {
            let kept = kept.as_ref();
            kept.is_some_and(|kept| kept.length() > AT_ONCE)
        };
        if !far(&self.kept) {
            return Ok(false);
        }
        self.send_kept()?;
        Ok(far(&self.kept))
    }

    /// The service has ended its turn so. If the client has not taken all that was written, the
    /// rest travels with the connection, and the turn ends otherwise.
    pub(crate) fn settle(&mut self, then: Outcome) -> Outcome {
        if !self.buffer.held.is_empty()
            && let Err(error) = self.put(&[], !then.keeps())
        {
            return self.fail(&error);
        }
        match self.kept.take() {
            None => then,
            Some(kept) => self.leave(kept, then),
        }
    }

    #[cold]
    fn leave(&mut self, mut kept: Box<Kept>, then: Outcome) -> Outcome {
        let crowded = kept.carried() + self.buffer().len() > MAX_CARRY;
        let fits = !crowded || kept.spool(0, self.room()).is_ok();
        // The service may have put luggage of its own beside the connection since.
        let fits = fits && !(kept.has_file() && self.baggage.luggage().is_some());
        if !fits {
            self.kept = Some(kept);
            return match self.send_all() {
                Ok(()) => then,
                Err(error) => self.fail(&error),
            };
        }
        let (mut record, carried, file) = kept.into_parts();
        record.then = then;
        self.buffer.prepend(&carried);
        if let Some(file) = file {
            self.baggage.set_luggage(file);
        }
        self.send_later(&record)
    }

    /// The turn ends, and later ones send what the record says.
    fn send_later(&mut self, record: &Record) -> Outcome {
        self.baggage.set_record(&record.encode());
        self.baggage.resumable = true;
        match record.full {
            // The client has room, as far as is known.
            0 => Outcome::Again,
            _ => Outcome::ParkWrite,
        }
    }

    /// Whether this turn only sends on what the client has not taken in an earlier one.
    pub(crate) fn sends_on(&self) -> bool {
        Record::is_one(self.baggage.record())
    }

    /// Sends on, and returns how the turn ends. With `sleeps`, all is sent now.
    #[cold]
    pub(crate) fn send_on(&mut self, sleeps: bool) -> Outcome {
        let moved = self.baggage.moved.written;
        // The counters begin anew with the record.
        self.baggage.moved.written = 0;
        let record = Record::decode(self.baggage.record());
        let mut record = match record.filter(|record| record.carried() <= self.buffer().len()) {
            Some(record) => record,
            None => return self.confused("its record makes no sense"),
        };
        match record.advance(moved) {
            Some(gone) => self.buffer.consume(gone),
            None => return self.confused("more was sent than there was"),
        }
        if record.full == 0 && record.remaining() > u64::from(UNSENT_AT_FIRST) {
            // An error means that this is no TCP connection.
            let _ = tcp::limit_unsent(&self.socket, Some(UNSENT_AT_FIRST));
        }
        let sent = self.send_rest(&mut record, sleeps);
        match sent {
            Ok(_) if record.remaining() == 0 => self.end_sending(&record),
            Ok(Sent::All) => {
                // Others get a turn first.
                self.send_later(&record);
                Outcome::ParkWrite
            }
            Ok(Sent::Full) => {
                record.full = record.full.saturating_add(1);
                if record.full == SLOW {
                    let _ = tcp::limit_unsent(&self.socket, Some(UNSENT));
                }
                self.send_later(&record)
            }
            Err(Fault::Client(error)) => self.fail(&error),
            Err(Fault::File(error)) => {
                // More bytes were announced, so only the end of the connection tells the client.
                warn_of_file(self.peer, &error);
                Outcome::Close
            }
        }
    }

    fn send_rest(&mut self, record: &mut Record, sleeps: bool) -> Result<Sent, Fault> {
        let budget = if sleeps { u64::MAX } else { BUDGET };
        let mut block = std::mem::take(&mut self.buffer.block);
        let mut gone = 0;
        let mut line = Line {
            socket: &self.socket,
            sleeps,
            written: &mut self.traffic.written,
            block: &mut block,
        };
        let carry = (self.buffer.bytes(), &mut gone);
        let sent = line.send(record, carry, self.baggage.luggage(), budget);
        self.buffer.consume(gone);
        self.buffer.block = block;
        sent
    }

    /// All is sent: the connection is the service's again, as it left it.
    fn end_sending(&mut self, record: &Record) -> Outcome {
        self.baggage.set_record(&[]);
        if record.has_file {
            drop(self.baggage.take_luggage());
        }
        self.baggage.resumable = false;
        let _ = tcp::limit_unsent(&self.socket, None);
        match record.then {
            // There may be more requests in what was read.
            Outcome::Park if !self.buffer().is_empty() => Outcome::Again,
            then => then,
        }
    }

    fn fail(&mut self, error: &io::Error) -> Outcome {
        log::debug!(
            "closing {}: its turn {} failed: {error}",
            self.peer,
            self.turn
        );
        self.baggage.resumable = false;
        Outcome::Close
    }

    #[cold]
    fn confused(&self, what: &str) -> Outcome {
        log::error!(
            "cannot send on to {}: {what}; closing the connection",
            self.peer
        );
        Outcome::Close
    }
}
