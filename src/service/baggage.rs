//! What travels with a connection beside its bytes: a note, a piece of luggage, and what the next
//! lend has to know of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::wire::{Extras, Lend, LuggageChange, Traffic};

/// The first byte of a record of this library: the worker's loop goes on with what is kept of a
/// response.
pub(crate) const SENDING: u8 = 1;

/// The first byte of a record: a request's body is being gathered in the luggage.
pub(crate) const GATHERING: u8 = 2;

/// The first byte of a record: a request's body is in the luggage.
pub(crate) const GATHERED: u8 = 3;

/// See the module.
///
/// On the wire, a record of this library's own stands in front of the service's note: a byte that
/// says how long the record is, then both. Without either, there are no bytes at all.
#[derive(Debug, Default)]
pub(crate) struct Baggage {
    packed: Vec<u8>,
    repacked: bool,
    luggage: Option<OwnedFd>,
    change: LuggageChange,
    /// If the worker of the next turn dies, the connection is to be lent again as it is then.
    pub(crate) resumable: bool,
    /// The client owes the rest of a body, whose head is complete.
    pub(crate) body: bool,
    /// The connection was passed on by another pool.
    pub(crate) away: bool,
    /// What turns whose workers died have moved since the last report.
    pub(crate) moved: Traffic,
    /// The pool to which the connection is to be passed, as the wire has it.
    pub(crate) pool: String,
}

impl Baggage {
    /// What came with a lend.
    pub(super) fn lent(lend: &Lend<'_>, luggage: Option<OwnedFd>) -> Self {
        Self {
            packed: lend.note.to_vec(),
            luggage,
            away: lend.away,
            moved: lend.moved,
            ..Self::default()
        }
    }

    /// The record and the note, each empty if there is none.
    fn parts(&self) -> (&[u8], &[u8]) {
        let (length, rest) = self.packed.split_first().unwrap_or((&0, &[]));
        rest.split_at_checked(usize::from(*length))
            .unwrap_or((&[], rest))
    }

    /// This library's own record.
    pub(crate) fn record(&self) -> &[u8] {
        self.parts().0
    }

    /// The service's note.
    pub(crate) fn note(&self) -> &[u8] {
        self.parts().1
    }

    pub(crate) fn set_note(&mut self, note: &[u8]) {
        if note != self.note() {
            self.packed = pack(self.record(), note);
            self.repacked = true;
        }
    }

    /// Sets this library's record: at most 255 bytes.
    pub(crate) fn set_record(&mut self, record: &[u8]) {
        if record != self.record() {
            self.packed = pack(record, self.note());
            self.repacked = true;
        }
    }

    pub(crate) fn luggage(&self) -> Option<BorrowedFd<'_>> {
        self.luggage.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn set_luggage(&mut self, luggage: OwnedFd) {
        self.luggage = Some(luggage);
        self.change = LuggageChange::New;
    }

    pub(crate) fn take_luggage(&mut self) -> Option<OwnedFd> {
        let luggage = self.luggage.take();
        if luggage.is_some() {
            self.change = LuggageChange::Gone;
        }
        luggage
    }

    /// Whether nothing travels with the connection, and nothing is to be said of it.
    pub(crate) fn is_empty(&self) -> bool {
        self.packed.is_empty()
            && !self.repacked
            && self.change == LuggageChange::None
            && self.luggage.is_none()
            && !self.away
            && !self.resumable
    }

    /// What the report has to say of this.
    pub(crate) fn extras(&self) -> Extras<'_> {
        Extras {
            note: self.repacked.then_some(&self.packed),
            luggage: self.change,
            resumable: self.resumable,
            body: self.body,
            pool: &self.pool,
        }
    }
}

fn pack(record: &[u8], note: &[u8]) -> Vec<u8> {
    if record.is_empty() && note.is_empty() {
        return Vec::new();
    }
    let length = u8::try_from(record.len()).expect("a record has at most 255 bytes");
    [&[length], record, note].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Peer;

    fn lent(note: &[u8]) -> Baggage {
        let lend = Lend {
            note,
            ..Lend::first(1, Peer::Unix)
        };
        Baggage::lent(&lend, None)
    }

    #[test]
    fn a_record_and_a_note_do_not_touch_each_other() {
        let mut baggage = Baggage::default();
        assert_eq!(baggage.extras(), Extras::default());
        baggage.set_note(b"who");
        assert_eq!((baggage.record(), baggage.note()), (&b""[..], &b"who"[..]));
        baggage.set_record(b"half");
        let packed = baggage.extras().note.unwrap().to_vec();
        let mut lent = lent(&packed);
        assert_eq!((lent.record(), lent.note()), (&b"half"[..], &b"who"[..]));
        assert_eq!(lent.extras(), Extras::default());
        lent.set_note(b"");
        assert_eq!((lent.record(), lent.note()), (&b"half"[..], &b""[..]));
        lent.set_record(b"");
        assert_eq!(lent.extras().note, Some(&b""[..]));
    }

    #[test]
    fn bytes_of_no_library_do_no_harm() {
        let strange = lent(b"\xffabc");
        assert_eq!((strange.record(), strange.note()), (&b""[..], &b"abc"[..]));
    }
}
