//! The head parser against requests that are right, wrong, split and made up.

use super::*;
use proptest::prelude::*;

/// What parsing gives, detached from the bytes.
fn parse(bytes: &[u8]) -> Result<Option<(usize, Head)>, Refusal> {
    let mut head = Head::new();
    Ok(head.parse(bytes)?.map(|length| (length, head)))
}

/// What parsing gives when the bytes come one after the other: the first answer that is one.
fn parse_dripping(bytes: &[u8]) -> Result<Option<(usize, Head)>, Refusal> {
    let mut head = Head::new();
    for end in 0..=bytes.len() {
        if let Some(length) = head.parse(&bytes[..end])? {
            return Ok(Some((length, head)));
        }
    }
    Ok(None)
}

#[track_caller]
fn accepted(bytes: &[u8]) -> Head {
    match parse(bytes) {
        Ok(Some((length, head))) if length == bytes.len() => head,
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    }
}

#[track_caller]
fn refused(bytes: &[u8]) -> u16 {
    let whole = parse(bytes);
    let dripping = parse_dripping(bytes);
    assert_eq!(whole, dripping, "{}", bytes.escape_ascii());
    match whole {
        Err(refusal) => refusal.status.as_u16(),
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    }
}

#[test]
fn a_head_is_taken_apart() {
    let bytes = b"POST /a%20b?c=d?e HTTP/1.1\r\nHost: x:80\r\nX-Empty:\r\nX-Padded: \t a b \t \r\n\
        CONTENT-length: 0012\r\n\r\n";
    let head = accepted(bytes);
    assert_eq!(head.method, Method::POST);
    assert_eq!(head.version, Version::Http11);
    assert_eq!(head.target.of(bytes), b"/a%20b?c=d?e");
    assert_eq!(head.path.of(bytes), b"/a%20b");
    assert_eq!(head.query.map(|query| query.of(bytes)), Some(&b"c=d?e"[..]));
    assert_eq!(head.framing, Framing::Length(12));
    let fields = head
        .fields
        .iter()
        .map(|field| (field.name.of(bytes), field.value.of(bytes)));
    let wanted: [(&[u8], &[u8]); 4] = [
        (b"Host", b"x:80"),
        (b"X-Empty", b""),
        (b"X-Padded", b"a b"),
        (b"CONTENT-length", b"0012"),
    ];
    assert!(fields.eq(wanted));
}

#[test]
fn targets() {
    for (method, target, path, query) in [
        ("GET", "/", "/", None),
        ("GET", "/?", "/", Some("")),
        ("GET", "//x/../y?z", "//x/../y", Some("z")),
        ("GET", "http://example.org/a?b", "/a", Some("b")),
        ("GET", "HTTPS://[::1]:443/", "/", None),
        ("GET", "http://example.org", "", None),
        ("GET", "http://example.org?q", "", Some("q")),
        ("OPTIONS", "*", "*", None),
        ("OPTIONS", "/x", "/x", None),
        ("OPTIONS", "http://example.org:1", "", None),
    ] {
        let text = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let head = accepted(text.as_bytes());
        assert_eq!(head.path.of(text.as_bytes()), path.as_bytes(), "{text}");
        let found = head.query.map(|query| query.of(text.as_bytes()));
        assert_eq!(found, query.map(str::as_bytes), "{text}");
    }
}

#[test]
fn request_lines_that_are_refused() {
    for (line, status) in [
        ("GET", 400),
        ("GET\t/ HTTP/1.1", 400),
        ("GET  / HTTP/1.1", 400),
        (" GET / HTTP/1.1", 400),
        ("GET /", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET / HTTP/1.1\r", 400),
        ("GET / http/1.1", 400),
        ("GET / HTTP/11", 400),
        ("GET / HTTP/1.10", 400),
        ("GET /\u{e9} HTTP/1.1", 400),
        ("GET /\x7f HTTP/1.1", 400),
        ("GET /#x HTTP/1.1", 400),
        ("GET x HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("GET ftp://x/ HTTP/1.1", 400),
        ("GET http:///x HTTP/1.1", 400),
        ("GET http://user@x/ HTTP/1.1", 400),
        ("G(T / HTTP/1.1", 400),
        ("\0 / HTTP/1.1", 400),
        ("GET http://x:y/ HTTP/1.1", 400),
        ("GET http://:80/ HTTP/1.1", 400),
        ("GET http://?q HTTP/1.1", 400),
        ("GET http://[::1 HTTP/1.1", 400),
        ("GET http://[::1]a/ HTTP/1.1", 400),
        ("GET http://%zz/ HTTP/1.1", 400),
        ("GET http://user:word@x/ HTTP/1.1", 400),
        ("OPTIONS http:// HTTP/1.1", 400),
        ("BREW * HTTP/1.1", 400),
        ("CONNECT x:1 HTTP/1.1", 501),
        ("CONNECT [::1]:443 HTTP/1.1", 501),
        ("CONNECT x HTTP/1.1", 400),
        ("CONNECT x: HTTP/1.1", 400),
        ("CONNECT x:y HTTP/1.1", 400),
        ("CONNECT / HTTP/1.1", 400),
        ("CONNECT * HTTP/1.1", 400),
        ("CONNECT http://x/ HTTP/1.1", 400),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/0.9", 505),
        ("PRI * HTTP/2.0", 505),
    ] {
        let text = format!("{line}\r\nHost: x\r\n\r\n");
        assert_eq!(refused(text.as_bytes()), status, "{line:?}");
    }
    assert_eq!(refused(b"\n"), 400);
    assert_eq!(refused(b"GET / HTTP/1.1\nHost: x\n\n"), 400);
    assert_eq!(
        refused(b"\x16\x03\x01\x02"),
        400,
        "a TLS client is told at once"
    );
}

#[test]
fn a_later_minor_version_is_read_as_1_1() {
    let head = accepted(b"GET / HTTP/1.2\r\nHost: x\r\n\r\n");
    assert_eq!(head.version, Version::Http11);
}

/// Two servers in a row could see different requests in each of these.
#[test]
fn smuggling_is_refused() {
    for (fields, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\ncontent-length: 6\r\n", 400),
        ("Content-Length: 5, 5\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -5\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length: 5 5\r\n", 400),
        ("Content-Length: 5.0\r\n", 400),
        ("Content-Length: \u{665}\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 18446744073709551616\r\n", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            400,
        ),
        ("Transfer-Encoding: identity\r\n", 400),
        ("Transfer-Encoding: xchunked\r\n", 400),
        ("Transfer-Encoding: \"chunked\"\r\n", 400),
        ("Transfer-Encoding: chunked;a=b\r\n", 400),
        ("Transfer-Encoding: chunked ;a\r\n", 400),
        ("Transfer-Encoding: chunked;\r\n", 400),
        ("Transfer-Encoding: chunked x\r\n", 400),
        ("Transfer-Encoding: gz ip, chunked\r\n", 400),
        ("Transfer-Encoding: gzip;a=b, chunked\r\n", 501),
        ("Transfer-Encoding: \x0bchunked\r\n", 400),
        ("Transfer-Encoding:\r\n", 400),
        ("Transfer-Encoding : chunked\r\n", 400),
        ("Transfer-Encoding\r\n", 400),
        ("Transfer-Encoding\t: chunked\r\n", 400),
        ("X: y\r\n Transfer-Encoding: chunked\r\n", 400),
        ("X:\r\n\tfolded\r\n", 400),
        (" X: first line folded\r\n", 400),
        ("X: y\nTransfer-Encoding: chunked\r\n", 400),
        ("X:\nTransfer-Encoding: chunked\r\n", 400),
        ("X: y\rTransfer-Encoding: chunked\r\n", 400),
        ("X: a\0b\r\n", 400),
        ("X: a\x7fb\r\n", 400),
        ("X: a\x1bb\r\n", 400),
        ("X: y\r\n\n", 400),
        ("X: y\n", 400),
        (": y\r\n", 400),
        ("X(: y\r\n", 400),
        ("X\u{e9}: y\r\n", 400),
        ("Host: y\r\n", 400),
        ("Host:\r\n", 400),
        ("Expect: 200-ok\r\n", 417),
        ("Expect: 100-continue\r\nExpect: 100-continue\r\n", 417),
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        assert_eq!(refused(text.as_bytes()), status, "{fields:?}");
    }
    let text = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refused(text), 400);
}

#[test]
fn codings_on_two_lines_are_those_on_one() {
    for (first, second, status) in [
        ("chunked", "chunked", 400),
        ("chunked", "gzip", 400),
        ("chunked", "identity", 400),
        ("chunked, gzip", "chunked", 400),
        ("gzip", "chunked", 501),
        ("gzip, deflate", "Chunked", 501),
        ("unknown", "chunked", 501),
        ("gzip", "deflate", 400),
        ("chunked", "", 400),
        ("", "chunked", 400),
        ("", "", 400),
    ] {
        for fields in [
            format!("Transfer-Encoding: {first}, {second}"),
            format!("Transfer-Encoding: {first}\r\nX: y\r\ntransfer-encoding: {second}"),
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
            assert_eq!(refused(text.as_bytes()), status, "{fields:?}");
        }
    }
}

#[test]
fn any_token_is_a_method() {
    let long = "M".repeat(4000);
    for method in ["QUERY", "PROPFIND", "get", "!#$%&'*+-.^_`|~09Az", &long] {
        let text = format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(accepted(text.as_bytes()).method.as_str(), method);
    }
}

#[test]
fn framing_that_is_clear() {
    for (fields, framing) in [
        ("", Framing::Length(0)),
        ("Content-Length: 0\r\n", Framing::Length(0)),
        (
            "Content-Length: 18446744073709551615\r\n",
            Framing::Length(u64::MAX),
        ),
        ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
        ("transfer-encoding:chunked \t\r\n", Framing::Chunked),
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        assert_eq!(accepted(text.as_bytes()).framing, framing, "{fields:?}");
    }
}

#[test]
fn hosts() {
    for (host, version, taken) in [
        ("Host: example.org:8080\r\n", "1.1", true),
        ("Host: [::1]\r\n", "1.1", true),
        ("Host: x:\r\n", "1.1", true),
        ("Host: x:65536\r\n", "1.1", true),
        ("Host: [v1.x]:1\r\n", "1.1", true),
        ("Host: %C3%B1\r\n", "1.0", true),
        ("Host: localhost:port\r\n", "1.1", false),
        ("Host: a:-1\r\n", "1.0", false),
        ("Host: 1.2.3.4:9000:80\r\n", "1.1", false),
        ("Host: [abcd::1\r\n", "1.1", false),
        ("Host: [::1].\r\n", "1.1", false),
        ("Host: [ab..cd::1]\r\n", "1.1", false),
        ("Host: %zz\r\n", "1.1", false),
        ("Host:\r\n", "1.1", true),
        ("", "1.0", true),
        ("", "1.1", false),
        ("Host: x\r\nHost: x\r\n", "1.1", false),
        ("Host: x\r\nHost: x\r\n", "1.0", false),
        ("Host: x y\r\n", "1.1", false),
        ("Host: x/y\r\n", "1.1", false),
        ("Host: a@b\r\n", "1.1", false),
    ] {
        let text = format!("GET / HTTP/{version}\r\n{host}\r\n");
        match parse(text.as_bytes()) {
            Ok(Some(_)) => assert!(taken, "{text:?}"),
            Err(refusal) => assert!(!taken && refusal.status == 400, "{text:?}: {refusal:?}"),
            Ok(None) => panic!("{text:?} is complete"),
        }
    }
}

#[test]
fn who_may_send_another_request() {
    for (version, fields, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Upgrade, CLOSE\r\n", false),
        (
            "1.1",
            "Connection: keep-alive\r\nConnection: close\r\n",
            false,
        ),
        ("1.1", "Connection: closed, x-close\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: foo ,keep-alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let text = format!("GET / HTTP/{version}\r\nHost: x\r\n{fields}\r\n");
        let head = accepted(text.as_bytes());
        assert_eq!(head.keep_alive, keep_alive, "{text:?}");
    }
}

#[test]
fn expectations() {
    let head = accepted(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\n\r\n");
    assert!(head.expects_continue);
    let head = accepted(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n");
    assert!(!head.expects_continue);
}

#[test]
fn limits_are_exact() {
    let line = |length: usize| {
        let rest = "GET / HTTP/1.1".len();
        format!(
            "GET /{} HTTP/1.1\r\nHost: x\r\n\r\n",
            "a".repeat(length - rest)
        )
    };
    accepted(line(MAX_LINE).as_bytes());
    assert_eq!(refused(line(MAX_LINE + 1).as_bytes()), 414);

    let head = |length: usize| {
        let start = "GET / HTTP/1.1\r\nHost: x\r\nX: ";
        format!("{start}{}\r\n\r\n", "a".repeat(length - start.len() - 4))
    };
    accepted(head(MAX_HEAD).as_bytes());
    let longer = head(MAX_HEAD + 1);
    assert_eq!(parse(longer.as_bytes()).unwrap_err().status, 431);
    let begun = &longer.as_bytes()[..MAX_HEAD];
    assert_eq!(
        parse(begun).unwrap_err().status,
        431,
        "no need to wait for more"
    );
    assert_eq!(parse(&begun[..MAX_HEAD - 1]), Ok(None));

    let fields = |count: usize| format!("GET / HTTP/1.0\r\n{}\r\n", "X: y\r\n".repeat(count));
    for count in [FEW_FIELDS, FEW_FIELDS + 1, MAX_FIELDS] {
        let text = fields(count);
        assert_eq!(accepted(text.as_bytes()).fields.len(), count);
    }
    assert_eq!(refused(fields(MAX_FIELDS + 1).as_bytes()), 431);
}

#[test]
fn a_head_that_is_used_again_keeps_nothing() {
    let mut head = Head::new();
    let first = b"POST http://x/a?b HTTP/1.0\r\nContent-Length: 9\r\nConnection: close\r\n\r\n";
    let second = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    head.parse(first).unwrap();
    head.parse(second).unwrap();
    assert_eq!(head, accepted(second));
}

/// Pieces that heads are made of, good and bad: any sequence is nearly a head.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = proptest::sample::select(vec![
        &b"GET / HTTP/1.1\r\n"[..],
        b"POST /a?b HTTP/1.0\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"GET ",
        b"/x",
        b" HTTP/1.1\r\n",
        b" HTTP/3.0\r\n",
        b"Host: x\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"X: y\n",
        b"X : y\r\n",
        b": \r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b" ",
        b"\0",
        b"\xff",
        b"abc",
    ]);
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

/// A request line that is whole, then pieces, then an empty line: often a head.
fn nearly_heads() -> impl Strategy<Value = Vec<u8>> {
    (pieces(), pieces()).prop_map(|(fields, rest)| {
        let start = b"POST / HTTP/1.1\r\nHost: x\r\n";
        [&start[..], &fields, b"\r\n", &rest].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_dripping_head_is_judged_like_a_whole_one(
        bytes in prop_oneof![pieces(), nearly_heads()],
    ) {
        prop_assert_eq!(parse_dripping(&bytes), parse(&bytes));
    }

    #[test]
    fn what_follows_a_head_changes_nothing(bytes in nearly_heads(), rest in pieces()) {
        let more = [&bytes[..], &rest].concat();
        match parse(&bytes) {
            Ok(None) => {}
            settled => prop_assert_eq!(parse(&more), settled),
        }
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = parse(&bytes);
        let _ = parse(&[b"GET / HTTP/1.1\r\nHost: x\r\n", &bytes[..]].concat());
    }

    /// Whoever reads an accepted head by its lines sees the same fields.
    #[test]
    fn an_accepted_head_is_lines_that_end_in_crlf(bytes in nearly_heads()) {
        if let Ok(Some((length, head))) = parse(&bytes) {
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            let lines: Vec<&str> = text.trim_start_matches("\r\n").split("\r\n").collect();
            prop_assert_eq!(lines.len(), head.fields.len() + 3);
            prop_assert!(lines.iter().all(|line| !line.contains(['\r', '\n', '\0'])));
        }
    }
}
