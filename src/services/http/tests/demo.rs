//! The demonstration, but for the abort: that takes a process of its own.

use super::*;

fn ask(request: &str) -> Answer {
    let mut table = Table::new(Demo::default());
    table.send(request);
    let turn = table.turn();
    assert_eq!(turn, Turn::Park, "{request}");
    if request.starts_with("HEAD") {
        table.head_answer()
    } else {
        table.answer()
    }
}

#[test]
fn it_says_who_served() {
    let answer = ask(&get("/"));
    let pid = std::process::id();
    let lines: Vec<&str> = answer.text().lines().collect();
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert_eq!(lines[0], format!("worker      slot 0, pid {pid}"));
    assert_eq!(lines[1], "served      request 1 of this worker");
    let descriptor: u32 = lines[2]
        .strip_prefix("descriptor  ")
        .unwrap()
        .parse()
        .unwrap();
    assert!(descriptor > 2);
    assert_eq!(lines[3], "turn        1 of this connection");
    assert_eq!(lines[4], "client      unix");
    let master = std::os::unix::process::parent_id();
    assert_eq!(lines[5], format!("master      pid {master}"));
}

#[test]
fn it_counts_whatever_it_is_asked() {
    let mut table = Table::new(Demo::default());
    for request in [get("/"), get("/bytes/1"), get("/nothing")] {
        let _ = table.exchange(&request);
    }
    let (answer, _) = table.exchange(get("/"));
    assert!(answer.text().contains("request 4 of this worker"));
    let (answer, _) = Table::new(Demo::default()).exchange(get("/"));
    assert!(answer.text().contains("request 1 of this worker"));
}

#[test]
fn a_browser_gets_a_page() {
    let request = |method: &str, accept: &str| {
        format!("{method} / HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n")
    };
    let answer = ask(&request("GET", "application/xhtml+xml, Text/HTML;q=0.9"));
    assert_eq!(
        answer.field("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(answer.field("Vary"), Some("Accept"));
    let pid = std::process::id();
    let fact = format!("<dt>worker</dt><dd>slot 0, pid {pid}</dd>");
    assert!(answer.text().contains(&fact));
    assert!(
        answer
            .text()
            .contains("<dt>served</dt><dd>request 1 of this worker</dd>")
    );
    assert!(!answer.text().contains("{facts}"));

    let answer = ask(&request("GET", "image/png\r\nAccept: text/html"));
    assert!(answer.text().starts_with("<!"), "two lines make a list");
    let answer = ask(&request("HEAD", "text/html"));
    assert_eq!(
        answer.field("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    let answer = ask(&request("GET", "*/*"));
    assert_eq!(
        answer.field("Content-Type"),
        Some("text/plain; charset=utf-8")
    );
}

#[test]
fn what_it_answers() {
    for (request, status) in [
        ("GET /sleep/1", 200),
        ("GET /sleep/60001", 400),
        ("GET /sleep/+1", 400),
        ("GET /sleep/", 400),
        ("GET /sleep/99999999999999999999", 400),
        ("GET /sleep", 404),
        ("GET /bytes/1073741825", 400),
        ("HEAD /bytes/1073741824", 200),
        ("GET /bytes/-1", 400),
        ("GET /nothing", 404),
        ("GET /echo/x", 404),
        ("GET //", 404),
        ("GET /crash/x", 404),
    ] {
        let answer = ask(&format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(answer.status, status, "{request}");
    }
    let (reading, writing) = ("GET, HEAD, OPTIONS", "POST, OPTIONS");
    for (request, status, allowed) in [
        ("POST /", 405, reading),
        ("DELETE /sleep/1", 405, reading),
        ("PUT /bytes/1", 405, reading),
        ("POST /crash", 405, reading),
        ("GET /echo", 405, writing),
        ("TRACE /echo", 405, writing),
        ("OPTIONS /", 204, reading),
        ("OPTIONS /sleep/60000", 204, reading),
        ("OPTIONS /bytes/1", 204, reading),
        ("OPTIONS /crash", 204, reading),
        ("OPTIONS /echo", 204, writing),
        ("OPTIONS *", 204, "GET, HEAD, POST, OPTIONS"),
    ] {
        let answer = ask(&format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(
            (answer.status, answer.field("Allow")),
            (status, Some(allowed)),
            "{request}"
        );
    }
    assert_eq!(
        ask("OPTIONS /nothing HTTP/1.1\r\nHost: x\r\n\r\n").status,
        404
    );
}

#[test]
fn an_unknown_method_ends_the_connection() {
    for request in ["BREW /", "QUERY /echo", "PROPFIND /nothing", "get /"] {
        let mut table = Table::new(Demo::default());
        let (answer, turn) = table.exchange(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!((answer.status, turn), (501, Turn::Close), "{request}");
        assert_eq!(answer.field("Connection"), Some("close"));
    }
}

#[test]
fn what_it_sends() {
    assert_eq!(ask(&get("/sleep/0")).text(), "slept 0 ms\n");
    let bytes = ask(&get("/bytes/130"));
    let line = "baton 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrs\n";
    assert_eq!(bytes.text(), line.repeat(2) + "ba");

    let echo = |field: &str| {
        ask(&format!(
            "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{field}\r\nhi"
        ))
    };
    let typed = echo("Content-Type: text/x-any; a=b\r\n");
    assert_eq!(typed.text(), "hi");
    assert_eq!(typed.field("Content-Type"), Some("text/x-any; a=b"));
    let untyped = echo("");
    assert_eq!(
        untyped.field("Content-Type"),
        Some("application/octet-stream")
    );
}

#[test]
fn it_says_how_much_it_echoes() {
    let mut table = Table::new(Demo::default());
    let request = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n";
    let (answer, turn) = table.exchange(request);
    assert_eq!((answer.status, turn), (413, Turn::Linger));
    assert!(answer.text().contains("1048576 bytes"), "{}", answer.text());
}
