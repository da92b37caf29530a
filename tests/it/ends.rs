//! Processes that should go: each of them has a deadline, whatever it hangs in, and what the log
//! says of its end is true. docs/examples/fragile.rs is the program whose workers hang.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::Served;
use crate::harness::process::{children, is_idle, signal};
use crate::harness::{DEADLINE, Server, Setup, Worker, begin_sleep, eventually, field};
use crate::recycle::fragile;

/// What no test here may come near: the time that a stop has by default.
const GRACE: Duration = Duration::from_secs(30);

#[test]
fn workers_that_hang_in_their_end_do_not_pile_up() {
    let setup = Setup::example("fragile", &["--mood", "mood", "-w", "2"]);
    std::fs::write(setup.directory().join("mood"), "cling").expect("the directory is ours");
    let setup = setup.also(&["--max-lifetime", "1", "--grace", "1"]);
    let mut server = setup.expect("was told to exit and does not").start();
    server.workers(2);
    let mut most = 0;
    eventually("four of them were replaced and killed", || {
        most = most.max(children(server.master()).0.len());
        server
            .log_lines("was told to exit and does not: killing it")
            .len()
            >= 4
    });
    // Two that serve, one that is starting, one that does not go.
    assert!(most <= 4, "{most} processes");
    assert_eq!(server.get("/").status, 200);
    let start = Instant::now();
    server.stop();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn workers_that_are_starting_do_not_hold_up_a_stop() {
    let (mut server, mood) = fragile(&["-w", "1"]);
    server.workers(1);
    mood.set("hang");
    server.signal(Signal::SIGTTIN);
    server.signal(Signal::SIGTTIN);
    eventually("another worker is starting", || {
        children(server.master()).0.len() >= 2
    });
    let start = Instant::now();
    server.stop();
    let took = start.elapsed();
    assert!(took < GRACE / 2, "{took:?}");
    assert!(server.log_contains("which was still starting"));
}

#[test]
fn a_reload_that_hangs_does_not_hold_up_a_stop() {
    let (mut server, mood) = fragile(&["-w", "2"]);
    server.workers(2);
    mood.set("hang");
    server.signal(Signal::SIGHUP);
    eventually("the new generation is starting", || {
        children(server.master()).0.len() == 4
    });
    let start = Instant::now();
    server.stop();
    let took = start.elapsed();
    assert!(took < GRACE / 2, "{took:?}");
}

#[test]
fn a_reload_ends_what_has_not_started_yet() {
    let (server, mood) = fragile(&["-w", "1"]);
    let first = server.workers(1)[0];
    mood.set("hang");
    server.signal(Signal::SIGTTIN);
    eventually("another worker is starting", || {
        children(server.master()).0.len() == 2
    });
    mood.set("well");
    let start = Instant::now();
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    let now = server.workers(1);
    let took = start.elapsed();
    assert!(took < GRACE / 2, "{took:?}");
    assert_ne!(now[0].pid, first.pid);
}

#[test]
fn an_old_master_does_not_wait_for_what_has_not_started_yet() {
    let (mut server, mood) = fragile(&["-w", "1"]);
    server.workers(1);
    mood.set("hang");
    server.signal(Signal::SIGTTIN);
    eventually("another worker is starting", || {
        children(server.master()).0.len() == 2
    });
    mood.set("well");
    let start = Instant::now();
    server.upgrade();
    server.wait_for_former();
    let took = start.elapsed();
    assert!(took < GRACE / 2, "{took:?}");
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_stopped_worker_does_not_outlive_its_generation() {
    let mut server = Setup::new(&["demo", "-w", "2"])
        .expect("worker stopped")
        .start();
    let old = server.workers(2);
    for worker in &old {
        signal(worker.pid, Signal::SIGSTOP);
    }
    server.wait_for_lines("worker stopped", 2);
    let start = Instant::now();
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    let new = server.workers(2);
    let took = start.elapsed();
    assert!(took < GRACE / 2, "{took:?}");
    assert!(old.iter().all(|worker| !new.contains(worker)));
    // The same for one that is stopped when its time has come already.
    signal(new[0].pid, Signal::SIGSTOP);
    server.wait_for_lines("worker stopped", 3);
    server.upgrade();
    server.wait_for_former();
    let took = start.elapsed();
    assert!(took < GRACE / 2, "{took:?}");
    assert_eq!(server.wait_for_lines("worker retired", 4).len(), 4);
}

#[test]
fn who_exits_with_0_when_nobody_asked_has_died() {
    let (server, mood) = fragile(&["-w", "1"]);
    let worker = server.workers(1)[0];
    assert_eq!(server.get("/exit").status, 502);
    let line = server.wait_for_log("worker died");
    assert_eq!(field(&line, "pid"), worker.pid.as_raw());
    assert!(line.ends_with(": exited with status 0 in a turn"), "{line}");
    let worker = server.workers(1)[0];
    mood.set("quit");
    server.kill(worker);
    let lines = server.wait_for_lines("exited with status 0 before it was ready", 2);
    assert!(lines.iter().all(|line| line.contains("worker died")));
    mood.set("well");
    let worker = server.workers(1)[0];
    assert_eq!(server.log_lines("worker retired").len(), 0);
    // One that was asked has retired.
    signal(worker.pid, Signal::SIGTERM);
    server.wait_for_word("worker retired", worker);
}

/// Ends the workers, so many of which end at once, and then the server, which finds all of it at
/// the same time: it is stopped meanwhile.
#[track_caller]
fn stop_with_workers(server: &Server, workers: &[Worker], idle: usize) {
    server.signal(Signal::SIGSTOP);
    for worker in workers {
        signal(worker.pid, Signal::SIGTERM);
    }
    eventually("the idle workers have ended", || {
        children(server.master()).1.len() == idle
    });
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGCONT);
}

#[test]
fn a_signal_to_the_whole_group_starts_nobody() {
    // As `timeout batond serve` sends it.
    let mut server = Setup::new(&["demo", "-w", "4"]).start();
    let workers = server.workers(4);
    let mut parked = server.connect();
    assert_eq!(Served::of(&parked.get("/")).turn, 1);
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 1000, &workers);
    stop_with_workers(&server, &workers, 3);
    assert_eq!(sleeper.reply().status, 200);
    assert_eq!(server.wait().code(), Some(0));
    assert!(parked.is_closed());
    let retired = server.log_lines("worker retired");
    assert_eq!(retired.len(), 4, "{retired:?}");
    let known = |line: &String| {
        workers
            .iter()
            .any(|one| one.pid.as_raw() == field(line, "pid"))
    };
    assert!(retired.iter().all(known), "{retired:?}");
}

#[test]
fn what_is_half_written_finds_a_worker_while_the_server_stops() {
    let mut server = Setup::new(&["echo", "-w", "2"]).start();
    let workers = server.workers(2);
    let mut slow = TcpStream::connect(server.endpoint().tcp()).expect("it listens");
    slow.set_nonblocking(true).expect("a flag");
    let mut sent = 0;
    // What the client does not take waits in the master, and the worker goes on without it.
    eventually("no more is taken, and no worker waits for that", || {
        let before = sent;
        while let Ok(count) = slow.write(&[b'x'; 1 << 16]) {
            sent += count;
        }
        before == sent && workers.iter().all(|worker| is_idle(worker.pid))
    });
    stop_with_workers(&server, &workers, 2);
    server.wait_for_lines("worker retired", 2);
    slow.set_nonblocking(false).expect("a flag");
    slow.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut taken = 0;
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = slow.read(&mut buffer) {
        taken += count;
    }
    assert!(taken > 0);
    println!("{taken} of {sent} bytes came back");
    server.wait_for_lines("worker ready", 3);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn workers_that_hang_in_their_end_hold_up_neither_reload_nor_upgrade() {
    let setup = Setup::example("fragile", &["--mood", "mood", "-w", "2", "--grace", "1"]);
    std::fs::write(setup.directory().join("mood"), "cling").expect("the directory is ours");
    let mut server = setup.expect("was told to exit and does not").start();
    server.workers(2);
    let start = Instant::now();
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    server.workers(2);
    server.upgrade();
    server.wait_for_former();
    assert_eq!(server.get("/").status, 200);
    server.workers(2);
    let took = start.elapsed();
    assert!(took < GRACE / 2, "{took:?}");
}
