//! What the fields of a head mean for the connection: where the body ends, and whether another
//! request may follow.

use ::http::StatusCode;

use super::{Framing, Head, Refusal, Version, bad, refuse};

/// The values of the fields that decide.
#[derive(Default)]
struct Seen<'a> {
    host: Once<'a>,
    length: Once<'a>,
    encoding: Once<'a>,
    expect: Once<'a>,
    close: bool,
    keep_alive: bool,
}

/// A field that should come at most once.
#[derive(Default, Clone, Copy)]
enum Once<'a> {
    #[default]
    Never,
    Value(&'a [u8]),
    Repeated,
}

impl<'a> Once<'a> {
    fn see(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Never => Self::Value(value),
            _ => Self::Repeated,
        };
    }

    /// The value, or a refusal when there are several.
    fn value(self, repeated: &'static str) -> Result<Option<&'a [u8]>, Refusal> {
        match self {
            Self::Never => Ok(None),
            Self::Value(value) => Ok(Some(value)),
            Self::Repeated => Err(bad(repeated)),
        }
    }
}

/// Fills in what the fields of `head`, which lie in `bytes`, decide.
pub(super) fn decide(head: &mut Head, bytes: &[u8]) -> Result<(), Refusal> {
    let seen = look(head, bytes);
    check_host(head.version, seen.host)?;
    head.framing = framing(head.version, seen.length, seen.encoding)?;
    head.expects_continue = expects_continue(head.version, seen.expect)?;
    head.keep_alive = !seen.close && (head.version == Version::Http11 || seen.keep_alive);
    Ok(())
}

fn look<'a>(head: &Head, bytes: &'a [u8]) -> Seen<'a> {
    let mut seen = Seen::default();
    for field in &head.fields {
        let (name, value) = (field.name.of(bytes), field.value.of(bytes));
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // By length first: most fields are none of these.
        match name.len() {
            4 if is(b"host") => seen.host.see(value),
            6 if is(b"expect") => seen.expect.see(value),
            10 if is(b"connection") => {
                seen.close |= lists(value, b"close");
                seen.keep_alive |= lists(value, b"keep-alive");
            }
            14 if is(b"content-length") => seen.length.see(value),
            17 if is(b"transfer-encoding") => seen.encoding.see(value),
            _ => {}
        }
    }
    seen
}

/// Whether a comma-separated list has this token (RFC 9110 §5.6.1).
fn lists(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',')
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(token))
}

/// RFC 9112 §3.2: exactly one Host in HTTP/1.1, at most one in HTTP/1.0, and a valid one.
fn check_host(version: Version, host: Once<'_>) -> Result<(), Refusal> {
    match host.value("more than one Host")? {
        None if version == Version::Http11 => Err(bad("no Host")),
        Some(host) if !is_host(host) => Err(bad("malformed Host")),
        _ => Ok(()),
    }
}

/// RFC 9112 §6.1 and §6.3. Whatever two servers might read differently is refused.
fn framing(version: Version, length: Once<'_>, encoding: Once<'_>) -> Result<Framing, Refusal> {
    let length = length.value("more than one Content-Length")?;
    let encoding = encoding.value("more than one Transfer-Encoding")?;
    match (length, encoding) {
        (Some(_), Some(_)) => Err(bad("both Content-Length and Transfer-Encoding")),
        (None, Some(_)) if version == Version::Http10 => Err(bad("Transfer-Encoding in HTTP/1.0")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (None, Some(_)) => Err(refuse(
            StatusCode::NOT_IMPLEMENTED,
            "the only transfer coding known here is chunked",
        )),
        (Some(digits), None) => decimal(digits)
            .map(Framing::Length)
            .ok_or(bad("malformed Content-Length")),
        (None, None) => Ok(Framing::Length(0)),
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

/// Whether this can be a host and port (RFC 3986 §3.2.2). An empty one is valid: the client has no
/// name for us.
pub(super) fn is_host(host: &[u8]) -> bool {
    host.iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}
