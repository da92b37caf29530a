//! The demo: which process served this request, and what becomes of a request that is slow, large
//! or deadly.

use std::fmt::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::process::parent_id;
use std::process;
use std::time::Duration;

use ::http::{Method, StatusCode};

use super::request::{Handler, OnHead, Request};
use super::response::{Response, is_standard};
use super::syntax::elements;

/// The longest sleep that a client may ask for, in milliseconds.
const MAX_SLEEP: u64 = 60_000;

/// The longest body that a client may ask for, in bytes: 1 GiB.
const MAX_BYTES: u64 = 1 << 30;

/// The page; the facts take the place of `{facts}`.
const PAGE: &str = include_str!("demo.html");

/// What `/bytes/N` is made of: lines of 64 bytes, so that a terminal survives it.
static PATTERN: [u8; 64 * 1024] = pattern();

/// The methods of the demo's resources that are read, and of those that are written to.
const READING: &str = "GET, HEAD, OPTIONS";
const WRITING: &str = "POST, OPTIONS";

/// Answers `/` with who served it, `/sleep/MS` late, `/bytes/N` with N bytes, `/echo` with what was
/// posted, and `/crash` not at all.
///
/// It counts its requests and tells the count on `/`, so that a client which collects all answers
/// of a worker can see that no request was served twice and that no answer was lost.
#[derive(Debug, Clone, Default)]
pub struct Demo {
    /// Requests so far, the one in hand included.
    requests: u64,
}

impl Handler for Demo {
    fn handle(&mut self, request: &mut Request<'_>) -> Response {
        self.requests += 1;
        let (name, argument) = split(request.path());
        let method = request.method();
        if !is_standard(method) {
            // Mostly a probe for some other protocol, so that what comes next is hardly a request.
            return Response::wrong_method(method, READING).close();
        }
        let allowed = match (name, argument) {
            ("" | "crash", None) | ("sleep" | "bytes", Some(_)) => READING,
            ("echo", None) => WRITING,
            _ => return Response::error(StatusCode::NOT_FOUND),
        };
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let posts = *method == Method::POST;
        match (name, argument) {
            _ if *method == Method::OPTIONS => Response::options(allowed),
            ("", _) if reads => who(request, self.requests),
            ("sleep", Some(milliseconds)) if reads => sleep(milliseconds),
            ("bytes", Some(count)) if reads => bytes(count),
            ("crash", _) if reads => process::abort(),
            ("echo", _) if posts => echo(request),
            _ => Response::wrong_method(method, allowed),
        }
    }

    fn on_head(&mut self, request: &Request<'_>) -> OnHead {
        let takes_body = *request.method() == Method::POST && request.path() == "/echo";
        let too_long = request.remaining() > Some(request.body_limit());
        match takes_body && !too_long {
            true => OnHead::Gather,
            false => OnHead::Leave,
        }
    }

    fn methods(&self) -> &str {
        "GET, HEAD, POST, OPTIONS"
    }
}

/// `/name/argument`, or `/name`.
fn split(path: &str) -> (&str, Option<&str>) {
    let path = path.strip_prefix('/').unwrap_or(path);
    match path.split_once('/') {
        Some((name, argument)) => (name, Some(argument)),
        None => (path, None),
    }
}

/// Says who served the request, as text, or as a page to a browser.
fn who(request: &Request<'_>, requests: u64) -> Response {
    let facts = [
        (
            "worker",
            format!("slot {}, pid {}", request.slot(), process::id()),
        ),
        ("served", format!("request {requests} of this worker")),
        ("descriptor", request.as_raw_fd().to_string()),
        ("turn", format!("{} of this connection", request.turn())),
        ("client", request.peer().to_string()),
        ("master", format!("pid {}", parent_id())),
    ];
    let response = if wants_html(request) {
        let mut rows = String::new();
        for (name, value) in facts {
            let value = escape(&value);
            let _ = write!(rows, "<dt>{name}</dt><dd>{value}</dd>");
        }
        Response::html(PAGE.replace("{facts}", &rows))
    } else {
        let mut text = String::new();
        for (name, value) in facts {
            let _ = writeln!(text, "{name:<11} {value}");
        }
        Response::text(text)
    };
    response
        .header("Cache-Control", "no-store")
        .header("Vary", "Accept")
}

/// A browser names text/html; curl accepts anything.
fn wants_html(request: &Request<'_>) -> bool {
    let fields = request.headers();
    let mut accept = fields.filter(|(name, _)| name.eq_ignore_ascii_case("Accept"));
    accept.any(|(_, value)| {
        elements(value).any(|range| {
            let media = range.split(|byte| *byte == b';').next().unwrap_or_default();
            media.trim_ascii().eq_ignore_ascii_case(b"text/html")
        })
    })
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

fn sleep(milliseconds: &str) -> Response {
    match number(milliseconds, MAX_SLEEP) {
        Some(milliseconds) => {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Response::text(format!("slept {milliseconds} ms\n"))
        }
        None => bad(format!("/sleep/MS takes 0 to {MAX_SLEEP} milliseconds\n")),
    }
}

fn bytes(count: &str) -> Response {
    match number(count, MAX_BYTES) {
        Some(count) => Response::new(StatusCode::OK)
            .header("Content-Type", "application/octet-stream")
            .repeated(&PATTERN, count),
        None => bad(format!("/bytes/N takes 0 to {MAX_BYTES} bytes\n")),
    }
}

fn echo(request: &mut Request<'_>) -> Response {
    let content_type = request.header("Content-Type");
    match request.read_body() {
        Ok(body) => Response::new(StatusCode::OK)
            .header(
                "Content-Type",
                content_type.unwrap_or(b"application/octet-stream"),
            )
            .header("X-Content-Type-Options", "nosniff")
            .bytes(body),
        Err(error) => error.into(),
    }
}

fn bad(text: String) -> Response {
    Response::text(text).status(StatusCode::BAD_REQUEST)
}

/// A decimal number up to `most`; no sign, no space.
fn number(digits: &str, most: u64) -> Option<u64> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|_| plain)?;
    (number <= most).then_some(number)
}

const fn pattern() -> [u8; 64 * 1024] {
    let line = b"baton 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrs\n";
    let mut pattern = [0; 64 * 1024];
    let mut at = 0;
    while at < pattern.len() {
        pattern[at] = line[at % line.len()];
        at += 1;
    }
    pattern
}
