//! Nobody waits behind a slow turn while another worker is free, whatever was lent before it was
//! known to be slow.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Client, Server, Setup, Worker, process, run};

/// A slow turn, and how long another one may take beside it: not a benchmark, for whoever waits
/// behind the slow one takes nearly as long.
const SLOW: &str = "/sleep/1000";
const PROMPT: Duration = Duration::from_millis(700);

/// So many clients that are served so quickly that the master lends several at a time.
fn quick_clients(server: &Server, count: usize) -> Vec<Client> {
    let mut clients = server.connect_all(count);
    for _ in 0..20 {
        answer_all(&mut clients);
    }
    clients
}

fn answer_all(clients: &mut [Client]) {
    for client in &mut *clients {
        client.send_get("/");
    }
    for client in clients {
        assert_eq!(client.reply().status, 200);
    }
}

/// Starts slow turns among quick ones, and checks that only the slow ones are slow.
#[track_caller]
fn assert_only_the_slow_wait(quick: &mut [Client], slow: &mut [Client]) {
    let (before, after) = quick.split_at_mut(quick.len() / 2);
    let start = Instant::now();
    for client in &mut *before {
        client.send_get("/");
    }
    for client in &mut *slow {
        client.send_get(SLOW);
    }
    for client in &mut *after {
        client.send_get("/");
    }
    for client in before.iter_mut().chain(after) {
        assert_eq!(client.reply().status, 200);
    }
    let took = start.elapsed();
    assert!(took < PROMPT, "the last quick one took {took:?}");
    for client in slow {
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn nobody_waits_behind_a_slow_turn() {
    let server = Server::start(&["demo", "-w", "2"]);
    let mut quick = quick_clients(&server, 24);
    let mut slow = server.connect_all(1);
    for _ in 0..4 {
        assert_only_the_slow_wait(&mut quick, &mut slow);
        answer_all(&mut quick);
    }
}

#[test]
fn one_free_worker_is_enough() {
    let server = Server::start(&["demo", "-w", "5"]);
    let mut quick = quick_clients(&server, 24);
    let mut slow = server.connect_all(4);
    for _ in 0..3 {
        assert_only_the_slow_wait(&mut quick, &mut slow);
        answer_all(&mut quick);
    }
}

#[test]
fn nobody_waits_behind_a_slow_turn_however_long_the_patience() {
    for patience in ["1", "50", "20000"] {
        let server = Server::start(&["demo", "-w", "2", "--patience", patience]);
        let mut quick = quick_clients(&server, 24);
        let mut slow = server.connect_all(1);
        assert_only_the_slow_wait(&mut quick, &mut slow);
    }
}

#[test]
fn pipelined_requests_are_taken_back_with_their_connection() {
    let server = Server::start(&["demo", "-w", "2"]);
    let mut quick = quick_clients(&server, 16);
    let mut slow = server.connect();
    slow.send_get(SLOW);
    let start = Instant::now();
    // The second request of each is half here at first, and travels as carry.
    let request = "GET /bytes/7 HTTP/1.1\r\nHost: test\r\n\r\n";
    let (first, second) = request.split_at(20);
    for client in &mut quick {
        client.send(format!("{request}{first}"));
    }
    for client in &mut quick {
        assert_eq!(client.reply().body.len(), 7);
        client.send(second);
    }
    for client in &mut quick {
        assert_eq!(client.reply().body.len(), 7);
    }
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    assert_eq!(slow.reply().status, 200);
}

#[test]
fn a_stopped_worker_is_lent_nothing() {
    let setup = Setup::new(&["demo", "-w", "2"]).expect("worker stopped");
    let server = setup.start();
    let workers = server.workers(2);
    let mut quick = quick_clients(&server, 24);
    for Worker { slot, pid } in workers {
        process::wait_until_idle(pid);
        process::signal(pid, Signal::SIGSTOP);
        server.wait_for_log(&format!("worker stopped slot={slot}"));
        for _ in 0..3 {
            let start = Instant::now();
            answer_all(&mut quick);
            assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
        }
        process::signal(pid, Signal::SIGCONT);
        server.wait_for_log(&format!("worker continued slot={slot}"));
    }
}

#[test]
fn no_patience_at_all_is_a_usage_error() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    for patience in ["0", "-1", "1.5", "soon", "10000001"] {
        let argument = format!("--patience={patience}");
        let finished = run(directory.path(), &["serve", "demo", &argument]);
        assert_eq!(finished.status.code(), Some(2), "{finished:?}");
        let first = finished.stderr.lines().next().unwrap_or_default();
        assert!(first.contains("--patience"), "{finished:?}");
        assert!(finished.stdout.is_empty(), "{finished:?}");
    }
}
