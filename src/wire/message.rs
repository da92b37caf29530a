//! The messages as values.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// The most bytes of carry that a message, and therefore a connection, may have.
pub const MAX_CARRY: usize = 64 * 1024;

/// The most bytes of note that a message, and therefore a connection, may have: 4 KiB of the
/// service's, and what a library keeps in front of them.
pub const MAX_NOTE: usize = 4096 + 256;

/// The longest header line in bytes, its newline included.
pub const MAX_HEADER: usize = 192;

/// The longest name of a pool in `PASS`, in bytes as it is written there.
pub const MAX_POOL_NAME: usize = 96;

/// The size of a buffer that takes any message, in bytes.
pub const MAX_MESSAGE: usize = MAX_HEADER + MAX_NOTE + MAX_CARRY;

/// The client at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP client at this address.
    Inet(SocketAddr),
    /// A client of a Unix socket. It has no address, because such clients rarely bind one.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl FromStr for Peer {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unix" {
            Ok(Self::Unix)
        } else {
            text.parse().map(Self::Inet)
        }
    }
}

/// A message from the master to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToWorker<'a> {
    /// Serve one turn of the connection whose descriptor comes with this message.
    Lend(Lend<'a>),
    /// Finish the turn that is being served, then exit.
    Retire,
}

/// A loan of one connection for one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lend<'a> {
    /// The connection's id, which the report repeats. A master never uses an id twice.
    pub id: u64,
    /// The number of this turn of the connection, from 1.
    pub turn: u64,
    /// The client at the other end.
    pub peer: Peer,
    /// Whether the master watches the connection while it is lent. If so, a report that parks the
    /// connection is not urgent.
    pub watched: bool,
    /// The luggage comes as a second descriptor.
    pub luggage: bool,
    /// The connection was passed on by another pool, to which it goes home.
    pub away: bool,
    /// What turns have moved since the last report, because their workers died: the turn before
    /// was resumable, and goes on from there.
    pub moved: Traffic,
    /// What the service has noted about this client.
    pub note: &'a [u8],
    /// The bytes that an earlier turn read and did not consume.
    pub carry: &'a [u8],
}

impl<'a> Lend<'a> {
    /// The first turn of a connection, with nothing that an earlier one has left.
    #[must_use]
    pub fn first(id: u64, peer: Peer) -> Self {
        Self {
            id,
            turn: 1,
            peer,
            watched: false,
            luggage: false,
            away: false,
            moved: Traffic::default(),
            note: &[],
            carry: &[],
        }
    }
}

/// The name of a pool as a word of a message: percent-encoded. `None` if it is too long.
#[must_use]
pub fn pool_word(name: &str) -> Option<String> {
    let word = utf8_percent_encode(name, SPECIAL).to_string();
    (word.len() <= MAX_POOL_NAME).then_some(word)
}

const SPECIAL: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// How many bytes a turn moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// The bytes read from the client.
    pub read: u64,
    /// The bytes written to the client.
    pub written: u64,
}

/// What is to become of a connection after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Lend the connection again when there is something to read. That may be so already.
    Park,
    /// Lend the connection again when the client sends more. All that it has sent was read.
    ParkDrained,
    /// Lend the connection again when the client has made room for more bytes to be sent.
    ParkWrite,
    /// Lend the connection again at once, after the others that wait.
    Again,
    /// The request is served. If another pool has passed the connection on, it goes back there, and
    /// its next request begins there; else this is [`Park`](Self::Park).
    Home,
    /// Another pool is to serve the request that has begun.
    Pass,
    /// Close the connection.
    Close,
    /// Discard for a while what the client may still be sending, then close the connection.
    Linger,
}

impl Outcome {
    pub(super) const ALL: [(Self, &'static str); 8] = [
        (Self::Park, "PARK"),
        (Self::ParkDrained, "PARK-DRAINED"),
        (Self::ParkWrite, "PARK-WRITE"),
        (Self::Again, "AGAIN"),
        (Self::Home, "HOME"),
        (Self::Pass, "PASS"),
        (Self::Close, "CLOSE"),
        (Self::Linger, "LINGER"),
    ];

    /// Whether the connection stays open after this outcome, and so may have a carry.
    #[must_use]
    pub fn keeps(self) -> bool {
        !matches!(self, Self::Close | Self::Linger)
    }

    pub(super) fn verb(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(outcome, _)| *outcome == self)
            .map_or("", |(_, verb)| verb)
    }
}

/// A worker's report of a turn that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report<'a> {
    /// The connection's id, as the lend gave it.
    pub id: u64,
    /// What is to become of the connection.
    pub outcome: Outcome,
    /// The bytes that the turn moved. If a worker leaves this out, the master asks the kernel.
    pub traffic: Option<Traffic>,
    /// What only some reports say.
    pub extras: Extras<'a>,
    /// The bytes that were read and not consumed. The next lend brings them back.
    pub carry: &'a [u8],
}

/// What only some reports say, and none of those on a scoreboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extras<'a> {
    /// The service's note, in place of the one before; `None` leaves that as it is.
    pub note: Option<&'a [u8]>,
    /// What becomes of the luggage.
    pub luggage: LuggageChange,
    /// If the worker of the next turn dies, the connection is lent again as it is now.
    pub resumable: bool,
    /// The client owes the rest of a body, whose head is complete.
    pub body: bool,
    /// With [`Outcome::Pass`], the name of the other pool, percent-encoded; else empty.
    pub pool: &'a str,
}

impl Extras<'_> {
    /// Whether something of this stays with the connection: if not, the report says nothing of what
    /// travels with it.
    #[must_use]
    pub fn stay(&self) -> bool {
        self.note.is_some() || self.luggage != LuggageChange::None || self.resumable
    }
}

/// What a report says about the connection's luggage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LuggageChange {
    /// It stays as it is.
    #[default]
    None,
    /// A descriptor comes with the report, in place of the one before.
    New,
    /// There is none from now on.
    Gone,
}

/// A message from a worker to the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromWorker<'a> {
    /// The worker can serve from now on.
    Ready {
        /// The worker takes luggage, and may send some.
        luggage: bool,
    },
    /// A turn has ended.
    Report(Report<'a>),
}

/// Why a message was refused, as a phrase for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub(super) &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}
