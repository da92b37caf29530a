//! Whatever came and went, master and workers have the descriptors that they had at the start. What
//! the master keeps of a connection is one descriptor, left as it was accepted.

use std::collections::BTreeMap;

use nix::unistd::Pid;

use crate::harness::process::{eventually_within, is_nonblocking};
use crate::harness::skip::lacks;
use crate::harness::{DEADLINE, Server, Setup, load, open_descriptors};

type Open = BTreeMap<Pid, BTreeMap<i32, String>>;

/// All but the file that a worker makes once, when it first sends a pattern at length.
fn open_now(server: &Server, workers: usize) -> Open {
    let mut pids = vec![server.master()];
    let workers: Vec<_> = server.workers(workers);
    pids.extend(workers.iter().map(|worker| worker.pid));
    let open = |pid| {
        let mut open = open_descriptors(pid);
        let pattern = |name: &str| name.starts_with("/memfd:batond-pattern");
        open.retain(|_, name| pid == server.master() || !pattern(name));
        open
    };
    pids.into_iter().map(|pid| (pid, open(pid))).collect()
}

/// Waits until every process has as many descriptors as before; the master may need a moment to
/// see the last connections end.
#[track_caller]
fn assert_as_before(server: &Server, before: &Open) {
    let count = |open: &Open| -> Vec<usize> { open.values().map(BTreeMap::len).collect() };
    let workers = before.len() - 1;
    let same = eventually_within(DEADLINE, || {
        count(&open_now(server, workers)) == count(before)
    });
    assert!(
        same,
        "before: {before:#?}\nafter: {:#?}",
        open_now(server, workers)
    );
}

fn connections_leave_nothing(clients: usize, each: usize) {
    let server = Server::start(&["demo", "-w", "2"]);
    let before = open_now(&server, 2);
    load(server.endpoint(), clients, each, false, "/").assert_all_ok(clients * each);
    let after = open_now(&server, 2);
    assert!(before.keys().eq(after.keys()), "no process was replaced");
    assert_as_before(&server, &before);
}

#[test]
fn two_thousand_connections_leave_no_descriptor() {
    connections_leave_nothing(20, 100);
}

#[test]
#[ignore = "takes some minutes"]
fn a_hundred_thousand_connections_leave_no_descriptor() {
    connections_leave_nothing(20, 5000);
}

#[test]
fn however_a_connection_ends_it_leaves_no_descriptor() {
    let server = Server::start(&["demo", "-w", "2"]);
    let before = open_now(&server, 2);
    for round in 0..30 {
        // Never said a word.
        drop(server.connect());
        // Went away between two requests, and in the middle of one.
        assert_eq!(server.get("/").status, 200);
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHo");
        drop(client);
        // Went away before the answer, with the answer on its way (a reset), or beside it.
        let mut client = server.connect();
        client.send_get("/sleep/1");
        drop(client);
        let mut client = server.connect();
        client.send_get("/bytes/1000000");
        client.read_exact(1000);
        drop(client);
        // Was told that it is wrong, and goes on sending.
        let mut client = server.connect();
        assert_eq!(client.roundtrip("BAD\r\n\r\n").status, 400, "round {round}");
        let _ = client.try_send("more of the same");
        drop(client);
        // Ended its side, and waits.
        let mut client = server.connect();
        client.half_close();
        assert!(client.is_closed());
    }
    assert_as_before(&server, &before);
}

#[test]
fn the_master_keeps_one_blocking_descriptor_for_each_connection() {
    let server = Server::start(&["demo", "-w", "2"]);
    let before = open_descriptors(server.master());
    let mut clients = server.connect_all(5);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    let mut after = open_descriptors(server.master());
    after.retain(|number, target| before.get(number) != Some(target));
    assert_eq!(after.len(), clients.len(), "{after:?}");
    for (number, target) in after {
        assert!(target.starts_with("socket:"), "{number}: {target}");
        assert!(!is_nonblocking(server.master(), number), "{number}");
    }
}

#[test]
fn a_master_without_a_free_descriptor_takes_connections_back() {
    if lacks("prlimit") {
        return;
    }
    let server = Setup::new(&["demo", "-w", "1"]).start();
    let mut clients = server.connect_all(8);
    // Many short turns side by side, so that connections are lent ahead.
    for _ in 0..200 {
        clients.iter_mut().for_each(|client| client.send_get("/"));
        for client in &mut clients {
            assert_eq!(client.reply().status, 200);
        }
    }
    allow_no_further_descriptor(server.master());
    clients[0].send_get("/sleep/300");
    for client in &mut clients[1..] {
        client.send_get("/");
    }
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn workers_are_replaced_when_clients_have_all_descriptors() {
    if lacks("prlimit") {
        return;
    }
    let server = Setup::new(&["demo", "-w", "2"])
        .expect("cannot accept")
        .expect(" died ")
        .start();
    let workers = server.workers(2);
    allow_no_further_descriptor(server.master());
    let mut clients = server.connect_all(10);
    clients.iter_mut().for_each(|client| client.send_get("/"));
    server.wait_for_log("cannot accept");
    for worker in &workers {
        crate::harness::process::signal(worker.pid, nix::sys::signal::Signal::SIGKILL);
    }
    for worker in workers {
        server.replacement(worker);
    }
}

/// Lowers the limit of a process to what it has open.
fn allow_no_further_descriptor(process: Pid) {
    let limit = format!("--nofile={0}:{0}", open_descriptors(process).len());
    let status = std::process::Command::new("prlimit")
        .args(["--pid", &process.to_string(), &limit])
        .status()
        .expect("prlimit runs");
    assert!(status.success(), "{status}");
}

#[test]
fn a_replacement_has_the_descriptors_of_the_worker_before() {
    let server = Setup::new(&["demo", "-w", "2"]).expect(" died ").start();
    let of_workers = |open: &Open| {
        let workers = open.iter().filter(|(pid, _)| **pid != server.master());
        workers.map(|(_, open)| open.len()).collect::<Vec<_>>()
    };
    let fresh = of_workers(&open_now(&server, 2));
    let mut kept = server.connect_all(20);
    for client in &mut kept {
        assert_eq!(client.get("/").status, 200);
    }
    // A worker may still stay with the connection that it served last.
    let idle = || of_workers(&open_now(&server, 2)) == fresh;
    assert!(
        eventually_within(DEADLINE, idle),
        "workers keep descriptors"
    );
    let before = open_now(&server, 2);
    assert_eq!(server.get("/crash").status, 502);
    server.wait_for_lines("worker ready", 3);
    let count = |open: &Open| {
        let master = open[&server.master()].len();
        let mut counts: Vec<usize> = open.values().map(BTreeMap::len).collect();
        counts.sort_unstable();
        (master, counts)
    };
    let same = eventually_within(DEADLINE, || count(&open_now(&server, 2)) == count(&before));
    let after = open_now(&server, 2);
    assert!(same, "before: {before:#?}\nafter: {after:#?}");
}
