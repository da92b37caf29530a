//! A turn that takes longer than it may costs its worker, and is answered for it.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::client::Served;
use crate::harness::process::{self, sleeping_threads};
use crate::harness::{Client, Server, Setup, Worker, begin_sleep, eventually, wait_until_asleep};

/// A server whose turns may take `seconds`.
fn bounded(seconds: u32, arguments: &[&str]) -> Setup {
    let limit = seconds.to_string();
    let arguments = [&["demo", "--turn-timeout", &limit], arguments].concat();
    Setup::new(&arguments)
}

/// Such a server, of which a worker is going to hang.
fn hanging(seconds: u32, arguments: &[&str]) -> Setup {
    bounded(seconds, arguments)
        .expect("worker hangs")
        .expect(" died ")
}

fn hang_line(worker: Worker) -> String {
    format!("worker hangs slot={} pid={}:", worker.slot, worker.pid)
}

/// Checks that the client is told of the hang, and that its connection ends.
#[track_caller]
fn assert_timed_out(client: &mut Client) {
    let reply = client.reply();
    assert_eq!(reply.status, 504, "{reply:?}");
    assert!(reply.closes(), "{reply:?}");
    assert!(client.is_closed());
}

/// Checks that a worker was asked to end, then killed, and that another one has its slot.
#[track_caller]
fn assert_killed(server: &Server, worker: Worker) {
    let lines = server.wait_for_lines(&hang_line(worker), 2);
    let [first, second] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert!(first.contains("SIGTERM"), "{first}");
    assert!(second.contains("SIGKILL"), "{second}");
    let Worker { slot, pid } = worker;
    server.wait_for_log(&format!(
        "worker died slot={slot} pid={pid}: killed by SIGKILL"
    ));
    server.replacement(worker);
}

#[test]
fn a_turn_that_takes_too_long_costs_its_worker_and_nobody_else() {
    let server = hanging(1, &["-w", "2"]).start();
    let workers = server.workers(2);
    let mut others = server.connect_all(10);
    let mut victim = server.connect();
    let busy = begin_sleep(&mut victim, 60_000, &workers);
    let mut turn = 0;
    // Whoever comes while the worker hangs is served by the other one.
    while victim.is_silent() {
        turn += 1;
        for other in &mut others {
            let served = Served::of(&other.get("/"));
            assert_eq!(served.turn, turn);
            assert_ne!(served.worker, busy.pid.as_raw());
        }
    }
    assert_timed_out(&mut victim);
    assert_killed(&server, busy);
    for other in &mut others {
        assert_eq!(Served::of(&other.get("/")).turn, turn + 1);
    }
    server.workers(2);
}

#[test]
fn without_a_limit_a_turn_may_take_its_time() {
    let server = Server::start(&["demo", "-w", "1", "--turn-timeout", "0"]);
    assert_eq!(server.get("/sleep/1500").status, 200);
}

#[test]
fn what_waits_behind_a_turn_that_hangs_is_served() {
    let server = hanging(1, &["-w", "1"]).start();
    let workers = server.workers(1);
    let mut victim = server.connect();
    begin_sleep(&mut victim, 60_000, &workers);
    let mut others = server.connect_all(20);
    for other in &mut others {
        other.send_get("/");
    }
    assert_timed_out(&mut victim);
    assert_killed(&server, workers[0]);
    for other in &mut others {
        assert_eq!(Served::of(&other.reply()).turn, 1);
    }
}

#[test]
fn a_turn_that_ends_after_its_worker_was_asked_to_end_is_answered() {
    let server = bounded(1, &["-w", "2"]).expect("worker hangs").start();
    let workers = server.workers(2);
    let mut client = server.connect();
    // The limit is noticed after at most 1.2 s, and the worker killed a second after that.
    let busy = begin_sleep(&mut client, 1600, &workers);
    server.wait_for_log(&hang_line(busy));
    assert_eq!(client.reply().status, 200);
    let Worker { slot, pid } = busy;
    server.wait_for_log(&format!("worker retired slot={slot} pid={pid}"));
    server.replacement(busy);
    assert_eq!(server.log_lines(&hang_line(busy)).len(), 1);
}

#[test]
fn a_response_that_has_begun_is_cut_off_and_not_followed_by_another() {
    let server = hanging(1, &["-w", "1", "--max-spool", "0"]).start();
    let workers = server.workers(1);
    let mut victim = server.connect();
    // It reads nothing, and nothing is kept for it, so that the worker sleeps in a write.
    victim.send_get("/bytes/1000000000");
    assert_killed(&server, workers[0]);
    let received = victim.read_until_close();
    assert!(received.starts_with(b"HTTP/1.1 200 "));
    assert!(received.len() < 500_000_000, "{} bytes", received.len());
    let tail = String::from_utf8_lossy(&received[received.len().saturating_sub(1000)..]);
    assert!(!tail.contains("HTTP/1.1"), "{tail}");
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_stopped_worker_hangs_too() {
    let server = hanging(1, &["-w", "2"]).expect("worker stopped").start();
    let workers = server.workers(2);
    let mut victim = server.connect();
    let busy = begin_sleep(&mut victim, 60_000, &workers);
    process::signal(busy.pid, Signal::SIGSTOP);
    assert_timed_out(&mut victim);
    assert_killed(&server, busy);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn two_workers_that_hang_are_both_replaced() {
    let server = hanging(1, &["-w", "2"]).start();
    let workers = server.workers(2);
    let mut victims = server.connect_all(2);
    for victim in &mut victims {
        victim.send_get("/sleep/60000");
    }
    let mut other = server.connect();
    other.send_get("/");
    for victim in &mut victims {
        assert_timed_out(victim);
    }
    for worker in workers {
        assert_killed(&server, worker);
    }
    assert_eq!(other.reply().status, 200);
}

#[test]
fn a_thread_that_hangs_costs_the_turns_of_its_worker() {
    let server = hanging(2, &["-w", "1", "--threads", "2"]).start();
    let workers = server.workers(1);
    let mut victim = server.connect();
    victim.send_get("/sleep/60000");
    wait_for_sleepers(workers[0], 1);
    // Begun a second later than the other one: it is within its time when the worker is killed.
    assert!(victim.is_silent_for(Duration::from_secs(1)));
    let mut bystander = server.connect();
    bystander.send_get("/sleep/30000");
    assert_timed_out(&mut victim);
    let reply = bystander.reply();
    assert!([502, 504].contains(&reply.status), "{reply:?}");
    assert_killed(&server, workers[0]);
    assert_eq!(server.get("/").status, 200);
}

#[track_caller]
fn wait_for_sleepers(worker: Worker, count: usize) {
    eventually(&format!("{count} threads are in their turns"), || {
        sleeping_threads(worker.pid) == count
    });
}

#[test]
fn a_master_that_was_suspended_takes_no_worker_for_hung() {
    let server = hanging(2, &["-w", "3"]).start();
    let workers = server.workers(3);
    let mut clients = server.connect_all(2);
    for client in &mut clients {
        client.send_get("/sleep/4000");
    }
    eventually("two workers are in their turns", || {
        let busy = workers
            .iter()
            .filter(|worker| sleeping_threads(worker.pid) > 0);
        busy.count() == 2
    });
    server.signal(Signal::SIGSTOP);
    // For three of the four seconds, which leaves one to the limit of two.
    let silent = clients[0].is_silent_for(Duration::from_secs(3));
    server.signal(Signal::SIGCONT);
    assert!(silent);
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
    assert!(!server.log_contains("worker hangs"));
    assert_eq!(server.workers(3), workers);
    // Nor has it forgotten what a hang is.
    let mut victim = server.connect();
    let busy = begin_sleep(&mut victim, 60_000, &workers);
    assert_timed_out(&mut victim);
    assert_killed(&server, busy);
}

#[test]
fn turns_that_are_short_are_never_taken_for_a_long_one() {
    let server = bounded(1, &["-w", "1"]).start();
    let workers = server.workers(1);
    let mut clients = server.connect_all(4);
    for client in &mut clients {
        client.send_get("/sleep/500");
    }
    wait_until_asleep(workers[0].pid);
    // The last one waits for longer than the limit, but its turn does not take as long.
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
    assert!(!server.log_contains("worker hangs"));
}
