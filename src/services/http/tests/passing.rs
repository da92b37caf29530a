//! Requests that another pool is to answer.

use super::*;

/// Passes what is below `/app` to another pool, reads a body below `/app/read` first, and answers
/// all else.
fn divided(request: &mut Request<'_>) -> Response {
    if request.path() == "/app/read" {
        request.read_body().expect("a body");
    }
    match request.path().starts_with("/app") {
        true => Response::pass("app"),
        false => Response::text(request.path().to_owned()),
    }
}

/// The same, for a table that is another pool's.
fn away<H: Handler>(mut table: Table<H>) -> Table<H> {
    table.connection.baggage_mut().away = true;
    table
}

#[test]
fn what_is_passed_on_is_left_as_it_came() {
    for request in [
        "GET /app HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /app HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody",
        "GET /app HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHo",
        "\r\n\r\nGET /app HTTP/1.0\r\n\r\n",
    ] {
        let mut table = Table::new(divided);
        table.send(request);
        assert_eq!(table.turn(), Turn::Pass("app"), "{request}");
        let left = table.connection.buffer();
        assert_eq!(left, request.trim_start().as_bytes());
        assert_eq!(table.leftover(), b"");
    }
}

#[test]
fn nothing_is_passed_on_in_a_turn_that_has_answered() {
    let mut table = Table::new(divided);
    table.send([get("/one"), get("/two"), get("/app"), get("/three")].concat());
    assert_eq!(table.turn(), Turn::Again);
    assert_eq!(table.answer().text(), "/one");
    assert_eq!(table.answer().text(), "/two");
    assert_eq!(table.turn(), Turn::Pass("app"));
    let left = [get("/app"), get("/three")].concat();
    assert_eq!(table.connection.buffer(), left.as_bytes());
}

#[test]
fn what_was_read_is_not_passed_on() {
    let mut table = Table::new(divided);
    let (answer, turn) =
        table.exchange("POST /app/read HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!((answer.status, turn), (500, Turn::Linger));
}

#[test]
fn one_request_is_answered_away_from_home() {
    let mut table = away(Table::new(echo));
    table.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel");
    assert_eq!(table.turn(), Turn::Park, "its body is awaited there");
    table.send(["lo".to_owned(), get("/next")].concat());
    assert_eq!(table.turn(), Turn::Home);
    assert_eq!(table.answer().text(), "hello");
    assert_eq!(table.connection.buffer(), get("/next").as_bytes());
    let mut table = away(Table::new(mirror));
    let (answer, turn) = table.exchange("GET / HTTP/1.0\r\n\r\n");
    assert_eq!((answer.status, turn), (200, Turn::Close));
}

#[test]
fn what_is_no_file_is_the_fallbacks() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("file"), "content").expect("a file");
    let files = || Files::open(directory.path()).expect("it is there");
    let large = "Content-Length: 100000\r\n\r\n";
    for (request, status) in [
        (get("/file"), 200),
        (get("/none"), 404),
        (get("/a%2Fb"), 400),
        (get("/file").replace("GET", "POST"), 405),
        (get("/file").replace("GET", "OPTIONS"), 204),
        (get("/none").replace("GET", "OPTIONS"), 404),
        (format!("POST /file HTTP/1.1\r\nHost: x\r\n{large}"), 405),
        (format!("GET /none HTTP/1.1\r\nHost: x\r\n{large}"), 404),
        (format!("GET /file HTTP/1.1\r\nHost: x\r\n{large}"), 200),
        (
            get("/none").replace(
                "\r\n\r\n",
                "\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
            ),
            404,
        ),
    ] {
        let mut table = Table::new(files());
        let (answer, turn) = table.exchange(&request);
        assert_eq!(answer.status, status, "{request}: {turn:?}");
        let mut table = Table::new(files().fallback("app"));
        table.send(&request);
        let turn = table.turn();
        match status {
            200 | 204 => assert_eq!(table.answer().status, status, "{request}"),
            _ => {
                assert_eq!(turn, Turn::Pass("app"), "{request}");
                assert_eq!(table.connection.buffer(), request.as_bytes());
                assert_eq!(table.leftover(), b"", "{request}");
            }
        }
    }
}

#[test]
fn the_body_of_what_is_passed_on_is_not_awaited_before() {
    let directory = tempfile::tempdir().expect("a directory");
    // Files do not need such a body, but it is awaited so that the next request can follow.
    let request = "GET /none HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nthe beginning";
    for (fallback, expected) in [(None, Turn::Park), (Some("app"), Turn::Pass("app"))] {
        let files = Files::open(directory.path()).expect("it is there");
        let mut table = Table::new(match fallback {
            Some(pool) => files.fallback(pool),
            None => files,
        });
        table.send(request);
        assert_eq!(table.turns(), expected);
    }
}
