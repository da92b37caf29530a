//! A worker with nothing else to do may stay with its connection: which must be no obstacle to
//! whatever comes, be it another client, a limit or the end of the worker.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Clients, Server, begin_sleep};

/// A client that makes one request after the other, so that there is always a next one.
fn busy_client(server: &Server) -> Clients {
    let client = Clients::start(server.endpoint(), 1, "/");
    client.wait_for_requests(200);
    client
}

#[test]
fn a_busy_client_keeps_its_worker_from_nobody() {
    let server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let busy = busy_client(&server);
    let mut slow = server.connect();
    begin_sleep(&mut slow, 3000, &workers);
    busy.wait_for_requests(200);
    let mut others = server.connect_all(5);
    let start = Instant::now();
    for other in &mut others {
        assert_eq!(other.get("/").status, 200);
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(slow.reply().status, 200);
    busy.stop().assert_all_ok_so_far();
}

#[test]
fn many_short_turns_are_never_taken_for_a_long_one() {
    let server = Server::start(&["demo", "-w", "2", "--turn-timeout", "1"]);
    let workers = server.workers(2);
    let busy = busy_client(&server);
    busy.run_for(Duration::from_secs(3));
    busy.stop().assert_all_ok_so_far();
    assert_eq!(server.workers(2), workers);
    assert!(!server.log_contains("worker hangs"));
}

#[test]
fn a_graceful_stop_reaches_a_busy_client() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    server.workers(2);
    let busy = busy_client(&server);
    // With 30 s of grace, which nothing here needs.
    assert_eq!(server.stop().code(), Some(0));
    drop(busy);
}

#[test]
fn a_worker_with_a_busy_client_retires() {
    let server = Server::start(&["demo", "-w", "2"]);
    server.workers(2);
    // Each worker has one, so that it does not matter which retires.
    let busy = Clients::start(server.endpoint(), 2, "/");
    busy.wait_for_each(2, 200);
    server.signal(Signal::SIGTTOU);
    server.workers(1);
    busy.wait_for_each(2, 200);
    busy.stop().assert_all_ok_so_far();
}

#[test]
fn a_worker_with_a_busy_client_that_is_told_to_stop_is_replaced() {
    let server = Server::start(&["demo", "-w", "2"]);
    let busy = busy_client(&server);
    for worker in server.workers(2) {
        crate::harness::process::signal(worker.pid, Signal::SIGTERM);
        server.replacement(worker);
        busy.wait_for_requests(200);
    }
    busy.stop().assert_all_ok_so_far();
}
