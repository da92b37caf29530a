//! Workers that are followed by others, of which nobody notices anything: because they have served,
//! aged or grown enough, or because they died at their start. docs/examples/fragile.rs is the
//! program whose workers do that.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::process::{self, eventually_within};
use crate::harness::{Clients, Habit, Server, Setup, eventually, field};

/// A file that tells workers how they are when they start.
pub struct Mood(PathBuf);

impl Mood {
    pub fn set(&self, mood: &str) {
        // At once, for a worker may be reading it.
        let new = self.0.with_extension("new");
        fs::write(&new, mood).expect("the directory is ours");
        fs::rename(&new, &self.0).expect("the directory is ours");
    }
}

/// The fragile example, which is well for now, and dies only as the test expects it.
#[track_caller]
pub fn fragile(arguments: &[&str]) -> (Server, Mood) {
    fragile_in(Setup::example(
        "fragile",
        &[&["--mood", "mood"], arguments].concat(),
    ))
}

/// The same, set up by the test.
#[track_caller]
pub fn fragile_in(setup: Setup) -> (Server, Mood) {
    let mood = Mood(setup.directory().join("mood"));
    let setup = setup.expect(" died ").expect("die at their start");
    let setup = setup.expect("] queue");
    let server = setup.expect("is not ready after").start();
    (server, mood)
}

/// How many workers were recycled so far, each when another was ready in its slot, and no two at a
/// time.
#[track_caller]
fn recycled_one_by_one(server: &Server) -> usize {
    let log = server.log();
    let mut ready = std::collections::BTreeMap::new();
    let (mut count, mut leaving) = (0, None);
    for line in &log {
        if line.contains("worker ready") {
            ready.insert(field(line, "slot"), field(line, "pid"));
        } else if line.contains("worker recycled") {
            let pid = field(line, "pid");
            assert_eq!(leaving.replace(pid), None, "two at a time:\n{log:#?}");
            let successor = ready[&field(line, "slot")];
            assert_ne!(successor, pid, "without a successor:\n{log:#?}");
            count += 1;
        } else if line.contains("worker retired") && leaving == Some(field(line, "pid")) {
            leaving = None;
        }
    }
    count
}

#[test]
fn workers_that_have_served_enough_are_followed_by_others_under_load() {
    let server = Server::start(&["demo", "-w", "4", "--max-turns", "50"]);
    let first = server.workers(4);
    let keeping = Clients::start(server.endpoint(), 8, "/");
    let passing = Clients::with(server.endpoint(), 8, Habit::OneRequestEach, "/");
    server.wait_for_lines("worker recycled", 20);
    let (kept, passed) = (keeping.stop(), passing.stop());
    kept.assert_all_ok_so_far();
    passed.assert_all_ok_so_far();
    let now = server.workers(4);
    assert!(first.iter().all(|worker| !now.contains(worker)));
    assert!(recycled_one_by_one(&server) >= 20);
    for line in server.log_lines("worker recycled") {
        let (_, reason) = line.rsplit_once(": ").expect("it says why");
        let turns = reason.strip_suffix(" turns").expect("it says how many");
        assert!(turns.parse::<u32>().unwrap() >= 45, "{line}");
    }
}

#[test]
fn a_worker_with_a_long_turn_finishes_it_before_it_goes() {
    let server = Server::start(&["demo", "-w", "2", "--max-turns", "10"]);
    server.workers(2);
    let clients = Clients::start(server.endpoint(), 4, "/sleep/150");
    server.wait_for_lines("worker recycled", 3);
    clients.stop().assert_all_ok_so_far();
    assert!(recycled_one_by_one(&server) >= 3);
}

#[test]
fn old_workers_are_followed_by_others_though_nothing_happens() {
    let server = Server::start(&["demo", "-w", "2", "--max-lifetime", "1"]);
    let start = Instant::now();
    let lines = server.wait_for_lines("worker recycled", 4);
    assert!(lines.iter().all(|line| line.contains(" s of age")));
    assert!(start.elapsed() >= Duration::from_millis(1500));
    assert_eq!(server.get("/").status, 200);
    recycled_one_by_one(&server);
}

#[test]
fn a_worker_that_grows_is_followed_by_a_small_one() {
    let (server, _) = fragile(&["-w", "1", "--max-rss", "100000000"]);
    let worker = server.workers(1)[0];
    let mut client = server.connect();
    let reply = client.get("/grow/50");
    assert!(reply.text().contains("holds 52428800 bytes"), "{reply:?}");
    client.get("/grow/60");
    let line = server.wait_for_log("worker recycled");
    assert!(line.contains(" KiB of memory"), "{line}");
    assert_eq!(field(&line, "pid"), worker.pid.as_raw());
    server.replacement(worker);
    server.workers(1);
    let reply = client.get("/");
    assert!(reply.text().contains("holds 0 bytes"), "{reply:?}");
    assert_eq!(server.log_lines("worker recycled").len(), 1);
}

#[test]
fn a_successor_that_dies_at_its_start_costs_nobody_anything() {
    let (server, mood) = fragile(&["-w", "2", "--max-turns", "20"]);
    let first = server.workers(2);
    mood.set("exit");
    let clients = Clients::start(server.endpoint(), 8, "/");
    let deaths = server.wait_for_lines("worker died", 3);
    clients.wait_for_requests(100);
    assert!(
        deaths
            .iter()
            .all(|line| line.contains("exited with status 3")),
        "{deaths:?}"
    );
    let slots: Vec<_> = deaths.iter().map(|line| field(line, "slot")).collect();
    assert!(slots.iter().all(|slot| *slot == slots[0]), "{deaths:?}");
    assert_eq!(recycled_one_by_one(&server), 0);
    assert!(first.iter().all(|worker| process::is_alive(worker.pid)));
    mood.set("well");
    server.wait_for_lines("worker recycled", 4);
    clients.stop().assert_all_ok_so_far();
    recycled_one_by_one(&server);
}

#[test]
fn a_worker_that_does_not_come_to_serve_is_killed() {
    let (server, mood) = fragile(&["-w", "1", "--start-timeout", "1000"]);
    server.workers(1);
    mood.set("hang");
    server.signal(Signal::SIGTTIN);
    let line = server.wait_for_log("is not ready after 1 s: sending SIGTERM");
    let pid = field(&line, "pid");
    server.wait_for_log("is not ready after 1 s: sending SIGKILL");
    let line = server.wait_for_log("worker died");
    assert!(line.contains("killed by SIGKILL"), "{line}");
    assert_eq!(field(&line, "pid"), pid);
    assert_eq!(server.get("/").status, 200);
    // The next one hangs, too, and the one after it does not.
    server.wait_for_lines("sending SIGTERM", 2);
    mood.set("well");
    server.workers(2);
}

#[test]
fn with_no_worker_left_clients_wait_and_are_then_turned_away() {
    let (server, mood) = fragile(&["-w", "2", "--queue", "3", "--queue-wait", "300"]);
    let workers = server.workers(2);
    let mut known = server.connect();
    assert_eq!(known.get("/").status, 200);
    mood.set("exit");
    for worker in workers {
        server.kill(worker);
    }
    server.wait_for_log("workers of pool main die at their start: exited with status 3");
    let start = Instant::now();
    known.send_get("/");
    let mut others = server.connect_all(2);
    others.iter_mut().for_each(|client| client.send_get("/"));
    assert_eq!(known.reply().status, 503);
    for mut client in others {
        assert_eq!(client.reply().status, 503);
    }
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    // Of so many there is no room for all, and none is forgotten.
    let mut many = server.connect_all(20);
    many.iter_mut().for_each(|client| client.send_get("/"));
    assert!(
        many.iter_mut()
            .all(|client| client.reply().status == 503 && client.is_closed())
    );
    mood.set("well");
    server.wait_for_log("workers of pool main start again");
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.log_lines("die at their start").len(), 1);
    assert_eq!(server.log_lines("start again").len(), 1);
}

#[test]
fn who_waits_long_enough_is_served_when_workers_start_again() {
    let (server, mood) = fragile(&["-w", "1"]);
    let worker = server.workers(1)[0];
    // The kernel keeps it to itself for as long as it says nothing.
    let mut silent = server.connect();
    mood.set("exit");
    server.kill(worker);
    let mut waiting = server.connect_all(5);
    waiting.iter_mut().for_each(|client| client.send_get("/"));
    server.wait_for_log("die at their start");
    silent.send_get("/");
    assert!(waiting.iter_mut().all(|client| client.is_silent()));
    mood.set("well");
    for client in &mut waiting {
        assert_eq!(client.reply().status, 200);
    }
    assert_eq!(silent.reply().status, 200);
}

#[test]
fn a_silent_client_is_not_turned_away_for_want_of_workers() {
    let arguments = ["-w", "1", "--queue-wait", "300", "--defer-accept", "1"];
    let (server, mood) = fragile(&arguments);
    let worker = server.workers(1)[0];
    mood.set("exit");
    server.kill(worker);
    let mut silent = server.connect();
    // The kernel gives it up to the master after a second or two.
    let answered = eventually_within(Duration::from_secs(4), || silent.has_pending());
    assert!(!answered, "{:?}", silent.reply());
    mood.set("well");
    server.wait_for_log("start again");
    assert_eq!(silent.get("/").status, 200);
}

#[test]
fn all_of_this_leaves_nothing_behind() {
    let server = Server::start(&["demo", "-w", "2", "--max-turns", "20"]);
    server.workers(2);
    let clients = Clients::start(server.endpoint(), 4, "/");
    server.wait_for_lines("worker recycled", 5);
    let before = process_descriptors(&server);
    server.wait_for_lines("worker recycled", 40);
    clients.stop().assert_all_ok_so_far();
    eventually("the master has no more descriptors than before", || {
        process_descriptors(&server) <= before
    });
}

/// How many descriptors the master has.
fn process_descriptors(server: &Server) -> usize {
    crate::harness::open_descriptors(server.master()).len()
}
