//! One worker more, one worker less, and signals that mean nothing.

use nix::sys::signal::Signal;

use crate::harness::client::Served;
use crate::harness::{DEADLINE, Server, Setup, Watched, begin_sleep, process, wait_until_asleep};

#[test]
fn ttin_adds_a_worker_and_ttou_retires_one() {
    let server = Server::start(&["demo", "-w", "2"]);
    let two = server.workers(2);
    server.signal(Signal::SIGTTIN);
    let three = server.workers(3);
    assert!(
        two.iter().all(|worker| three.contains(worker)),
        "{two:?} {three:?}"
    );
    assert_eq!(server.get("/").status, 200);
    server.signal(Signal::SIGTTOU);
    let left = server.workers(2);
    assert!(
        left.iter().all(|worker| three.contains(worker)),
        "{left:?} {three:?}"
    );
    let retired = three.iter().find(|worker| !left.contains(worker)).unwrap();
    server.wait_for_log(&format!(
        "worker retired slot={} pid={}",
        retired.slot, retired.pid
    ));
    assert!(!server.log_contains("worker died"));
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_retiring_worker_finishes_its_turn_and_keeps_no_connection() {
    let server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let mut sleepers = server.connect_all(2);
    for sleeper in &mut sleepers {
        assert_eq!(sleeper.get("/").status, 200);
        sleeper.send_get("/sleep/300");
    }
    for worker in &workers {
        wait_until_asleep(worker.pid);
    }
    server.signal(Signal::SIGTTOU);
    for sleeper in &mut sleepers {
        assert_eq!(sleeper.reply().status, 200);
    }
    server.workers(1);
    for sleeper in &mut sleepers {
        assert_eq!(Served::of(&sleeper.get("/")).turn, 3);
    }
}

#[test]
fn the_last_worker_stays() {
    let server = Setup::new(&["demo", "-w", "2"])
        .expect("this is the last worker")
        .start();
    server.workers(2);
    for _ in 0..3 {
        server.signal(Signal::SIGTTOU);
        server.workers(1);
        assert_eq!(server.get("/").status, 200);
    }
    server.signal(Signal::SIGTTIN);
    server.workers(2);
}

#[test]
fn a_terminal_s_interrupt_reaches_the_workers_too_and_stops_in_order() {
    // A terminal sends SIGINT to the whole process group: a worker must leave it to the master.
    let mut server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 300, &workers);
    for worker in &workers {
        process::signal(worker.pid, Signal::SIGINT);
    }
    server.signal(Signal::SIGINT);
    assert_eq!(sleeper.reply().status, 200);
    assert!(server.wait().success());
}

#[test]
fn a_hangup_of_a_client_s_terminal_is_no_reason_to_stop() {
    let server = Server::start(&["demo", "-w", "1"]);
    let [worker] = server.workers(1)[..] else {
        unreachable!("one was asked for")
    };
    // SIGPIPE is what a service gets that writes to a client that has gone.
    process::signal(worker.pid, Signal::SIGPIPE);
    server.signal(Signal::SIGPIPE);
    assert_eq!(Served::of(&server.get("/")).worker, worker.pid.as_raw());
    let watched = Watched::new(worker.pid);
    drop(server);
    assert!(watched.wait(DEADLINE));
}

#[test]
fn a_server_that_stops_does_not_grow() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    // It keeps the master from its end for as long as the test needs.
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 1000, &workers);
    server.signal(Signal::SIGTERM);
    server.wait_for_log("stopping");
    server.signal(Signal::SIGTTIN);
    server.signal(Signal::SIGTTOU);
    assert_eq!(sleeper.reply().status, 200);
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log_lines("pool size").is_empty());
}

#[test]
fn a_worker_that_is_told_to_stop_finishes_its_turn_and_is_replaced() {
    let server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let mut idle = server.connect_all(10);
    for client in &mut idle {
        assert_eq!(Served::of(&client.get("/")).turn, 1);
    }
    let mut sleeper = server.connect();
    let busy = begin_sleep(&mut sleeper, 700, &workers);
    process::signal(busy.pid, Signal::SIGTERM);
    for client in &mut idle {
        assert_eq!(Served::of(&client.get("/")).turn, 2);
    }
    assert_eq!(sleeper.reply().status, 200);
    // With exit status 0: whatever else is logged as a death.
    server.wait_for_log(&format!(
        "worker retired slot={} pid={}",
        busy.slot, busy.pid
    ));
    server.replacement(busy);
    assert_eq!(Served::of(&sleeper.get("/")).turn, 2);
    for client in &mut idle {
        assert_eq!(Served::of(&client.get("/")).turn, 3);
    }
}

#[test]
fn an_idle_worker_that_is_told_to_stop_is_replaced() {
    let server = Server::start(&["demo", "-w", "1"]);
    for _ in 0..3 {
        let worker = server.workers(1)[0];
        process::signal(worker.pid, Signal::SIGTERM);
        server.replacement(worker);
        assert_eq!(server.get("/").status, 200);
    }
}

/// Starts the server as a careless parent would: with every signal blocked, and these ignored.
fn under_a_careless_parent() -> Setup {
    let script = "env --block-signal --ignore-signal=CHLD,HUP,TERM,QUIT,USR1,TTIN \"$@\"; exit $?";
    Setup::new(&["demo", "-w", "2"]).under(&["sh", "-c", script, "sh"])
}

#[test]
fn signals_that_were_blocked_or_ignored_before_the_start_are_heard() {
    let mut server = under_a_careless_parent().expect(" died ").start();
    let workers = server.workers(2);
    // SIGCHLD: no zombie is left, and another worker comes.
    server.kill(workers[0]);
    server.replacement(workers[0]);
    // Neither master nor workers go on with it.
    for pid in [server.master(), server.workers(2)[0].pid] {
        assert_eq!(process::status(pid, "SigBlk"), "0000000000000000");
        let ignored = u64::from_str_radix(&process::status(pid, "SigIgn"), 16).expect("a set");
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGXFSZ] {
            assert_eq!(ignored & 1 << (signal as u32 - 1), 0, "{signal}");
        }
    }
    server.signal(Signal::SIGTTIN);
    server.workers(3);
    let before = server.workers(3);
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    for worker in before {
        assert!(Watched::new(worker.pid).wait(DEADLINE));
    }
    assert_eq!(server.get("/").status, 200);
    assert!(server.stop().success());
    let mut server = under_a_careless_parent().start();
    server.stop_by(Signal::SIGQUIT);
}
