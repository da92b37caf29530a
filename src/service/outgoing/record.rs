//! What is left of what a client has not taken, as it travels with the connection: how much of it
//! stands in front of the carry, how much in the luggage, and what follows. Pure.

use crate::service::baggage::SENDING;
use crate::wire::Outcome;

/// How many bytes a record has.
pub const LENGTH: usize = 32;

/// When the kernel has had no room so often, the client is slow.
pub const SLOW: u8 = 2;

/// Tells a record from those of others, and from one of another version.
const TAG: [u8; 2] = [SENDING, 1];

/// What the service had returned, as the number of its place.
const OUTCOMES: [Outcome; 6] = [
    Outcome::Park,
    Outcome::ParkWrite,
    Outcome::Again,
    Outcome::Home,
    Outcome::Close,
    Outcome::Linger,
];

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
    /// The first so many bytes of the file are to be repeated; 0 if they are not.
    pub period: u64,
}

/// See the module. In this order: the front, the segment, the back. Front and back stand in front
/// of the service's own carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What the turn had returned: the end of the sending.
    pub then: Outcome,
    /// How often the kernel had no more room for the client, up to 255.
    pub full: u8,
    pub front: u32,
    /// The luggage is what is sent, and goes with the last byte.
    pub has_file: bool,
    pub segment: Segment,
    pub back: u32,
}

/// What is to be sent next, in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// So many bytes at the start of the carry.
    Carry(usize),
    /// So many bytes of the file.
    File { offset: u64, length: u64 },
    /// That was all.
    Nothing,
}

impl Record {
    /// Nothing is left.
    pub const EMPTY: Self = Self {
        then: Outcome::Park,
        full: 0,
        front: 0,
        has_file: false,
        segment: Segment {
            offset: 0,
            length: 0,
            period: 0,
        },
        back: 0,
    };

    /// Nothing but a part of a file.
    pub fn of_file(segment: Segment) -> Self {
        Self {
            has_file: true,
            segment,
            ..Self::EMPTY
        }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> u64 {
        (u64::from(self.front) + u64::from(self.back)).saturating_add(self.segment.length)
    }

    /// How many bytes in front of the carry are the client's.
    pub fn carried(&self) -> usize {
        self.front as usize + self.back as usize
    }

    pub fn next(&self) -> Next {
        let Segment {
            offset,
            length,
            period,
        } = self.segment;
        if self.front > 0 {
            Next::Carry(self.front as usize)
        } else if length == 0 {
            match self.back {
                0 => Next::Nothing,
                back => Next::Carry(back as usize),
            }
        } else if period == 0 {
            Next::File { offset, length }
        } else {
            let length = length.min(period - offset);
            Next::File { offset, length }
        }
    }

    /// So many bytes more were sent. Returns how many of them stood at the start of the carry;
    /// `None` if there were not so many.
    pub fn advance(&mut self, count: u64) -> Option<usize> {
        if count > self.remaining() {
            return None;
        }
        let front = count.min(self.front.into());
        self.front -= front as u32;
        let file = (count - front).min(self.segment.length);
        self.segment.length -= file;
        self.segment.offset = match self.segment.period {
            0 => self.segment.offset + file,
            period => {
                ((u128::from(self.segment.offset) + u128::from(file)) % u128::from(period)) as u64
            }
        };
        let back = count - front - file;
        self.back -= back as u32;
        Some((front + back) as usize)
    }

    pub fn encode(&self) -> [u8; LENGTH] {
        let then = OUTCOMES.iter().position(|outcome| *outcome == self.then);
        let mut bytes = [0; LENGTH];
        bytes[..2].copy_from_slice(&TAG);
        // One that is none of these does not go on after what is sent.
        bytes[2] = then.unwrap_or(OUTCOMES.len() - 1) as u8;
        bytes[3] = self.full;
        // Neither is above 16 KiB.
        bytes[4..6].copy_from_slice(&(self.front as u16).to_le_bytes());
        bytes[6..8]
            .copy_from_slice(&(self.back as u16 | u16::from(self.has_file) << 15).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.segment.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.segment.length.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.segment.period.to_le_bytes());
        bytes
    }

    /// Whether this is the record of a connection on which something is being sent.
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&TAG)
    }

    /// `None` if it makes no sense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        let record = Self {
            then: *OUTCOMES.get(usize::from(bytes[2]))?,
            full: bytes[3],
            front: short(4).into(),
            has_file: short(6) >> 15 == 1,
            segment: Segment {
                offset: long(8)?,
                length: long(16)?,
                period: long(24)?,
            },
            back: (short(6) & 0x7fff).into(),
        };
        let Segment {
            offset,
            length,
            period,
        } = record.segment;
        let fits = match period {
            0 => offset.checked_add(length).is_some(),
            period => offset < period,
        };
        let whole = fits && (length == 0 || record.has_file);
        (Self::is_one(bytes) && whole).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIB: u32 = 1024;

    fn records() -> impl Strategy<Value = Record> {
        let segment = prop_oneof![
            (0..1_u64 << 62, 0..1_u64 << 62).prop_map(|(offset, length)| (offset, length, 0)),
            (1..100_u64, 0..10_000_u64, any::<u64>()).prop_map(|(period, length, at)| (
                at % period,
                length,
                period
            )),
            Just((0, 0, 0)),
        ];
        let parts = (0..=16 * KIB, 0..=16 * KIB, any::<bool>());
        (0..OUTCOMES.len(), any::<u8>(), parts, segment).prop_map(
            |(then, full, (front, back, file), (offset, length, period))| Record {
                then: OUTCOMES[then],
                full,
                front,
                has_file: file || length > 0,
                segment: Segment {
                    offset,
                    length,
                    period,
                },
                back,
            },
        )
    }

    /// What a record says is to be sent, in pieces of any length.
    fn sent(mut record: Record, carry: &[u8], file: &[u8], pieces: &[usize]) -> Vec<u8> {
        let (mut all, mut carry) = (Vec::new(), carry);
        let mut pieces = pieces.iter().cycle();
        loop {
            let piece = pieces.next().copied().unwrap_or(1);
            let bytes = match record.next() {
                Next::Nothing => return all,
                Next::Carry(length) => &carry[..length.min(piece)],
                Next::File { offset, length } => {
                    let length = (length as usize).min(piece);
                    &file[offset as usize..][..length]
                }
            };
            all.extend_from_slice(bytes);
            let gone = record.advance(bytes.len() as u64).expect("so much is left");
            carry = &carry[gone..];
        }
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was(record in records()) {
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
            prop_assert!(Record::is_one(&record.encode()));
        }

        #[test]
        fn bytes_of_no_record_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(mut record) = Record::decode(&bytes) {
                let _ = record.next();
                let _ = record.advance(record.remaining());
                prop_assert_eq!(record.remaining(), 0);
            }
        }

        #[test]
        fn two_steps_are_one_of_both_lengths(record in records(), at in any::<[u64; 2]>()) {
            let (mut twice, mut once) = (record, record);
            let first = at[0] % (record.remaining() + 1);
            let second = at[1] % (record.remaining() - first + 1);
            let carried = twice.advance(first).unwrap() + twice.advance(second).unwrap();
            prop_assert_eq!(once.advance(first + second), Some(carried));
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn the_order_is_front_file_back_however_it_is_cut(
            front in proptest::collection::vec(any::<u8>(), 0..20),
            back in proptest::collection::vec(any::<u8>(), 0..20),
            file in proptest::collection::vec(any::<u8>(), 1..20),
            (start, length) in (0..20_usize, 0..90_usize),
            periodic in any::<bool>(),
            pieces in proptest::collection::vec(1..9_usize, 1..9),
        ) {
            let start = start % file.len();
            let (length, period) = match periodic {
                true => (length, file.len()),
                false => (length.min(file.len() - start), 0),
            };
            let record = Record {
                front: front.len() as u32,
                has_file: true,
                segment: Segment {
                    offset: start as u64,
                    length: length as u64,
                    period: period as u64,
                },
                back: back.len() as u32,
                ..Record::EMPTY
            };
            let middle = file.iter().cycle().skip(start).take(length).copied();
            let wanted: Vec<_> = front.iter().copied().chain(middle).chain(back.clone()).collect();
            let carry = [&front[..], &back[..], b"and more"].concat();
            prop_assert_eq!(sent(record, &carry, &file, &pieces), wanted);
        }
    }

    #[test]
    fn more_than_there_is_cannot_have_been_sent() {
        let mut record = Record {
            front: 3,
            back: 4,
            ..Record::EMPTY
        };
        assert_eq!(record.advance(8), None);
        assert_eq!(record.advance(7), Some(7));
        assert_eq!(record.next(), Next::Nothing);
    }
}
