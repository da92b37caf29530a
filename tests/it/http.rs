//! HTTP/1.1 as it arrives through the master: in pieces, several requests at once, ambiguous, too
//! long.

use crate::harness::Server;
use crate::harness::client::Served;

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
fn a_host_follows_its_grammar() {
    let server = demo();
    let mut client = server.connect();
    for host in [
        "",
        "localhost",
        "localhost:",
        "localhost:65536",
        "1.2.3.4:9000",
        "[::1]:80",
        "[::ffff:1.2.3.4]",
        "[v7.a:b]",
        "%C3%B1.example",
    ] {
        let reply = client.roundtrip(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(reply.status, 200, "{host}");
        if !host.is_empty() {
            let target = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(client.roundtrip(target).status, 200, "{host}");
        }
    }
    for host in [
        "localhost:port",
        "a:-1",
        "1.2.3.4:9000:80",
        "::1",
        "[abcd::1",
        "[::1].",
        "[::1]80",
        "[ab..cd::1]",
        "[fe80::1%25eth0]",
        "[v7]",
        "%zz",
        "a%",
        "user@host",
    ] {
        for request in [
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\n\r\n"),
            format!("CONNECT {host} HTTP/1.1\r\nHost: x\r\n\r\n"),
        ] {
            let mut client = server.connect();
            let reply = client.roundtrip(&request);
            assert_eq!(reply.status, 400, "{request}");
            assert!(client.read_until_close().is_empty(), "{request}");
        }
    }
}

#[test]
fn chunk_extensions_and_codings_follow_their_grammar() {
    let server = demo();
    let request = |codings: &str, extension: &str| {
        format!(
            "POST /echo HTTP/1.1\r\nHost: x\r\n{codings}\r\n\r\n\
             2{extension}\r\nhi\r\n0{extension}\r\n\r\n"
        )
    };
    let chunked = "Transfer-Encoding: chunked";
    let mut client = server.connect();
    for extension in ["", ";a", " ; a", ";a=b;c", "; a = \"\\\";\" ;b=c"] {
        let reply = client.roundtrip(request(chunked, extension));
        assert_eq!((reply.status, &*reply.text()), (200, "hi"), "{extension}");
    }
    for extension in [
        ";",
        "; ",
        ";=b",
        ";a=",
        ";a=\"b",
        ";a=\"b\\\"",
        ";a b",
        ";a ",
        " ",
        ";a=b c",
    ] {
        let reply = server.connect().roundtrip(request(chunked, extension));
        assert_eq!(reply.status, 400, "{extension:?}");
    }
    for (codings, status) in [
        ("Transfer-Encoding: chunked, gzip", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip", 400),
        ("Transfer-Encoding: chunked, chunked", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        ("Transfer-Encoding: gzip", 400),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501),
    ] {
        let reply = server.connect().roundtrip(request(codings, ""));
        assert_eq!(reply.status, status, "{codings}");
    }
}

#[test]
fn a_body_that_nobody_reads_keeps_the_connection_however_it_arrives() {
    let server = demo();
    let ones = |count: usize| {
        let chunks = "1\r\nx\r\n".repeat(count);
        "POST /none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
            + &chunks
            + "0\r\n\r\n"
    };
    for count in [1, 2_700, 2_800, 20_000] {
        let request = ones(count);
        let mut client = server.connect();
        for cut in [request.len(), request.len() / 2, request.len() - 1, 60] {
            let (first, last) = request.split_at(cut);
            client.send(first);
            client.send(last);
            let reply = client.reply();
            assert_eq!(reply.status, 404, "{count}, cut at {cut}");
            assert!(!reply.closes(), "{count}, cut at {cut}");
        }
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn options_are_told_of_what_is_asked_about() {
    let server = demo();
    let mut client = server.connect();
    for (target, allow) in [
        ("*", "GET, HEAD, POST, OPTIONS"),
        ("http://test", "GET, HEAD, POST, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
        ("/bytes/1", "GET, HEAD, OPTIONS"),
        ("/echo", "POST, OPTIONS"),
    ] {
        let reply = client.roundtrip(format!("OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!((reply.status, reply.header("allow")), (204, Some(allow)));
    }
    let reply = client.roundtrip("OPTIONS /none HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(reply.status, 404);
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
    assert_eq!(reply.status, 501, "{reply:?}");
    assert_eq!(server.get("/no-such-page").status, 404);
}
