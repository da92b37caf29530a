//! HTTP/1.1 as it arrives through the master: in pieces, several requests at once, ambiguous, too
//! long; and files, of which none lies outside the directory that is served.

use std::fs;
use std::os::unix::fs::symlink;

use crate::harness::client::Served;
use crate::harness::{Client, Server, Setup};

fn demo() -> Server {
    Server::start(&["demo", "-w", "2"])
}

#[test]
fn a_head_may_come_a_byte_a_packet() {
    let server = demo();
    let mut client = server.connect();
    for _ in 0..2 {
        for byte in b"GET / HTTP/1.1\r\nHost: test\r\nX-Slow: yes\r\n\r\n" {
            client.send([*byte]);
        }
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn a_body_may_come_a_byte_a_packet() {
    let server = demo();
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n");
    for byte in b"0123456789" {
        client.send([*byte]);
    }
    assert_eq!(client.reply().text(), "0123456789");
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = demo();
    let mut client = server.connect();
    client.send(
        "GET /bytes/3 HTTP/1.1\r\nHost: test\r\n\r\n\
         POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello\
         GET /sleep/20 HTTP/1.1\r\nHost: test\r\n\r\n\
         GET /bytes/4 HTTP/1.1\r\nHost: test\r\n\r\n\
         GET / HTTP/1.1\r\nHost: te",
    );
    assert_eq!(client.reply().body.len(), 3);
    assert_eq!(client.reply().text(), "hello");
    assert_eq!(client.reply().status, 200);
    assert_eq!(client.reply().body.len(), 4);
    client.send("st\r\n\r\n");
    assert_eq!(client.reply().status, 200);
}

#[test]
fn a_hundred_pipelined_requests_share_the_server_with_others() {
    let server = Server::start(&["demo", "-w", "1"]);
    let mut greedy = server.connect();
    greedy.send("GET /sleep/5 HTTP/1.1\r\nHost: test\r\n\r\n".repeat(100));
    let mut modest = server.connect();
    assert_eq!(modest.get("/").status, 200);
    for _ in 0..100 {
        assert_eq!(greedy.reply().status, 200);
    }
}

#[test]
fn the_last_pipelined_requests_before_a_half_close_are_answered() {
    let server = demo();
    let mut client = server.connect();
    client.send("GET /bytes/7 HTTP/1.1\r\nHost: test\r\n\r\n".repeat(3));
    client.half_close();
    for _ in 0..3 {
        assert_eq!(client.reply().body.len(), 7);
    }
    assert!(client.is_closed());
}

#[test]
fn a_request_cut_off_by_the_client_s_end_is_not_served() {
    let server = demo();
    for piece in ["GET / HTT", "GET / HTTP/1.1\r\nHost: test\r\n"] {
        let mut client = server.connect();
        client.send(piece);
        client.half_close();
        let rest = client.read_until_close();
        let text = String::from_utf8_lossy(&rest);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 400 "),
            "{text:?}"
        );
    }
}

#[test]
fn a_client_that_expects_100_is_told_to_continue() {
    let server = demo();
    let mut client = server.connect();
    let head =
        "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(client.roundtrip(head).status, 100);
    assert_eq!(client.roundtrip("hello").text(), "hello");
    // One that does not wait gets its answer, with or without the interim response.
    client.send(format!("{head}hello"));
    let mut reply = client.reply();
    if reply.status == 100 {
        reply = client.reply();
    }
    assert_eq!(reply.text(), "hello");
    // Nothing but 100-continue can be expected (RFC 9110 §10.1.1).
    let reply = client.get_with("/", "Expect: miracles");
    assert!([200, 417].contains(&reply.status), "{reply:?}");
}

#[test]
fn a_chunked_body_is_put_together() {
    let server = demo();
    let mut client = server.connect();
    let head = "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "5\r\nhello\r\n1;note=\"x\"\r\n,\r\nA\r\n 0123456 9\r\n0\r\nX-Trailer: yes\r\n\r\n";
    let reply = client.roundtrip(format!("{head}{body}"));
    assert_eq!(reply.text(), "hello, 0123456 9");
    client.send(head);
    for byte in body.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.reply().text(), "hello, 0123456 9");
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn a_large_body_comes_back() {
    let server = demo();
    let body: Vec<u8> = (0..500_000_u32).map(|at| (at % 251) as u8).collect();
    let mut client = server.connect();
    let reply = client.post("/echo", &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.body == body, "{} bytes, or others", reply.body.len());
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn bytes_are_counted() {
    let server = demo();
    let mut client = server.connect();
    for count in [0, 1, 1000, 20 << 20] {
        let reply = client.get(&format!("/bytes/{count}"));
        assert_eq!((reply.status, reply.body.len()), (200, count));
    }
    for path in [
        "/bytes/",
        "/bytes/x",
        "/bytes/-1",
        "/bytes/1073741825",
        "/sleep/60001",
    ] {
        let status = server.get(path).status;
        assert!((400..500).contains(&status), "{path}: {status}");
    }
}

#[test]
fn head_is_get_without_the_body() {
    let server = demo();
    let mut client = server.connect();
    let reply = client.head("/bytes/1073741824");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-length"), Some("1073741824"));
    assert_eq!(Served::of(&client.get("/")).turn, 2);
}

#[test]
fn every_response_is_dated_and_framed() {
    let server = demo();
    let mut client = server.connect();
    for path in ["/", "/bytes/1", "/sleep/0", "/nothing-here"] {
        let reply = client.get(path);
        let date = reply.header("date").expect("RFC 9110 §6.6.1");
        httpdate::parse_http_date(date).expect("an HTTP date");
        assert!(reply.header("content-length").is_some(), "{reply:?}");
    }
}

#[test]
fn http_1_0_closes_unless_it_asks_to_keep() {
    let server = demo();
    let mut client = server.connect();
    assert_eq!(client.roundtrip("GET / HTTP/1.0\r\n\r\n").status, 200);
    assert!(client.is_closed());
    let mut client = server.connect();
    for _ in 0..2 {
        let reply = client.roundtrip("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("connection"), Some("keep-alive"));
    }
}

#[test]
fn a_client_that_wants_no_more_is_closed() {
    let server = demo();
    let mut client = server.connect();
    let reply = client.get_with("/", "Connection: close");
    assert_eq!(reply.status, 200);
    assert!(reply.closes());
    assert!(client.is_closed());
}

#[test]
fn what_is_ambiguous_or_too_much_is_refused_and_ends_the_connection() {
    let server = demo();
    let get = |header: &str| format!("GET / HTTP/1.1\r\nHost: test\r\n{header}\r\n\r\n");
    let post =
        |headers: &str| format!("POST /echo HTTP/1.1\r\nHost: test\r\n{headers}\r\n\r\nhello");
    let long = "x".repeat(40_000);
    let cases: &[(&str, String, &[u16])] = &[
        ("bare LF", "GET / HTTP/1.1\nHost: test\n\n".into(), &[400]),
        (
            "one bare LF",
            "GET / HTTP/1.1\r\nHost: test\nX: y\r\n\r\n".into(),
            &[400],
        ),
        ("no request line", "\0\0\0\0\r\n\r\n".into(), &[400]),
        ("TLS", "\x16\x03\x01\x02\0\x01\0\r\n\r\n".into(), &[400]),
        ("no version", "GET /\r\n\r\n".into(), &[400, 505]),
        (
            "a space too many",
            "GET  / HTTP/1.1\r\nHost: test\r\n\r\n".into(),
            &[400],
        ),
        ("no Host", "GET / HTTP/1.1\r\n\r\n".into(), &[400]),
        ("two Hosts", get("Host: other"), &[400]),
        ("space before the colon", get("X-Name : value"), &[400]),
        ("folded", get("X-Name: one\r\n two"), &[400]),
        ("NUL in a value", get("X-Name: a\0b"), &[400]),
        ("CR in a value", get("X-Name: a\rb"), &[400]),
        ("empty name", get(": value"), &[400]),
        (
            "length and chunked",
            post("Content-Length: 5\r\nTransfer-Encoding: chunked"),
            &[400],
        ),
        (
            "two lengths",
            post("Content-Length: 5\r\nContent-Length: 6"),
            &[400],
        ),
        (
            "a length twice",
            post("Content-Length: 5\r\nContent-Length: 5"),
            &[400],
        ),
        ("a list of lengths", post("Content-Length: 5, 5"), &[400]),
        ("a signed length", post("Content-Length: +5"), &[400]),
        ("a negative length", post("Content-Length: -5"), &[400]),
        ("a hexadecimal length", post("Content-Length: 0x5"), &[400]),
        ("an empty length", post("Content-Length: "), &[400]),
        (
            "an endless length",
            post("Content-Length: 99999999999999999999"),
            &[400, 413],
        ),
        ("a vast length", post("Content-Length: 99999999999"), &[413]),
        (
            "an unknown coding",
            post("Transfer-Encoding: gzip"),
            &[400, 501],
        ),
        (
            "chunked and more",
            post("Transfer-Encoding: chunked, gzip"),
            &[400, 501],
        ),
        (
            "chunked twice",
            post("Transfer-Encoding: chunked, chunked"),
            &[400, 501],
        ),
        (
            "a disguised coding",
            post("Transfer-Encoding: xchunked"),
            &[400, 501],
        ),
        (
            "a bad chunk",
            post("Transfer-Encoding: chunked\r\n\r\nZZ\r\n"),
            &[400],
        ),
        (
            "a chunk's bare LF",
            post("Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n"),
            &[400],
        ),
        (
            "a negative chunk",
            post("Transfer-Encoding: chunked\r\n\r\n-5\r\n"),
            &[400],
        ),
        (
            "HTTP/2",
            "GET / HTTP/2.0\r\nHost: test\r\n\r\n".into(),
            &[505],
        ),
        (
            "HTTP/3",
            "GET / HTTP/3.1\r\nHost: test\r\n\r\n".into(),
            &[505],
        ),
        (
            "the preface",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            &[400, 505],
        ),
        (
            "a long path",
            format!("GET /{long} HTTP/1.1\r\nHost: test\r\n\r\n"),
            &[414],
        ),
        ("a long header", get(&format!("X-Long: {long}")), &[431]),
        ("many headers", get(&"X: y\r\n".repeat(5000)), &[431]),
    ];
    for (name, request, statuses) in cases {
        let mut client = server.connect();
        client.send(request);
        let reply = match client.try_reply() {
            Ok(reply) => reply,
            Err(error) => panic!("{name}: {error}"),
        };
        assert!(statuses.contains(&reply.status), "{name}: {reply:?}");
        assert!(reply.closes(), "{name}: {reply:?}");
        let after = client.read_until_close();
        assert!(
            after.is_empty(),
            "{name}: {}",
            String::from_utf8_lossy(&after)
        );
    }
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_method_that_does_not_fit_is_refused_and_the_connection_goes_on() {
    let server = demo();
    let mut client = server.connect();
    let request = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
    };
    for (method, path) in [("DELETE", "/"), ("POST", "/bytes/1"), ("GET", "/echo")] {
        let reply = client.roundtrip(request(method, path));
        assert_eq!(reply.status, 405, "{method} {path}: {reply:?}");
        assert!(reply.header("allow").is_some(), "{reply:?}");
    }
    let reply = client.roundtrip(request("BREW", "/"));
    assert!([405, 501].contains(&reply.status), "{reply:?}");
    assert_eq!(server.get("/no-such-page").status, 404);
}

/// A server of files, and beside its directory a file that it must never send.
struct Files {
    server: Server,
}

const SECRET: &str = "not for the public";

impl Files {
    fn start() -> Self {
        let setup = Setup::new(&["http", "public", "-w", "2"]);
        let public = setup.directory().join("public");
        fs::create_dir_all(public.join("sub/deep")).expect("directories");
        let write = |path: &str, text: &[u8]| fs::write(public.join(path), text).expect("a file");
        write("index.html", b"<h1>home</h1>");
        write("sub/index.html", b"<h1>sub</h1>");
        write("notes.txt", b"some notes\n");
        write("empty", b"");
        write("a b&c.txt", b"odd name");
        write("large.bin", &large());
        fs::write(setup.directory().join("secret"), SECRET).expect("a file");
        symlink("../secret", public.join("link")).expect("a link");
        symlink("..", public.join("up")).expect("a link");
        symlink("notes.txt", public.join("inner")).expect("a link");
        Self {
            server: setup.start(),
        }
    }
}

fn large() -> Vec<u8> {
    (0..3_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[test]
fn files_are_served_with_their_type_and_length() {
    let files = Files::start();
    let mut client = files.server.connect();
    for (path, kind, body) in [
        ("/", "text/html", &b"<h1>home</h1>"[..]),
        ("/index.html", "text/html", b"<h1>home</h1>"),
        ("/sub/", "text/html", b"<h1>sub</h1>"),
        ("/notes.txt", "text/plain", b"some notes\n"),
        ("/notes.txt?query=1", "text/plain", b"some notes\n"),
        ("/a%20b%26c.txt", "text/plain", b"odd name"),
        ("/sub/../notes.txt", "text/plain", b"some notes\n"),
        ("/inner", "", b"some notes\n"),
        ("/empty", "", b""),
        ("/large.bin", "application/octet-stream", &large()),
    ] {
        let reply = client.get(path);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert!(
            reply
                .header("content-type")
                .unwrap_or_default()
                .starts_with(kind),
            "{reply:?}"
        );
        assert!(reply.body == body, "{path}: {reply:?}");
        let head = client.head(path);
        assert_eq!(head.status, 200);
        assert_eq!(
            head.header("content-length"),
            Some(&*body.len().to_string()),
            "{path}"
        );
    }
}

#[test]
fn a_file_that_has_not_changed_is_not_sent_again() {
    let files = Files::start();
    let mut client = files.server.connect();
    let modified = client
        .get("/notes.txt")
        .header("last-modified")
        .map(str::to_owned);
    let modified = modified.expect("a date");
    let reply = client.get_with("/notes.txt", &format!("If-Modified-Since: {modified}"));
    assert_eq!((reply.status, reply.body.len()), (304, 0), "{reply:?}");
    let reply = client.get_with(
        "/notes.txt",
        "If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT",
    );
    assert_eq!(reply.status, 200);
    let reply = client.get_with("/notes.txt", "If-Modified-Since: yesterday");
    assert_eq!(
        reply.status, 200,
        "a date that is none is ignored (RFC 9110 §13.1.3)"
    );
}

#[test]
fn what_is_no_file_gets_its_status() {
    let files = Files::start();
    let mut client = files.server.connect();
    for path in [
        "/missing",
        "/missing/",
        "/notes.txt/",
        "/notes.txt/more",
        "/sub/deep/",
    ] {
        let reply = client.get(path);
        assert!([403, 404].contains(&reply.status), "{path}: {reply:?}");
    }
    let reply = client.post("/notes.txt", b"new text");
    assert_eq!(reply.status, 405, "{reply:?}");
    let allow = reply.header("allow").expect("RFC 9110 §15.5.6");
    assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
    let reply = client.get("/sub");
    assert!([200, 301, 308].contains(&reply.status), "{reply:?}");
}

#[test]
fn no_path_leaves_the_directory() {
    let files = Files::start();
    let absolute = files.server.directory().join("secret");
    let absolute = absolute.to_str().expect("a path of ASCII");
    let mut paths: Vec<String> = [
        "/../secret",
        "/../../secret",
        "/sub/../../secret",
        "/sub/deep/../../../secret",
        "/%2e%2e/secret",
        "/%2E%2E/secret",
        "/.%2e/secret",
        "/..%2fsecret",
        "/..%2Fsecret",
        "/%2e%2e%2fsecret",
        "/sub/..%2f..%2fsecret",
        "/..%5csecret",
        "/%252e%252e/secret",
        "/./../secret",
        "//../secret",
        "/link",
        "/up/secret",
        "/up/up/secret",
        "/notes.txt%00/../../secret",
        "/secret%00",
        "/..",
        "/../",
        "/%2e%2e",
        "/../public/../secret",
        "/~/secret",
    ]
    .map(str::to_owned)
    .to_vec();
    paths.push(format!("/{absolute}"));
    paths.push(format!("/{}", absolute.replace('/', "%2f")));
    paths.push(format!("http://test{absolute}"));
    paths.push("/proc/self/cwd/secret".to_owned());
    for path in paths {
        let mut client: Client = files.server.connect();
        let reply = client.get(&path);
        assert!(!reply.text().contains(SECRET), "{path}: {reply:?}");
        // `/..` may be read as `/`, as RFC 3986 §5.2.4 has it for a reference; the secret is never
        // found.
        assert!(
            [200, 301, 308, 400, 403, 404].contains(&reply.status),
            "{path}: {reply:?}"
        );
    }
}

#[test]
fn a_request_in_absolute_form_is_for_its_path() {
    let files = Files::start();
    let mut client = files.server.connect();
    assert_eq!(client.get("http://test/notes.txt").text(), "some notes\n");
}
