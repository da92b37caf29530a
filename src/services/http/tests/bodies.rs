//! Bodies, in both directions.

use std::thread;

use super::super::arrival::MAX_WAIT;
use super::*;
use crate::service::Keeping;

const MAX_DRAIN: usize = rest::MAX_DRAIN as usize;
const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
}

/// Bytes of which none is like its neighbours.
fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn a_body_that_may_be_carried_is_waited_for_without_a_worker() {
    let mut table = Table::new(echo);
    let body = noise(MAX_WAIT - post(10_000).len());
    let request = [post(body.len()).as_bytes(), &body].concat();
    assert_eq!(request.len(), MAX_WAIT);
    let (first, last) = request.split_at(request.len() - 1);
    table.send(first);
    assert_eq!(table.turn(), Turn::Park);
    assert_eq!(table.connection.buffer(), first, "nothing is consumed");
    let (answer, turn) = table.exchange(last);
    assert_eq!(turn, Turn::Park);
    assert!(answer.body == body, "the bodies differ");
}

#[test]
fn a_larger_body_is_gathered_or_read_as_it_comes() {
    let decisions: [Decision; 2] = [|_| OnHead::Gather, |_| OnHead::AsItComes];
    for decision in decisions {
        let mut table = Table::new(Deciding(decision, echo));
        let body = noise(300_000);
        let mut client = table.client.try_clone().unwrap();
        let answer = thread::scope(|scope| {
            let client = scope.spawn(|| {
                client.write_all(post(body.len()).as_bytes()).unwrap();
                client.write_all(&body).unwrap();
                read_answer(&mut client, true)
            });
            while !client.is_finished() {
                assert_eq!(table.turns(), Turn::Park);
                thread::yield_now();
            }
            client.join().unwrap()
        });
        assert!(answer.body == body, "the bodies differ");
    }
}

#[test]
fn a_chunked_body_and_the_request_behind_it() {
    let mut table = Table::new(echo);
    let body = "5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: dropped\r\n\r\n";
    table.send(CHUNKED.to_owned() + body + &post(4) + "next");
    assert_eq!(table.turn(), Turn::Park);
    assert_eq!(table.answer().text(), "hello!");
    assert_eq!(table.answer().text(), "next");
}

#[test]
fn a_body_that_the_handler_leaves_alone_is_dropped() {
    let mut table = Table::new(mirror);
    let chunked = CHUNKED.to_owned() + "5\r\nhello\r\n0\r\n\r\n";
    table.send(post(5) + "hello" + &chunked + &get("/next"));
    assert_eq!(table.turn(), Turn::Park);
    for text in ["POST /", "POST /", "GET /next"] {
        assert_eq!(table.answer().text(), text);
    }
}

#[test]
fn a_body_that_is_half_read_is_dropped_too() {
    let mut table = Table::new(|request: &mut Request<'_>| {
        let mut start = [0; 3];
        request.body().read_exact(&mut start).expect("it is there");
        assert_ne!(request.body().remaining(), Some(0));
        Response::new(StatusCode::OK).bytes(start.to_vec())
    });
    let chunked = CHUNKED.to_owned() + "4\r\nabcd\r\n3\r\nefg\r\n0\r\n\r\n";
    table.send(post(7) + "abcdefg" + &chunked);
    assert_eq!(table.turn(), Turn::Park);
    assert_eq!(table.answer().text(), "abc");
    assert_eq!(table.answer().text(), "abc");
    assert_eq!(table.leftover(), b"");
}

/// A chunked request of exactly this length, in chunks of one byte, made up by an extension.
fn chunked(length: usize) -> String {
    const CHUNK: &str = "1\r\nx\r\n";
    let shortest = CHUNKED.len() + "0;\r\n\r\n".len();
    let (chunks, rest) = (
        (length - shortest) / CHUNK.len(),
        (length - shortest) % CHUNK.len(),
    );
    let (chunks, extension) = match rest {
        0 => (chunks - 1, CHUNK.len()),
        rest => (chunks, rest),
    };
    let end = format!("0;{}\r\n\r\n", "e".repeat(extension));
    let request = CHUNKED.to_owned() + &CHUNK.repeat(chunks) + &end;
    assert_eq!(request.len(), length);
    request
}

#[test]
fn a_small_body_is_dropped_and_a_large_one_is_not_however_they_arrive() {
    let counted = |length: usize| {
        let digits = length.to_string().len() - 1;
        let head = post(length).len() + digits - length.to_string().len() + 1;
        let body = length - head;
        post(body) + &"x".repeat(body)
    };
    let ones = |count: usize| CHUNKED.to_owned() + &"1\r\nx\r\n".repeat(count) + "0\r\n\r\n";
    let expecting = post(5).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\nhello");
    let decisions: [(_, Decision); 3] = [
        (true, |_| OnHead::Gather),
        (false, |_| OnHead::Leave),
        (false, |_| OnHead::AsItComes),
    ];
    for (request, short) in [
        (chunked(17_000), true),
        (chunked(MAX_WAIT), true),
        (chunked(MAX_WAIT + 1), true),
        (ones(20_000), true),
        (ones(MAX_DRAIN), true),
        (ones(MAX_DRAIN + 1), false),
        (counted(17_000), true),
        (counted(MAX_WAIT), true),
        (counted(MAX_WAIT + 1), true),
        (post(MAX_DRAIN) + &"x".repeat(MAX_DRAIN), true),
        (post(MAX_DRAIN + 1) + &"x".repeat(MAX_DRAIN + 1), false),
        (expecting, false),
    ] {
        let head = request.find("\r\n\r\n").unwrap() + 4;
        let length = request.len();
        let cuts = [
            head - 1,
            head,
            head + 3,
            16_384,
            length - 7,
            length - 1,
            length,
        ];
        for (cut, (gathers, decision)) in cuts.iter().flat_map(|cut| decisions.map(|d| (*cut, d))) {
            let kept = short || gathers;
            let pieces = request.split_at(cut.min(length));
            let mut table = Table::new(Deciding(decision, mirror));
            let turn = table.turns_of_pieces(pieces);
            assert_eq!(turn == Turn::Park, kept, "{length} bytes, cut at {cut}");
            let mut answer = table.answer();
            if answer.status == 100 {
                assert!(gathers);
                answer = table.answer();
            }
            assert_eq!((answer.status, answer.text()), (200, "POST /"));
            let closes = (!kept).then_some("close");
            assert_eq!(answer.field("Connection"), closes, "{length}, {cut}");
        }
    }
}

impl<H: Handler> Table<H> {
    /// The client sends this in two pieces, of which the second may be in vain. Serves until
    /// nothing more comes, or the connection ends.
    fn turns_of_pieces(&mut self, (first, last): (&str, &str)) -> Turn {
        let mut client = self.client.try_clone().unwrap();
        thread::scope(|scope| {
            // A large one does not fit into the socket.
            let client = scope.spawn(move || {
                client.write_all(first.as_bytes()).unwrap();
                thread::yield_now();
                // It may have been answered, and closed, already.
                let _ = client.write_all(last.as_bytes());
            });
            let mut turn = Turn::Park;
            let mut idle = 0;
            while turn == Turn::Park && idle < 2 {
                // What came before the client was done may not be all.
                idle += u32::from(client.is_finished());
                turn = self.turns();
            }
            while !client.is_finished() {
                self.connection.consume(self.connection.buffer().len());
                let _ = self.connection.fill().unwrap();
            }
            client.join().unwrap();
            turn
        })
    }
}

#[test]
fn a_small_chunked_body_that_drips_in_is_waited_for_without_a_worker() {
    let mut table = Table::new(echo);
    let request = CHUNKED.to_owned() + "2;a=\"b\"\r\nhi\r\n0\r\nX: y\r\n\r\n";
    for (count, byte) in request.bytes().enumerate() {
        assert_eq!(table.connection.buffer().len(), count, "the carry");
        table.send([byte]);
        assert_eq!(table.turn(), Turn::Park);
    }
    assert_eq!(table.answer().text(), "hi");
    assert_eq!(table.leftover(), b"");
}

#[test]
fn no_one_waits_for_a_body_that_the_handler_leaves_alone() {
    for request in [
        post(10_000_000),
        // Its end could come at any time, so the client gets a moment.
        chunked(50_000)[..49_999].to_owned(),
        post(5).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n"),
    ] {
        let mut table = Table::new(Deciding(|_| OnHead::AsItComes, mirror));
        table.http.drain_patience = Duration::from_millis(20);
        let (answer, turn) = table.exchange(&request);
        assert_eq!((answer.status, turn), (200, Turn::Linger), "{request:.100}");
        assert_eq!(answer.field("Connection"), Some("close"));
    }
}

#[test]
fn a_broken_body_is_answered_with_400_whatever_the_handler_says() {
    let handlers: [fn(&mut Request<'_>) -> Response; 3] = [echo, mirror, |request| {
        let _ = io::copy(request.body(), &mut io::sink());
        Response::text("fine")
    }];
    for handler in handlers {
        for body in [
            "x\r\n",
            "5\r\nhello\n",
            "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
        ] {
            let mut table = Table::new(handler);
            let (answer, turn) = table.exchange(CHUNKED.to_owned() + body);
            assert_eq!((answer.status, turn), (400, Turn::Linger), "{body:?}");
        }
        for (request, last) in [
            (CHUNKED.to_owned() + "5\r\nhel", Turn::Close),
            (chunked(60_000)[..59_999].to_owned(), Turn::Linger),
            (post(1_000_000) + "hel", Turn::Linger),
        ] {
            let mut table = Table::new(handler);
            table.send(&request);
            table.end();
            let mut turn = table.turns();
            while turn == Turn::Park {
                turn = table.turns();
            }
            let answer = table.answer();
            assert_eq!((answer.status, turn), (400, last), "{request:.100}");
            assert_eq!(answer.field("Connection"), Some("close"));
        }
    }
}

#[test]
fn a_client_that_takes_too_long_over_its_body_gets_408() {
    let mut table = Table::new(Deciding(|_| OnHead::AsItComes, echo));
    let soon = Some(Duration::from_millis(20));
    table.connection.set_timeouts(soon, DEADLINE).unwrap();
    let (answer, turn) = table.exchange(&chunked(60_000)[..59_999]);
    assert_eq!((answer.status, turn), (408, Turn::Linger));
    assert_eq!(answer.field("Connection"), Some("close"));
}

#[test]
fn the_limit_of_a_body() {
    let limited = || {
        let mut table = Table::new(echo);
        table.http = table.http.body_limit(10);
        table
    };
    let chunked = |length: usize| {
        let body = "x".repeat(length);
        format!("{CHUNKED}{length:x}\r\n{body}\r\n0\r\n\r\n")
    };
    for request in [post(10) + "0123456789", chunked(10)] {
        let (answer, turn) = limited().exchange(request);
        assert_eq!((answer.status, turn), (200, Turn::Park));
        assert_eq!(answer.body.len(), 10);
    }
    for request in [post(11) + "0123456789a", chunked(11)] {
        let (answer, turn) = limited().exchange(request);
        assert_eq!(
            (answer.status, turn),
            (413, Turn::Park),
            "dropping it is cheap"
        );
        assert!(
            answer.text().contains("longer than 10 bytes"),
            "{}",
            answer.text()
        );
    }
    let (answer, turn) = limited().exchange(post(1 << 30));
    assert_eq!(
        (answer.status, turn),
        (413, Turn::Linger),
        "dropping it is not"
    );
    let (answer, _) = Table::new(echo).exchange(post((1 << 20) + 1));
    assert_eq!(answer.status, 413, "1 MiB if not set");
}

#[test]
fn the_limit_of_a_body_is_that_of_the_pool_unless_the_service_has_one() {
    let keeping: &Keeping = Box::leak(Box::new(Keeping {
        directory: None,
        max_body: 7,
        max_spool: 0,
    }));
    for (own, longest) in [(None, 7), (Some(5), 5), (Some(9), 9)] {
        for (length, status) in [(longest, 200), (longest + 1, 413)] {
            let mut table = Table::new(echo);
            table.connection = table.connection.with_keeping(keeping);
            if let Some(limit) = own {
                table.http = table.http.body_limit(limit);
            }
            let (answer, _) = table.exchange(post(length) + &"x".repeat(length));
            assert_eq!(answer.status, status, "{own:?}: {length}");
        }
    }
}

#[test]
fn a_client_that_waits_for_a_100_gets_one_when_the_body_is_read_as_it_comes() {
    let mut table = Table::new(Deciding(|_| OnHead::AsItComes, echo));
    let mut client = table.client.try_clone().unwrap();
    let request = post(5).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    table.send(request);
    thread::scope(|scope| {
        let body = scope.spawn(move || {
            let interim = read_answer(&mut client, false);
            assert_eq!(interim.head, "HTTP/1.1 100 Continue\r\n\r\n");
            client.write_all(b"hello").unwrap();
        });
        assert_eq!(table.turn(), Turn::Park);
        body.join().unwrap();
    });
    assert_eq!(table.answer().text(), "hello");
}

#[test]
fn a_client_that_did_not_wait_gets_no_100() {
    let mut table = Table::new(echo);
    let request = post(5).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\nhello");
    let (answer, turn) = table.exchange(request);
    assert_eq!((answer.status, turn), (200, Turn::Park));
    assert_eq!(answer.text(), "hello");
}

#[test]
fn bodies_of_any_size_go_out_whole() {
    let handler = |request: &mut Request<'_>| {
        let (kind, length) = request.path()[1..].split_once('/').expect("/kind/length");
        let length: u64 = length.parse().expect("a length");
        let response = Response::new(StatusCode::OK);
        match kind {
            "bytes" => response.bytes(vec![b'x'; length as usize]),
            _ => response.repeated(&[b'x'; 1000], length),
        }
    };
    let mut table = Table::new(handler);
    for kind in ["bytes", "repeated"] {
        for length in [0, 1, 999, 1000, 1001, 32_767, 32_768, 32_769, 3_000_000] {
            table.send(get(&format!("/{kind}/{length}")));
            let mut client = table.client.try_clone().unwrap();
            let answer = thread::scope(|scope| {
                let client = scope.spawn(move || read_answer(&mut client, true));
                assert_eq!(table.turn(), Turn::Park);
                client.join().unwrap()
            });
            assert_eq!(answer.body.len(), length, "{kind}");
            assert!(
                answer.body.iter().all(|byte| *byte == b'x'),
                "{kind} {length}"
            );
        }
    }
    assert_eq!(table.leftover(), b"");
}
