//! Which connections' luggage the manager has, and which it gets when it has been there for a
//! while: most luggage is gone before.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Kept, Store, names};
use crate::master::dispatch::table::ConnectionId;
use crate::master::snapshot::Packing;
use crate::master::time::Time;

/// How long a connection keeps its luggage before the manager gets it.
const WHILE: Duration = Duration::from_secs(1);

/// How long luggage waits for which the manager had no room.
const NO_ROOM: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stowed {
    /// By the places of their connections in the ledger.
    all: BTreeMap<u32, Piece>,
    /// What is to be given, in the order of the times.
    waiting: VecDeque<Waiting>,
    /// How many pieces the manager has.
    given: usize,
    /// The cookies of connections that another master has, with luggage that the manager has.
    passed_on: Vec<u64>,
}

/// A piece of luggage.
#[derive(Debug)]
struct Piece {
    number: u64,
    /// The cookie of its connection.
    cookie: u64,
    given: bool,
}

/// Where a piece of luggage is found when it is due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    due: Time,
    pub(super) place: u32,
    pub(super) number: u64,
    pub(super) pool: u8,
    pub(super) id: ConnectionId,
}

impl Stowed {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many pieces the manager has.
    pub(super) fn given(&self) -> usize {
        self.given
    }

    /// When the next piece is to be given.
    pub(super) fn due(&self) -> Option<Time> {
        self.waiting.front().map(|first| first.due)
    }

    /// The next piece that is due, if its connection has it still: where it is, and its cookie.
    pub(super) fn next(&mut self, now: Time) -> Option<(Waiting, u64)> {
        while let Some(first) = self.waiting.front().filter(|first| first.due <= now) {
            let piece = self.all.get(&first.place);
            match piece.filter(|piece| piece.number == first.number && !piece.given) {
                Some(piece) => return Some((*first, piece.cookie)),
                None => drop(self.waiting.pop_front()),
            }
        }
        None
    }

    /// What came [next](Self::next) was given to the manager.
    pub(super) fn is_given(&mut self) {
        if let Some(first) = self.waiting.pop_front()
            && let Some(piece) = self.all.get_mut(&first.place)
        {
            piece.given = true;
            self.given += 1;
        }
    }

    /// What came [next](Self::next) is there no more.
    pub(super) fn is_gone(&mut self) {
        self.waiting.pop_front();
    }

    /// What came [next](Self::next) waits again, because the manager has no room.
    pub(super) fn wait_for_room(&mut self, now: Time) {
        if let Some(first) = self.waiting.pop_front() {
            let due = now.after(NO_ROOM);
            let after = self.waiting.partition_point(|other| other.due <= due);
            self.waiting.insert(after, Waiting { due, ..first });
        }
    }

    /// A connection has no luggage any more, or another one. Returns its cookie if the manager has
    /// the luggage.
    pub(super) fn forget(&mut self, place: u32) -> Option<u64> {
        let piece = self.all.remove(&place)?;
        if piece.given {
            self.given -= 1;
        }
        piece.given.then_some(piece.cookie)
    }

    /// Another master has the connection, and what the manager has of it.
    pub(super) fn pass_on(&mut self, place: u32) {
        let cookie = self.forget(place);
        self.passed_on.extend(cookie);
    }

    /// The cookies of connections that another master had, which is gone, with luggage that the
    /// manager has.
    pub(super) fn take_passed_on(&mut self) -> impl Iterator<Item = u64> + use<> {
        std::mem::take(&mut self.passed_on).into_iter()
    }
}

impl Store {
    /// The manager is to drop the luggage that it has of the connection with this cookie.
    pub fn forget_luggage(&self, cookie: u64) {
        self.remove(names::of_luggage(cookie));
    }
}

impl Kept {
    /// The connection has the luggage of this number: the manager gets it if it stays for a while.
    pub fn stow(&self, number: u64, (pool, id): (u8, ConnectionId), now: Time) {
        let stowed = &mut self.store.0.borrow_mut().stowed;
        if stowed.all.contains_key(&self.place) {
            return;
        }
        let piece = Piece {
            number,
            cookie: self.cookie,
            given: false,
        };
        stowed.all.insert(self.place, piece);
        stowed.waiting.push_back(Waiting {
            due: now.after(WHILE),
            place: self.place,
            number,
            pool,
            id,
        });
    }

    /// The connection has the luggage of this number, and so has the manager.
    pub fn luggage_came_stored(&self, number: u64) {
        let stowed = &mut self.store.0.borrow_mut().stowed;
        stowed.given += 1;
        let piece = Piece {
            number,
            cookie: self.cookie,
            given: true,
        };
        stowed.all.insert(self.place, piece);
    }

    /// Whether the manager has the luggage of this number.
    #[must_use]
    pub fn has_stowed(&self, number: u64) -> bool {
        let inner = self.store.0.borrow();
        let piece = inner.stowed.all.get(&self.place);
        piece.is_some_and(|piece| piece.given && piece.number == number)
    }

    /// The connection has this luggage now: if the manager has another one, it is to drop that.
    pub(super) fn check_luggage(&self, luggage: Packing) {
        let inner = &mut *self.store.0.borrow_mut();
        let Some(piece) = inner.stowed.all.get(&self.place) else {
            return;
        };
        let same = match luggage {
            Packing::None => false,
            Packing::Held(number) | Packing::Stored(number) => piece.number == number,
        };
        if !same {
            let gone = inner.stowed.forget(self.place);
            inner.gone.extend(gone.map(names::of_luggage));
        }
    }
}
