//! The ledger: what a master writes down of the connections that it has stored, for the master
//! which comes after it if it is killed. Pure: words of memory, whosever they are.
//!
//! An entry is written with plain stores. SIGKILL can come between any two of them: while an entry
//! is written, it says so, and one that says so is worth nothing.
//!
//! ```text
//! header    48 words   magic, version, capacity, since, how many fields, their names
//! entries   16 words each, one for each field
//! carries   8192 words each, from the next multiple of 512 (a page) on; all zero without one
//! notes     1024 words each; likewise
//! ```
//!
//! The names make it readable for another version of the program: a field that the reader does not
//! know is passed over, or makes it refuse the ledger if the name says that it must be known
//! ([`REQUIRED`]); a field that is missing is zero. An entry whose state the reader does not know
//! is worth nothing to it: that is how those are written which have something that an older reader
//! must not go on without ([`PACKED`]). Version 1 had a header of 16 words, no names, and a fixed
//! order without the client's address; it is still read.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::{Deref, Range};
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};
use std::time::Duration;

use crate::master::dispatch::Interest;
use crate::master::snapshot::{Home, Malformed, Packed, Packing, Place, PoolKey, Snapshot};
use crate::service::Peer;
use crate::sys::unforked::Unforked;
use crate::wire::{MAX_CARRY, MAX_NOTE, Traffic};

/// To be counted up when a reader of the version before could not read it by its names.
const VERSION: u64 = 2;

const MAGIC: u64 = u64::from_be_bytes(*b"Baton\0\r\n");
const ENTRY: usize = 16;
const PAGE: usize = 512;
const CARRY: usize = MAX_CARRY / 8;
const NOTE: usize = (MAX_NOTE / 8).next_multiple_of(PAGE);

// Words of the header.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 1;
const AT_CAPACITY: usize = 2;
const AT_SINCE: usize = 3;
const AT_FIELDS: usize = 4;
const AT_NAMES: usize = 5;

/// What the fields of an entry are called, in the order in which this version writes them. The
/// state has the same word in all versions.
const NAMES: [&[u8; 8]; FIELDS] = [
    b"state\0\0\0",
    b"cookie\0\0",
    b"pool\0\0\0\0",
    b"interest",
    b"turns\0\0\0",
    b"read\0\0\0\0",
    b"written\0",
    b"deadline",
    b"incompl\0",
    b"carry\0\0\0",
    b"peer\0\0\0\0",
    b"address1",
    b"address2",
    b"note\0\0\0\0",
    b"baggage\0",
    b"home\0\0\0\0",
];

/// The bit of a name which says that a reader must know the field.
pub const REQUIRED: u64 = 1 << 63;

const STATE: usize = 0;
const COOKIE: usize = 1;
const POOL: usize = 2;
const INTEREST: usize = 3;
const TURNS: usize = 4;
const READ: usize = 5;
const WRITTEN: usize = 6;
const DEADLINE: usize = 7;
const INCOMPLETE: usize = 8;
const CARRY_LENGTH: usize = 9;
const PEER: usize = 10;
const ADDRESS: [usize; 2] = [11, 12];
const NOTE_LENGTH: usize = 13;
const BAGGAGE: usize = 14;
const HOME: usize = 15;
const FIELDS: usize = 16;

/// How many fields version 1 had: the first ones.
const FIELDS_1: usize = 10;

/// The states of an entry; 0 is one that nobody uses. A connection that is with another pool than
/// its own has states which a version that does not know `home` takes for malformed, so that it
/// closes such a connection.
const FREE: u64 = 0;
const BEING_WRITTEN: u64 = 1;
const PLACES: [(u64, Place); 4] = [
    (2, Place::Parked),
    (3, Place::Ready),
    (4, Place::Lent),
    (5, Place::Ending),
];

/// What is added to the state of an entry whose [`HOME`] is not zero.
const AWAY: u64 = 10;

/// The home of a connection whose service there has noted something, which is not written down: it
/// is closed when it would go home.
const NO_HOME: u64 = u64::MAX;

/// What is added to the state of an entry whose [`BAGGAGE`] is not zero.
const PACKED: u64 = 4;

// The bits of that.
const RESUMABLE: u64 = 1;
const LUGGAGE: u64 = 2;
const STORED: u64 = 4;
const NOTED: u64 = 8;

const INTERESTS: [(u64, Interest); 3] = [
    (1, Interest::Input),
    (2, Interest::NewInput),
    (3, Interest::Output),
];

/// Why memory is no ledger that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The memory was never a ledger.
    NoLedger,
    /// A version of the program has written it that this one can't read.
    Version(u64),
    /// It has a field that a reader must know, and this version does not.
    Field(u64),
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
            Self::Field(name) => {
                let name = (name & !REQUIRED).to_be_bytes();
                write!(
                    f,
                    "its field {:?} is not known here",
                    name.escape_ascii().to_string()
                )
            }
            Self::Truncated => f.write_str("it is shorter than it says"),
        }
    }
}

/// Where the words of a ledger are.
#[derive(Debug, Clone, Copy)]
struct Layout {
    header: usize,
    capacity: usize,
    /// The word of an entry which holds each of the [`NAMES`], if one does.
    fields: [Option<usize>; FIELDS],
}

/// See the module.
#[derive(Debug)]
pub struct Ledger<M> {
    words: M,
    layout: Layout,
}

/// How many words a ledger of this capacity takes.
#[must_use]
pub fn size(capacity: usize) -> usize {
    Layout::of_this_version(capacity).size()
}

impl Layout {
    fn of_this_version(capacity: usize) -> Self {
        Self {
            header: 48,
            capacity,
            fields: std::array::from_fn(Some),
        }
    }

    fn of_version_1(capacity: usize) -> Self {
        Self {
            header: 16,
            capacity,
            fields: std::array::from_fn(|field| (field < FIELDS_1).then_some(field)),
        }
    }

    /// The layout that the names in a header describe.
    fn of_names(capacity: usize, names: &[u64]) -> Result<Self, Refusal> {
        let mut layout = Self::of_this_version(capacity);
        layout.fields = [None; FIELDS];
        for (word, name) in names.iter().enumerate() {
            let plain = (name & !REQUIRED).to_be_bytes();
            match NAMES.iter().position(|known| **known == plain) {
                Some(field) => layout.fields[field] = Some(word),
                None if name & REQUIRED != 0 => return Err(Refusal::Field(*name)),
                None => {}
            }
        }
        Ok(layout)
    }

    fn first_carry(&self) -> usize {
        (self.header + self.capacity * ENTRY).next_multiple_of(PAGE)
    }

    fn first_note(&self) -> usize {
        self.first_carry() + self.capacity * CARRY
    }

    fn size(&self) -> usize {
        match self.fields[NOTE_LENGTH] {
            Some(_) => self.first_note() + self.capacity * NOTE,
            None => self.first_note(),
        }
    }
}

impl<M: Deref<Target = [AtomicU64]>> Ledger<M> {
    /// A ledger without entries, in memory that is all zero and of the [`size`] for this capacity.
    #[must_use]
    pub fn begin(words: M, capacity: usize, since: Duration) -> Self {
        let layout = Layout::of_this_version(capacity);
        let ledger = Self { words, layout };
        ledger.set(AT_VERSION, VERSION);
        ledger.set(AT_CAPACITY, capacity as u64);
        ledger.set(AT_SINCE, nanoseconds(Some(since)));
        ledger.set(AT_FIELDS, FIELDS as u64);
        for (word, name) in NAMES.iter().enumerate() {
            ledger.set(AT_NAMES + word, u64::from_be_bytes(**name));
        }
        ledger.words[AT_MAGIC].store(MAGIC, Release);
        ledger
    }

    /// A ledger that another master has written.
    ///
    /// # Errors
    /// When it is none, or one that this version can't read.
    pub fn read(words: M) -> Result<Self, Refusal> {
        let at = |word: usize| words.get(word).map_or(0, |word| word.load(Relaxed));
        if at(AT_MAGIC) != MAGIC {
            return Err(Refusal::NoLedger);
        }
        let capacity = usize::try_from(at(AT_CAPACITY)).unwrap_or(usize::MAX);
        if capacity > words.len() / ENTRY {
            return Err(Refusal::Truncated);
        }
        let layout = match at(AT_VERSION) {
            1 => Layout::of_version_1(capacity),
            VERSION => {
                let count = usize::try_from(at(AT_FIELDS))
                    .unwrap_or(usize::MAX)
                    .min(ENTRY);
                let names: Vec<u64> = (0..count).map(|word| at(AT_NAMES + word)).collect();
                Layout::of_names(capacity, &names)?
            }
            version => return Err(Refusal::Version(version)),
        };
        if layout.size() > words.len() {
            return Err(Refusal::Truncated);
        }
        Ok(Self { words, layout })
    }

    /// When it was begun, by the system's monotonic clock. Of two ledgers, the later one is right.
    #[must_use]
    pub fn since(&self) -> Duration {
        Duration::from_nanos(self.get(AT_SINCE))
    }

    /// How many entries it has.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.layout.capacity
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

    /// The first word of the entry at a place.
    fn begin_of(&self, place: u32) -> usize {
        self.layout.header + place as usize * ENTRY
    }

    /// A field of an entry; zero where this ledger has none.
    fn field(&self, place: u32, field: usize) -> u64 {
        let word = self.layout.fields[field];
        word.map_or(0, |word| self.get(self.begin_of(place) + word))
    }

    /// The words of an entry's carry.
    #[must_use]
    pub fn carry_of(&self, place: u32) -> Range<usize> {
        let begin = self.layout.first_carry() + place as usize * CARRY;
        begin..begin + CARRY
    }

    /// The words of an entry's note.
    #[must_use]
    pub fn note_of(&self, place: u32) -> Range<usize> {
        let begin = self.layout.first_note() + place as usize * NOTE;
        begin..begin + NOTE
    }

    /// Writes the entry of the connection whose socket has this cookie (socket(7), SO_COOKIE), at a
    /// time of the system's monotonic clock.
    pub fn write(&self, place: u32, cookie: u64, snapshot: &Snapshot, clock: Duration) {
        let entry = self.begin_of(place);
        self.set(entry + STATE, BEING_WRITTEN);
        fence(Release);
        let deadline = snapshot.remaining.map(|remaining| clock + remaining);
        let incomplete = snapshot.incomplete_for;
        let incomplete = incomplete.map(|incomplete| clock.saturating_sub(incomplete));
        self.set(entry + COOKIE, cookie);
        self.set(entry + POOL, snapshot.pool.0);
        let home = snapshot.home.as_ref();
        let home = home.map_or(0, |home| match home.note.is_empty() {
            true => home.pool.0,
            false => NO_HOME,
        });
        self.set(entry + HOME, home);
        self.set(entry + INTEREST, code(&INTERESTS, snapshot.interest));
        self.set(entry + TURNS, snapshot.turns);
        self.set(entry + READ, snapshot.total.read);
        self.set(entry + WRITTEN, snapshot.total.written);
        self.set(entry + DEADLINE, nanoseconds(deadline));
        self.set(entry + INCOMPLETE, nanoseconds(incomplete));
        let (kind, address) = peer_words(snapshot.peer);
        self.set(entry + PEER, kind);
        for (word, part) in ADDRESS.iter().zip(address) {
            self.set(entry + word, part);
        }
        if snapshot.carry.len() + self.carry_length(place) > 0 {
            let range = self.carry_of(place);
            self.write_bytes(entry + CARRY_LENGTH, range, &snapshot.carry, MAX_CARRY);
        }
        let note = &snapshot.packed.note;
        if note.len() + self.note_length(place) > 0 {
            self.write_bytes(entry + NOTE_LENGTH, self.note_of(place), note, MAX_NOTE);
        }
        self.set(entry + BAGGAGE, baggage_word(&snapshot.packed));
        self.enter(place, snapshot.place);
    }

    /// Writes bytes into a range, and how many they are into a word; there are `most` at the most.
    fn write_bytes(&self, length: usize, range: Range<usize>, bytes: &[u8], most: usize) {
        let before = (self.get(length) as usize).min(most);
        // What a client has sent stays no longer than it is needed.
        let rest = bytes.len().div_ceil(8)..before.div_ceil(8);
        let rest = self.words[range.clone()].get(rest).unwrap_or_default();
        rest.iter().for_each(|word| word.store(0, Relaxed));
        for (word, bytes) in self.words[range].iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Relaxed);
        }
        self.set(length, bytes.len().min(most) as u64);
    }

    /// How long the carry of an entry is.
    #[must_use]
    pub fn carry_length(&self, place: u32) -> usize {
        self.field(place, CARRY_LENGTH) as usize
    }

    /// How long the note of an entry is.
    #[must_use]
    pub fn note_length(&self, place: u32) -> usize {
        self.field(place, NOTE_LENGTH) as usize
    }

    /// Writes where a connection is now; all else stays.
    pub fn enter(&self, place: u32, at: Place) {
        let packed = match self.field(place, BAGGAGE) {
            0 => 0,
            _ => PACKED,
        };
        let away = match self.field(place, HOME) {
            0 => 0,
            _ => AWAY,
        };
        let state = code(&PLACES, at) + packed + away;
        self.words[self.begin_of(place) + STATE].store(state, Release);
    }

    /// Writes that the manager has the connection's luggage from now on.
    pub fn luggage_is_stored(&self, place: u32) {
        let baggage = self.field(place, BAGGAGE);
        if baggage & LUGGAGE != 0 {
            self.set(self.begin_of(place) + BAGGAGE, baggage | STORED);
        }
    }

    /// Takes an entry out.
    pub fn clear(&self, place: u32) {
        self.words[self.begin_of(place) + STATE].store(FREE, Release);
        for field in [CARRY_LENGTH, NOTE_LENGTH, BAGGAGE] {
            self.set(self.begin_of(place) + field, 0);
        }
    }

    /// An entry as it is at a time of the same clock: the cookie, and the connection; nothing where
    /// there is none.
    ///
    /// # Errors
    /// [`Malformed`] when it makes no sense.
    pub fn entry(&self, place: u32, clock: Duration) -> Result<Option<(u64, Snapshot)>, Malformed> {
        let state = self.field(place, STATE);
        if state == FREE {
            return Ok(None);
        }
        let field = |field| self.field(place, field);
        let (baggage, home) = (field(BAGGAGE), field(HOME));
        let added = [(baggage, PACKED), (home, AWAY)];
        let added = added.iter().filter(|(word, _)| *word != 0);
        let added = added.map(|(_, added)| added).sum();
        let state = state.checked_sub(added).ok_or(Malformed)?;
        let home = (home != 0).then(|| {
            Box::new(Home {
                pool: PoolKey(home),
                ..Home::named("".into())
            })
        });
        let carry = self.read_bytes(self.carry_of(place), self.carry_length(place), MAX_CARRY)?;
        let note = match baggage & NOTED {
            0 => Unforked::default(),
            _ => self.read_bytes(self.note_of(place), self.note_length(place), MAX_NOTE)?,
        };
        let snapshot = Snapshot {
            pool: PoolKey(field(POOL)),
            home,
            peer: peer_of(field(PEER), ADDRESS.map(field))?,
            place: meaning(&PLACES, state)?,
            interest: meaning(&INTERESTS, field(INTEREST))?,
            turns: field(TURNS),
            remaining: span(field(DEADLINE)).map(|deadline| deadline.saturating_sub(clock)),
            incomplete_for: span(field(INCOMPLETE)).map(|since| clock.saturating_sub(since)),
            time_left: None,
            total: Traffic {
                read: field(READ),
                written: field(WRITTEN),
            },
            stored: true,
            carry,
            packed: Packed {
                note,
                luggage: match (baggage & LUGGAGE, baggage & STORED) {
                    (0, _) => Packing::None,
                    (_, 0) => Packing::Held(0),
                    _ => Packing::Stored(0),
                },
                resumable: baggage & RESUMABLE != 0,
            },
        };
        Ok(Some((field(COOKIE), snapshot)))
    }

    fn read_bytes(
        &self,
        range: Range<usize>,
        length: usize,
        most: usize,
    ) -> Result<Unforked, Malformed> {
        if length > most {
            return Err(Malformed);
        }
        let mut read = Unforked::zeroed(length);
        for (bytes, word) in read.chunks_mut(8).zip(&self.words[range]) {
            bytes.copy_from_slice(&word.load(Relaxed).to_ne_bytes()[..bytes.len()]);
        }
        Ok(read)
    }
}

fn baggage_word(packed: &Packed) -> u64 {
    let luggage = match packed.luggage {
        Packing::None => 0,
        Packing::Held(_) => LUGGAGE,
        Packing::Stored(_) => LUGGAGE | STORED,
    };
    let bit = |set: bool, bit: u64| if set { bit } else { 0 };
    luggage | bit(packed.resumable, RESUMABLE) | bit(!packed.note.is_empty(), NOTED)
}

// A client's address as words: what it is, port and scope, and then the address.
const UNIX: u64 = 1;
const IPV4: u64 = 2;
const IPV6: u64 = 3;

fn peer_words(peer: Option<Peer>) -> (u64, [u64; 2]) {
    let inet = |kind: u64, port: u16, scope: u32, address: u128| {
        let first = kind << 56 | u64::from(port) << 32 | u64::from(scope);
        (first, [(address >> 64) as u64, address as u64])
    };
    match peer {
        None => (0, [0; 2]),
        Some(Peer::Unix) => (UNIX << 56, [0; 2]),
        Some(Peer::Inet(SocketAddr::V4(v4))) => {
            inet(IPV4, v4.port(), 0, u128::from(v4.ip().to_bits()))
        }
        Some(Peer::Inet(SocketAddr::V6(v6))) => {
            inet(IPV6, v6.port(), v6.scope_id(), v6.ip().to_bits())
        }
    }
}

fn peer_of(first: u64, address: [u64; 2]) -> Result<Option<Peer>, Malformed> {
    let (port, scope) = ((first >> 32) as u16, first as u32);
    let bits = u128::from(address[0]) << 64 | u128::from(address[1]);
    Ok(Some(match first >> 56 {
        0 => return Ok(None),
        UNIX => Peer::Unix,
        IPV4 => Peer::Inet((IpAddr::V4((bits as u32).into()), port).into()),
        IPV6 => Peer::Inet(SocketAddrV6::new(Ipv6Addr::from_bits(bits), port, 0, scope).into()),
        _ => return Err(Malformed),
    }))
}

fn code<T: PartialEq>(codes: &[(u64, T)], value: T) -> u64 {
    let found = codes.iter().find(|(_, known)| *known == value);
    found.map_or(FREE, |(code, _)| *code)
}

fn meaning<T: Copy>(codes: &[(u64, T)], code: u64) -> Result<T, Malformed> {
    let found = codes.iter().find(|(known, _)| *known == code);
    found.map(|(_, value)| *value).ok_or(Malformed)
}

/// A time as a word; 0 is none.
fn nanoseconds(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

fn span(nanoseconds: u64) -> Option<Duration> {
    (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests;
