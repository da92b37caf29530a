//! What the old master and the new one say to each other. Pure.
//!
//! A message is one SEQPACKET datagram: a header line in ASCII and, behind it, the bytes that came
//! along with a connection. The first message of the new master names the version of all that
//! follows; the old one refuses what it does not know. Texts that may hold anything (names,
//! addresses) are percent-encoded. The versions differ in the form of a connection only
//! ([`snapshot`](crate::master::snapshot)).
//!
//! ```text
//! new: TAKEOVER 3              old: REFUSED reason, or
//!                              old: LISTENER address file|-  (with its descriptor; each of them)
//!                              old: OFFER
//! new: KEEP address  (each that it wants)
//! new: READY pool...           old: CONNECTION pool=... peer=...  (with its descriptor, and its
//!                                   luggage's if it has some; each)
//!                              old: ALL count
//! new: CONFIRM count           old: GO
//! new: DONE                    old: STORE instance  (if it has stored with a manager)
//! new: SETTLED                 old: CONNECTION ...  (as their turns end)
//! new: STOP  (if it is told)   old: END
//! ```

use std::fmt::Write as _;

use crate::master::snapshot::{Malformed, Snapshot, escape, number, unescape};
use crate::wire::{MAX_CARRY, MAX_NOTE};

/// The version of this protocol, and the oldest one that is still spoken.
pub const VERSION: u32 = crate::master::snapshot::VERSION;
/// See [`VERSION`].
pub const OLDEST_VERSION: u32 = 1;

/// More than any message takes: a path, or note and carry behind a header. That may have another
/// note, with three bytes for each of its own.
pub const ROOM: usize = 4 * MAX_NOTE + MAX_CARRY + 8 * 1024;

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
    /// It serves from now on.
    Done,
    /// Its control socket and its pid file are in their places.
    Settled,
    /// It was told to stop, and the old one is to stop with it.
    Stop,
}

/// What the old master says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromOld {
    /// It hands nothing over, and this is why.
    Refused(String),
    /// The listener of an address, as the configuration has it. Its descriptor comes along.
    Listener {
        /// The address.
        address: String,
        /// The master that bound it has made the file of its Unix socket.
        has_file: bool,
    },
    /// All listeners were sent.
    Offer,
    /// A connection of the pool of this name. Its descriptor comes along.
    Connection(String, Snapshot),
    /// So many connections were sent: all that are not lent.
    All(u64),
    /// The new master is in charge, when it has said so.
    Go,
    /// The manager that started the server listens to the new master from now on. The old one had
    /// stored descriptors there, with this number in their names.
    Store(u64),
    /// The old master has nothing left.
    End,
}

/// The header line of a message, and the bytes behind it.
fn split(bytes: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or(Malformed)?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed)?;
    Ok((header, &bytes[end + 1..]))
}

impl FromNew {
    /// The message as it is sent.
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

    /// The message that was received.
    ///
    /// # Errors
    /// [`Malformed`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (header, rest) = split(bytes)?;
        let mut words = header.split(' ');
        let message = match words.next() {
            Some("TAKEOVER") => Self::Takeover(number(words.next().ok_or(Malformed)?)?),
            Some("KEEP") => Self::Keep(unescape(words.next().ok_or(Malformed)?)?),
            Some("READY") => {
                let pools: Result<_, _> = words.by_ref().map(unescape).collect();
                Self::Ready(pools?)
            }
            Some("CONFIRM") => Self::Confirm(number(words.next().ok_or(Malformed)?)?),
            Some("DONE") => Self::Done,
            Some("SETTLED") => Self::Settled,
            Some("STOP") => Self::Stop,
            _ => return Err(Malformed),
        };
        let whole = words.next().is_none() && rest.is_empty();
        whole.then_some(message).ok_or(Malformed)
    }
}

impl FromOld {
    /// The message as it is sent, without note and carry.
    #[must_use]
    pub fn header(&self, version: u32) -> String {
        match self {
            Self::Refused(reason) => format!("REFUSED {}\n", escape(reason)),
            Self::Listener { address, has_file } => {
                let file = if *has_file { "file" } else { "-" };
                format!("LISTENER {} {file}\n", escape(address))
            }
            Self::Offer => "OFFER\n".to_owned(),
            Self::Connection(pool, snapshot) => {
                format!("CONNECTION {}\n", snapshot.line(pool, version))
            }
            Self::All(count) => format!("ALL {count}\n"),
            Self::Go => "GO\n".to_owned(),
            Self::Store(instance) => format!("STORE {instance}\n"),
            Self::End => "END\n".to_owned(),
        }
    }

    /// The message that was received.
    ///
    /// # Errors
    /// [`Malformed`] for anything else.
    pub fn parse(bytes: &[u8], version: u32) -> Result<Self, Malformed> {
        let (header, rest) = split(bytes)?;
        let mut words = header.split(' ');
        let text = |words: &mut std::str::Split<'_, char>| unescape(words.next().ok_or(Malformed)?);
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
            Some("CONNECTION") => {
                let (pool, snapshot) = Snapshot::parse(words.by_ref(), version, rest)?;
                if snapshot.carry.len() > MAX_CARRY || snapshot.packed.note.len() > MAX_NOTE {
                    return Err(Malformed);
                }
                Self::Connection(pool, snapshot)
            }
            Some("ALL") => Self::All(number(words.next().ok_or(Malformed)?)?),
            Some("GO") => Self::Go,
            Some("STORE") => Self::Store(number(words.next().ok_or(Malformed)?)?),
            Some("END") => Self::End,
            _ => return Err(Malformed),
        };
        let carries = matches!(message, Self::Connection(..));
        let whole = words.next().is_none() && (carries || rest.is_empty());
        whole.then_some(message).ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        fn what_the_old_master_says_arrives(text: String, count: u64, carry: Vec<u8>) {
            let name = text.clone() + "x";
            let line = format!("pool={} peer=127.0.0.1:80 turns={count}", escape(&name));
            let words = line.split(' ');
            let (pool, snapshot) = Snapshot::parse(words, VERSION, &carry).unwrap();
            for message in [
                FromOld::Refused(name.clone()),
                FromOld::Listener { address: name, has_file: count % 2 == 0 },
                FromOld::Offer,
                FromOld::Connection(pool, snapshot),
                FromOld::All(count),
                FromOld::Go,
                FromOld::Store(count),
                FromOld::End,
            ] {
                for version in [1, 2, 3] {
                    let mut bytes = message.header(version).into_bytes();
                    if let FromOld::Connection(_, snapshot) = &message {
                        bytes.extend_from_slice(&snapshot.carry);
                    }
                    prop_assert_eq!(&FromOld::parse(&bytes, version), &Ok(message.clone()));
                }
            }
        }

        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>) {
            let _ = FromNew::parse(&bytes);
            let _ = FromOld::parse(&bytes, 1);
            let _ = FromOld::parse(&bytes, 2);
            let _ = FromOld::parse(&bytes, 3);
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
            assert_eq!(
                FromOld::parse(text.as_bytes(), VERSION),
                Err(Malformed),
                "{text}"
            );
        }
    }
}
