//! A connection as another master must know it to go on with it. Pure.
//!
//! There are two forms of it: a line of text for a master that takes over (below), and words of the
//! ledger for one that comes after a crash ([`ledger`](super::store::ledger)). Both name their
//! fields, so that two versions of the program understand each other: a field that the reader does
//! not know is passed over if it is written `name=value`, and makes the reader refuse the whole if
//! it is written `name!=value`. A field that is missing has its default.
//!
//! ```text
//! pool=main peer=127.0.0.1:45694 waiting=input turns=3 remaining=75000 read=234 written=1704
//! ```
//!
//! Version 1 had the values alone, in a fixed order; it is still read and written. From version 3
//! on, note, luggage and resumable turns come along. A master that reads less must not go on with a
//! connection that has some of these.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use percent_encoding::{
    AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode,
};

use super::dispatch::{Interest, Progress, TimeLeft};
use crate::service::Peer;
use crate::sys::unforked::Unforked;
use crate::wire::Traffic;

/// The version of the line that this program writes.
pub const VERSION: u32 = 3;
/// The first one that names its fields.
const NAMED: u32 = 2;
/// The first one that has what travels with few connections.
pub const WITH_BAGGAGE: u32 = 3;

/// Where a connection was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// With the master, waiting for its client.
    Parked,
    /// With the master, waiting for a worker.
    Ready,
    /// With a worker; all else in the snapshot is from before that turn.
    Lent,
    /// With the master, which was about to end it.
    Ending,
}

/// A pool, by a hash of its name (FNV-1a): the ledger has a word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolKey(pub u64);

/// Where a connection is at home that is with another pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The pool.
    pub pool: PoolKey,
    /// Its name, which a ledger does not say.
    pub name: Rc<str>,
    /// What the service there has noted about the client.
    pub note: Unforked,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The pool that has the connection.
    pub pool: PoolKey,
    /// Its own pool, if that is another one.
    pub home: Option<Box<Home>>,
    /// The client; `None` in a ledger of version 1, which does not say.
    pub peer: Option<Peer>,
    /// Where the connection was.
    pub place: Place,
    /// What it waited for. Output also says that a response is unfinished, wherever it was.
    pub interest: Interest,
    /// How many turns it has had, the one in which it is not included.
    pub turns: u64,
    /// How much longer it may be parked; `None` is for ever.
    pub remaining: Option<Duration>,
    /// How long ago the client began the request that it has not completed.
    pub incomplete_for: Option<Duration>,
    /// How much time the client has left for what else is due. A ledger does not say.
    pub time_left: Option<TimeLeft>,
    /// What all turns have moved.
    pub total: Traffic,
    /// A service manager has a copy of its descriptor.
    pub stored: bool,
    /// What was read from the client and not consumed.
    pub carry: Unforked,
    /// What else travels with the connection.
    pub packed: Packed,
}

/// What travels with few connections, but for the luggage itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// What the service has noted about the client.
    pub note: Unforked,
    /// The connection has luggage.
    pub luggage: Packing,
    /// If the worker of the next turn dies, the connection is lent again as it stands.
    pub resumable: bool,
}

/// Whether a connection has luggage, and who.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packing {
    /// It has none.
    #[default]
    None,
    /// The master has it. The number is another one for each piece of luggage that this master has
    /// had, and another master's business never.
    Held(u64),
    /// A service manager has a copy, too.
    Stored(u64),
}

impl Packed {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.note.is_empty() && self.luggage == Packing::None && !self.resumable
    }
}

/// A line, or a ledger's entry, that no master has written, or one that asks for more than this
/// version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl PoolKey {
    /// The key of the pool of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }
}

impl Home {
    /// The pool of this name, without a note.
    #[must_use]
    pub fn named(name: Rc<str>) -> Self {
        Self {
            pool: PoolKey::of(&name),
            name,
            note: Unforked::default(),
        }
    }
}

impl Snapshot {
    /// What the dispatcher must know of it.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            ready: self.place == Place::Ready,
            turns: self.turns,
            remaining: self.remaining,
            incomplete_for: self.incomplete_for,
            time_left: self.time_left,
        }
    }

    /// The line for another master which speaks this version, without its end. Note and carry
    /// follow the line.
    #[must_use]
    pub fn line(&self, pool: &str, version: u32) -> String {
        let pool = escape(pool);
        let peer = self.peer.unwrap_or(Peer::Unix);
        let waiting = self.waiting();
        let Traffic { read, written } = self.total;
        let millis = |span: Option<Duration>| span.map(|span| span.as_millis());
        let (remaining, incomplete) = (millis(self.remaining), millis(self.incomplete_for));
        if version < NAMED {
            let or_none = |number: Option<u128>| number.map_or("-".into(), |n| n.to_string());
            let (remaining, incomplete) = (or_none(remaining), or_none(incomplete));
            let stored = if self.stored { "stored" } else { "-" };
            let turns = self.turns;
            return format!(
                "{pool} {peer} {turns} {waiting} {remaining} {incomplete} {read} {written} {stored}"
            );
        }
        let mut line = format!(
            "pool={pool} peer={peer} waiting={waiting} turns={}",
            self.turns
        );
        let (body, reading) = match self.time_left {
            Some(TimeLeft::Body(left)) => (Some(left), None),
            Some(TimeLeft::Reading(left)) => (None, Some(left)),
            None => (None, None),
        };
        for (name, value) in [
            ("remaining", remaining),
            ("incomplete", incomplete),
            ("body", millis(body)),
            ("reading", millis(reading)),
        ] {
            if let Some(value) = value {
                let _ = write!(line, " {name}={value}");
            }
        }
        let _ = write!(line, " read={read} written={written}");
        // Who goes on with the connection and does not know this would not send it home.
        if let Some(home) = &self.home {
            let _ = write!(line, " home!={}", escape(&home.name));
            if !home.note.is_empty() {
                let note = percent_encode(&home.note, NON_ALPHANUMERIC);
                let _ = write!(line, " home-note!={note}");
            }
        }
        if self.stored {
            line.push_str(" stored=1");
        }
        if self.place == Place::Ready && self.interest == Interest::Output {
            line.push_str(" unfinished=1");
        }
        if version >= WITH_BAGGAGE {
            self.packed.write_to(&mut line);
        }
        line
    }

    fn waiting(&self) -> &'static str {
        match (self.place, self.interest) {
            (Place::Ready, _) => "worker",
            (_, Interest::Output) => "output",
            (_, Interest::Input | Interest::NewInput) => "input",
        }
    }

    /// Reads the words of a [line](Self::line) in this version; `rest` is what followed it. Returns
    /// the name of the pool with it.
    ///
    /// # Errors
    /// [`Malformed`] when a word makes no sense, is missing, or must be known and is not.
    pub fn parse<'a>(
        words: impl Iterator<Item = &'a str>,
        version: u32,
        rest: &[u8],
    ) -> Result<(String, Self), Malformed> {
        let mut name = None;
        let mut snapshot = Self {
            pool: PoolKey(0),
            home: None,
            peer: None,
            place: Place::Parked,
            interest: Interest::Input,
            turns: 0,
            remaining: None,
            incomplete_for: None,
            time_left: None,
            total: Traffic::default(),
            stored: false,
            carry: Unforked::default(),
            packed: Packed::default(),
        };
        let (mut given, mut note) = (0, 0);
        let mut home_note = Unforked::default();
        let mut fields = FIELDS.iter();
        for word in words {
            let (field, value, required) = if version < NAMED {
                let field = fields.next().ok_or(Malformed)?;
                (*field, word, true)
            } else {
                let (field, value) = word.split_once('=').ok_or(Malformed)?;
                let required = field.ends_with('!');
                (field.trim_end_matches('!'), value, required)
            };
            given += 1;
            match field {
                "pool" => name = Some(unescape(value)?),
                "home" => snapshot.home = Some(Box::new(Home::named(unescape(value)?.into()))),
                "home-note" => home_note = unescaped_bytes(value),
                "peer" => snapshot.peer = Some(value.parse().map_err(|_| Malformed)?),
                "waiting" => (snapshot.place, snapshot.interest) = waiting_for(value)?,
                "turns" => snapshot.turns = number(value)?,
                "remaining" => snapshot.remaining = span(value)?,
                "incomplete" => snapshot.incomplete_for = span(value)?,
                "body" => snapshot.time_left = span(value)?.map(TimeLeft::Body),
                "reading" => snapshot.time_left = span(value)?.map(TimeLeft::Reading),
                "read" => snapshot.total.read = number(value)?,
                "written" => snapshot.total.written = number(value)?,
                "stored" => snapshot.stored = flag(value)?,
                "unfinished" if flag(value)? => snapshot.interest = Interest::Output,
                "note" => note = number(value)?,
                "luggage" => snapshot.packed.luggage = packing(value)?,
                "resumable" => snapshot.packed.resumable = flag(value)?,
                _ if required => return Err(Malformed),
                _ => {}
            }
        }
        if let Some(home) = &mut snapshot.home {
            home.note = home_note;
        }
        let parts = rest.split_at_checked(note).ok_or(Malformed)?;
        (snapshot.packed.note, snapshot.carry) = (parts.0.into(), parts.1.into());
        let whole = version >= NAMED || given == FIELDS.len();
        let name = name.filter(|_| whole && snapshot.peer.is_some());
        let name = name.ok_or(Malformed)?;
        snapshot.pool = PoolKey::of(&name);
        Ok((name, snapshot))
    }
}

impl Packed {
    /// Adds what there is to a line. A reader that does not know it must not go on.
    fn write_to(&self, line: &mut String) {
        if !self.note.is_empty() {
            let _ = write!(line, " note!={}", self.note.len());
        }
        match self.luggage {
            Packing::None => {}
            Packing::Held(_) => line.push_str(" luggage!=held"),
            Packing::Stored(_) => line.push_str(" luggage!=stored"),
        }
        if self.resumable {
            line.push_str(" resumable!=1");
        }
    }
}

fn packing(value: &str) -> Result<Packing, Malformed> {
    match value {
        "held" => Ok(Packing::Held(0)),
        "stored" => Ok(Packing::Stored(0)),
        _ => Err(Malformed),
    }
}

/// The order of the fields in version 1.
const FIELDS: [&str; 9] = [
    "pool",
    "peer",
    "turns",
    "waiting",
    "remaining",
    "incomplete",
    "read",
    "written",
    "stored",
];

fn waiting_for(value: &str) -> Result<(Place, Interest), Malformed> {
    match value {
        "worker" => Ok((Place::Ready, Interest::Input)),
        "input" => Ok((Place::Parked, Interest::Input)),
        "output" => Ok((Place::Parked, Interest::Output)),
        _ => Err(Malformed),
    }
}

fn flag(value: &str) -> Result<bool, Malformed> {
    match value {
        "1" | "stored" => Ok(true),
        "0" | "-" => Ok(false),
        _ => Err(Malformed),
    }
}

/// Milliseconds; `-` is none.
fn span(value: &str) -> Result<Option<Duration>, Malformed> {
    match value {
        "-" => Ok(None),
        value => Ok(Some(Duration::from_millis(number(value)?))),
    }
}

/// A number in digits alone.
///
/// # Errors
/// [`Malformed`] for anything else.
pub fn number<T: std::str::FromStr>(text: &str) -> Result<T, Malformed> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().map_err(|_| Malformed)?;
    digits.then_some(number).ok_or(Malformed)
}

const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// A text as a word of a line, whatever is in it.
pub fn escape(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, ESCAPED)
}

/// The text that was escaped so.
///
/// # Errors
/// [`Malformed`] when it is not UTF-8.
pub fn unescape(word: &str) -> Result<String, Malformed> {
    let text = percent_decode_str(word).decode_utf8();
    text.map(Cow::into_owned).map_err(|_| Malformed)
}

/// Bytes that were escaped as a word of a line.
fn unescaped_bytes(word: &str) -> Unforked {
    let bytes: Vec<u8> = percent_decode_str(word).collect();
    bytes.as_slice().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spans() -> impl Strategy<Value = Option<Duration>> {
        proptest::option::of(any::<u32>().prop_map(|ms| Duration::from_millis(ms.into())))
    }

    fn time_left() -> impl Strategy<Value = Option<TimeLeft>> {
        (any::<bool>(), spans()).prop_map(|(body, left)| match body {
            true => left.map(TimeLeft::Body),
            false => left.map(TimeLeft::Reading),
        })
    }

    fn packed() -> impl Strategy<Value = Packed> {
        let luggage = prop_oneof![
            Just(Packing::None),
            Just(Packing::Held(0)),
            Just(Packing::Stored(0)),
        ];
        (any::<Vec<u8>>(), luggage, any::<bool>()).prop_map(|(note, luggage, resumable)| Packed {
            note: (&note[..]).into(),
            luggage,
            resumable,
        })
    }

    fn places() -> impl Strategy<Value = (Place, Interest)> {
        prop_oneof![
            Just((Place::Ready, Interest::Input)),
            Just((Place::Parked, Interest::Input)),
            Just((Place::Parked, Interest::Output)),
        ]
    }

    proptest! {
        #[test]
        fn a_snapshot_survives_its_line_in_all_versions(
            name: String,
            turns: u64,
            (place, interest) in places(),
            remaining in spans(),
            incomplete_for in spans(),
            time_left in time_left(),
            traffic: (u64, u64),
            stored: bool,
            carry: Vec<u8>,
            packed in packed(),
        ) {
            let name = name + "x";
            let snapshot = Snapshot {
                pool: PoolKey::of(&name),
                home: None,
                peer: Some(Peer::Inet(([127, 0, 0, 1], 80).into())),
                place,
                interest,
                turns,
                remaining,
                incomplete_for,
                time_left,
                total: Traffic { read: traffic.0, written: traffic.1 },
                stored,
                carry: (&carry[..]).into(),
                packed,
            };
            let line = snapshot.line(&name, 3);
            let rest = [&*snapshot.packed.note, &carry].concat();
            let parsed = Snapshot::parse(line.split(' '), 3, &rest);
            prop_assert_eq!(parsed, Ok((name.clone(), snapshot.clone())), "{}", line);
            let plain = Snapshot { packed: Packed::default(), ..snapshot };
            let line = plain.line(&name, 2);
            let parsed = Snapshot::parse(line.split(' '), 2, &carry);
            prop_assert_eq!(parsed, Ok((name.clone(), plain.clone())), "{}", line);
            let line = plain.line(&name, 1);
            let parsed = Snapshot::parse(line.split(' '), 1, &carry);
            let known = Snapshot { time_left: None, ..plain };
            prop_assert_eq!(parsed, Ok((name, known)), "{}", line);
        }

        #[test]
        fn no_line_makes_the_reader_panic(line: String, version in 1..4u32) {
            let _ = Snapshot::parse(line.split(' '), version, b"");
        }
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over_unless_it_must_be_known() {
        let read = |line: &'static str| Snapshot::parse(line.split(' '), 3, b"");
        let (name, plain) = read("pool=web peer=unix").unwrap();
        assert_eq!((name.as_str(), plain.turns), ("web", 0));
        assert_eq!(read("pool=web mood=good peer=unix"), Ok((name, plain)));
        for line in [
            "pool=web peer=unix wings!=1",
            "pool=web peer=unix luggage!=1",
            "pool=web peer=unix note!=1",
            "pool=web peer=unix turns",
            "pool=web peer=unix turns=+1",
            "pool=web peer=unix waiting=bus",
            "pool=%ff peer=unix",
            "pool=web",
            "peer=unix",
            "",
        ] {
            assert_eq!(read(line), Err(Malformed), "{line}");
        }
    }

    #[test]
    fn a_connection_that_is_away_says_where_it_is_at_home() {
        let (_, plain) = Snapshot::parse(["pool=app", "peer=unix"].into_iter(), 2, b"").unwrap();
        for note in [&b""[..], b"a note", &[0, b' ', b'\n', 0xff, b'%', b'=']] {
            let mut home = Home::named("my site".into());
            home.note = note.into();
            let away = Snapshot {
                home: Some(Box::new(home)),
                ..plain.clone()
            };
            let line = away.line("app", 2);
            assert!(line.contains(" home!=my%20site"), "{line}");
            let read = Snapshot::parse(line.split(' '), 2, b"");
            assert_eq!(read, Ok(("app".to_owned(), away)));
        }
    }

    #[test]
    fn an_unfinished_response_is_known_wherever_the_connection_is() {
        let line = "pool=web peer=unix waiting=worker turns=2 read=1 written=1 unfinished=1";
        let (name, snapshot) = Snapshot::parse(line.split(' '), 2, b"").unwrap();
        assert_eq!(snapshot.place, Place::Ready);
        assert_eq!(snapshot.interest, Interest::Output);
        assert_eq!(snapshot.line(&name, 2), line);
    }

    #[test]
    fn version_1_has_all_values_and_no_more() {
        let read = |line: &'static str| Snapshot::parse(line.split(' '), 1, b"");
        let whole = "web 127.0.0.1:80 3 input 75000 - 10 20 stored";
        assert_eq!(read(whole).unwrap().1.turns, 3);
        for line in [
            "web 127.0.0.1:80 3 input 75000 - 10 20",
            "web 127.0.0.1:80 3 input 75000 - 10 20 stored more",
            "web",
        ] {
            assert_eq!(read(line), Err(Malformed), "{line}");
        }
    }
}
