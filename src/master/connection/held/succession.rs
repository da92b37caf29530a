//! What another master must know of a connection, and what the service manager has of it.

use std::io;

use rustix::net::sockopt;

use super::Held;
use crate::master::dispatch::{Interest, Progress};
use crate::master::snapshot::{Packed, Packing, Place, PoolKey, Snapshot};
use crate::master::store::Kept;
use crate::master::time::Time;

impl Held {
    /// What the kernel calls the connection, in whichever process it is (socket(7), SO_COOKIE).
    ///
    /// # Errors
    /// What getsockopt(2) fails with.
    pub fn cookie(&self) -> io::Result<u64> {
        Ok(sockopt::socket_cookie(&self.socket)?)
    }

    /// The service manager has a copy of the descriptor, or gets one soon.
    pub fn set_copied(&mut self, kept: Option<Kept>) {
        self.kept = kept;
        self.copied = true;
    }

    /// Whether the service manager has a copy of the descriptor, or gets one soon.
    #[must_use]
    pub fn is_copied(&self) -> bool {
        self.copied
    }

    /// The connection's place in the ledger, if it is stored.
    #[must_use]
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// The connection as another master must know it.
    #[must_use]
    pub fn snapshot(&self, pool: PoolKey, place: Place, progress: &Progress) -> Snapshot {
        Snapshot {
            pool,
            home: self.visit().map(|visit| Box::new(visit.snapshot())),
            peer: Some(self.peer),
            place,
            interest: match self.unfinished {
                true => Interest::Output,
                false => Interest::Input,
            },
            turns: progress.turns,
            remaining: progress.remaining,
            incomplete_for: progress.incomplete_for,
            time_left: progress.time_left,
            total: self.total,
            stored: self.kept.as_ref().is_some_and(Kept::is_stored),
            carry: self.carry.clone(),
            packed: self.packed(),
        }
    }

    fn packed(&self) -> Packed {
        let Some(baggage) = &self.baggage else {
            return Packed::default();
        };
        let mut packed = baggage.packed();
        if let (Packing::Held(number), Some(kept)) = (packed.luggage, &self.kept)
            && kept.has_stowed(number)
        {
            packed.luggage = Packing::Stored(number);
        }
        packed
    }

    /// Whether anything travels with the connection that a master must know of which goes on with
    /// it.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.baggage.is_some() || self.visit.is_some()
    }

    /// Writes into the ledger how the connection stands, if it is stored.
    #[inline]
    pub fn store(&self, place: Place, progress: &Progress, now: Time) {
        if let Some(kept) = &self.kept {
            self.store_as(kept, place, progress, now);
        }
    }

    /// This is a function of its own so that a connection that is not stored costs a look.
    fn store_as(&self, kept: &Kept, place: Place, progress: &Progress, now: Time) {
        kept.store(&self.snapshot(kept.pool(), place, progress), now);
    }

    /// Writes into the ledger where the connection is now, if it is stored.
    pub fn enter(&self, place: Place) {
        if let Some(kept) = &self.kept {
            kept.enter(place);
        }
    }

    /// Leaves the connection to another master, which goes on with it.
    pub fn pass_on(&mut self) {
        self.copied = false;
        if let Some(kept) = self.kept.take() {
            kept.pass_on();
        }
    }
}
