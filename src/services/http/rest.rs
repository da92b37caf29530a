//! How much of a request's body is still to come. Pure: no system call, no clock.

use super::chunked::{Chunked, Malformed, Piece, SAVED as SAVED_CHUNKED};
use super::head::Framing;

/// The longest rest of a body, in bytes, that is read and dropped when the handler has left it, so
/// that the connection lives on.
pub(super) const MAX_DRAIN: u64 = 64 * 1024;

/// The longest such rest with its chunked coding, in bytes: enough for chunks of one byte.
pub(super) const MAX_CODED_DRAIN: usize = 8 * 64 * 1024;

/// What of a body lies in the luggage, with its coding, and was not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) at: u64,
    pub(super) end: u64,
    /// It is all of the body.
    pub(super) whole: bool,
}

/// How many bytes a saved rest has.
pub(super) const SAVED: usize = 1 + SAVED_CHUNKED;

const LENGTH: u8 = 0;
const CHUNKED: u8 = 1;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rest {
    /// This many bytes.
    Length(u64),
    /// The body says where it ends.
    Chunked(Chunked),
}

impl Rest {
    /// The whole body of a request.
    pub(super) fn of(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked::new()),
        }
    }

    /// Whether nothing is to come.
    pub(super) fn ended(&self) -> bool {
        match self {
            Self::Length(remaining) => *remaining == 0,
            Self::Chunked(decoder) => decoder.ended(),
        }
    }

    /// How many bytes are still to come, when the client said so.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Length(remaining) => Some(*remaining),
            Self::Chunked(_) => None,
        }
    }

    /// Reads framing from the front of `input`, and at most `most` bytes of data behind it.
    ///
    /// # Errors
    /// When the framing is malformed.
    pub(super) fn next(&mut self, input: &[u8], most: usize) -> Result<Piece, Malformed> {
        match self {
            Self::Length(remaining) => {
                let here = input.len().min(most);
                let data =
                    usize::try_from(*remaining).map_or(here, |remaining| remaining.min(here));
                *remaining -= data as u64;
                Ok(Piece { framing: 0, data })
            }
            Self::Chunked(decoder) => decoder.next(input, most),
        }
    }

    /// Reads as much of `input` as belongs to the body: how many bytes these are, and how many of
    /// them are data.
    ///
    /// # Errors
    /// As [`Rest::next`].
    pub(super) fn skip(&mut self, input: &[u8]) -> Result<(usize, u64), Malformed> {
        let (mut at, mut data) = (0, 0);
        while at < input.len() && !self.ended() {
            let piece = self.next(&input[at..], usize::MAX)?;
            at += piece.framing + piece.data;
            data += piece.data as u64;
        }
        Ok((at, data))
    }

    /// The rest as bytes, for another process.
    pub(super) fn save(&self) -> [u8; SAVED] {
        let mut bytes = [0; SAVED];
        match self {
            Self::Length(remaining) => {
                bytes[0] = LENGTH;
                bytes[1..9].copy_from_slice(&remaining.to_le_bytes());
            }
            Self::Chunked(decoder) => {
                bytes[0] = CHUNKED;
                bytes[1..].copy_from_slice(&decoder.save());
            }
        }
        bytes
    }

    /// A rest that was saved; `None` if it is none.
    pub(super) fn restore(bytes: &[u8; SAVED]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match *kind {
            LENGTH => {
                let length = rest.first_chunk()?;
                Some(Self::Length(u64::from_le_bytes(*length)))
            }
            CHUNKED => Some(Self::Chunked(Chunked::restore(rest.try_into().ok()?)?)),
            _ => None,
        }
    }
}
