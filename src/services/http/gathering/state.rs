//! How far a request's body has been gathered, as the record of it that travels with the
//! connection. Pure: no system call, no clock.

use super::super::chunked::Malformed;
use super::super::head::Framing;
use super::super::rest::{MAX_CODED_DRAIN, MAX_DRAIN, Rest, SAVED as SAVED_REST, Stored};
use crate::service::{GATHERED, GATHERING};

/// What a body's chunked coding may take beside its data, in bytes: as much again as the longest
/// body, and this much.
const CODING_ALLOWANCE: u64 = 64 * 1024;

/// How long the record of a body is that is being gathered.
const RECORD: usize = 3 + 8 + 8 + SAVED_REST;

/// How long the record of a body is that is in the luggage.
const GATHERED_RECORD: usize = 2 + 8;

/// Which bodies are gathered, and what is to come of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Purpose {
    /// The handler reads it.
    Wanted,
    /// The handler does not read it. It is gathered only so that the next request can be found, and
    /// that only if it is short.
    Unwanted,
}

/// How far a body has been gathered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct State {
    pub(super) purpose: Purpose,
    /// How many bytes of the answer 100 the client is still to get.
    pub(super) owed: u8,
    /// The luggage is a file for what is too long for memory.
    pub(super) long: bool,
    /// How many bytes lie in the luggage, with their chunked coding.
    pub(super) stored: u64,
    /// How many of them are data.
    data: u64,
    rest: Rest,
}

impl State {
    pub(in super::super) fn new(framing: Framing, purpose: Purpose, owed: u8) -> Self {
        Self {
            purpose,
            owed,
            long: false,
            stored: 0,
            data: 0,
            rest: Rest::of(framing),
        }
    }

    /// Counts what follows what is stored, as far as it belongs to the body. Returns how many of
    /// these bytes do.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let (count, data) = self.rest.skip(bytes)?;
        self.stored = self.stored.saturating_add(count as u64);
        self.data = self.data.saturating_add(data);
        Ok(count)
    }

    /// Counts so many bytes at once, of a body without a coding. False if this body has one, or is
    /// shorter.
    pub(super) fn advance_by(&mut self, count: u64) -> bool {
        let Rest::Length(remaining) = &mut self.rest else {
            return false;
        };
        let Some(left) = remaining.checked_sub(count) else {
            return false;
        };
        *remaining = left;
        self.stored = self.stored.saturating_add(count);
        self.data = self.data.saturating_add(count);
        true
    }

    /// Whether the whole body is stored.
    pub(super) fn ended(&self) -> bool {
        self.rest.ended()
    }

    /// How many bytes more may belong to the body.
    pub(super) fn most(&self) -> u64 {
        self.rest.length().unwrap_or(u64::MAX)
    }

    /// How many bytes there will be in the luggage, as far as is known.
    pub(super) fn expected(&self) -> u64 {
        self.stored
            .saturating_add(self.rest.length().unwrap_or_default())
    }

    /// Whether the body has more than `limit` bytes, or too much coding for that; one that is not
    /// wanted: whether it is too long to be waited for.
    pub(super) fn exceeds(&self, limit: u64) -> bool {
        let (data, coded) = match self.purpose {
            Purpose::Wanted => (
                limit,
                limit.saturating_mul(2).saturating_add(CODING_ALLOWANCE),
            ),
            Purpose::Unwanted => (MAX_DRAIN, MAX_CODED_DRAIN as u64),
        };
        self.data > data || self.stored > coded
    }

    pub(super) fn save(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[0] = GATHERING;
        bytes[1] = u8::from(self.purpose == Purpose::Unwanted) | u8::from(self.long) << 1;
        bytes[2] = self.owed;
        bytes[3..11].copy_from_slice(&self.stored.to_le_bytes());
        bytes[11..19].copy_from_slice(&self.data.to_le_bytes());
        bytes[19..].copy_from_slice(&self.rest.save());
        bytes
    }

    /// What was saved; `None` if the record is none of such a body.
    pub(super) fn restore(record: &[u8]) -> Option<Self> {
        let record: &[u8; RECORD] = record.try_into().ok()?;
        if record[0] != GATHERING {
            return None;
        }
        Some(Self {
            purpose: match record[1] {
                0 | 2 => Purpose::Wanted,
                1 | 3 => Purpose::Unwanted,
                _ => return None,
            },
            owed: record[2],
            long: record[1] & 2 != 0,
            stored: number(&record[3..])?,
            data: number(&record[11..])?,
            rest: Rest::restore(record[19..].first_chunk()?)?,
        })
    }
}

/// The record of a body that is in the luggage, all of it or, if it is not wanted, the beginning.
pub(super) fn save_stored(stored: &Stored) -> [u8; GATHERED_RECORD] {
    let mut bytes = [0; GATHERED_RECORD];
    bytes[0] = GATHERED;
    bytes[1] = u8::from(stored.whole);
    bytes[2..].copy_from_slice(&stored.end.to_le_bytes());
    bytes
}

/// What such a record says; `None` if it is another one.
pub(in super::super) fn restore_stored(record: &[u8]) -> Option<Stored> {
    let record: &[u8; GATHERED_RECORD] = record.try_into().ok()?;
    let is_whole = match (record[0], record[1]) {
        (GATHERED, 0) => false,
        (GATHERED, 1) => true,
        _ => return None,
    };
    Some(Stored {
        at: 0,
        end: number(&record[2..])?,
        whole: is_whole,
    })
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn chunked(owed: u8) -> State {
        State::new(Framing::Chunked, Purpose::Wanted, owed)
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        let mut state = State::new(Framing::Length(5), Purpose::Wanted, 0);
        assert_eq!((state.most(), state.expected()), (5, 5));
        assert_eq!(state.advance(b"abc"), Ok(3));
        assert!(!state.ended());
        assert_eq!((state.most(), state.expected()), (2, 5));
        assert_eq!(state.advance(b"deGET"), Ok(2));
        assert!(state.ended());
        let mut state = chunked(0);
        assert_eq!(state.advance(b"3\r\nabc\r\n0\r\n\r\nGET"), Ok(13));
        assert!(state.ended());
        assert_eq!((state.stored, state.data), (13, 3));
        assert_eq!(chunked(0).advance(b"x"), Err(Malformed));
    }

    #[test]
    fn what_is_known_to_be_stored_is_counted_at_once() {
        let mut state = State::new(Framing::Length(5), Purpose::Wanted, 0);
        assert!(state.advance_by(4));
        assert!(!state.advance_by(2));
        assert_eq!((state.stored, state.most()), (4, 1));
        assert!(!chunked(0).advance_by(1), "nobody knows what it is");
    }

    #[test]
    fn a_body_and_its_coding_are_bounded() {
        let grown = |framing, purpose, input: &[u8]| {
            let mut state = State::new(framing, purpose, 0);
            state.advance(input).unwrap();
            state
        };
        let data = grown(Framing::Length(100), Purpose::Wanted, &[0; 11]);
        assert!(data.exceeds(10) && !data.exceeds(11));
        let ones = b"1\r\nx\r\n".repeat(11_000);
        let coded = grown(Framing::Chunked, Purpose::Wanted, &ones);
        assert!(!coded.exceeds(11_000));
        let zeros = b"000000000001\r\nx\r\n".repeat(5_000);
        let coded = grown(Framing::Chunked, Purpose::Wanted, &zeros);
        assert!(coded.exceeds(5_000), "85,000 bytes for 5,000");
        assert!(!coded.exceeds(10_000));
        let most = vec![0; MAX_DRAIN as usize + 1];
        let framing = Framing::Length(1 << 20);
        assert!(grown(framing, Purpose::Unwanted, &most).exceeds(u64::MAX));
        assert!(!grown(framing, Purpose::Unwanted, &most[1..]).exceeds(0));
    }

    #[test]
    fn what_is_stored_is_recorded() {
        for whole in [false, true] {
            let (at, end) = (0, 1 << 40);
            let stored = Stored { at, end, whole };
            assert_eq!(restore_stored(&save_stored(&stored)), Some(stored));
        }
        for wrong in [&b""[..], &chunked(0).save(), &[GATHERED; GATHERED_RECORD]] {
            assert_eq!(restore_stored(wrong), None);
        }
        assert_eq!(State::restore(&[GATHERING; RECORD]), None);
        assert_eq!(State::restore(b""), None);
    }

    proptest! {
        /// A worker may die after any byte, and the next one knows what the record says, and what
        /// lies in the luggage.
        #[test]
        fn a_body_is_gathered_across_any_deaths(
            chunks in vec(vec(any::<u8>(), 1..20), 0..6),
            reports in vec(any::<bool>(), 200),
            behind in vec(any::<u8>(), 0..5),
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:x};e=\"\\\\\"\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
            let whole = input.len();
            input.extend_from_slice(&behind);
            let mut record = chunked(25).save();
            let mut luggage = Vec::new();
            for (byte, reports) in input.iter().zip(reports.iter().chain(std::iter::repeat(&false)))
            {
                let mut state = State::restore(&record).unwrap();
                let since = &luggage[state.stored as usize..];
                prop_assert_eq!(state.advance(since), Ok(since.len()));
                if state.ended() {
                    break;
                }
                prop_assert_eq!(state.advance(&[*byte]), Ok(1));
                luggage.push(*byte);
                if *reports {
                    record = state.save();
                }
            }
            prop_assert_eq!(&luggage, &input[..whole]);
        }

        #[test]
        fn no_record_breaks_anything(mut record in vec(any::<u8>(), RECORD), kind in 0_u8..4) {
            record[0] = kind;
            record[1] &= 7;
            record[19] &= 1;
            if let Some(mut state) = State::restore(&record) {
                prop_assert_eq!(State::restore(&state.save()), Some(state.clone()));
                let _ = (state.exceeds(1), state.expected(), state.most());
                let _ = state.advance_by(1);
            }
        }
    }
}
