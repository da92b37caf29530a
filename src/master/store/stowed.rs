//! Which connections' luggage the manager has, and which it gets when it has been there for a
//! while: most luggage is gone before. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::master::dispatch::table::ConnectionId;
use crate::master::time::Time;

/// How long a connection keeps its luggage before the manager gets it.
pub(super) const WHILE: Duration = Duration::from_secs(1);

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
    pub(super) due: Time,
    pub(super) place: u32,
    pub(super) number: u64,
    pub(super) pool: u8,
    pub(super) id: ConnectionId,
}

impl Stowed {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The connection at a place in the ledger, with this cookie, has the luggage of this number,
    /// and so has the manager.
    pub(super) fn know(&mut self, place: u32, cookie: u64, number: u64) {
        self.given += 1;
        let piece = Piece {
            number,
            cookie,
            given: true,
        };
        self.all.insert(place, piece);
    }

    /// The manager is to get the luggage of this connection, which is found there, if it stays for
    /// a while. Nothing new if that was said before.
    pub(super) fn stow(&mut self, waiting: Waiting, cookie: u64) {
        if let Entry::Vacant(vacant) = self.all.entry(waiting.place) {
            vacant.insert(Piece {
                number: waiting.number,
                cookie,
                given: false,
            });
            self.waiting.push_back(waiting);
        }
    }

    /// The number of the luggage of a connection, and whether the manager has it.
    pub(super) fn at(&self, place: u32) -> Option<(u64, bool)> {
        let piece = self.all.get(&place)?;
        Some((piece.number, piece.given))
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
