//! One report, and its form in shared memory.

use std::time::Duration;

use crate::wire::{Extras, Outcome, Report, Traffic};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

/// The report of one turn, or of several in a row on the same connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The connection's id, as the lend gave it.
    pub id: u64,
    /// What is to become of the connection.
    pub outcome: Outcome,
    /// How many turns the worker served before this report, at least one.
    pub turns: u64,
    /// The bytes that these turns moved.
    pub traffic: Traffic,
    /// How long the last of these turns took.
    pub took: Duration,
}

impl Entry {
    /// Announces a message about a connection, so that a master which is awake looks for it.
    #[must_use]
    pub fn of_message(id: u64) -> Self {
        Self {
            id,
            outcome: ANNOUNCED,
            turns: 1,
            traffic: Traffic::default(),
            took: Duration::ZERO,
        }
    }

    /// Announces a message of so many bytes that is on the board.
    #[must_use]
    pub(super) fn of_text(id: u64, length: usize) -> Self {
        let mut entry = Self::of_message(id);
        entry.traffic.read = length as u64;
        entry
    }

    /// Whether this only announces a message.
    #[must_use]
    pub fn is_of_message(&self) -> bool {
        self.outcome == ANNOUNCED
    }

    /// How long the message is, if it is on the board.
    #[must_use]
    pub fn text_length(&self) -> Option<usize> {
        let length = usize::try_from(self.traffic.read).unwrap_or(usize::MAX);
        (self.is_of_message() && length > 0).then_some(length)
    }

    /// The entry as the message would be that says the same.
    #[must_use]
    pub fn report(&self) -> Report<'static> {
        Report {
            id: self.id,
            outcome: self.outcome,
            traffic: Some(self.traffic),
            extras: Extras::default(),
            carry: &[],
        }
    }
}

const ANNOUNCED: Outcome = Outcome::Pass;

/// An [`Entry`] in shared memory. A cell whose `turns` is 0 is empty.
#[derive(Debug)]
pub(super) struct Cell {
    /// Stored last and loaded first, so that it publishes the other fields.
    pub(super) id_and_outcome: AtomicU64,
    turns: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    nanos: AtomicU64,
}

/// The id takes the bits below this one: the master gives no id of more than 60 bits.
const OUTCOME_SHIFT: u32 = 60;

/// An outcome is stored as its index in this list. The last one says that the worker has sent a
/// message, whatever that says: a report that passes a connection on always is one.
pub(super) const OUTCOMES: [Outcome; 8] = [
    Outcome::Park,
    Outcome::ParkDrained,
    Outcome::ParkWrite,
    Outcome::Again,
    Outcome::Close,
    Outcome::Linger,
    Outcome::Home,
    ANNOUNCED,
];

// Loom's atomics have no `Default`.
impl Default for Cell {
    fn default() -> Self {
        Self {
            id_and_outcome: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        }
    }
}

impl Cell {
    pub(super) fn store(&self, entry: &Entry) {
        let outcome = OUTCOMES
            .iter()
            .position(|outcome| *outcome == entry.outcome);
        let outcome = outcome.unwrap_or_default() as u64;
        self.turns.store(entry.turns, Ordering::Relaxed);
        self.read.store(entry.traffic.read, Ordering::Relaxed);
        self.written.store(entry.traffic.written, Ordering::Relaxed);
        let nanos = u64::try_from(entry.took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.store(nanos, Ordering::Relaxed);
        self.id_and_outcome
            .store(entry.id | outcome << OUTCOME_SHIFT, Ordering::Release);
    }

    /// The entry, if there is one and it is about this connection.
    pub(super) fn about(&self, id: u64) -> Option<Entry> {
        let entry = self.load()?;
        (entry.id == id && entry.turns > 0).then_some(entry)
    }

    pub(super) fn clear(&self) {
        if self.turns.load(Ordering::Relaxed) != 0 {
            self.turns.store(0, Ordering::Release);
        }
    }

    /// The entry, or `None` if the bits of its outcome have no meaning.
    pub(super) fn load(&self) -> Option<Entry> {
        let word = self.id_and_outcome.load(Ordering::Acquire);
        let outcome = OUTCOMES.get((word >> OUTCOME_SHIFT) as usize)?;
        Some(Entry {
            id: word & ((1 << OUTCOME_SHIFT) - 1),
            outcome: *outcome,
            turns: self.turns.load(Ordering::Relaxed),
            traffic: Traffic {
                read: self.read.load(Ordering::Relaxed),
                written: self.written.load(Ordering::Relaxed),
            },
            took: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        })
    }
}
