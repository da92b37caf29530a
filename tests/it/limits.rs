//! How long a client may take: to say something, to say all of it, and to go.

use std::time::{Duration, Instant};

use crate::harness::client::Served;
use crate::harness::{Client, Server, Setup, eventually, open_descriptors};

/// Between two bytes of a client that drips.
const DRIP: Duration = Duration::from_millis(50);

/// A second, less what clocks and rounding may differ in.
const ALMOST_A_SECOND: Duration = Duration::from_millis(900);

/// Much longer than a limit of a second, much shorter than the limits that hold if none is set.
const SOON: Duration = Duration::from_secs(8);

#[track_caller]
fn assert_in_its_time(start: Instant) {
    let took = start.elapsed();
    assert!(took >= ALMOST_A_SECOND, "{took:?} is less than a second");
    assert!(took < SOON, "{took:?} is much more than a second");
}

/// A server that gives a client a second for the head of a request.
fn hurried(arguments: &[&str]) -> Server {
    let arguments = [arguments, &["--head-timeout", "1"]].concat();
    Setup::new(&arguments).expect("head-timeout: ").start()
}

#[track_caller]
fn assert_told_to_hurry(client: &mut Client) {
    let reply = client.reply();
    assert_eq!(reply.status, 408, "{reply:?}");
    // RFC 9110 §6.6.1, §9.3.2: it has a date, and would be right in answer to HEAD.
    assert!(reply.header("date").is_some(), "{reply:?}");
    assert!(reply.body.is_empty(), "{reply:?}");
    assert!(reply.closes(), "{reply:?}");
    assert!(client.is_closed());
}

#[test]
fn an_idle_connection_is_closed_in_its_time() {
    let server = Server::start(&["demo", "-w", "1", "--idle-timeout", "1"]);
    let mut client = server.connect();
    let start = Instant::now();
    assert_eq!(client.get("/").status, 200);
    assert!(client.read_until_close().is_empty());
    assert_in_its_time(start);
}

#[test]
fn a_connection_that_is_used_is_not_idle() {
    let server = Server::start(&["demo", "-w", "1", "--idle-timeout", "3"]);
    let mut client = server.connect();
    for turn in 1..=7 {
        assert_eq!(Served::of(&client.get("/")).turn, turn);
        assert!(client.is_silent_for(Duration::from_millis(600)));
    }
    assert_eq!(Served::of(&client.get("/")).turn, 8);
    // Nor is one whose turn takes longer than that.
    assert_eq!(client.get("/sleep/3500").status, 200);
    assert_eq!(Served::of(&client.get("/")).turn, 10);
}

#[test]
fn a_client_that_never_says_a_word_is_idle() {
    // A Unix socket, for the kernel keeps silent TCP connections to itself for a while.
    let setup = Setup::new(&["demo", "-w", "1", "--idle-timeout", "1"]);
    let server = setup.listen("unix:socket").start();
    let mut client = server.connect();
    let start = Instant::now();
    assert!(client.read_until_close().is_empty());
    assert_in_its_time(start);
}

#[test]
fn without_a_limit_an_idle_connection_stays() {
    let demo = Server::start(&["demo", "-w", "1", "--idle-timeout", "0"]);
    let mut of_demo = demo.connect();
    assert_eq!(of_demo.get("/").status, 200);
    let echo = Server::start(&["echo", "-w", "1"]);
    let mut of_echo = echo.connect();
    of_echo.send("hello");
    assert_eq!(of_echo.read_exact(5), b"hello");
    assert!(of_demo.is_silent_for(Duration::from_secs(2)));
    assert!(of_echo.is_silent_for(Duration::from_millis(10)));
}

#[test]
fn half_a_head_is_answered_408_in_its_time() {
    let server = hurried(&["demo", "-w", "1"]);
    let mut client = server.connect();
    let start = Instant::now();
    client.send("GET / HTTP/1.1\r\nHo");
    assert_told_to_hurry(&mut client);
    assert_in_its_time(start);
}

#[test]
fn a_head_that_drips_is_answered_408_in_its_time() {
    let server = hurried(&["demo", "-w", "1"]);
    let mut client = server.connect();
    let start = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: test\r\nX-Drip: ");
    let mut drips = 0;
    while client.is_silent_for(DRIP) {
        client.send("x");
        drips += 1;
        assert!(start.elapsed() < SOON, "{drips} drips");
    }
    // It goes on all the same, and can read why it should not have.
    for _ in 0..5 {
        let _ = client.try_send("xxx");
    }
    assert_told_to_hurry(&mut client);
    assert_in_its_time(start);
}

#[test]
fn a_body_is_none_of_the_head_that_must_be_here_in_time() {
    let server = hurried(&["demo", "-w", "1"]);
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf");
    for _ in 0..3 {
        assert_not_hurried(&server, &mut client);
    }
    client.send("a body");
    assert_eq!(client.reply().text(), "halfa body");
}

/// Until somebody who begins a head now is told that its time is over, the client hears nothing.
#[track_caller]
fn assert_not_hurried(server: &Server, client: &mut Client) {
    let mut other = server.connect();
    other.send("GET / HT");
    assert_told_to_hurry(&mut other);
    assert!(client.is_silent());
}

#[test]
fn who_has_sent_only_line_ends_owes_nothing() {
    let server = hurried(&["demo", "-w", "1"]);
    let mut client = server.connect();
    let post = "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody\r\n";
    client.send(post);
    assert_eq!(client.reply().status, 200);
    for line_ends in ["\r\n", "\r\n\r\n\r", "\n\r"] {
        assert_not_hurried(&server, &mut client);
        client.send(line_ends);
    }
    assert_not_hurried(&server, &mut client);
    client.send("\n");
    assert_eq!(client.get("/").status, 200);
    // What the half of a line end was, the next byte says.
    let mut silent = server.connect();
    silent.send("\r");
    assert_not_hurried(&server, &mut silent);
    silent.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(silent.reply().status, 400);
}

#[test]
fn who_goes_on_after_half_a_line_end_is_in_time_from_there_on() {
    let server = hurried(&["demo", "-w", "1"]);
    let mut client = server.connect();
    client.send("\r");
    assert_not_hurried(&server, &mut client);
    let start = Instant::now();
    client.send("\nGET / HT");
    assert_told_to_hurry(&mut client);
    assert_in_its_time(start);
}

#[test]
fn every_head_has_its_own_time() {
    let server = hurried(&["demo", "-w", "1"]);
    let mut client = server.connect();
    for _ in 0..3 {
        assert_eq!(client.get("/").status, 200);
        // The time between two requests is no part of a head's.
        assert!(client.is_silent_for(Duration::from_millis(600)));
        client.send("GET / HTTP/1.1\r\n");
        assert!(client.is_silent_for(Duration::from_millis(400)));
        client.send("Host: test\r\n\r\n");
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn the_time_of_a_turn_is_no_part_of_the_next_head_s() {
    let server = hurried(&["demo", "-w", "1"]);
    let mut client = server.connect();
    client.send("GET /sleep/1500 HTTP/1.1\r\nHost: test\r\n\r\nGET / HT");
    assert_eq!(client.reply().status, 200);
    let start = Instant::now();
    assert_told_to_hurry(&mut client);
    assert_in_its_time(start);
}

#[test]
fn a_dripping_head_costs_nobody_else_anything() {
    let server = hurried(&["demo", "-w", "1"]);
    let mut dripping = server.connect_all(30);
    for client in &mut dripping {
        client.send("GET / HTTP/1.1\r\n");
    }
    let mut other = server.connect();
    while dripping[0].is_silent_for(DRIP) {
        assert_eq!(other.get("/").status, 200);
    }
    for client in &mut dripping {
        assert_told_to_hurry(client);
    }
    assert_eq!(other.get("/").status, 200);
}

#[test]
fn a_client_that_does_not_go_is_drained_for_so_long_and_no_longer() {
    let server = Server::start(&["demo", "-w", "1", "--linger", "1"]);
    server.workers(1);
    let before = open_descriptors(server.master()).len();
    let mut client = server.connect();
    let start = Instant::now();
    assert_eq!(client.roundtrip("BAD\r\n\r\n").status, 400);
    assert!(client.read_until_close().is_empty());
    eventually("the connection is gone", || {
        // What it sends meanwhile is read and discarded.
        let _ = client.try_send("more of the same");
        open_descriptors(server.master()).len() == before
    });
    assert_in_its_time(start);
}

#[test]
fn a_client_that_goes_is_not_waited_for() {
    let server = Server::start(&["demo", "-w", "1", "--linger", "600"]);
    server.workers(1);
    let before = open_descriptors(server.master()).len();
    for _ in 0..20 {
        assert_eq!(server.connect().roundtrip("BAD\r\n\r\n").status, 400);
    }
    eventually("no connection is left", || {
        open_descriptors(server.master()).len() == before
    });
}

#[test]
fn without_a_drain_the_reply_still_arrives() {
    let server = Server::start(&["demo", "-w", "1", "--linger", "0"]);
    for _ in 0..20 {
        let mut client = server.connect();
        assert_eq!(client.roundtrip("BAD\r\n\r\n").status, 400);
        assert!(client.is_closed());
    }
}

#[test]
fn a_request_that_came_while_the_master_was_suspended_is_answered() {
    // More than the master takes out of its epoll set at a time.
    const CLIENTS: usize = 600;
    let server = Server::start(&["demo", "-w", "2", "--idle-timeout", "2"]);
    let mut clients = server.connect_all(CLIENTS);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    server.signal(nix::sys::signal::Signal::SIGSTOP);
    for client in &mut clients {
        client.send_get("/");
    }
    let silent = clients[0].is_silent_for(Duration::from_secs(4));
    server.signal(nix::sys::signal::Signal::SIGCONT);
    assert!(silent);
    for (number, client) in clients.iter_mut().enumerate() {
        match client.try_reply() {
            Ok(reply) => assert_eq!(Served::of(&reply).turn, 2),
            Err(error) => panic!("client {number}: {error}"),
        }
    }
}
