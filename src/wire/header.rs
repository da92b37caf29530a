//! Header lines as they are written.

use std::io::Write as _;
use std::net::SocketAddr;

use super::message::{
    Extras, FromWorker, Lend, LuggageChange, MAX_HEADER, Outcome, Peer, ToWorker, Traffic,
};

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
        // This never goes past the end: the longest lines have 185 bytes (a lend with all that it
        // may say) and 167 (a PASS to a pool with the longest name).
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

    /// What few lends say.
    #[cold]
    fn more_of(&mut self, lend: &Lend<'_>) {
        if !lend.note.is_empty() {
            self.number(" note=", lend.note.len());
        }
        if lend.luggage {
            self.text(" luggage");
        }
        if lend.moved != Traffic::default() {
            self.number(" moved=", lend.moved.read);
            self.number(",", lend.moved.written);
        }
        if lend.away {
            self.text(" away");
        }
    }

    fn extras(&mut self, extras: &Extras<'_>) {
        if let Some(note) = extras.note {
            self.number(" note=", note.len());
        }
        self.text(match extras.luggage {
            LuggageChange::None => "",
            LuggageChange::New => " luggage",
            LuggageChange::Gone => " no-luggage",
        });
        for (flag, word) in [(extras.resumable, " resumable"), (extras.body, " body")] {
            if flag {
                self.text(word);
            }
        }
    }

    /// The line as bytes, its newline included. In a message the note and the carry follow it.
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
                if lend.watched {
                    header.text(" watched");
                }
                if lend.has_more() {
                    header.more_of(lend);
                }
                header.text("\n");
                header
            }
            Self::Retire => Header::new("RETIRE\n"),
        }
    }
}

impl FromWorker<'_> {
    /// The header line of this message.
    #[must_use]
    pub fn header(&self) -> Header {
        match self {
            Self::Ready { luggage: false } => Header::new("READY\n"),
            Self::Ready { luggage: true } => Header::new("READY luggage\n"),
            Self::Report(report) => {
                let mut header = Header::new(report.outcome.verb());
                header.number(" ", report.id);
                if report.outcome == Outcome::Pass {
                    header.text(" ");
                    header.text(report.extras.pool);
                }
                if let Some(Traffic { read, written }) = report.traffic {
                    header.number(" ", read);
                    header.number(" ", written);
                }
                header.extras(&report.extras);
                header.text("\n");
                header
            }
        }
    }
}

impl Lend<'_> {
    /// Whether it says more than most lends do.
    fn has_more(&self) -> bool {
        self.luggage || self.away || !self.note.is_empty() || self.moved != Traffic::default()
    }
}
