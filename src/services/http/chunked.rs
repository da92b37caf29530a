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

/// Decodes one body.
#[derive(Debug, Clone)]
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

    /// Whether `input` begins with a whole body.
    ///
    /// # Errors
    /// As [`Chunked::next`].
    pub(super) fn is_whole(input: &[u8]) -> Result<bool, Malformed> {
        let mut decoder = Self::new();
        let mut rest = input;
        while !rest.is_empty() && !decoder.ended() {
            let Piece { framing, data } = decoder.next(rest, usize::MAX)?;
            rest = &rest[framing + data..];
        }
        Ok(decoder.ended())
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

    #[test]
    fn a_body_is_whole_with_its_last_line_end() {
        let input = b"2;a=\"b\"\r\nxy\r\n0\r\nA: b\r\n\r\n";
        for end in 0..input.len() {
            assert_eq!(Chunked::is_whole(&input[..end]), Ok(false), "{end}");
        }
        assert_eq!(Chunked::is_whole(input), Ok(true));
        let followed = [input, &b"GET"[..]].concat();
        assert_eq!(Chunked::is_whole(&followed), Ok(true));
        assert_eq!(Chunked::is_whole(b"2\r\nxyz"), Err(Malformed));
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
        fn any_split_gives_the_same(
            input in vec(select(b"012aF;=\"\\: \t\r\n\0x".to_vec()), 0..60),
            step in 1_usize..9,
        ) {
            prop_assert_eq!(decode(&input, step), decode(&input, usize::MAX >> 1));
        }
    }
}
