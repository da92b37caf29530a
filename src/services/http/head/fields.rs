//! What the fields of a head mean for the connection: where the body ends, and whether another
//! request may follow. Pure: no system call, no clock.

use ::http::StatusCode;

use super::super::syntax::{Once, elements, is_token};
use super::authority::is_authority;
use super::parsed::{Framing, Head, Refusal, Version, bad, refuse};

/// The fields that decide what becomes of the connection.
#[derive(Default)]
struct Deciding<'a> {
    host: Once<'a>,
    length: Once<'a>,
    codings: Codings,
    expect: Once<'a>,
    close: bool,
    keep_alive: bool,
}

/// The value of a field, or a refusal when it came several times.
fn only<'a>(field: Once<'a>, repeated: &'static str) -> Result<Option<&'a [u8]>, Refusal> {
    match field {
        Once::Never => Ok(None),
        Once::Value(value) => Ok(Some(value)),
        Once::Repeated => Err(bad(repeated)),
    }
}

/// What all lines of Transfer-Encoding say together (RFC 9112 §6.1). An empty element, which
/// a list may have elsewhere, counts as malformed: no client sends one, and not every server skips
/// it.
#[derive(Default, Clone, Copy)]
struct Codings {
    is_there: bool,
    is_malformed: bool,
    has_others: bool,
    chunked: u32,
    ends_in_chunked: bool,
}

impl Codings {
    fn add(&mut self, value: &[u8]) {
        self.is_there = true;
        for element in value.split(|byte| *byte == b',') {
            let element = element.trim_ascii();
            let name = element.split(|byte| *byte == b';').next();
            let name = name.unwrap_or_default().trim_ascii_end();
            let is_chunked = name.eq_ignore_ascii_case(b"chunked");
            // Chunked has no parameters (RFC 9112 §7.1).
            self.is_malformed |= name.is_empty()
                || !name.iter().copied().all(is_token)
                || is_chunked && name.len() < element.len();
            self.has_others |= !is_chunked;
            self.chunked += u32::from(is_chunked);
            self.ends_in_chunked = is_chunked;
        }
    }

    /// RFC 9112 §6.3: a body ends where its last coding says, and only chunked says it.
    fn framing(self) -> Result<Framing, Refusal> {
        if self.is_malformed || !self.ends_in_chunked || self.chunked > 1 {
            return Err(bad(
                "chunked must be the last transfer coding, and come once",
            ));
        }
        if self.has_others {
            return Err(refuse(
                StatusCode::NOT_IMPLEMENTED,
                "the only transfer coding known here is chunked",
            ));
        }
        Ok(Framing::Chunked)
    }
}

/// Fills in what follows from the fields of `head`, which lie in `bytes`.
pub(super) fn decide(head: &mut Head, bytes: &[u8]) -> Result<(), Refusal> {
    let seen = collect(head, bytes);
    check_host(head.version, seen.host)?;
    head.framing = framing(head.version, seen.length, seen.codings)?;
    head.expects_continue = expects_continue(head.version, seen.expect)?;
    head.keep_alive = !seen.close && (head.version == Version::Http11 || seen.keep_alive);
    Ok(())
}

fn collect<'a>(head: &Head, bytes: &'a [u8]) -> Deciding<'a> {
    let mut seen = Deciding::default();
    for field in &head.fields {
        let (name, value) = (field.name.of(bytes), field.value.of(bytes));
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // By length first: most fields are none of these.
        match name.len() {
            4 if is(b"host") => seen.host.add(value),
            6 if is(b"expect") => seen.expect.add(value),
            10 if is(b"connection") => {
                seen.close |= lists(value, b"close");
                seen.keep_alive |= lists(value, b"keep-alive");
            }
            14 if is(b"content-length") => seen.length.add(value),
            17 if is(b"transfer-encoding") => seen.codings.add(value),
            _ => {}
        }
    }
    seen
}

/// Whether a comma-separated list has this token.
fn lists(list: &[u8], token: &[u8]) -> bool {
    elements(list).any(|element| element.eq_ignore_ascii_case(token))
}

/// RFC 9112 §3.2: exactly one Host in HTTP/1.1, at most one in HTTP/1.0, and a valid one.
fn check_host(version: Version, host: Once<'_>) -> Result<(), Refusal> {
    match only(host, "more than one Host")? {
        None if version == Version::Http11 => Err(bad("no Host")),
        Some(host) if !is_authority(host) => Err(bad("malformed Host")),
        _ => Ok(()),
    }
}

/// RFC 9112 §6.1 and §6.3. Whatever two servers might read differently is refused.
fn framing(version: Version, length: Once<'_>, codings: Codings) -> Result<Framing, Refusal> {
    let length = only(length, "more than one Content-Length")?;
    match (length, codings.is_there) {
        (Some(_), true) => Err(bad("both Content-Length and Transfer-Encoding")),
        (None, true) if version == Version::Http10 => Err(bad("Transfer-Encoding in HTTP/1.0")),
        (None, true) => codings.framing(),
        (Some(digits), false) => decimal(digits)
            .map(Framing::Length)
            .ok_or(bad("malformed Content-Length")),
        (None, false) => Ok(Framing::Length(0)),
    }
}

/// Digits alone: `str::parse` would also take a plus sign.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// RFC 9110 §10.1.1; a client of HTTP/1.0 cannot expect anything.
fn expects_continue(version: Version, expect: Once<'_>) -> Result<bool, Refusal> {
    if version == Version::Http10 {
        return Ok(false);
    }
    match expect {
        Once::Never => Ok(false),
        Once::Value(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
        _ => Err(refuse(
            StatusCode::EXPECTATION_FAILED,
            "the only expectation known here is 100-continue",
        )),
    }
}
