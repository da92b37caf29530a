//! The request line: method, target and version (RFC 9112 §3). Pure: no system call, no clock.

use std::ops::Range;

use ::http::{Method, StatusCode};

use super::super::syntax::is_token;
use super::authority::{is_tunnel_target, names_a_host};
use super::parsed::{Head, Refusal, Span, Version, bad, refuse};

/// The positions of a request line's parts.
pub(super) struct Line {
    target: Range<usize>,
    major: usize,
    minor: usize,
    end: usize,
}

/// Splits the request line at the start of `bytes`; `None` when they end before it does. The method
/// is stored as soon as it is known: a refusal of the rest has to be right in answer to HEAD.
pub(super) fn split(head: &mut Head, bytes: &[u8]) -> Result<Option<Line>, Refusal> {
    let find = |from: usize, inside: fn(u8) -> bool| {
        let length = bytes[from..].iter().position(|byte| !inside(*byte))?;
        Some(from + length)
    };
    let Some(method_end) = find(0, is_token) else {
        return Ok(None);
    };
    // An extension method of up to 15 bytes is kept in place, without an allocation.
    head.method = Method::from_bytes(&bytes[..method_end]).map_err(|_| bad("malformed method"))?;
    if bytes[method_end] != b' ' {
        return Err(bad("malformed method"));
    }
    let Some(target_end) = find(method_end + 1, is_target) else {
        return Ok(None);
    };
    if target_end == method_end + 1 || bytes[target_end] != b' ' {
        return Err(bad("malformed request target"));
    }
    let version = target_end + 1;
    const PATTERN: &[u8] = b"HTTP/0.0\r\n";
    for (byte, expected) in bytes[version..].iter().zip(PATTERN) {
        let fits = match expected {
            b'0' => byte.is_ascii_digit(),
            _ => byte == expected,
        };
        if !fits {
            return Err(bad("malformed HTTP version"));
        }
    }
    let end = version + PATTERN.len();
    Ok((bytes.len() >= end).then_some(Line {
        target: method_end + 1..target_end,
        major: version + 5,
        minor: version + 7,
        end,
    }))
}

/// Fills in what the `line` says behind the method. Returns where it ends, its CRLF included.
pub(super) fn store(head: &mut Head, bytes: &[u8], line: Line) -> Result<usize, Refusal> {
    head.version = version(bytes[line.major], bytes[line.minor])?;
    head.target = Span::new(line.target.clone());
    store_target(head, bytes, line.target)?;
    Ok(line.end)
}

fn version(major: u8, minor: u8) -> Result<Version, Refusal> {
    match (major, minor) {
        (b'1', b'0') => Ok(Version::Http10),
        (b'1', _) => Ok(Version::Http11),
        _ => Err(refuse(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "this server speaks HTTP/1.1 and HTTP/1.0",
        )),
    }
}

/// Finds path and query in a target of origin-form, absolute-form or asterisk-form (RFC 9112
/// §3.2). A target of authority-form asks for a tunnel, which only a proxy has.
fn store_target(head: &mut Head, bytes: &[u8], target: Range<usize>) -> Result<(), Refusal> {
    let text = &bytes[target.clone()];
    head.is_about_server = false;
    if head.method == Method::CONNECT {
        // The refusal ends the connection, because what follows may be meant for the tunnel.
        return Err(match is_tunnel_target(text) {
            true => refuse(StatusCode::NOT_IMPLEMENTED, "this server is no proxy"),
            false => bad("malformed host and port in the request target"),
        });
    }
    let path_start = if text[0] == b'/' {
        target.start
    } else if text == b"*" && head.method == Method::OPTIONS {
        (head.path, head.query, head.is_about_server) = (head.target, None, true);
        return Ok(());
    } else {
        target.start + authority_end(text)?
    };
    let rest = &bytes[path_start..target.end];
    let path_end = rest.iter().position(|byte| *byte == b'?');
    let path_end = path_end.map_or(target.end, |length| path_start + length);
    head.path = Span::new(path_start..path_end);
    head.query = (path_end < target.end).then(|| Span::new(path_end + 1..target.end));
    // The last proxy on the way would have sent an asterisk (RFC 9112 §3.2.4).
    head.is_about_server = head.method == Method::OPTIONS && path_start == target.end;
    Ok(())
}

/// Where the authority of an absolute-form target ends.
fn authority_end(target: &[u8]) -> Result<usize, Refusal> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| {
            target
                .get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
        .ok_or(bad("malformed request target"))?
        .len();
    let authority = &target[scheme..];
    let length = authority
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?'))
        .unwrap_or(authority.len());
    if !names_a_host(&authority[..length]) {
        return Err(bad("malformed host in the request target"));
    }
    Ok(scheme + length)
}

/// A byte that a target may have. A few that RFC 3986 wants encoded are let through, because
/// browsers send them.
fn is_target(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'#'
}
