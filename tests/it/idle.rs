//! Clients that do nothing, or as good as nothing, cost no worker.

use std::time::{Duration, Instant};

use crate::harness::client::Served;
use crate::harness::process::{
    eventually_within, proportional_memory, require_descriptors, reserve_descriptors, status_number,
};
use crate::harness::{Client, Server};

/// How long a request may take beside idle clients. Not a benchmark: what it tells apart is a
/// server that is held up by them, which answers when they have gone or not at all.
const PROMPT: Duration = Duration::from_secs(1);

#[test]
fn silent_dripping_and_idle_clients_hold_up_nobody() {
    require_descriptors(2000);
    let server = Server::start(&["demo", "-w", "2"]);
    server.workers(2);
    let mut silent = server.connect_all(200);
    let mut dripping = server.connect_all(200);
    for client in &mut dripping {
        client.send("GET / HTTP/1.1\r\nHost: test\r\nX-Drip: ");
    }
    let mut idle = server.connect_all(200);
    for client in &mut idle {
        assert_eq!(Served::of(&client.get("/")).turn, 1);
    }
    let mut drips = 0;
    for request in 0..200 {
        // Every client drips one more byte of its head every ten requests.
        for client in dripping.iter_mut().skip(request % 10).step_by(10) {
            client.send("x");
            drips += 1;
        }
        let start = Instant::now();
        assert_eq!(server.get("/").status, 200);
        let took = start.elapsed();
        assert!(took < PROMPT, "request {request} took {took:?}");
    }
    assert_eq!(drips, 200 * 20);
    for client in &mut dripping {
        client.send("\r\n\r\n");
    }
    for (number, client) in dripping.iter_mut().enumerate() {
        let served = Served::of(&client.reply());
        assert!(
            served.turn > 1,
            "client {number}: a head in pieces takes several turns"
        );
    }
    for client in &mut idle {
        assert_eq!(Served::of(&client.get("/")).turn, 2);
    }
    for client in &mut silent {
        assert_eq!(
            Served::of(&client.get("/")).turn,
            1,
            "a silent client had no turn before"
        );
    }
}

#[test]
fn two_thousand_idle_echo_sessions_cost_no_worker() {
    idle_echo_sessions(2000);
}

#[test]
#[ignore = "takes 20,000 descriptors and some seconds"]
fn ten_thousand_idle_echo_sessions_cost_no_worker() {
    idle_echo_sessions(10_000);
}

fn idle_echo_sessions(count: usize) {
    let _reserved = reserve_descriptors(count as u64);
    let server = Server::start(&["echo", "-w", "2"]);
    let workers = server.workers(2);
    let mut warm = server.connect();
    let say = |client: &mut Client, words: String| {
        client.send(&words);
        assert_eq!(client.read_exact(words.len()), words.as_bytes());
    };
    say(&mut warm, "first\n".to_owned());
    let resident = |pid| status_number(pid, "VmRSS");
    let master_before = resident(server.master());
    let workers_before: Vec<u64> = workers.iter().map(|worker| resident(worker.pid)).collect();
    let mut sessions = Vec::with_capacity(count);
    for number in 0..count {
        let mut session = server.connect();
        // Half of them have had a turn, half have never said a word.
        if number % 2 == 0 {
            say(&mut session, format!("session {number}\n"));
        }
        sessions.push(session);
    }
    let start = Instant::now();
    say(&mut warm, "still there\n".to_owned());
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    let grown = resident(server.master()).saturating_sub(master_before);
    assert!(
        grown < 2 * count as u64 + 4096,
        "the master has grown by {grown} KiB for {count} sessions"
    );
    for (worker, before) in workers.iter().zip(workers_before) {
        let grown = resident(worker.pid).saturating_sub(before);
        assert!(
            grown < 4096,
            "{worker:?} has grown by {grown} KiB, and holds nothing"
        );
        assert_eq!(status_number(worker.pid, "Threads"), 1);
    }
    assert_eq!(status_number(server.master(), "Threads"), 1);
    for (number, session) in sessions.iter_mut().enumerate().step_by(7) {
        say(session, format!("session {number} again\n"));
    }
    assert_eq!(server.workers(2), workers);
}

#[test]
fn two_thousand_kept_connections_cost_the_master_little_memory() {
    kept_connections(2000, 1024);
}

#[test]
#[ignore = "takes 18,000 descriptors and some seconds"]
fn eighteen_thousand_kept_connections_cost_the_master_little_memory() {
    kept_connections(18_000, 250);
}

/// Connections that are kept after a request, of which each may cost the master so many bytes of
/// its own. What the kernel has of them is not counted here.
fn kept_connections(count: usize, bytes: u64) {
    let _reserved = reserve_descriptors(count as u64);
    let server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    for _ in 0..100 {
        assert_eq!(server.get("/").status, 200);
    }
    let before = proportional_memory(server.master());
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let mut client = server.connect();
        assert_eq!(client.get("/").status, 200);
        clients.push(client);
    }
    let grown = proportional_memory(server.master()).saturating_sub(before);
    let each = grown / count as u64;
    println!("{count} kept connections: {each} bytes each");
    assert!(
        each <= bytes,
        "{each} bytes for each of {count} connections"
    );
    let start = Instant::now();
    for client in clients.iter_mut().step_by(97) {
        assert_eq!(Served::of(&client.get("/")).turn, 2);
    }
    assert!(start.elapsed() < 5 * PROMPT, "{:?}", start.elapsed());
    assert_eq!(server.workers(2), workers);
}

#[test]
fn a_server_with_idle_connections_sleeps() {
    // So long that a deadline lies in a later round of the wheel, and its slot is passed soon.
    let server = Server::start(&["demo", "-w", "1", "--idle-timeout", "103"]);
    server.workers(1);
    let mut clients = Vec::new();
    for _ in 0..15 {
        let mut client = server.connect();
        assert_eq!(client.get("/").status, 200);
        clients.push(client);
        // So that each of them has a slot of its own.
        eventually_within(Duration::from_millis(100), || false);
    }
    let wakes = || status_number(server.master(), "voluntary_ctxt_switches");
    let before = wakes();
    eventually_within(Duration::from_secs(2), || false);
    let count = wakes() - before;
    assert!(count <= 5, "the master woke {count} times for nobody");
}
