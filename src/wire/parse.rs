//! Messages as they are read.

use std::str::from_utf8;

use super::message::{
    Extras, FromWorker, Lend, LuggageChange, MAX_CARRY, MAX_HEADER, MAX_NOTE, Malformed, Outcome,
    Report, ToWorker, Traffic,
};

impl ToWorker<'_> {
    /// Parses one whole message from a master.
    ///
    /// # Errors
    /// The rule of the format that the message breaks.
    pub fn parse(message: &[u8]) -> Result<ToWorker<'_>, Malformed> {
        let (header, rest) = split(message)?;
        let mut words = words(header);
        match words.next() {
            Some(b"LEND") => lend(words, rest).map(ToWorker::Lend),
            Some(b"RETIRE") if rest.is_empty() => {
                expect_end(words)?;
                Ok(ToWorker::Retire)
            }
            _ => Err(Malformed("unknown verb")),
        }
    }
}

#[inline]
fn lend<'a>(
    mut words: impl Iterator<Item = &'a [u8]>,
    rest: &'a [u8],
) -> Result<Lend<'a>, Malformed> {
    let id = number(words.next())?;
    let turn = number(words.next())?;
    let peer = words
        .next()
        .and_then(|word| from_utf8(word).ok()?.parse().ok())
        .ok_or(Malformed("bad peer address"))?;
    let mut lend = Lend {
        turn,
        ..Lend::first(id, peer)
    };
    let mut note = 0;
    for word in words {
        match word {
            b"watched" => lend.watched = true,
            b"luggage" => lend.luggage = true,
            b"away" => lend.away = true,
            _ => match name_and_value(word) {
                Some((b"note", value)) => note = length(value)?,
                Some((b"moved", value)) => lend.moved = moved(value)?,
                _ => return Err(Malformed("unknown word")),
            },
        }
    }
    (lend.note, lend.carry) = note_and_carry(rest, note)?;
    Ok(lend)
}

impl FromWorker<'_> {
    /// Parses one whole message from a worker.
    ///
    /// # Errors
    /// The rule of the format that the message breaks.
    pub fn parse(message: &[u8]) -> Result<FromWorker<'_>, Malformed> {
        let (header, rest) = split(message)?;
        let mut words = words(header);
        let verb = words.next().unwrap_or_default();
        let known = |(_, known): &(Outcome, &str)| known.as_bytes() == verb;
        if let Some((outcome, _)) = Outcome::ALL.into_iter().find(known) {
            return report(outcome, words, rest).map(FromWorker::Report);
        }
        if verb != b"READY" {
            return Err(Malformed("unknown verb"));
        }
        let luggage = match words.next() {
            None => false,
            Some(b"luggage") => true,
            Some(_) => return Err(Malformed("unknown word")),
        };
        expect_end(words)?;
        match rest.is_empty() {
            true => Ok(FromWorker::Ready { luggage }),
            false => Err(Malformed("carry in a message that may have none")),
        }
    }
}

fn report<'a>(
    outcome: Outcome,
    words: impl Iterator<Item = &'a [u8]>,
    rest: &'a [u8],
) -> Result<Report<'a>, Malformed> {
    let mut words = words.peekable();
    let id = number(words.next())?;
    let mut extras = Extras::default();
    if outcome == Outcome::Pass {
        let pool = words.next().and_then(|word| from_utf8(word).ok());
        extras.pool = pool
            .filter(|pool| !pool.is_empty())
            .ok_or(Malformed("PASS without a pool"))?;
    }
    let counts = |word: &&[u8]| word.first().is_none_or(|byte| !byte.is_ascii_alphabetic());
    let traffic = match words.next_if(counts) {
        None => None,
        read => Some(Traffic {
            read: number(read)?,
            written: number(words.next())?,
        }),
    };
    let mut note = None;
    for word in words {
        match word {
            b"luggage" => extras.luggage = LuggageChange::New,
            b"no-luggage" => extras.luggage = LuggageChange::Gone,
            b"resumable" => extras.resumable = true,
            b"body" => extras.body = true,
            _ => match name_and_value(word) {
                Some((b"note", value)) => note = Some(length(value)?),
                _ => return Err(Malformed("unknown word")),
            },
        }
    }
    let (bytes, carry) = note_and_carry(rest, note.unwrap_or(0))?;
    extras.note = note.map(|_| bytes);
    let report = Report {
        id,
        outcome,
        traffic,
        extras,
        carry,
    };
    let says_more = extras != Extras::default() || !rest.is_empty();
    if says_more && !outcome.keeps() {
        return Err(Malformed("a connection that is over keeps nothing"));
    }
    if outcome == Outcome::Pass
        && extras
            != (Extras {
                pool: extras.pool,
                ..Extras::default()
            })
    {
        return Err(Malformed("PASS with more than a carry"));
    }
    Ok(report)
}

/// Splits a message into its header line, without the newline, and what follows it.
#[inline]
fn split(message: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = message
        .iter()
        .take(MAX_HEADER)
        .position(|byte| *byte == b'\n')
        .ok_or(Malformed("no header line"))?;
    let (header, rest) = (&message[..end], &message[end + 1..]);
    if !header.is_ascii() {
        return Err(Malformed("header is not ASCII"));
    }
    Ok((header, rest))
}

/// What follows the header: a note of this length, and the carry.
#[inline]
fn note_and_carry(rest: &[u8], note: usize) -> Result<(&[u8], &[u8]), Malformed> {
    if note > MAX_NOTE {
        return Err(Malformed("more than 4352 bytes of note"));
    }
    let parts = rest.split_at_checked(note);
    let (note, carry) = parts.ok_or(Malformed("the note is cut off"))?;
    if carry.len() > MAX_CARRY {
        return Err(Malformed("more than 65536 bytes of carry"));
    }
    Ok((note, carry))
}

fn words(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    header.split(|byte| *byte == b' ')
}

fn name_and_value(word: &[u8]) -> Option<(&[u8], &[u8])> {
    let place = word.iter().position(|byte| *byte == b'=')?;
    Some((&word[..place], &word[place + 1..]))
}

/// Two numbers, with a comma between them.
fn moved(value: &[u8]) -> Result<Traffic, Malformed> {
    let mut numbers = value.split(|byte| *byte == b',');
    let traffic = Traffic {
        read: number(numbers.next())?,
        written: number(numbers.next())?,
    };
    expect_end(numbers)?;
    Ok(traffic)
}

fn length(value: &[u8]) -> Result<usize, Malformed> {
    usize::try_from(number(Some(value))?).map_err(|_| Malformed("bad number"))
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
