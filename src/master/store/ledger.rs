//! The ledger: what a master notes of the connections that it has stored, for the master that comes after it if it is
//! killed. Pure: words of memory, whosever they are.
//!
//! An entry is written with plain stores. SIGKILL can come between any two of them: while an entry is written, it says
//! so, and one that says so is worth nothing.
//!
//! ```text
//! header    16 words   magic, version, capacity, since
//! entries   16 words each
//! carries   8192 words each, from the next multiple of 512 (a page) on; all zero where there is none
//! ```

use std::borrow::Cow;
use std::ops::{Deref, Range};
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};
use std::time::Duration;

use crate::master::dispatch::{Interest, Standing};
use crate::wire::{MAX_CARRY, Traffic};

/// To be counted up with whatever changes below, or in the meaning of a word.
const VERSION: u64 = 1;

const MAGIC: u64 = u64::from_be_bytes(*b"Baton\0\r\n");
const HEADER: usize = 16;
const ENTRY: usize = 16;
const PAGE: usize = 512;
const CARRY: usize = MAX_CARRY / 8;

// Words of the header.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 1;
const AT_CAPACITY: usize = 2;
const AT_SINCE: usize = 3;

// Words of an entry.
const AT_STATE: usize = 0;
const AT_COOKIE: usize = 1;
const AT_POOL: usize = 2;
const AT_INTEREST: usize = 3;
const AT_TURNS: usize = 4;
const AT_READ: usize = 5;
const AT_WRITTEN: usize = 6;
const AT_DEADLINE: usize = 7;
const AT_OWING: usize = 8;
const AT_CARRY: usize = 9;

/// How a connection stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits for its client.
    Parked,
    /// It waits for a worker.
    Ready,
    /// A worker has it, and what is noted is from before.
    Lent,
    /// It is over for the server.
    Ending,
}

/// The states of an entry; 0 is one that nobody uses.
const FREE: u64 = 0;
const BEING_WRITTEN: u64 = 1;
const STAGES: [(u64, Stage); 4] = [
    (2, Stage::Parked),
    (3, Stage::Ready),
    (4, Stage::Lent),
    (5, Stage::Ending),
];

const INTERESTS: [(u64, Interest); 3] = [
    (1, Interest::Input),
    (2, Interest::NewInput),
    (3, Interest::Output),
];

/// What is noted of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// What the kernel calls its socket (socket(7), SO_COOKIE).
    pub cookie: u64,
    /// Its pool, by [`hash`].
    pub pool: u64,
    /// How it stood.
    pub stage: Stage,
    /// What it waits for.
    pub interest: Interest,
    /// How many turns it has had, without the one that it is in.
    pub turns: u64,
    /// What they have moved.
    pub total: Traffic,
    /// Until when it may be parked, by the system's monotonic clock; `None` is for ever.
    pub deadline: Option<Duration>,
    /// Since when the client owes the rest of a request.
    pub owing: Option<Duration>,
    /// What was read and not consumed.
    pub carry: Cow<'a, [u8]>,
}

/// Why memory is no ledger that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It was never one.
    NoLedger,
    /// Another version of the program has written it.
    Version(u64),
    /// It is smaller than it says.
    Truncated,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoLedger => f.write_str("it is no ledger"),
            Self::Version(version) => {
                write!(f, "it has version {version}, and this is version {VERSION}")
            }
            Self::Truncated => f.write_str("it is shorter than it says"),
        }
    }
}

/// An entry that no master writes, or that one was writing when it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// See the module.
#[derive(Debug)]
pub struct Ledger<M> {
    words: M,
    capacity: usize,
}

/// How many words a ledger of this capacity takes.
#[must_use]
pub fn size(capacity: usize) -> usize {
    first_carry(capacity) + capacity * CARRY
}

fn first_carry(capacity: usize) -> usize {
    (HEADER + capacity * ENTRY).next_multiple_of(PAGE)
}

/// What a ledger calls a pool by (FNV-1a).
#[must_use]
pub fn hash(pool: &str) -> u64 {
    pool.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl<M: Deref<Target = [AtomicU64]>> Ledger<M> {
    /// A ledger without entries, in memory that is all zero and of the [`size`] for this capacity.
    #[must_use]
    pub fn begin(words: M, capacity: usize, since: Duration) -> Self {
        let ledger = Self { words, capacity };
        ledger.set(AT_VERSION, VERSION);
        ledger.set(AT_CAPACITY, capacity as u64);
        ledger.set(AT_SINCE, nanoseconds(Some(since)));
        ledger.words[AT_MAGIC].store(MAGIC, Release);
        ledger
    }

    /// A ledger that another master has written.
    ///
    /// # Errors
    /// When it is none, or one that this version can't read.
    pub fn read(words: M) -> Result<Self, Refusal> {
        let at = |word: usize| words.get(word).map(|word| word.load(Relaxed));
        if words.len() < HEADER || at(AT_MAGIC) != Some(MAGIC) {
            return Err(Refusal::NoLedger);
        }
        match at(AT_VERSION) {
            Some(VERSION) => {}
            version => return Err(Refusal::Version(version.unwrap_or_default())),
        }
        let capacity = usize::try_from(at(AT_CAPACITY).unwrap_or_default()).unwrap_or(usize::MAX);
        if capacity > words.len() / ENTRY || size(capacity) > words.len() {
            return Err(Refusal::Truncated);
        }
        Ok(Self { words, capacity })
    }

    /// When it was begun, by the system's monotonic clock. Of two ledgers, the later one is right.
    #[must_use]
    pub fn since(&self) -> Duration {
        Duration::from_nanos(self.get(AT_SINCE))
    }

    /// How many entries it has.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The memory.
    #[must_use]
    pub fn words(&self) -> &M {
        &self.words
    }

    fn get(&self, word: usize) -> u64 {
        self.words[word].load(Relaxed)
    }

    fn set(&self, word: usize, value: u64) {
        self.words[word].store(value, Relaxed);
    }

    fn place(place: u32) -> usize {
        HEADER + place as usize * ENTRY
    }

    /// The words of an entry's carry.
    #[must_use]
    pub fn carry_of(&self, place: u32) -> Range<usize> {
        let begin = first_carry(self.capacity) + place as usize * CARRY;
        begin..begin + CARRY
    }

    /// Writes an entry, but for its carry, which is what was last written with [`write_carry`](Self::write_carry).
    pub fn write(&self, place: u32, record: &Record<'_>) {
        let entry = Self::place(place);
        self.set(entry + AT_STATE, BEING_WRITTEN);
        fence(Release);
        self.set(entry + AT_COOKIE, record.cookie);
        self.set(entry + AT_POOL, record.pool);
        self.set(entry + AT_INTEREST, code(&INTERESTS, record.interest));
        self.set(entry + AT_TURNS, record.turns);
        self.set(entry + AT_READ, record.total.read);
        self.set(entry + AT_WRITTEN, record.total.written);
        self.set(entry + AT_DEADLINE, nanoseconds(record.deadline));
        self.set(entry + AT_OWING, nanoseconds(record.owing));
        if record.carry.len() + self.carry_length(place) > 0 {
            self.write_carry(place, &record.carry);
        }
        self.enter(place, record.stage);
    }

    fn write_carry(&self, place: u32, carry: &[u8]) {
        let range = self.carry_of(place);
        for (word, bytes) in self.words[range].iter().zip(carry.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Relaxed);
        }
        let length = carry.len().min(MAX_CARRY);
        self.set(Self::place(place) + AT_CARRY, length as u64);
    }

    /// How long the carry of an entry is.
    #[must_use]
    pub fn carry_length(&self, place: u32) -> usize {
        self.get(Self::place(place) + AT_CARRY) as usize
    }

    /// Notes where a connection is now; all else stays.
    pub fn enter(&self, place: u32, stage: Stage) {
        self.words[Self::place(place) + AT_STATE].store(code(&STAGES, stage), Release);
    }

    /// Takes an entry out.
    pub fn clear(&self, place: u32) {
        self.words[Self::place(place) + AT_STATE].store(FREE, Release);
        self.set(Self::place(place) + AT_CARRY, 0);
    }

    /// An entry; nothing where there is none.
    ///
    /// # Errors
    /// [`Malformed`] when it makes no sense.
    pub fn entry(&self, place: u32) -> Result<Option<Record<'static>>, Malformed> {
        let entry = Self::place(place);
        let state = self.get(entry + AT_STATE);
        if state == FREE {
            return Ok(None);
        }
        let carry_length = self.carry_length(place);
        if carry_length > MAX_CARRY {
            return Err(Malformed);
        }
        let words = self.words[self.carry_of(place)].iter();
        let bytes = words.flat_map(|word| word.load(Relaxed).to_ne_bytes());
        Ok(Some(Record {
            cookie: self.get(entry + AT_COOKIE),
            pool: self.get(entry + AT_POOL),
            stage: meaning(&STAGES, state)?,
            interest: meaning(&INTERESTS, self.get(entry + AT_INTEREST))?,
            turns: self.get(entry + AT_TURNS),
            total: Traffic {
                read: self.get(entry + AT_READ),
                written: self.get(entry + AT_WRITTEN),
            },
            deadline: span(self.get(entry + AT_DEADLINE)),
            owing: span(self.get(entry + AT_OWING)),
            carry: bytes.take(carry_length).collect(),
        }))
    }
}

impl Record<'_> {
    /// How the connection stands at a time of the same clock.
    #[must_use]
    pub fn standing(&self, ready: bool, now: Duration) -> Standing {
        Standing {
            ready,
            turns: self.turns,
            left: self.deadline.map(|deadline| deadline.saturating_sub(now)),
            owing: self.owing.map(|since| now.saturating_sub(since)),
        }
    }
}

fn code<T: PartialEq>(codes: &[(u64, T)], value: T) -> u64 {
    let found = codes.iter().find(|(_, known)| *known == value);
    found.map_or(FREE, |(code, _)| *code)
}

fn meaning<T: Copy>(codes: &[(u64, T)], code: u64) -> Result<T, Malformed> {
    let found = codes.iter().find(|(known, _)| *known == code);
    found.map(|(_, value)| *value).ok_or(Malformed)
}

/// As a word; 0 is none.
fn nanoseconds(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

fn span(nanoseconds: u64) -> Option<Duration> {
    (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory(count: usize) -> Vec<AtomicU64> {
        std::iter::repeat_with(AtomicU64::default)
            .take(count)
            .collect()
    }

    fn ledger(capacity: usize) -> Ledger<Vec<AtomicU64>> {
        Ledger::begin(memory(size(capacity)), capacity, Duration::from_secs(1))
    }

    fn record(carry: &[u8]) -> Record<'_> {
        Record {
            cookie: 2,
            pool: hash("main"),
            stage: Stage::Parked,
            interest: Interest::NewInput,
            turns: 3,
            total: Traffic {
                read: 4,
                written: 5,
            },
            deadline: Some(Duration::from_secs(6)),
            owing: None,
            carry: carry.into(),
        }
    }

    #[test]
    fn what_was_written_is_read_by_the_next_master() {
        let written = ledger(3);
        let full = record(&[7; MAX_CARRY]);
        written.write(0, &full);
        written.write(2, &record(b"half"));
        written.write(2, &record(b""));
        written.enter(2, Stage::Lent);
        let read = Ledger::read(written.words).unwrap();
        assert_eq!(read.since(), Duration::from_secs(1));
        assert_eq!(read.entry(0), Ok(Some(full)));
        assert_eq!(read.entry(1), Ok(None));
        let lent = Record {
            stage: Stage::Lent,
            ..record(b"")
        };
        assert_eq!(read.entry(2), Ok(Some(lent)));
        read.clear(2);
        assert_eq!(read.entry(2), Ok(None));
    }

    #[test]
    fn what_is_no_ledger_of_this_version_is_refused() {
        let refusal = |words| Ledger::<Vec<AtomicU64>>::read(words).unwrap_err();
        assert_eq!(refusal(memory(0)), Refusal::NoLedger);
        assert_eq!(refusal(memory(1000)), Refusal::NoLedger);
        let other = ledger(1).words;
        other[AT_VERSION].store(2, Relaxed);
        assert_eq!(refusal(other), Refusal::Version(2));
        for capacity in [2, u64::MAX] {
            let short = ledger(1).words;
            short[AT_CAPACITY].store(capacity, Relaxed);
            assert_eq!(refusal(short), Refusal::Truncated);
        }
    }

    #[test]
    fn an_entry_that_was_being_written_is_worth_nothing() {
        let ledger = ledger(1);
        ledger.write(0, &record(b""));
        ledger.set(Ledger::<Vec<AtomicU64>>::place(0), BEING_WRITTEN);
        assert_eq!(ledger.entry(0), Err(Malformed));
    }

    proptest! {
        #[test]
        fn no_words_make_the_reader_panic(entry: [u64; ENTRY], state in 0..8u64) {
            let ledger = ledger(1);
            let begin = Ledger::<Vec<AtomicU64>>::place(0);
            for (at, word) in entry.iter().enumerate() {
                ledger.set(begin + at, *word);
            }
            ledger.set(begin + AT_STATE, state);
            ledger.set(begin + AT_INTEREST, entry[AT_INTEREST] % 4);
            ledger.set(begin + AT_CARRY, entry[AT_CARRY] % (2 * MAX_CARRY as u64));
            let _ = ledger.entry(0);
        }
    }
}
