//! What a turn answers, and what becomes of the connection.

use proptest::prelude::*;

use super::*;

#[test]
fn one_request_one_response_and_the_connection_is_parked() {
    let mut table = Table::new(mirror);
    for target in ["/first", "/second?x"] {
        let (answer, turn) = table.exchange(get(target));
        assert_eq!((answer.status, turn), (200, Turn::Park));
        assert_eq!(answer.text(), format!("GET {target}"));
        assert_eq!(answer.field("Server"), Some("baton"));
        assert_eq!(answer.field("Connection"), None);
        let date = answer.field("Date").expect("a date");
        let date = httpdate::parse_http_date(date).expect("a valid date");
        let age = date.elapsed().expect("a date that is past");
        assert!(age < Duration::from_secs(60), "{age:?}");
    }
    assert_eq!(table.turn(), Turn::Park, "nothing sent");
    assert_eq!(table.leftover(), b"");
}

#[test]
fn a_handler_sees_the_request() {
    let mut table = Table::new(|request: &mut Request<'_>| {
        assert_eq!(request.method(), Method::PUT);
        assert_eq!(request.version(), Version::Http11);
        assert_eq!(request.target(), "http://x/a%20b?c");
        assert_eq!(request.path(), "/a%20b");
        assert_eq!(&*request.decoded_path(), b"/a b");
        assert_eq!(request.query(), Some("c"));
        assert_eq!(request.header("x-TWICE"), Some(&b"1"[..]));
        assert_eq!(request.header("x-never"), None);
        let names: Vec<&str> = request.headers().map(|(name, _)| name).collect();
        assert_eq!(names, ["Host", "X-Twice", "X-Twice"]);
        assert_eq!((request.turn(), request.slot()), (1, 0));
        assert_eq!(request.peer(), Peer::Unix);
        assert!(std::os::fd::AsRawFd::as_raw_fd(request) > 2);
        Response::new(StatusCode::NO_CONTENT)
    });
    let (answer, turn) = table
        .exchange("PUT http://x/a%20b?c HTTP/1.1\r\nHost: x\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n");
    assert_eq!((answer.status, turn), (204, Turn::Park));
}

#[test]
fn a_request_that_drips_in_is_parked_until_it_is_whole() {
    let mut table = Table::new(echo);
    let request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    for (count, byte) in request.iter().enumerate() {
        assert_eq!(table.connection.buffer().len(), count, "the carry");
        table.send([*byte]);
        assert_eq!(table.turn(), Turn::Park);
    }
    assert_eq!(table.connection.buffer(), b"");
    assert_eq!(table.answer().text(), "hello");
    assert_eq!(table.leftover(), b"");
}

#[test]
fn pipelined_requests_are_answered_in_order_and_others_get_a_turn_in_between() {
    let mut table = Table::new(mirror);
    let count = MAX_PIPELINED + 3;
    let requests: String = (0..count)
        .map(|number| get(&format!("/{number}")))
        .collect();
    table.send(requests + "GET /unfinished");
    assert_eq!(table.turn(), Turn::Again);
    assert_eq!(table.turn(), Turn::Park);
    assert_eq!(table.connection.buffer(), b"GET /unfinished");
    for number in 0..count {
        assert_eq!(table.answer().text(), format!("GET /{number}"));
    }
    assert_eq!(table.leftover(), b"");
}

#[test]
fn exactly_as_many_requests_as_a_turn_answers_leave_nothing_to_do_again() {
    let mut table = Table::new(mirror);
    table.send(get("/").repeat(MAX_PIPELINED as usize));
    assert_eq!(table.turn(), Turn::Park);
}

#[test]
fn a_client_that_half_closes_gets_its_answer() {
    let mut table = Table::new(mirror);
    table.send(get("/last"));
    table.end();
    assert_eq!(table.turn(), Turn::Park);
    assert_eq!(table.turn(), Turn::Close);
    assert_eq!(table.answer().text(), "GET /last");
    assert_eq!(table.leftover(), b"");
}

#[test]
fn the_end_of_input() {
    for (bytes, status) in [
        ("", None),
        ("\r\n", None),
        ("GET / HT", Some(400)),
        ("GET / HTTP/1.1\r\nHost: x\r\n", Some(400)),
        (
            "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx",
            Some(400),
        ),
    ] {
        let mut table = Table::new(mirror);
        table.send(bytes);
        table.end();
        let first = table.turn();
        if first == Turn::Park {
            assert_eq!(table.turn(), Turn::Close, "{bytes:?}");
        } else {
            assert_eq!((first, bytes), (Turn::Close, ""));
        }
        match status {
            Some(status) => {
                let answer = table.answer();
                assert_eq!(
                    (answer.status, answer.field("Connection")),
                    (status, Some("close"))
                );
            }
            None => assert_eq!(table.leftover(), b""),
        }
    }
}

#[test]
fn what_is_refused_is_told_why_and_lingers() {
    let long_line = get(&format!("/{}", "a".repeat(9000)));
    let long_head = get("/").replace("x\r\n", &format!("x\r\nX: {}\r\n", "a".repeat(17_000)));
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", 400),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
            400,
        ),
        ("GET / HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n", 417),
        ("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (&long_line, 414),
        (&long_head, 431),
    ] {
        let mut table = Table::new(|_: &mut Request<'_>| panic!("refused before"));
        let (answer, turn) = table.exchange(bytes);
        assert_eq!((answer.status, turn), (status, Turn::Linger), "{bytes:.60}");
        assert_eq!(answer.field("Connection"), Some("close"));
        assert!(
            answer.text().starts_with(&status.to_string()),
            "{}",
            answer.text()
        );
        assert_eq!(table.leftover(), b"");
    }
}

#[test]
fn requests_before_a_refused_one_are_answered() {
    let mut table = Table::new(mirror);
    table.send(get("/good") + "bad\r\n" + &get("/unseen"));
    assert_eq!(table.turn(), Turn::Linger);
    assert_eq!(table.answer().text(), "GET /good");
    assert_eq!(table.answer().status, 400);
    assert_eq!(table.leftover(), b"");
}

#[test]
fn an_answer_to_head_has_no_body() {
    let mut table = Table::new(mirror);
    table.send("HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n".to_owned() + &get("/next"));
    assert_eq!(table.turn(), Turn::Park);
    let answer = table.head_answer();
    assert_eq!(
        (answer.status, answer.field("Content-Length")),
        (200, Some("7"))
    );
    assert_eq!(table.answer().text(), "GET /next");

    table.send("HEAD /x HTTP/1.1\r\n\r\n");
    assert_eq!(table.turn(), Turn::Linger);
    assert_eq!(table.head_answer().status, 400);
    assert_eq!(table.leftover(), b"");
}

#[test]
fn a_refusal_of_head_has_no_body_either() {
    let long_line = format!("HEAD /{}", "a".repeat(9000));
    let long_head = format!("HEAD / HTTP/1.1\r\nX: {}", "a".repeat(17_000));
    for (bytes, status) in [
        ("HEAD\t/ HTTP/1.1\r\n", 400),
        ("HEAD  / HTTP/1.1\r\n", 400),
        ("HEAD /#a HTTP/1.1\r\n", 400),
        ("HEAD x HTTP/1.1\r\n", 400),
        ("HEAD / HTTP/1.1x\r\n", 400),
        ("HEAD / HTTP/2.0\r\n", 505),
        ("HEAD / HT", 400),
        ("HEAD / HTTP/1.1\r\nHost: x\r\nX", 400),
        ("HEAD / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (
            "HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
        ),
        (
            "HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx",
            400,
        ),
        (
            "HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx",
            400,
        ),
        (&long_line, 414),
        (&long_head, 431),
    ] {
        let mut table = Table::new(|_: &mut Request<'_>| panic!("refused before"));
        table.send(bytes);
        table.end();
        if table.turn() == Turn::Park {
            assert_eq!(table.turn(), Turn::Close, "{bytes:.60}");
        }
        assert_eq!(table.head_answer().status, status, "{bytes:.60}");
        assert_eq!(table.leftover(), b"", "{bytes:.60}");
    }
}

#[test]
fn some_statuses_have_no_content() {
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
        let mut table = Table::new(move |_: &mut Request<'_>| Response::error(status));
        let (answer, turn) = table.exchange(get("/"));
        assert_eq!((answer.status, turn), (status.as_u16(), Turn::Park));
        assert_eq!(answer.field("Content-Length"), None);
        assert_eq!(table.leftover(), b"");
    }
}

#[test]
fn who_may_ask_again() {
    for (version, field, connection, turn) in [
        ("1.1", "", None, Turn::Park),
        ("1.1", "Connection: close\r\n", Some("close"), Turn::Close),
        ("1.0", "", Some("close"), Turn::Close),
        (
            "1.0",
            "Connection: keep-alive\r\n",
            Some("keep-alive"),
            Turn::Park,
        ),
    ] {
        let mut table = Table::new(mirror);
        let request = format!("GET / HTTP/{version}\r\nHost: x\r\n{field}\r\n");
        let (answer, became) = table.exchange(&request);
        assert_eq!(answer.field("Connection"), connection, "{request}");
        assert_eq!(became, turn, "{request}");
    }
    let mut table = Table::new(|_: &mut Request<'_>| Response::text("bye").close());
    let (answer, turn) = table.exchange(get("/"));
    assert_eq!(
        (answer.field("Connection"), turn),
        (Some("close"), Turn::Close)
    );
}

#[test]
fn nothing_is_answered_after_the_close_that_the_client_asked_for() {
    let mut table = Table::new(mirror);
    let last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    table.send(last.to_owned() + &get("/unseen"));
    assert_eq!(table.turn(), Turn::Linger);
    assert_eq!(table.answer().text(), "GET /last");
    assert_eq!(table.leftover(), b"");
}

#[test]
fn options_of_the_server_itself() {
    for target in ["*", "http://x", "http://x:80"] {
        let mut table = Table::new(|_: &mut Request<'_>| panic!("not for a handler"));
        let request = format!("OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let (answer, turn) = table.exchange(request);
        assert_eq!((answer.status, turn), (204, Turn::Park), "{target}");
        assert_eq!(answer.field("Allow"), Some("GET, HEAD, OPTIONS"));
    }
    for target in ["/", "http://x/", "http://x?q"] {
        let mut table = Table::new(mirror);
        let request = format!("OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let (answer, _) = table.exchange(request);
        assert_eq!(answer.text(), format!("OPTIONS {target}"));
    }
}

#[test]
fn a_handler_may_serve_any_method() {
    let mut table = Table::new(
        |request: &mut Request<'_>| match request.method().as_str() {
            "QUERY" => echo(request),
            "PROPFIND" | "get" | "M-SEARCH-OF-A-LONG-NAME" => mirror(request),
            _ => Response::wrong_method(request.method(), "QUERY, PROPFIND"),
        },
    );
    for (request, status, text) in [
        ("QUERY /x HTTP/1.1\r\nContent-Length: 3\r\n", 200, "abc"),
        (
            "QUERY / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
            200,
            "de",
        ),
        ("PROPFIND /x HTTP/1.1\r\n", 200, "PROPFIND /x"),
        ("get /x HTTP/1.1\r\n", 200, "get /x"),
        (
            "M-SEARCH-OF-A-LONG-NAME / HTTP/1.1\r\n",
            200,
            "M-SEARCH-OF-A-LONG-NAME /",
        ),
        ("DELETE / HTTP/1.1\r\n", 405, "405 Method Not Allowed\n"),
        (
            "BREW / HTTP/1.1\r\nContent-Length: 3\r\n",
            501,
            "501 Not Implemented\n",
        ),
    ] {
        let body = match request {
            counted if counted.contains("Length") => "abc",
            chunked if chunked.contains("chunked") => "2\r\nde\r\n0\r\n\r\n",
            _ => "",
        };
        let (answer, turn) = table.exchange(format!("{request}Host: x\r\n\r\n{body}"));
        assert_eq!((answer.status, answer.text()), (status, text), "{request}");
        assert_eq!(turn, Turn::Park, "{request}");
    }
    assert_eq!(table.leftover(), b"");
}

#[test]
fn a_client_that_went_away_is_an_error() {
    let mut table =
        Table::new(|_: &mut Request<'_>| Response::new(StatusCode::OK).repeated(b"x", 1 << 20));
    table.send(get("/"));
    let Table {
        mut http,
        mut connection,
        client,
    } = table;
    drop(client);
    let error = http.turn(&mut connection).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn no_value_ends_its_line() {
    let mut table = Table::new(|_: &mut Request<'_>| {
        Response::text("").header("X-From-Client", "a\r\nSet-Cookie: b\0")
    });
    let (answer, _) = table.exchange(get("/"));
    assert_eq!(answer.field("X-From-Client"), Some("a  Set-Cookie: b "));
    assert_eq!(answer.field("Set-Cookie"), None);
}

#[test]
#[should_panic(expected = "the server writes content-length itself")]
fn a_handler_does_not_frame() {
    let _ = Response::text("").header("content-length", "5");
}

#[test]
#[should_panic(expected = "is no field name")]
fn a_field_name_is_a_token() {
    let _ = Response::text("").header("X:", "5");
}

#[test]
fn the_replies_of_the_master_are_whole_responses() {
    let profile = Http::<Demo>::profile();
    for (bytes, status) in [
        (profile.crashed, 502),
        (profile.timed_out, 504),
        (profile.overloaded, 503),
        (profile.request_timeout, 408),
    ] {
        let (mut ours, mut client) = UnixStream::pair().unwrap();
        client.set_read_timeout(DEADLINE).unwrap();
        ours.write_all(&bytes).unwrap();
        drop(ours);
        let answer = read_answer(&mut client, true);
        assert_eq!(
            (answer.status, answer.field("Connection")),
            (status, Some("close"))
        );
        assert_eq!(answer.field("Retry-After").is_some(), status == 503);
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "all of it was framed");
    }
}

/// All that comes back for these pieces, without the dates, and the last turn.
fn replay(pieces: &[&[u8]]) -> (String, Turn) {
    let mut table = Table::new(echo);
    let mut turn = Turn::Park;
    for piece in pieces {
        table.send(piece);
        loop {
            turn = table.turn();
            if turn != Turn::Again {
                break;
            }
        }
        if turn != Turn::Park {
            break;
        }
    }
    let bytes = String::from_utf8_lossy(&table.leftover()).into_owned();
    let lines = bytes.lines().filter(|line| !line.starts_with("Date: "));
    (lines.collect::<Vec<_>>().join("\n"), turn)
}

proptest! {
    #[test]
    fn any_split_of_a_conversation_gives_the_same_answers(
        requests in proptest::collection::vec(
            proptest::sample::select(vec![
                &b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"[..],
                b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n\r\n\r\nx",
                b"\r\n\r\n\r\n\r\nPOST /c HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n\r",
                b"\r\nHEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
                b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET / HTTP/1.1\r\n\r\n",
                b"DELETE / HTTP/1.0\r\n\r\n",
            ]),
            1..6,
        ),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
    ) {
        let whole = requests.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len())).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut pieces = Vec::new();
        let mut rest = &whole[..];
        for cut in cuts.iter().rev() {
            let (before, piece) = rest.split_at(*cut);
            pieces.push(piece);
            rest = before;
        }
        pieces.push(rest);
        pieces.reverse();
        let (answers, last) = replay(&pieces);
        let (answers_to_whole, last_of_whole) = replay(&[&whole]);
        prop_assert_eq!(answers, answers_to_whole);
        // Whether more was read than was answered depends on the split; whether it is over does
        // not.
        prop_assert_eq!(last == Turn::Park, last_of_whole == Turn::Park);
    }

    #[test]
    fn no_bytes_break_the_service(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        for start in ["", "GET /", chunked] {
            let mut table = Table::new(echo);
            table.send(start);
            table.send(&bytes);
            table.end();
            while matches!(table.turn(), Turn::Park | Turn::Again) {}
        }
    }
}

/// Gives its pieces, one at a time, then ends or fails.
struct Pieces {
    pieces: Vec<&'static [u8]>,
    end: Option<io::ErrorKind>,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match (self.pieces.pop(), self.end) {
            (Some(piece), _) => {
                let count = piece.len().min(into.len());
                into[..count].copy_from_slice(&piece[..count]);
                Ok(count)
            }
            (None, None) => Ok(0),
            (None, Some(kind)) => Err(kind.into()),
        }
    }
}

/// Answers with the pieces, the last of which comes first; of so many bytes if that is known.
fn streaming(
    pieces: &'static [&'static [u8]],
    end: Option<io::ErrorKind>,
    length: Option<u64>,
) -> impl Handler {
    move |_: &mut Request<'_>| {
        let pieces = pieces.to_vec();
        let source = Pieces { pieces, end };
        let response = Response::new(StatusCode::OK);
        match length {
            Some(length) => response.stream_of(source, length),
            None => response.stream(source),
        }
    }
}

#[test]
fn a_stream_goes_out_in_chunks_and_the_connection_goes_on() {
    let mut table = Table::new(streaming(&[b"and the rest", b"first "], None, None));
    for _ in 0..2 {
        table.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(table.turn(), Turn::Park);
        let mut bytes = vec![0; 4096];
        let mut received = String::new();
        while !received.ends_with("\r\n0\r\n\r\n") {
            let count = table.client.read(&mut bytes).unwrap();
            received.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        let (head, body) = received.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nTransfer-Encoding: chunked"), "{head}");
        assert!(!head.contains("Content-Length"), "{head}");
        assert_eq!(
            body,
            "00006\r\nfirst \r\n0000c\r\nand the rest\r\n0\r\n\r\n"
        );
    }
}

#[test]
fn a_stream_to_an_old_client_ends_with_the_connection() {
    let mut table = Table::new(streaming(&[b"all"], None, None));
    table.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(table.turn(), Turn::Close);
    let received = rest_of(table);
    let (head, body) = received.split_once("\r\n\r\n").unwrap();
    assert!(head.ends_with("\r\nConnection: close"), "{head}");
    assert!(!head.contains("Transfer-Encoding"), "{head}");
    assert_eq!(body, "all");
}

#[test]
fn a_stream_of_known_length_has_no_more_bytes_and_no_chunks() {
    let mut table = Table::new(streaming(&[b"fghij", b"abcde"], None, Some(8)));
    table.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(table.turn(), Turn::Close);
    let received = rest_of(table);
    assert!(received.contains("\r\nContent-Length: 8\r\n"), "{received}");
    assert!(received.ends_with("\r\n\r\nabcdefgh"), "{received}");
    let mut table = Table::new(streaming(&[b"fghij"], None, Some(8)));
    table.send("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(table.turn(), Turn::Close);
    assert!(rest_of(table).ends_with("\r\n\r\n"));
}

#[test]
fn a_stream_that_fails_is_500_or_cut_off() {
    let broken = Some(io::ErrorKind::BrokenPipe);
    let mut table = Table::new(streaming(&[], broken, None));
    let (answer, turn) = table.exchange("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((answer.status, turn), (500, Turn::Park));
    for (end, length) in [(broken, None), (None, Some(9)), (broken, Some(9))] {
        let mut table = Table::new(streaming(&[b"a part"], end, length));
        table.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(table.http.turn(&mut table.connection).is_err());
        let received = rest_of(table);
        assert!(received.trim_end().ends_with("a part"), "{received}");
    }
}

/// What the client still gets when the connection is closed.
fn rest_of<H>(table: Table<H>) -> String {
    let Table {
        connection,
        mut client,
        ..
    } = table;
    drop(connection);
    let mut received = String::new();
    client.read_to_string(&mut received).unwrap();
    received
}
