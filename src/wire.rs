//! The messages between master and worker, as values and as bytes. Pure: no descriptor, no system
//! call.
//!
//! One message is one SEQPACKET datagram: an ASCII header line, then the carry. The header is text
//! so that strace(1) shows it in readable form. `docs/worker-protocol.md` describes the format for
//! authors of workers in other languages.

use std::fmt;
use std::io::Write as _;
use std::net::SocketAddr;
use std::str::{FromStr, from_utf8};

/// The most bytes of carry that a message, and therefore a connection, may have.
pub const MAX_CARRY: usize = 64 * 1024;

/// The longest header line in bytes, its newline included.
pub const MAX_HEADER: usize = 192;

/// The size of a buffer that takes any message, in bytes.
pub const MAX_MESSAGE: usize = MAX_HEADER + MAX_CARRY;

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
    /// The bytes that an earlier turn read and did not consume.
    pub carry: &'a [u8],
}

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
    /// Close the connection.
    Close,
    /// Discard for a while what the client may still be sending, then close the connection.
    Linger,
}

impl Outcome {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Park, "PARK"),
        (Self::ParkDrained, "PARK-DRAINED"),
        (Self::ParkWrite, "PARK-WRITE"),
        (Self::Again, "AGAIN"),
        (Self::Close, "CLOSE"),
        (Self::Linger, "LINGER"),
    ];

    /// Whether the connection stays open after this outcome, and so may have a carry.
    #[must_use]
    pub fn keeps(self) -> bool {
        matches!(
            self,
            Self::Park | Self::ParkDrained | Self::ParkWrite | Self::Again
        )
    }

    fn verb(self) -> &'static str {
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
    /// The bytes that were read and not consumed. The next lend brings them back.
    pub carry: &'a [u8],
}

/// A message from a worker to the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromWorker<'a> {
    /// The worker can serve from now on.
    Ready,
    /// A turn has ended.
    Report(Report<'a>),
}

/// Why a message was refused, as a phrase for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

/// A header line. It lies in an array, because a lend must not cost an allocation.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    length: usize,
}

impl Header {
    fn new(verb: &str) -> Self {
        let mut header = Self {
            bytes: [0; MAX_HEADER],
            length: 0,
        };
        header.text(verb);
        header
    }

    // Numbers and IPv4 addresses do not go through `write!`, because that would take half of the
    // time that the master computes for a lend.

    fn text(&mut self, text: &str) {
        // This never goes past the end: the longest line is a verb, three numbers of 20 digits, and
        // an IPv6 address with scope and port.
        self.bytes[self.length..][..text.len()].copy_from_slice(text.as_bytes());
        self.length += text.len();
    }

    fn number(&mut self, before: &str, number: impl itoa::Integer) {
        self.text(before);
        self.text(itoa::Buffer::new().format(number));
    }

    fn peer(&mut self, before: &str, peer: Peer) {
        self.text(before);
        match peer {
            Peer::Unix => self.text("unix"),
            Peer::Inet(SocketAddr::V4(address)) => {
                let [a, b, c, d] = address.ip().octets();
                self.number("", a);
                self.number(".", b);
                self.number(".", c);
                self.number(".", d);
                self.number(":", address.port());
            }
            Peer::Inet(SocketAddr::V6(address)) => {
                let mut rest = &mut self.bytes[self.length..];
                write!(rest, "{address}").expect("an address fits into MAX_HEADER");
                self.length = MAX_HEADER - rest.len();
            }
        }
    }

    /// The line as bytes, its newline included. In a message the carry follows it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl ToWorker<'_> {
    /// The header line of this message.
    #[must_use]
    pub fn header(&self) -> Header {
        match self {
            Self::Lend(lend) => {
                let mut header = Header::new("LEND");
                header.number(" ", lend.id);
                header.number(" ", lend.turn);
                header.peer(" ", lend.peer);
                header.text(if lend.watched { " watched\n" } else { "\n" });
                header
            }
            Self::Retire => Header::new("RETIRE\n"),
        }
    }

    /// Parses one whole message from a master.
    ///
    /// # Errors
    /// The rule of the format that the message breaks.
    pub fn parse(message: &[u8]) -> Result<ToWorker<'_>, Malformed> {
        let (header, carry) = split(message)?;
        let mut words = words(header);
        let parsed = match words.next() {
            Some(b"LEND") => ToWorker::Lend(Lend {
                id: number(words.next())?,
                turn: number(words.next())?,
                peer: words
                    .next()
                    .and_then(|word| from_utf8(word).ok()?.parse().ok())
                    .ok_or(Malformed("bad peer address"))?,
                watched: match words.next() {
                    None => false,
                    Some(b"watched") => true,
                    Some(_) => return Err(Malformed("unknown word")),
                },
                carry,
            }),
            Some(b"RETIRE") if carry.is_empty() => ToWorker::Retire,
            _ => return Err(Malformed("unknown verb")),
        };
        expect_end(words)?;
        Ok(parsed)
    }
}

impl FromWorker<'_> {
    /// The header line of this message.
    #[must_use]
    pub fn header(&self) -> Header {
        match self {
            Self::Ready => Header::new("READY\n"),
            Self::Report(report) => {
                let mut header = Header::new(report.outcome.verb());
                header.number(" ", report.id);
                if let Some(Traffic { read, written }) = report.traffic {
                    header.number(" ", read);
                    header.number(" ", written);
                }
                header.text("\n");
                header
            }
        }
    }

    /// Parses one whole message from a worker.
    ///
    /// # Errors
    /// The rule of the format that the message breaks.
    pub fn parse(message: &[u8]) -> Result<FromWorker<'_>, Malformed> {
        let (header, carry) = split(message)?;
        let mut words = words(header);
        let verb = words.next().unwrap_or_default();
        let known = |(_, known): &(Outcome, &str)| known.as_bytes() == verb;
        let parsed = if let Some((outcome, _)) = Outcome::ALL.into_iter().find(known) {
            let id = number(words.next())?;
            let traffic = match words.next() {
                None => None,
                read => Some(Traffic {
                    read: number(read)?,
                    written: number(words.next())?,
                }),
            };
            FromWorker::Report(Report {
                id,
                outcome,
                traffic,
                carry,
            })
        } else if verb == b"READY" {
            FromWorker::Ready
        } else {
            return Err(Malformed("unknown verb"));
        };
        expect_end(words)?;
        let may_carry =
            matches!(parsed, FromWorker::Report(Report { outcome, .. }) if outcome.keeps());
        if !carry.is_empty() && !may_carry {
            return Err(Malformed("carry in a message that may have none"));
        }
        Ok(parsed)
    }
}

/// Splits a message into its header line, without the newline, and its carry.
fn split(message: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = message
        .iter()
        .take(MAX_HEADER)
        .position(|byte| *byte == b'\n')
        .ok_or(Malformed("no header line"))?;
    let (header, carry) = (&message[..end], &message[end + 1..]);
    if !header.is_ascii() {
        return Err(Malformed("header is not ASCII"));
    }
    if carry.len() > MAX_CARRY {
        return Err(Malformed("more than 65536 bytes of carry"));
    }
    Ok((header, carry))
}

fn words(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    header.split(|byte| *byte == b' ')
}

/// Parses a decimal number. Unlike [`str::parse`] it refuses a sign.
fn number(word: Option<&[u8]>) -> Result<u64, Malformed> {
    let word = word.ok_or(Malformed("too few words"))?;
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let append = |number: u64, byte| number.checked_mul(10)?.checked_add(digit(byte)?);
    let number = word.iter().try_fold(0, append).filter(|_| !word.is_empty());
    number.ok_or(Malformed("bad number"))
}

fn expect_end<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Result<(), Malformed> {
    words
        .next()
        .map_or(Ok(()), |_| Err(Malformed("too many words")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peers() -> impl Strategy<Value = Peer> {
        prop_oneof![
            Just(Peer::Unix),
            any::<([u8; 4], u16)>().prop_map(|(ip, port)| Peer::Inet((ip, port).into())),
            any::<([u16; 8], u16, u32)>().prop_map(|(ip, port, scope)| Peer::Inet(
                std::net::SocketAddrV6::new(ip.into(), port, 0, scope).into()
            )),
        ]
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        proptest::sample::select(Outcome::ALL.map(|(outcome, _)| outcome).to_vec())
    }

    fn message(header: Header, carry: &[u8]) -> Vec<u8> {
        [header.as_bytes(), carry].concat()
    }

    proptest! {
        #[test]
        fn a_lend_survives_the_wire(
            id: u64,
            turn: u64,
            peer in peers(),
            watched: bool,
            carry: Vec<u8>,
        ) {
            let lend = ToWorker::Lend(Lend { id, turn, peer, watched, carry: &carry });
            let bytes = message(lend.header(), &carry);
            prop_assert_eq!(ToWorker::parse(&bytes), Ok(lend));
        }

        #[test]
        fn a_report_survives_the_wire(
            id: u64,
            outcome in outcomes(),
            traffic: Option<(u64, u64)>,
            carry: Vec<u8>,
        ) {
            let carry = if outcome.keeps() { carry } else { Vec::new() };
            let traffic = traffic.map(|(read, written)| Traffic { read, written });
            let report = FromWorker::Report(Report { id, outcome, traffic, carry: &carry });
            let bytes = message(report.header(), &carry);
            prop_assert_eq!(FromWorker::parse(&bytes), Ok(report));
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(bytes: Vec<u8>) {
            let _ = ToWorker::parse(&bytes);
            let _ = FromWorker::parse(&bytes);
        }
    }

    #[test]
    fn what_an_external_worker_may_leave_out() {
        let report = FromWorker::parse(b"CLOSE 7\n");
        assert_eq!(
            report,
            Ok(FromWorker::Report(Report {
                id: 7,
                outcome: Outcome::Close,
                traffic: None,
                carry: b""
            }))
        );
    }

    #[test]
    fn malformed_messages_are_refused() {
        for bytes in [
            &b""[..],
            b"PARK 7",
            b"PARK\n",
            b"PARK x\n",
            b"PARK +7\n",
            b"PARK  7\n",
            b"PARK \n",
            b"PARK 18446744073709551616\n",
            b"PARK 7 1\n",
            b"PARK 7 1 2 3\n",
            b"PARK 99999999999999999999999\n",
            b"CLOSE 7\nleft over",
            b"READY now\n",
            b"LEND 1 1 unix\n",
            b"\xff\n",
        ] {
            assert!(
                FromWorker::parse(bytes).is_err(),
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
        for bytes in [
            &b"LEND 1 1\n"[..],
            b"LEND 1 1 nowhere\n",
            b"LEND 1 unix\n",
            b"RETIRE\nx",
            b"RETIRE 1\n",
        ] {
            assert!(
                ToWorker::parse(bytes).is_err(),
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
}
