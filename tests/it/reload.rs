//! SIGHUP: new workers take over from the old ones, and no client notices.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::client::Served;
use crate::harness::process::{self, Births, is_alive};
use crate::harness::{
    Client, Counting, DEADLINE, Server, Setup, Worker, begin_sleep, eventually, field,
    open_descriptors, wait_until_idle,
};
use crate::lives::{self, ChangeOver, new_workers};

/// By SIGHUP.
struct Reload;

impl ChangeOver for Reload {
    type Expected = usize;

    fn begin(&self, server: &mut Server) -> usize {
        let before = server.log_lines("reloaded").len();
        server.signal(Signal::SIGHUP);
        before + 1
    }

    fn finish(&self, server: &mut Server, expected: usize) {
        server.wait_for_lines("reloaded", expected);
    }
}

/// By `kill -9` of each worker in turn: it makes no difference to who is idle.
struct KillEach;

impl ChangeOver for KillEach {
    type Expected = ();

    fn setup(&self, arguments: &[&str]) -> Setup {
        Setup::new(arguments).expect(" died ")
    }

    fn begin(&self, server: &mut Server) {
        for worker in server.workers(4) {
            server.kill(worker);
            server.replacement(worker);
        }
    }

    fn finish(&self, _: &mut Server, (): ()) {}
}

#[test]
fn idle_connections_stay_through_twenty_reloads() {
    lives::idle_connections_stay(&Reload, 20);
}

#[test]
fn idle_connections_stay_when_each_worker_is_killed() {
    lives::idle_connections_stay(&KillEach, 1);
}

#[test]
fn reloads_one_after_the_other_are_noticed_by_nobody() {
    lives::nobody_notices(&Reload, 10, Duration::ZERO);
}

#[test]
#[ignore = "takes a minute"]
fn fifty_reloads_one_each_second_are_noticed_by_nobody() {
    lives::nobody_notices(&Reload, 50, Duration::from_secs(1));
}

#[test]
fn reloads_of_workers_with_threads_are_noticed_by_nobody() {
    lives::nobody_notices_with_threads(&Reload, 5);
}

#[test]
fn a_slow_request_ends_in_its_old_worker() {
    lives::a_slow_request_ends_in_its_old_worker(&Reload);
}

#[test]
fn half_a_request_goes_along() {
    lives::half_a_request_goes_along(&Reload);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    lives::pipelined_requests_are_answered_in_order(&Reload);
}

#[test]
fn a_slow_body_goes_on_with_new_workers() {
    lives::a_slow_body_goes_on_with_new_workers(&Reload);
}

#[test]
fn the_ready_go_to_new_workers() {
    lives::the_ready_go_to_new_workers(&Reload);
}

#[test]
fn a_unix_socket_stays() {
    lives::a_unix_socket_stays(&Reload);
}

#[test]
fn new_workers_are_replaced_too() {
    lives::new_workers_are_replaced_too(&Reload);
}

/// A reload that is under way for as long as it is held: one of the new workers was stopped before
/// it could say that it is ready.
struct Held {
    /// The workers that serve.
    old: Vec<Worker>,
    new: Pid,
}

/// Asks for reloads until one of them is held up. Who looks is often too late, and then waits for
/// the end of that reload.
#[track_caller]
fn hold_up_a_reload(server: &mut Server, workers: usize) -> Held {
    let mut held = None;
    eventually("a new worker is stopped before it is ready", || {
        let old = server.workers(workers);
        let mut births = Births::watch(server.master());
        let expected = Reload.begin(server);
        // The first child makes the look-ups of the reload.
        let planner = births.next_within(Duration::from_secs(5));
        if let Some(new) = planner.and_then(|_| births.next_within(Duration::from_secs(5))) {
            process::signal(new, Signal::SIGSTOP);
            eventually("the master knows that it is stopped", || {
                let stopped = server.log_lines("worker stopped");
                stopped
                    .iter()
                    .any(|line| field(line, "pid") == new.as_raw())
            });
            // What it had said before is known too when this is answered.
            assert_eq!(server.get("/").status, 200);
            let ready = server.log_lines("worker ready");
            if ready.iter().all(|line| field(line, "pid") != new.as_raw()) {
                held = Some(Held { old, new });
                return true;
            }
            process::signal(new, Signal::SIGCONT);
        }
        Reload.finish(server, expected);
        false
    });
    held.expect("one is held")
}

fn start_to_be_held(workers: &str) -> Server {
    Setup::new(&["demo", "-w", workers])
        .expect("worker stopped")
        .expect("reload failed")
        .expect(" died ")
        .start()
}

#[test]
fn a_new_worker_that_dies_at_its_start_changes_nothing() {
    let mut server = start_to_be_held("4");
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    let Held { old, new } = hold_up_a_reload(&mut server, 4);
    process::signal(new, Signal::SIGKILL);
    let line = server.wait_for_log("reload failed");
    for word in [&format!("pid={new} "), "killed by SIGKILL", "serve on"] {
        assert!(line.contains(word), "{line}");
    }
    assert_eq!(server.workers(4), old);
    let served = Served::of(&client.get("/"));
    assert!(
        old.iter()
            .any(|worker| worker.pid.as_raw() == served.worker)
    );
    // The next one is not affected.
    Reload.change_over(&mut server);
    new_workers(&server, &old);
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn a_second_hangup_begins_anew() {
    let mut server = start_to_be_held("2");
    let Held { old, new } = hold_up_a_reload(&mut server, 2);
    Reload.change_over(&mut server);
    let last = new_workers(&server, &old);
    assert!(last.iter().all(|worker| worker.pid != new));
    assert!(!is_alive(new));
    assert!(!server.log_contains("reload failed"));
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn an_old_worker_that_dies_during_a_reload_is_replaced() {
    let mut server = Setup::new(&["demo", "-w", "2"])
        .expect("worker stopped")
        .expect(" died ")
        .start();
    let Held { old, new } = hold_up_a_reload(&mut server, 2);
    server.kill(old[0]);
    let replacement = server.replacement(old[0]);
    assert_eq!(server.get("/").status, 200);
    let before = server.log_lines("reloaded").len();
    process::signal(new, Signal::SIGCONT);
    Reload.finish(&mut server, before + 1);
    let last = new_workers(&server, &[replacement, old[1]]);
    assert!(last.iter().any(|worker| worker.pid == new));
}

#[test]
fn a_server_may_stop_during_a_reload() {
    let mut server = start_to_be_held("2");
    let Held { old, new } = hold_up_a_reload(&mut server, 2);
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 300, &old);
    server.signal(Signal::SIGTERM);
    assert_eq!(sleeper.reply().status, 200);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!is_alive(new));
    assert!(!server.log_contains("reload failed"));
}

#[test]
fn a_server_that_stops_does_not_reload() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 700, &workers);
    server.signal(Signal::SIGTERM);
    server.wait_for_log("stopping");
    server.signal(Signal::SIGHUP);
    assert_eq!(sleeper.reply().status, 200);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!server.log_contains("reload"));
}

#[test]
fn hangups_that_overtake_each_other_end_in_new_workers() {
    let server = Server::start(&["demo", "-w", "4"]);
    let first = server.workers(4);
    let clients = Counting::start(server.endpoint(), 12);
    clients.wait_for_each(1);
    for _ in 0..30 {
        let before = server.log_lines("reloading").len();
        server.signal(Signal::SIGHUP);
        server.signal(Signal::SIGHUP);
        server.wait_for_lines("reloading", before + 1);
    }
    // Whatever was given up on the way, the last one is carried out.
    let begun = server.log_lines("reloading").len();
    eventually("no reload is under way", || {
        let over = ["reloaded", "another one begins"].map(|end| server.log_lines(end).len());
        over.iter().sum::<usize>() >= begun
    });
    let last = new_workers(&server, &first);
    let newest = server
        .log_lines("worker ready")
        .last()
        .map(|line| field(line, "generation"));
    let ready = server.log_lines(&format!("generation={}", newest.unwrap_or_default()));
    assert!(last.iter().all(|worker| {
        ready
            .iter()
            .any(|line| field(line, "pid") == worker.pid.as_raw())
    }));
    clients.wait_for_each(2);
    clients.stop().assert_exactly_once();
}

#[test]
fn the_grace_period_bounds_the_last_turns_of_old_workers() {
    let mut server = Setup::new(&["demo", "-w", "2", "--grace", "1"])
        .expect(" died ")
        .expect("grace")
        .start();
    let old = server.workers(2);
    let mut idle = server.connect();
    assert_eq!(idle.get("/").status, 200);
    let mut hung = server.connect();
    let busy = begin_sleep(&mut hung, 60_000, &old);
    let start = Instant::now();
    // Further reloads do not prolong it.
    while is_alive(busy.pid) && start.elapsed() < DEADLINE {
        Reload.change_over(&mut server);
        assert!(hung.is_silent_for(Duration::from_millis(100)) || !is_alive(busy.pid));
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    let reply = hung.reply();
    assert_eq!(reply.status, 502);
    assert!(reply.closes() && hung.is_closed());
    let word = server.wait_for_word("the grace period is over", busy);
    assert!(word.contains("killing"), "{word}");
    assert_eq!(Served::of(&idle.get("/")).turn, 2);
    new_workers(&server, &old);
    assert_eq!(
        server.log_lines(" died ").len(),
        2,
        "the worker and its turn"
    );
}

#[test]
fn reloads_leave_no_descriptor() {
    let mut server = Server::start(&["demo", "-w", "4"]);
    let first = server.workers(4);
    let mut clients = server.connect_all(10);
    let mut ask = || {
        clients
            .iter_mut()
            .for_each(|client| assert_eq!(client.get("/").status, 200))
    };
    ask();
    let count = |pid| open_descriptors(pid).len();
    wait_until_idle(first[0].pid);
    let (master, worker) = (count(server.master()), count(first[0].pid));
    for _ in 0..20 {
        Reload.change_over(&mut server);
        ask();
    }
    let last = new_workers(&server, &first);
    for new in last {
        wait_until_idle(new.pid);
        assert_eq!(count(new.pid), worker, "{:?}", open_descriptors(new.pid));
    }
    eventually("the master has the descriptors of the start", || {
        count(server.master()) == master
    });
}

#[test]
fn a_reload_brings_back_as_many_workers_as_were_asked_for() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    server.signal(Signal::SIGTTIN);
    let three = server.workers(3);
    Reload.change_over(&mut server);
    let two = server.workers(2);
    assert!(two.iter().all(|worker| !three.contains(worker)));
}

#[test]
fn a_hangup_right_after_the_start_is_a_reload_too() {
    let mut server = Server::start(&["demo", "-w", "8"]);
    // Most of the first workers are not ready yet.
    Reload.change_over(&mut server);
    let last = server.workers(8);
    assert_eq!(last.len(), 8);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn there_is_room_for_a_reload_beside_all_the_connections() {
    let mut server = Setup::new(&["demo", "-w", "8"])
        .descriptor_limit(128)
        .expect("limit of open files")
        .start();
    let old = server.workers(8);
    let mut inside: Vec<Client> = Vec::new();
    let mut outside = loop {
        let mut client = server.connect();
        client.send_get("/");
        eventually("it is served, or there is no room for it", || {
            !client.is_silent() || server.log_contains("limit of open files")
        });
        if client.is_silent() {
            break client;
        }
        assert_eq!(client.reply().status, 200);
        // It has begun a request, so that it need not give way to the next one.
        client.send("GET / HTTP/1.1\r\n");
        inside.push(client);
    };
    Reload.change_over(&mut server);
    for client in &mut inside {
        client.send("Host: test\r\n\r\nGET / HTTP/1.1\r\n");
        assert_eq!(client.reply().status, 200);
    }
    new_workers(&server, &old);
    assert!(outside.is_silent());
    inside.pop();
    assert_eq!(outside.reply().status, 200);
}
