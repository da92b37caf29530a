//! The end of a server: in order, at once, or by the death of its master.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::harness::client::Served;
use crate::harness::process::{signal, sleeps};
use crate::harness::{Server, Setup, Watched, begin_sleep, eventually};

#[test]
fn a_graceful_stop_finishes_the_turn_in_hand_and_closes_the_parked() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let mut parked = server.connect();
    assert_eq!(Served::of(&parked.get("/")).turn, 1);
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 500, &workers);
    server.signal(Signal::SIGTERM);
    server.wait_for_log("stopping");
    assert!(parked.is_closed());
    assert_eq!(sleeper.reply().status, 200);
    assert!(sleeper.is_closed());
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log_contains("stopped"));
    let refused = server.endpoint().try_connect().map(drop);
    assert_eq!(
        refused.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionRefused)
    );
}

#[test]
fn a_signal_that_the_kernel_refuses_is_in_the_log() {
    let setup = Setup::new(&["demo", "-w", "1"]).expect("cannot send SIGKILL");
    let mut server = setup.start_without(libc::SYS_kill, Errno::EPERM);
    let worker = server.workers(1)[0].pid;
    assert!(server.stop_by(Signal::SIGQUIT).success());
    let line = server.wait_for_log("cannot send SIGKILL");
    let words = format!("to process {worker}: Operation not permitted");
    assert!(line.ends_with(&words), "{line}");
}

#[test]
fn a_graceful_stop_answers_what_was_sent_before_it() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    server.workers(2);
    let mut clients = server.connect_all(50);
    for client in &mut clients {
        assert_eq!(Served::of(&client.get("/")).turn, 1);
    }
    // More than two workers can do at once, so that most of them wait in the master.
    for client in &mut clients {
        client.send_get("/sleep/10");
    }
    server.signal(Signal::SIGTERM);
    for (number, client) in clients.iter_mut().enumerate() {
        match client.try_reply() {
            Ok(reply) => assert_eq!(reply.status, 200, "client {number}: {reply:?}"),
            Err(error) => panic!("client {number} got no answer: {error}"),
        }
        assert!(client.is_closed());
    }
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_graceful_stop_answers_what_is_still_in_the_backlog() {
    // More than the master accepts at a time.
    const CLIENTS: usize = 300;
    let mut server = Server::start(&["demo", "-w", "2"]);
    server.workers(2);
    server.signal(Signal::SIGSTOP);
    let mut clients = server.connect_all(CLIENTS);
    clients.iter_mut().for_each(|client| client.send_get("/"));
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGCONT);
    for (number, client) in clients.iter_mut().enumerate() {
        match client.try_reply() {
            Ok(reply) => assert_eq!(reply.status, 200, "client {number}"),
            Err(error) => panic!("client {number} got no answer: {error}"),
        }
    }
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_graceful_stop_answers_what_came_during_the_turn() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let mut client = server.connect();
    begin_sleep(&mut client, 300, &workers);
    client.send_get("/bytes/5");
    server.signal(Signal::SIGTERM);
    assert_eq!(client.reply().status, 200);
    assert_eq!(client.reply().body.len(), 5);
    assert!(client.is_closed());
    assert!(server.wait().success());
}

#[test]
fn the_first_interrupt_stops_in_order_and_the_second_at_once() {
    let mut server = Setup::new(&["demo", "-w", "2"]).expect(" died ").start();
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    let worker = begin_sleep(&mut sleeper, 60_000, &workers);
    server.signal(Signal::SIGINT);
    server.wait_for_log("stopping");
    eventually("it accepts no more", || {
        server.endpoint().try_connect().is_err()
    });
    assert!(sleeps(worker.pid), "it waits for the turn");
    let start = Instant::now();
    server.stop_by(Signal::SIGINT);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(
        sleeper.try_reply().is_err(),
        "no turn ends at once that takes a minute"
    );
}

#[test]
fn quit_stops_at_once() {
    let mut server = Setup::new(&["demo", "-w", "2"]).expect(" died ").start();
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 60_000, &workers);
    let start = Instant::now();
    server.stop_by(Signal::SIGQUIT);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn grace_bounds_a_graceful_stop() {
    let mut server = Setup::new(&["demo", "-w", "2", "--grace", "1"])
        .expect(" died ")
        .expect("grace")
        .start();
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 60_000, &workers);
    let start = Instant::now();
    server.stop();
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(900),
        "{took:?}: the turn had a second"
    );
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[test]
fn workers_finish_their_turn_and_exit_when_their_master_is_killed() {
    let mut server = Server::start(&["demo", "-w", "3"]);
    let workers = server.workers(3);
    let watched: Vec<_> = workers
        .iter()
        .map(|worker| Watched::new(worker.pid))
        .collect();
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 500, &workers);
    server.signal(Signal::SIGKILL);
    assert!(!server.wait_for_master().success());
    assert_eq!(sleeper.reply().status, 200);
    for worker in &watched {
        assert_eq!(worker.reap_orphan(), WaitStatus::Exited(worker.pid(), 0));
    }
    assert!(sleeper.is_closed());
    let refused = server.endpoint().try_connect().map(drop);
    assert_eq!(
        refused.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionRefused)
    );
}

#[test]
fn a_worker_that_a_signal_has_stopped_does_not_cost_the_grace_period() {
    let setup = Setup::new(&["demo", "-w", "2"]);
    let mut server = setup.expect("worker stopped").start();
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    let busy = begin_sleep(&mut sleeper, 300, &workers);
    for worker in &workers {
        signal(worker.pid, Signal::SIGSTOP);
    }
    server.wait_for_lines("worker stopped", 2);
    let start = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(sleeper.reply().status, 200, "{busy:?} went on");
    assert_eq!(server.wait().code(), Some(0));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(server.log_lines("worker retired").len(), 2);
}

/// They have closed their connections, which the server can't tell from clients that have only
/// ended their side.
#[test]
fn clients_that_have_given_up_do_not_hold_up_a_stop() {
    let mut server = Server::start(&["demo", "-w", "1", "--grace", "60"]);
    let workers = server.workers(1);
    let mut client = server.connect();
    begin_sleep(&mut client, 1500, &workers);
    for _ in 0..20 {
        server.connect().send_get("/sleep/3000");
    }
    let start = Instant::now();
    assert_eq!(server.stop_by(Signal::SIGINT).code(), Some(0));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(client.reply().status, 200);
}
