//! What the old master and the new one say to each other. Pure.
//!
//! A message is one SEQPACKET datagram: a header line in ASCII and, behind it, the bytes that came along with a
//! connection. The first message of the new master names the version of all that follows; the old one refuses what it
//! does not know. Texts that may hold anything (names, addresses) are percent-encoded.
//!
//! ```text
//! new: TAKEOVER 1                     old: REFUSED reason, or
//!                                     old: LISTENER address file|-  (with its descriptor; each of them)
//!                                     old: OFFER
//! new: KEEP address  (each that it wants)
//! new: READY pool...                  old: CONNECTION pool peer turns ...  (with its descriptor; each of them)
//!                                     old: ALL count
//! new: CONFIRM count                  old: GO
//! new: DONE                           old: STORE mark  (if it has stored descriptors with a manager)
//! new: SETTLED                        old: CONNECTION ...  (as their turns end)
//! new: STOP  (if it is told to stop)  old: END
//! ```

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::wire::{MAX_CARRY, Peer, Traffic};

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// More than any message takes: a path, or a carry behind a short header.
pub const ROOM: usize = MAX_CARRY + 8 * 1024;

/// What the new master says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromNew {
    /// It wants to take over, and speaks this version.
    Takeover(u32),
    /// It goes on with the listener of this address.
    Keep(String),
    /// Its workers are ready. These are the pools that it has.
    Ready(Vec<String>),
    /// It has received so many connections.
    Confirm(u64),
    /// It serves.
    Done,
    /// Its control socket and its pid file are in their places.
    Settled,
    /// It was told to stop, and the old one is to stop with it.
    Stop,
}

/// What the old master says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromOld<'a> {
    /// It does not give anything away.
    Refused(String),
    /// The listener of an address, as the configuration has it. Its descriptor comes along.
    Listener {
        /// The address.
        address: String,
        /// The master that bound it has made the file of its Unix socket.
        has_file: bool,
    },
    /// That were all listeners.
    Offer,
    /// A connection. Its descriptor comes along.
    Connection(Passed<'a>),
    /// So many connections were sent: all that are not lent.
    All(u64),
    /// The new master is in charge, when it has said so.
    Go,
    /// The manager that started the server listens to the new master from now on. The old one had stored descriptors
    /// there, with this number in their names.
    Store(u64),
    /// The old master has nothing left.
    End,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// For a worker.
    Worker,
    /// For its client to send something.
    Input,
    /// For its client to take something.
    Output,
}

/// A connection as the one master knew it and the other one must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed<'a> {
    /// The pool that it belongs to.
    pub pool: Cow<'a, str>,
    /// The client.
    pub peer: Peer,
    /// How many turns it has had.
    pub turns: u64,
    /// What it waits for.
    pub waiting: Waiting,
    /// How much longer it may be parked; `None` is for ever.
    pub left: Option<Duration>,
    /// For how long the client has owed the rest of a request.
    pub owing: Option<Duration>,
    /// What all turns have moved.
    pub total: Traffic,
    /// The manager that started the server has a copy of it.
    pub stored: bool,
    /// What was read and not consumed.
    pub carry: &'a [u8],
}

/// Why bytes are not a message of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

fn escape(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, ESCAPED)
}

fn unescape(text: &str) -> Result<String, Malformed> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(Cow::into_owned).map_err(|_| Malformed)
}

/// The header and what follows it.
fn split(bytes: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or(Malformed)?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed)?;
    Ok((header, &bytes[end + 1..]))
}

fn number<T: std::str::FromStr>(text: Option<&str>) -> Result<T, Malformed> {
    let text = text.ok_or(Malformed)?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().map_err(|_| Malformed)?;
    digits.then_some(number).ok_or(Malformed)
}

/// Milliseconds, or `-` for none.
fn span(text: Option<&str>) -> Result<Option<Duration>, Malformed> {
    match text {
        Some("-") => Ok(None),
        text => Ok(Some(Duration::from_millis(number(text)?))),
    }
}

struct Span(Option<Duration>);

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(span) => span.as_millis().fmt(f),
            None => f.write_str("-"),
        }
    }
}

impl FromNew {
    /// As it is sent.
    #[must_use]
    pub fn header(&self) -> String {
        match self {
            Self::Takeover(version) => format!("TAKEOVER {version}\n"),
            Self::Keep(address) => format!("KEEP {}\n", escape(address)),
            Self::Ready(pools) => {
                let mut header = "READY".to_owned();
                for pool in pools {
                    let _ = write!(header, " {}", escape(pool));
                }
                header + "\n"
            }
            Self::Confirm(count) => format!("CONFIRM {count}\n"),
            Self::Done => "DONE\n".to_owned(),
            Self::Settled => "SETTLED\n".to_owned(),
            Self::Stop => "STOP\n".to_owned(),
        }
    }

    /// As it was received.
    ///
    /// # Errors
    /// [`Malformed`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (header, rest) = split(bytes)?;
        let mut words = header.split(' ');
        let message = match words.next() {
            Some("TAKEOVER") => Self::Takeover(number(words.next())?),
            Some("KEEP") => Self::Keep(unescape(words.next().ok_or(Malformed)?)?),
            Some("READY") => {
                let pools: Result<_, _> = words.by_ref().map(unescape).collect();
                Self::Ready(pools?)
            }
            Some("CONFIRM") => Self::Confirm(number(words.next())?),
            Some("DONE") => Self::Done,
            Some("SETTLED") => Self::Settled,
            Some("STOP") => Self::Stop,
            _ => return Err(Malformed),
        };
        let whole = words.next().is_none() && rest.is_empty();
        whole.then_some(message).ok_or(Malformed)
    }
}

impl<'a> FromOld<'a> {
    /// As it is sent, but for the carry.
    #[must_use]
    pub fn header(&self) -> String {
        match self {
            Self::Refused(reason) => format!("REFUSED {}\n", escape(reason)),
            Self::Listener { address, has_file } => {
                let file = if *has_file { "file" } else { "-" };
                format!("LISTENER {} {file}\n", escape(address))
            }
            Self::Offer => "OFFER\n".to_owned(),
            Self::Connection(passed) => passed.header(),
            Self::All(count) => format!("ALL {count}\n"),
            Self::Go => "GO\n".to_owned(),
            Self::Store(mark) => format!("STORE {mark}\n"),
            Self::End => "END\n".to_owned(),
        }
    }

    /// As it was received.
    ///
    /// # Errors
    /// [`Malformed`] for anything else.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = split(bytes)?;
        let mut words = header.split(' ');
        let text =
            |words: &mut dyn Iterator<Item = &'a str>| unescape(words.next().ok_or(Malformed)?);
        let message = match words.next() {
            Some("REFUSED") => Self::Refused(text(&mut words)?),
            Some("LISTENER") => Self::Listener {
                address: text(&mut words)?,
                has_file: match words.next() {
                    Some("file") => true,
                    Some("-") => false,
                    _ => return Err(Malformed),
                },
            },
            Some("OFFER") => Self::Offer,
            Some("CONNECTION") => Self::Connection(Passed::parse(&mut words, rest)?),
            Some("ALL") => Self::All(number(words.next())?),
            Some("GO") => Self::Go,
            Some("STORE") => Self::Store(number(words.next())?),
            Some("END") => Self::End,
            _ => return Err(Malformed),
        };
        let carries = matches!(message, Self::Connection(_));
        let whole = words.next().is_none() && (carries || rest.is_empty());
        whole.then_some(message).ok_or(Malformed)
    }
}

impl<'a> Passed<'a> {
    fn header(&self) -> String {
        let waiting = match self.waiting {
            Waiting::Worker => "worker",
            Waiting::Input => "input",
            Waiting::Output => "output",
        };
        format!(
            "CONNECTION {} {} {} {waiting} {} {} {} {} {}\n",
            escape(&self.pool),
            self.peer,
            self.turns,
            Span(self.left),
            Span(self.owing),
            self.total.read,
            self.total.written,
            if self.stored { "stored" } else { "-" },
        )
    }

    fn parse(words: &mut dyn Iterator<Item = &'a str>, carry: &'a [u8]) -> Result<Self, Malformed> {
        if carry.len() > MAX_CARRY {
            return Err(Malformed);
        }
        Ok(Self {
            pool: unescape(words.next().ok_or(Malformed)?)?.into(),
            peer: words
                .next()
                .and_then(|peer| peer.parse().ok())
                .ok_or(Malformed)?,
            turns: number(words.next())?,
            waiting: match words.next() {
                Some("worker") => Waiting::Worker,
                Some("input") => Waiting::Input,
                Some("output") => Waiting::Output,
                _ => return Err(Malformed),
            },
            left: span(words.next())?,
            owing: span(words.next())?,
            total: Traffic {
                read: number(words.next())?,
                written: number(words.next())?,
            },
            stored: match words.next() {
                Some("stored") => true,
                Some("-") => false,
                _ => return Err(Malformed),
            },
            carry,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spans() -> impl Strategy<Value = Option<Duration>> {
        proptest::option::of(any::<u32>().prop_map(|ms| Duration::from_millis(ms.into())))
    }

    proptest! {
        #[test]
        fn what_the_new_master_says_arrives(version: u32, texts: Vec<String>, count: u64) {
            let text = texts.first().cloned().unwrap_or_default();
            for message in [
                FromNew::Takeover(version),
                FromNew::Keep(text + "x"),
                FromNew::Ready(texts.into_iter().map(|text| text + "x").collect()),
                FromNew::Confirm(count),
                FromNew::Done,
                FromNew::Settled,
                FromNew::Stop,
            ] {
                prop_assert_eq!(FromNew::parse(message.header().as_bytes()), Ok(message));
            }
        }

        #[test]
        fn what_the_old_master_says_arrives(
            text: String,
            turns: u64,
            left in spans(),
            owing in spans(),
            traffic: (u64, u64),
            stored: bool,
            carry: Vec<u8>,
            waiting in prop_oneof![Just(Waiting::Worker), Just(Waiting::Input), Just(Waiting::Output)],
        ) {
            let passed = Passed {
                pool: (text.clone() + "x").into(),
                peer: Peer::Inet(([127, 0, 0, 1], 80).into()),
                turns,
                waiting,
                left,
                owing,
                total: Traffic { read: traffic.0, written: traffic.1 },
                stored,
                carry: &carry,
            };
            for message in [
                FromOld::Refused(text.clone() + "x"),
                FromOld::Listener { address: text.clone() + "x", has_file: turns % 2 == 0 },
                FromOld::Offer,
                FromOld::Connection(passed),
                FromOld::All(turns),
                FromOld::Go,
                FromOld::Store(turns),
                FromOld::End,
            ] {
                let mut bytes = message.header().into_bytes();
                if let FromOld::Connection(passed) = &message {
                    bytes.extend_from_slice(passed.carry);
                }
                prop_assert_eq!(FromOld::parse(&bytes), Ok(message));
            }
        }

        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>) {
            let _ = FromNew::parse(&bytes);
            let _ = FromOld::parse(&bytes);
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        for text in [
            "DONE now\n",
            "DONE\nmore",
            "CONFIRM +1\n",
            "CONFIRM\n",
            "READY",
            "BYE\n",
            "",
        ] {
            assert_eq!(FromNew::parse(text.as_bytes()), Err(Malformed), "{text}");
        }
        for text in [
            "GO on\n",
            "GO\nx",
            "ALL -1\n",
            "CONNECTION main\n",
            "LISTENER %ff file\n",
            "LISTENER [::]:80 maybe\n",
            "LISTENER [::]:80\n",
        ] {
            assert_eq!(FromOld::parse(text.as_bytes()), Err(Malformed), "{text}");
        }
    }
}
