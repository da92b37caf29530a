//! The death of a worker costs the turn that it was in, and nothing else.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::Served;
use crate::harness::process;
use crate::harness::skip::{lacks, skip};
use crate::harness::{
    Client, Clients, Habit, Server, Setup, Worker, begin_sleep, wait_until_asleep, wait_until_idle,
};

/// Has every client served by each of two workers, and returns how many turns each has had.
#[track_caller]
fn serve_all_by_both(server: &Server, clients: &mut [Client], workers: &[Worker]) -> Vec<u64> {
    let mut turns = vec![0; clients.len()];
    for worker in workers {
        let others: Vec<Worker> = workers.iter().filter(|w| *w != worker).copied().collect();
        let [other] = others[..] else {
            panic!("two workers, not {workers:?}");
        };
        let mut blocker = occupy(server, workers, other);
        for (client, turns) in clients.iter_mut().zip(&mut turns) {
            let served = Served::of(&client.get("/"));
            *turns += 1;
            assert_eq!((served.turn, served.slot), (*turns, worker.slot));
        }
        assert_eq!(blocker.reply().status, 200);
    }
    turns
}

/// Keeps one of two workers busy for long enough, and returns the client that waits for it.
#[track_caller]
fn occupy(server: &Server, workers: &[Worker], wanted: Worker) -> Client {
    let mut first = server.connect();
    let busy = begin_sleep(&mut first, 1000, workers);
    if busy == wanted {
        return first;
    }
    // It is the other one that is idle, so it gets the next.
    let mut second = server.connect();
    second.send_get("/sleep/2000");
    wait_until_asleep(wanted.pid);
    assert_eq!(first.reply().status, 200);
    second
}

/// The worker that the log reports dead, of these.
#[track_caller]
fn the_dead(server: &Server, workers: &[Worker], how: &str) -> Worker {
    let line = server.wait_for_log("worker died");
    assert!(line.contains(how), "{line}");
    let dead = workers
        .iter()
        .find(|worker| line.contains(&format!("slot={} pid={}:", worker.slot, worker.pid)));
    *dead.unwrap_or_else(|| panic!("none of {workers:?} in {line:?}"))
}

#[test]
fn a_crash_costs_exactly_its_own_request() {
    let server = Setup::new(&["demo", "-w", "2"]).expect(" died ").start();
    let workers = server.workers(2);
    let mut clients = server.connect_all(50);
    let turns = serve_all_by_both(&server, &mut clients, &workers);
    let mut crasher = server.connect();
    crasher.send_get("/crash");
    if let Ok(reply) = crasher.try_reply() {
        assert_eq!(reply.status, 502, "{reply:?}");
    }
    assert!(crasher.is_closed());
    let dead = the_dead(&server, &workers, "killed by SIGABRT");
    for (client, turns) in clients.iter_mut().zip(turns) {
        assert_eq!(Served::of(&client.get("/")).turn, turns + 1);
    }
    let replacement = server.replacement(dead);
    assert_ne!(replacement.pid, dead.pid);
    assert!(server.workers(2).contains(&replacement));
}

#[test]
fn a_crash_under_a_kept_connection_is_answered_in_the_service_s_name() {
    let server = Setup::new(&["demo", "-w", "2"]).expect(" died ").start();
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    let reply = client.get("/crash");
    assert_eq!(reply.status, 502);
    assert!(reply.closes(), "{reply:?}");
    assert!(client.is_closed());
}

#[test]
fn a_request_that_was_carried_along_is_not_begun_twice() {
    let server = Setup::new(&["demo", "-w", "2"]).expect(" died ").start();
    let mut client = server.connect();
    // One more than a turn answers, so that the last one is all that the next turn gets.
    let answered = 32;
    let mut requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(answered);
    requests.push_str("GET /crash HTTP/1.1\r\nHost: x\r\n\r\n");
    client.send(requests);
    for _ in 0..answered {
        assert_eq!(client.reply().status, 200);
    }
    assert_eq!(client.reply().status, 502);
    assert!(client.is_closed());
    assert_eq!(server.wait_for_lines("killed by SIGABRT", 1).len(), 1);
}

#[test]
fn an_idle_worker_is_killed_and_no_connection_notices() {
    let server = Setup::new(&["demo", "-w", "2"]).expect(" died ").start();
    let workers = server.workers(2);
    let mut clients = server.connect_all(50);
    let turns = serve_all_by_both(&server, &mut clients, &workers);
    for worker in &workers {
        wait_until_idle(worker.pid);
        process::signal(worker.pid, Signal::SIGKILL);
        server.wait_for_log(&format!(
            "worker died slot={} pid={}: killed by SIGKILL",
            worker.slot, worker.pid
        ));
    }
    for (client, turns) in clients.iter_mut().zip(turns) {
        assert_eq!(Served::of(&client.get("/")).turn, turns + 1);
    }
    for worker in workers {
        server.replacement(worker);
    }
}

#[test]
fn a_killed_worker_costs_the_turn_that_it_was_in_and_nothing_else() {
    let server = Setup::new(&["demo", "-w", "2"]).expect(" died ").start();
    let workers = server.workers(2);
    let mut clients = server.connect_all(20);
    let turns = serve_all_by_both(&server, &mut clients, &workers);
    let mut victim = server.connect();
    let busy = begin_sleep(&mut victim, 60_000, &workers);
    process::signal(busy.pid, Signal::SIGKILL);
    assert_eq!(victim.reply().status, 502);
    assert!(victim.is_closed());
    the_dead(&server, &workers, "killed by SIGKILL");
    for (client, turns) in clients.iter_mut().zip(turns) {
        assert_eq!(Served::of(&client.get("/")).turn, turns + 1);
    }
}

#[test]
fn a_response_that_was_cut_off_is_not_continued_by_another_one() {
    // Without a spool, a worker stays with the client until that has all.
    let arguments = ["demo", "-w", "1", "--max-spool", "0"];
    let server = Setup::new(&arguments).expect(" died ").start();
    let workers = server.workers(1);
    let mut victim = server.connect();
    victim.send_get("/bytes/1000000000");
    victim.read_exact(100_000);
    process::signal(workers[0].pid, Signal::SIGKILL);
    let rest = victim.read_until_close();
    assert!(rest.len() < 500_000_000, "{} bytes", rest.len());
    let tail = String::from_utf8_lossy(&rest[rest.len().saturating_sub(1000)..]);
    assert!(!tail.contains("HTTP/1.1"), "{tail}");
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn what_a_dead_worker_had_not_begun_is_done_by_its_replacement() {
    let server = Setup::new(&["demo", "-w", "1"])
        .expect(" died ")
        // Whether the master still sees the stop is up to the scheduler.
        .expect("worker stopped")
        .start();
    let workers = server.workers(1);
    let mut clients = server.connect_all(10);
    for client in &mut clients {
        assert_eq!(Served::of(&client.get("/")).turn, 1);
    }
    wait_until_idle(workers[0].pid);
    // A stopped worker takes nothing out of its inbox.
    process::signal(workers[0].pid, Signal::SIGSTOP);
    for client in &mut clients {
        client.send_get("/");
    }
    process::signal(workers[0].pid, Signal::SIGKILL);
    let replacement = server.replacement(workers[0]);
    for client in &mut clients {
        let served = Served::of(&client.reply());
        assert_eq!((served.worker, served.turn), (replacement.pid.as_raw(), 2));
    }
}

#[test]
fn workers_killed_under_load_cost_one_turn_each_at_most() {
    const KILLS: usize = 5;
    let server = Setup::new(&["demo", "-w", "2"]).expect(" died ").start();
    let mut workers = server.workers(2);
    let clients = Clients::start(server.endpoint(), 40, "/sleep/2");
    for kill in 0..KILLS {
        clients.wait_for_requests(100);
        let victim = workers[kill % workers.len()];
        process::signal(victim.pid, Signal::SIGKILL);
        let line = format!(
            "worker died slot={} pid={}: killed by SIGKILL",
            victim.slot, victim.pid
        );
        server.wait_for_log(&line);
        workers[kill % 2] = server.replacement(victim);
    }
    clients.wait_for_requests(100);
    let tally = clients.stop();
    assert!(tally.answered() >= 100 * (KILLS + 1), "{tally:?}");
    let mut statuses = tally.statuses.clone();
    let bad_gateway = statuses.remove(&502).unwrap_or(0);
    assert!(statuses.keys().eq(&[200]), "{tally:?}");
    assert!(bad_gateway + tally.failures.len() <= KILLS, "{tally:?}");
}

#[test]
fn a_worker_that_keeps_dying_young_is_replaced_ever_later() {
    let setup = Setup::new(&["demo", "-w", "1"]).expect(" died ");
    let server = setup.expect("die at their start").start();
    let mut delays = Vec::new();
    for death in 1..=5 {
        server.wait_for_lines("worker ready", death);
        assert_eq!(server.get("/crash").status, 502);
        server.wait_for_lines("worker died", death);
        let start = Instant::now();
        server.wait_for_lines("worker ready", death + 1);
        delays.push(start.elapsed());
    }
    assert!(
        delays[4] > delays[0] + Duration::from_millis(50),
        "{delays:?}"
    );
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn who_crashes_workers_all_the_time_holds_up_nobody_else() {
    let setup = Setup::new(&["demo", "-w", "2"]).expect(" died ");
    let server = setup.start();
    let crashing = Clients::with(server.endpoint(), 4, Habit::OneRequestEach, "/crash");
    let mut witness = server.connect();
    // If the successor of each of them waited, this would take minutes.
    server.wait_for_lines("worker died", 60);
    for turn in 1..=20 {
        assert_eq!(Served::of(&witness.get("/")).turn, turn);
    }
    let tally = crashing.stop();
    assert!(tally.statuses.keys().eq(&[502]), "{tally:?}");
}

#[test]
fn the_master_outlives_many_crashes() {
    let setup = Setup::new(&["demo", "-w", "4"]).expect(" died ");
    // Whether a worker has lived for long when its turn comes depends on the machine.
    let server = setup.expect("die at their start").start();
    let mut witness = server.connect();
    for turn in 1..=6 {
        assert_eq!(Served::of(&witness.get("/")).turn, turn);
        assert_eq!(server.get("/crash").status, 502);
    }
    assert_eq!(Served::of(&witness.get("/")).turn, 7);
    server.workers(4);
}

#[test]
fn a_worker_that_breaks_the_protocol_is_killed_and_heard_no_more() {
    if lacks("python3") {
        return;
    }
    let server = Setup::new(&["demo", "-w", "2"])
        .expect("broke the protocol")
        .expect(" died ")
        .start();
    let rogue = server.workers(2)[0];
    // When it is rung, the master reads the end of a stream that has none, as often as it looks.
    if !shut_inbox_and_ring(rogue.pid) {
        skip("this user may not take a descriptor of another process (ptrace(2), Yama)");
        return;
    }
    server.wait_for_log(&format!(
        "worker died slot={} pid={}: killed by SIGKILL",
        rogue.slot, rogue.pid
    ));
    assert_eq!(server.log_lines("broke the protocol").len(), 1);
    server.replacement(rogue);
    assert_eq!(server.get("/").status, 200);
}

/// Ends the sending side of a worker's inbox and rings the master, as a worker gone wild could;
/// false when that is not permitted (ptrace(2), Yama).
fn shut_inbox_and_ring(worker: nix::unistd::Pid) -> bool {
    let script = "
import ctypes, os, socket, sys
pid = int(sys.argv[1])
links = [(int(fd), os.readlink(f'/proc/{pid}/fd/{fd}')) for fd in os.listdir(f'/proc/{pid}/fd')]
pidfd_getfd = 438
def take(kind):
    theirs = min(fd for fd, link in links if link.startswith(kind))
    ours = ctypes.CDLL(None).syscall(pidfd_getfd, os.pidfd_open(pid), theirs, 0)
    if ours < 0:
        sys.exit(3)
    return ours
inbox, doorbell = take('socket:'), take('anon_inode:[eventfd]')
socket.socket(fileno=inbox).shutdown(socket.SHUT_WR)
os.eventfd_write(doorbell, 1)
";
    let status = std::process::Command::new("python3")
        .args(["-c", script, &worker.to_string()])
        .status()
        .expect("python3 runs");
    assert!(status.success() || status.code() == Some(3), "{status}");
    status.success()
}

#[test]
fn a_crash_under_a_unix_connection_closes_it_and_no_other() {
    let setup = Setup::new(&["demo", "-w", "2"]).listen("unix:socket");
    let server = setup.expect(" died ").start();
    server.workers(2);
    let mut others = server.connect_all(10);
    for other in &mut others {
        assert_eq!(Served::of(&other.get("/")).turn, 1);
    }
    let mut victim = server.connect();
    assert_eq!(victim.get("/").status, 200);
    victim.send_get("/crash");
    // The kernel counts no bytes there, so nobody knows whether a reply had begun.
    assert!(victim.read_until_close().is_empty());
    for other in &mut others {
        assert_eq!(Served::of(&other.get("/")).turn, 2);
    }
}

#[test]
fn what_a_dead_worker_had_not_begun_is_done_for_unix_clients_too() {
    let setup = Setup::new(&["demo", "-w", "1"]).listen("unix:socket");
    let server = setup.expect(" died ").expect("worker stopped").start();
    let workers = server.workers(1);
    let mut clients = server.connect_all(10);
    for client in &mut clients {
        assert_eq!(Served::of(&client.get("/")).turn, 1);
    }
    wait_until_idle(workers[0].pid);
    process::signal(workers[0].pid, Signal::SIGSTOP);
    for client in &mut clients {
        client.send_get("/");
    }
    server.kill(workers[0]);
    for client in &mut clients {
        assert_eq!(Served::of(&client.reply()).turn, 2);
    }
}

#[test]
fn what_was_received_before_a_crash_is_not_forgotten() {
    // Half a request is carry, which the worker that dies next has in its hands.
    let server = Setup::new(&["demo", "-w", "1"]).expect(" died ").start();
    let workers = server.workers(1);
    let mut clients = server.connect_all(5);
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHo");
        // Nothing announces that the half has come back from the worker, but a later turn does.
        assert_eq!(server.get("/").status, 200);
    }
    wait_until_idle(workers[0].pid);
    server.kill(workers[0]);
    for client in &mut clients {
        client.send("st: test\r\n\r\n");
        assert_eq!(client.reply().status, 200);
    }
}
