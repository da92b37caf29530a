//! A worker that a signal has stopped costs the turn that it is in; all others go on.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::client::Served;
use crate::harness::{Clients, Server, Setup, Worker, begin_sleep, process};

fn setup(workers: &str) -> Setup {
    Setup::new(&["demo", "-w", workers]).expect("worker stopped")
}

fn stop(server: &Server, worker: Worker) {
    process::signal(worker.pid, Signal::SIGSTOP);
    let Worker { slot, pid } = worker;
    server.wait_for_log(&format!("worker stopped slot={slot} pid={pid}"));
}

fn go_on(server: &Server, worker: Worker) {
    process::signal(worker.pid, Signal::SIGCONT);
    let Worker { slot, pid } = worker;
    server.wait_for_log(&format!("worker continued slot={slot} pid={pid}"));
}

#[test]
fn under_load_only_the_turn_in_a_stopped_worker_waits() {
    const CLIENTS: usize = 24;
    let server = setup("4").start();
    let workers = server.workers(4);
    for path in ["/", "/sleep/2"] {
        for worker in &workers[..2] {
            let clients = Clients::start(server.endpoint(), CLIENTS, path);
            clients.wait_for_each(CLIENTS, 5);
            stop(&server, *worker);
            let before = clients.progress();
            clients.wait_for_each(CLIENTS - 1, 50);
            // At most one has not moved, and goes on with the worker.
            let now = clients.progress();
            let waiting = before.iter().zip(&now).filter(|(a, b)| *b - *a < 2).count();
            assert!(waiting <= 1, "{before:?} {now:?}");
            go_on(&server, *worker);
            clients.wait_for_each(CLIENTS, 5);
            let tally = clients.stop();
            tally.assert_all_ok_so_far();
        }
    }
    assert_eq!(server.workers(4), workers);
}

#[test]
fn the_turn_in_a_stopped_worker_ends_when_that_goes_on() {
    let server = setup("2").start();
    let workers = server.workers(2);
    let mut victim = server.connect();
    let busy = begin_sleep(&mut victim, 100, &workers);
    stop(&server, busy);
    let mut others = server.connect_all(20);
    for turn in 1..=20 {
        for other in &mut others {
            let served = Served::of(&other.get("/"));
            assert_eq!(served.turn, turn);
            assert_ne!(served.slot, busy.slot);
        }
    }
    go_on(&server, busy);
    assert_eq!(victim.reply().status, 200);
    assert_eq!(Served::of(&victim.get("/")).turn, 2);
}

#[test]
fn a_worker_that_goes_on_serves_again() {
    let server = setup("2").start();
    for worker in server.workers(2) {
        process::wait_until_idle(worker.pid);
        stop(&server, worker);
        assert_ne!(Served::of(&server.get("/")).slot, worker.slot);
        go_on(&server, worker);
        // Two turns at once take both.
        let mut sleepers = server.connect_all(2);
        for sleeper in &mut sleepers {
            sleeper.send_get("/sleep/300");
        }
        process::wait_until_asleep(worker.pid);
        for sleeper in &mut sleepers {
            assert_eq!(sleeper.reply().status, 200);
        }
    }
}

#[test]
fn while_all_workers_are_stopped_requests_wait() {
    let server = setup("2").start();
    let workers = server.workers(2);
    let mut clients = server.connect_all(20);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    for worker in &workers {
        // The last client has its reply before the worker has done with the turn.
        process::wait_until_idle(worker.pid);
        stop(&server, *worker);
    }
    for client in &mut clients {
        client.send_get("/");
    }
    assert!(clients[0].is_silent_for(Duration::from_millis(300)));
    assert!(clients.iter_mut().all(|client| client.is_silent()));
    go_on(&server, workers[1]);
    for client in &mut clients {
        let served = Served::of(&client.reply());
        assert_eq!((served.turn, served.slot), (2, workers[1].slot));
    }
    go_on(&server, workers[0]);
}

#[test]
fn stopped_and_continued_again_and_again_it_loses_nothing() {
    let server = setup("2").start();
    let workers = server.workers(2);
    let clients = Clients::start(server.endpoint(), 24, "/");
    for round in 0..40 {
        let worker = workers[round % 2];
        process::signal(worker.pid, Signal::SIGSTOP);
        // The other one, and all but the turn in hand.
        clients.wait_for_each(23, 2);
        process::signal(worker.pid, Signal::SIGCONT);
        clients.wait_for_each(24, 2);
    }
    let tally = clients.stop();
    tally.assert_all_ok_so_far();
}
