//! The chunked transfer coding (RFC 9112 §7.1), read a piece at a time. Pure: no system call, no
//! clock.
//!
//! Strict where leniency lets two servers disagree: every line ends in CRLF, a size is 1 to 16
//! hexadecimal digits, an extension has a name and closes its quotes. Extensions and trailer fields
//! are bounded and dropped.

use super::syntax::{is_text, is_token};

/// The most bytes of extensions and trailer fields that one body may have, all told.
const MAX_EXTRA: usize = 16 * 1024;

/// The most digits of a size: as many as fit into a `u64`.
const MAX_DIGITS: u8 = 16;

/// How many bytes a saved decoder has.
pub(super) const SAVED: usize = 12;

/// Decodes one body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunked {
    state: State,
    /// How many bytes of extensions and trailers there were so far.
    extra: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size {
        digits: u8,
        size: u64,
    },
    /// In the extensions behind this size (RFC 9112 §7.1.1).
    Extension {
        size: u64,
        part: Part,
    },
    SizeLineFeed {
        size: u64,
    },
    Data {
        remaining: u64,
    },
    DataReturn,
    DataLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    EndLineFeed,
    End,
}

/// Which part of an extension comes next, or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Part {
    /// White space in front of a semicolon, which must follow.
    BeforeSemicolon,
    BeforeName,
    Name,
    /// White space behind a name: a value or another extension must follow.
    BehindName,
    BeforeValue,
    Token,
    Quoted,
    /// Behind a backslash between quotes.
    Escaped,
    BehindQuotes,
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// This many bytes of framing come first, to be dropped.
    pub(super) framing: usize,
    /// This many bytes of the body follow them.
    pub(super) data: usize,
}

/// The bytes are not a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl Chunked {
    pub(super) fn new() -> Self {
        Self {
            state: START,
            extra: 0,
        }
    }

    /// Whether the body and its trailers are over.
    pub(super) fn ended(&self) -> bool {
        self.state == State::End
    }

    /// Reads framing from the front of `input`, and at most `most` bytes of data behind it. The
    /// piece spans what was read. Without data, all of the input was framing, or the body is over.
    ///
    /// # Errors
    /// When the framing is malformed, or its extensions and trailers are too long.
    pub(super) fn next(&mut self, input: &[u8], most: usize) -> Result<Piece, Malformed> {
        let mut framing = 0;
        while let Some(byte) = input.get(framing) {
            match &mut self.state {
                State::End => break,
                State::Data { remaining } => {
                    let here = (input.len() - framing).min(most);
                    let data =
                        usize::try_from(*remaining).map_or(here, |remaining| remaining.min(here));
                    *remaining -= data as u64;
                    if *remaining == 0 {
                        self.state = State::DataReturn;
                    }
                    return Ok(Piece { framing, data });
                }
                _ => self.state = self.after(*byte)?,
            }
            framing += 1;
        }
        Ok(Piece { framing, data: 0 })
    }

    /// The decoder as bytes, for another process that goes on with it.
    pub(super) fn save(&self) -> [u8; SAVED] {
        use State::*;
        let (kind, detail, size) = match self.state {
            Size { digits, size } => (0, digits, size),
            Extension { size, part } => (1, part as u8, size),
            SizeLineFeed { size } => (2, 0, size),
            Data { remaining } => (3, 0, remaining),
            DataReturn => (4, 0, 0),
            DataLineFeed => (5, 0, 0),
            TrailerStart => (6, 0, 0),
            TrailerName => (7, 0, 0),
            TrailerValue => (8, 0, 0),
            TrailerLineFeed => (9, 0, 0),
            EndLineFeed => (10, 0, 0),
            End => (11, 0, 0),
        };
        let mut bytes = [0; SAVED];
        (bytes[0], bytes[1]) = (kind, detail);
        bytes[2..10].copy_from_slice(&size.to_le_bytes());
        let extra = u16::try_from(self.extra).unwrap_or(u16::MAX);
        bytes[10..].copy_from_slice(&extra.to_le_bytes());
        bytes
    }

    /// A decoder that was saved; `None` if it is none.
    pub(super) fn restore(bytes: &[u8; SAVED]) -> Option<Self> {
        use State::*;
        let (kind, detail) = (bytes[0], bytes[1]);
        let size = u64::from_le_bytes(*bytes[2..].first_chunk()?);
        let extra = usize::from(u16::from_le_bytes(*bytes[10..].first_chunk()?));
        let state = match kind {
            0 if detail <= MAX_DIGITS => Size {
                digits: detail,
                size,
            },
            1 => Extension {
                size,
                part: *PARTS.get(usize::from(detail))?,
            },
            2 => SizeLineFeed { size },
            3 => Data { remaining: size },
            4 => DataReturn,
            5 => DataLineFeed,
            6 => TrailerStart,
            7 => TrailerName,
            8 => TrailerValue,
            9 => TrailerLineFeed,
            10 => EndLineFeed,
            11 => End,
            _ => return None,
        };
        (extra <= MAX_EXTRA).then_some(Self { state, extra })
    }

    /// The state after one byte of framing.
    fn after(&mut self, byte: u8) -> Result<State, Malformed> {
        use Part::BeforeSemicolon;
        use State::*;
        let extra = matches!(self.state, Extension { .. } | TrailerName | TrailerValue);
        self.extra += usize::from(extra);
        if self.extra > MAX_EXTRA {
            return Err(Malformed);
        }
        Ok(match (self.state, byte) {
            (Size { digits, size }, _) if byte.is_ascii_hexdigit() && digits < MAX_DIGITS => Size {
                digits: digits + 1,
                size: size << 4 | hexadecimal(byte),
            },
            (Size { digits: 1.., size }, b'\r') => SizeLineFeed { size },
            (Size { digits: 1.., size }, b' ' | b'\t' | b';') => Extension {
                size,
                part: BeforeSemicolon.after(byte)?,
            },
            (Extension { size, part }, b'\r') if part.may_be_last() => SizeLineFeed { size },
            (Extension { size, part }, _) => Extension {
                size,
                part: part.after(byte)?,
            },
            (SizeLineFeed { size: 0 }, b'\n') => TrailerStart,
            (SizeLineFeed { size }, b'\n') => Data { remaining: size },
            (DataReturn, b'\r') => DataLineFeed,
            (DataLineFeed, b'\n') => START,
            (TrailerStart, b'\r') => EndLineFeed,
            (TrailerStart | TrailerName, _) if is_token(byte) => TrailerName,
            (TrailerName, b':') => TrailerValue,
            (TrailerValue, b'\r') => TrailerLineFeed,
            (TrailerValue, _) if is_text(byte) => TrailerValue,
            (TrailerLineFeed, b'\n') => TrailerStart,
            (EndLineFeed, b'\n') => End,
            _ => return Err(Malformed),
        })
    }
}

impl Part {
    /// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`, a byte at a time.
    fn after(self, byte: u8) -> Result<Self, Malformed> {
        use Part::*;
        Ok(match (self, byte) {
            (Quoted, b'"') => BehindQuotes,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, _) if is_text(byte) => Quoted,
            (BeforeName | Name, _) if is_token(byte) => Name,
            (BeforeValue | Token, _) if is_token(byte) => Token,
            (BeforeValue, b'"') => Quoted,
            (BeforeName | BeforeValue | BeforeSemicolon | BehindName, b' ' | b'\t') => self,
            (Name, b' ' | b'\t') => BehindName,
            (Token | BehindQuotes, b' ' | b'\t') => BeforeSemicolon,
            (Name | BehindName, b'=') => BeforeValue,
            (BeforeSemicolon | Name | BehindName | Token | BehindQuotes, b';') => BeforeName,
            _ => return Err(Malformed),
        })
    }

    /// Whether the line may end here.
    fn may_be_last(self) -> bool {
        matches!(self, Self::Name | Self::Token | Self::BehindQuotes)
    }
}

/// Each part, at the place of its number.
const PARTS: [Part; 9] = {
    use Part::*;
    [
        BeforeSemicolon,
        BeforeName,
        Name,
        BehindName,
        BeforeValue,
        Token,
        Quoted,
        Escaped,
        BehindQuotes,
    ]
};

const START: State = State::Size { digits: 0, size: 0 };

fn hexadecimal(digit: u8) -> u64 {
    char::from(digit).to_digit(16).map_or(0, u64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// Decodes `input`, given in pieces of at most `step` bytes: the body, what followed it, and
    /// whether it ended.
    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), Malformed> {
        let mut decoder = Chunked::new();
        let (mut body, mut at) = (Vec::new(), 0);
        while at < input.len() && !decoder.ended() {
            let window = &input[at..input.len().min(at + step)];
            decoder = passed_on(&decoder);
            let Piece { framing, data } = decoder.next(window, usize::MAX)?;
            body.extend_from_slice(&window[framing..framing + data]);
            at += framing + data;
        }
        Ok((body, at, decoder.ended()))
    }

    #[test]
    fn bodies() {
        let long = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(MAX_EXTRA - 1));
        for (input, body) in [
            (&b"0\r\n\r\n"[..], &b""[..]),
            (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
            (
                b"3\r\nabc\r\nA\r\n0123456789\r\n00\r\n\r\n",
                b"abc0123456789",
            ),
            (b"3;a=b;c=\"d e\"\r\nabc\r\n0;x\r\n\r\n", b"abc"),
            (b"3 \t ;a\r\nabc\r\n0\r\n\r\n", b"abc"),
            (b"3 ; a ;\tb = c; d=\t\"e\" ;f\r\nabc\r\n0\r\n\r\n", b"abc"),
            (
                b"3;a=\"\";b=\"\\\"\";c=\"\\\\\";d=\";\t=\xe9\"\r\nabc\r\n0;e\r\n\r\n",
                b"abc",
            ),
            (b"3;!#$%&'*+-.^_`|~=0\r\nabc\r\n0\r\n\r\n", b"abc"),
            (b"3\r\nabc\r\n0\r\nDigest: x\r\nB:\r\n\r\n", b"abc"),
            (b"0000000000000003\r\nabc\r\n0\r\n\r\n", b"abc"),
            (long.as_bytes(), b"x"),
        ] {
            for step in [1, 2, 3, 7, usize::MAX >> 1] {
                let wanted = Ok((body.to_vec(), input.len(), true));
                assert_eq!(
                    decode(input, step),
                    wanted,
                    "{:?}",
                    input.escape_ascii().to_string()
                );
            }
        }
    }

    #[test]
    fn malformed_bodies() {
        let long = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(MAX_EXTRA));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(MAX_EXTRA / 4 + 1));
        for input in [
            &b"\r\n"[..],
            b";a\r\n",
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"1 \r\nx",
            b"1\nx",
            b"1\rx",
            b"1;a\nx",
            b"1;a\0\r\n",
            b"1;\r\n",
            b"1; \r\n",
            b"1;;a\r\n",
            b"1;a;\r\n",
            b"1;=b\r\n",
            b"1;a=\r\n",
            b"1;a= \r\n",
            b"1;a=b=c\r\n",
            b"1;a \r\n",
            b"1;a=b \r\n",
            b"1;a=\"b\" \r\n",
            b"1;a b\r\n",
            b"1;a=b c\r\n",
            b"1;a b=c\r\n",
            b"1;a,b\r\n",
            b"1;a(b)\r\n",
            b"1;\xe9\r\n",
            b"1;\"a\"\r\n",
            b"1;a=\"b\r\n",
            b"1;a=\"b\r\nx\"\r\n",
            b"1;a=\"b\\\r\n",
            b"1;a=\"b\\\"\r\n",
            b"1;a=\"b\"c\r\n",
            b"1;a=b\"c\"\r\n",
            b"1;a=\"b\"\"c\"\r\n",
            b"1;a=\"b\0\"\r\n",
            b"1;a=\"\\\x01\"\r\n",
            b"1;a=\"b\x7f\"\r\n",
            b"00000000000000003\r\nabc",
            b"1FFFFFFFFFFFFFFFF\r\n",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"3\r\nabc\rx",
            b"0\r\n\n",
            b"0\r\n: x\r\n\r\n",
            b"0\r\nname\r\n\r\n",
            b"0\r\nname : x\r\n\r\n",
            b"0\r\na: b\n\r\n",
            b"0\r\na: b\r\n c\r\n\r\n",
            long.as_bytes(),
            trailers.as_bytes(),
        ] {
            for step in [1, 3, usize::MAX >> 1] {
                let shown = input[..input.len().min(60)].escape_ascii();
                assert_eq!(decode(input, step), Err(Malformed), "{shown}");
            }
        }
    }

    #[test]
    fn the_end_leaves_what_follows() {
        let input = b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n";
        assert_eq!(
            decode(input, usize::MAX >> 1),
            Ok((b"x".to_vec(), 11, true))
        );
    }

    #[test]
    fn no_more_data_than_asked_for() {
        let mut decoder = Chunked::new();
        let piece = decoder.next(b"5\r\nabcde\r\n", 2);
        assert_eq!(
            piece,
            Ok(Piece {
                framing: 3,
                data: 2
            })
        );
        let piece = decoder.next(b"cde\r\n", 9);
        assert_eq!(
            piece,
            Ok(Piece {
                framing: 0,
                data: 3
            })
        );
    }

    /// The same decoder in another process.
    fn passed_on(decoder: &Chunked) -> Chunked {
        Chunked::restore(&decoder.save()).expect("what was saved is restored")
    }

    #[test]
    fn every_state_is_saved() {
        for body in [
            &b"0a \t;a = \"b\\c\" ;d=e;f\t;g\r\n0123456789\r\n0;x=y\r\nT: u\r\n\r\n"[..],
            b"FFFFFFFFFFFFFFFF\r\nx",
        ] {
            let mut decoder = Chunked::new();
            for byte in body {
                assert_eq!(passed_on(&decoder), decoder);
                decoder.next(&[*byte], 1).unwrap();
            }
            assert_eq!(passed_on(&decoder), decoder);
        }
        let full = Chunked {
            extra: MAX_EXTRA,
            ..Chunked::new()
        };
        assert_eq!(passed_on(&full), full);
        for (at, part) in PARTS.iter().enumerate() {
            assert_eq!(*part as usize, at);
        }
    }

    #[test]
    fn what_is_no_decoder_is_not_restored() {
        let with = |at: usize, byte| {
            let mut bytes = Chunked::new().save();
            bytes[0] = u8::from(at == 1);
            bytes[at] = byte;
            Chunked::restore(&bytes)
        };
        assert_eq!(with(0, 12), None);
        assert_eq!(with(1, 9), None);
        assert_eq!(with(11, 0xff), None, "more extensions than there may be");
        let mut digits = Chunked::new().save();
        digits[1] = MAX_DIGITS + 1;
        assert_eq!(Chunked::restore(&digits), None);
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_body(
            chunks in vec(vec(any::<u8>(), 1..40), 0..8),
            step in 1_usize..50,
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(decode(&input, step), Ok((chunks.concat(), input.len(), true)));
        }

        #[test]
        fn no_bytes_break_a_decoder_that_is_restored(
            saved in any::<[u8; SAVED]>(),
            input in vec(any::<u8>(), 0..40),
        ) {
            if let Some(mut decoder) = Chunked::restore(&saved) {
                prop_assert_eq!(&passed_on(&decoder), &decoder);
                let _ = decoder.next(&input, usize::MAX);
            }
        }

        #[test]
        fn any_split_gives_the_same(
            input in vec(select(b"012aF;=\"\\: \t\r\n\0x".to_vec()), 0..60),
            step in 1_usize..9,
        ) {
            prop_assert_eq!(decode(&input, step), decode(&input, usize::MAX >> 1));
        }
    }
}
