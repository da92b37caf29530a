//! Workers that serve several turns at the same time, in threads.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::Served;
use crate::harness::process::{self, sleeping_threads, status_number};
use crate::harness::{
    Client, Clients, Habit, Server, Setup, Worker, eventually, load, open_descriptors,
};

/// One worker, of four threads.
const ONE_OF_FOUR: [&str; 5] = ["demo", "-w", "1", "--threads", "4"];

#[track_caller]
fn wait_for_sleepers(worker: Worker, count: usize) {
    eventually(&format!("{count} threads are in their turns"), || {
        sleeping_threads(worker.pid) == count
    });
}

/// Sends one `/sleep/MS` after the other, each when the one before is in its turn.
fn begin_sleeps(server: &Server, worker: Worker, count: usize, milliseconds: u32) -> Vec<Client> {
    let mut clients = server.connect_all(count);
    for (number, client) in clients.iter_mut().enumerate() {
        client.send_get(&format!("/sleep/{milliseconds}"));
        wait_for_sleepers(worker, number + 1);
    }
    clients
}

#[test]
fn four_turns_at_once_take_as_long_as_one() {
    let server = Server::start(&ONE_OF_FOUR);
    let [worker] = server.workers(1)[..] else {
        unreachable!("one was asked for")
    };
    let mut clients = server.connect_all(4);
    let start = Instant::now();
    for client in &mut clients {
        client.send_get("/sleep/1000");
    }
    wait_for_sleepers(worker, 4);
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
    // All four have slept at the same time; one after the other they would take four seconds.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(status_number(server.master(), "Threads"), 1);
}

#[test]
fn a_turn_that_came_later_begins_beside_the_slow_ones() {
    let server = Server::start(&ONE_OF_FOUR);
    let worker = server.workers(1)[0];
    let mut slow = begin_sleeps(&server, worker, 3, 3000);
    let start = Instant::now();
    let mut quick = server.connect();
    for turn in 1..=10 {
        assert_eq!(Served::of(&quick.get("/")).turn, turn);
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?} beside slow turns");
    for client in &mut slow {
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn threads_are_filled_before_anyone_waits() {
    let server = Server::start(&["demo", "-w", "2", "--threads", "3"]);
    let workers = server.workers(2);
    let mut clients = server.connect_all(6);
    for (number, client) in clients.iter_mut().enumerate() {
        client.send_get("/sleep/2000");
        eventually("one more turn has begun", || {
            let sleepers = workers.iter().map(|worker| sleeping_threads(worker.pid));
            sleepers.sum::<usize>() == number + 1
        });
    }
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn a_crash_in_one_thread_costs_turns_of_that_worker_only() {
    let server = Setup::new(&ONE_OF_FOUR).expect(" died ").start();
    let worker = server.workers(1)[0];
    let mut idle = server.connect_all(10);
    for client in &mut idle {
        assert_eq!(Served::of(&client.get("/")).turn, 1);
    }
    let mut beside = server.connect_all(3);
    for client in &mut beside {
        client.send_get("/sleep/500");
    }
    let mut crasher = server.connect();
    crasher.send_get("/crash");
    assert_eq!(crasher.reply().status, 502);
    // Whether their turns had begun when the worker died is up to the scheduler.
    for client in &mut beside {
        let status = client.reply().status;
        assert!([200, 502].contains(&status), "{status}");
    }
    for client in &mut idle {
        assert_eq!(Served::of(&client.get("/")).turn, 2);
    }
    server.replacement(worker);
}

#[test]
fn a_killed_worker_costs_the_turns_in_its_threads_and_no_others() {
    let arguments = ["demo", "-w", "2", "--threads", "4"];
    let server = Setup::new(&arguments).expect(" died ").start();
    let workers = server.workers(2);
    let mut idle = server.connect_all(20);
    for client in &mut idle {
        assert_eq!(Served::of(&client.get("/")).turn, 1);
    }
    let mut sleepers = server.connect_all(6);
    for client in &mut sleepers {
        client.send_get("/sleep/2000");
    }
    let inside = |worker: &Worker| sleeping_threads(worker.pid);
    eventually("all turns have begun", || {
        workers.iter().map(inside).sum::<usize>() == 6
    });
    let victim = *workers.iter().max_by_key(|worker| inside(worker)).unwrap();
    let lost = inside(&victim);
    server.kill(victim);
    let statuses: Vec<u16> = sleepers.iter_mut().map(|c| c.reply().status).collect();
    let of = |status| statuses.iter().filter(|other| **other == status).count();
    assert_eq!((of(502), of(200)), (lost, 6 - lost), "{statuses:?}");
    for client in &mut idle {
        assert_eq!(Served::of(&client.get("/")).turn, 2);
    }
    server.replacement(victim);
}

#[test]
fn threads_leave_no_descriptor() {
    let server = Server::start(&["demo", "-w", "2", "--threads", "4"]);
    let workers = server.workers(2);
    let all = || -> Vec<usize> {
        let workers = workers.iter().map(|worker| worker.pid);
        let pids = [server.master()].into_iter().chain(workers);
        pids.map(|pid| open_descriptors(pid).len()).collect()
    };
    let before = all();
    load(server.endpoint(), 16, 60, false, "/").assert_all_ok(960);
    load(server.endpoint(), 16, 60, true, "/bytes/100000").assert_all_ok(960);
    eventually("all descriptors are closed", || all() == before);
    assert_eq!(server.workers(2), workers);
}

#[test]
fn a_graceful_stop_finishes_the_turns_in_all_threads() {
    let mut server = Server::start(&ONE_OF_FOUR);
    let worker = server.workers(1)[0];
    let mut clients = server.connect_all(4);
    for client in &mut clients {
        client.send_get("/sleep/700");
    }
    eventually("one turn has begun", || sleeping_threads(worker.pid) > 0);
    server.signal(Signal::SIGTERM);
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
        assert!(client.is_closed());
    }
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log_contains("worker retired"));
}

#[test]
fn a_threaded_worker_that_is_told_to_stop_finishes_its_turns() {
    let server = Server::start(&ONE_OF_FOUR);
    let worker = server.workers(1)[0];
    let mut clients = server.connect_all(3);
    for client in &mut clients {
        client.send_get("/sleep/700");
    }
    eventually("one turn has begun", || sleeping_threads(worker.pid) > 0);
    process::signal(worker.pid, Signal::SIGTERM);
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
    server.wait_for_log(&format!("worker retired slot=0 pid={}", worker.pid));
    let replacement = server.replacement(worker);
    for client in &mut clients {
        assert_eq!(
            Served::of(&client.get("/")).worker,
            replacement.pid.as_raw()
        );
    }
}

#[test]
fn all_workers_and_threads_serve_under_load() {
    let server = Server::start(&["demo", "-w", "2", "--threads", "4"]);
    let clients = Clients::with(server.endpoint(), 16, Habit::KeepOne, "/sleep/5");
    let mut witness = server.connect();
    let mut slots = BTreeSet::new();
    eventually("both serve", || {
        slots.insert(Served::of(&witness.get("/")).slot);
        slots.len() == 2
    });
    clients.wait_for_each(16, 5);
    let tally = clients.stop();
    tally.assert_all_ok_so_far();
}
