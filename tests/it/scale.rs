//! As many workers as there is work for.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::process::sleeps;
use crate::harness::{Clients, Server, eventually};

/// The sizes that the pool has had, as the log has them.
fn sizes(server: &Server) -> Vec<usize> {
    let lines = server.log_lines("pool size ");
    let size = |line: &String| {
        let (_, rest) = line.split_once("pool size ")?;
        rest.split(':').next()?.parse().ok()
    };
    lines
        .iter()
        .map(|line| size(line).unwrap_or_else(|| panic!("no size in {line:?}")))
        .collect()
}

#[test]
fn workers_come_when_clients_wait_and_go_when_they_are_idle() {
    let arguments = "demo -w 2 --min-spare 1 --max-spare 2 --max-workers 12";
    let server = Server::start(&arguments.split(' ').collect::<Vec<_>>());
    let base = server.workers(2);
    let mut clients = server.connect_all(6);
    let start = Instant::now();
    for client in &mut clients {
        client.send_get("/sleep/3000");
    }
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
    // Two could not have done it in less than nine seconds.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let grown = sizes(&server);
    assert!(grown.is_sorted() && grown.last() >= Some(&6), "{grown:?}");
    assert!(grown.last() <= Some(&12), "{grown:?}");
    // Then they go, one by one, and whoever stays still serves.
    let left = server.workers(2);
    let sizes = sizes(&server);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    let (up, down) = sizes.split_at(grown.len());
    assert!(down.iter().rev().is_sorted(), "{up:?} {down:?}");
    assert!(
        down.windows(2).all(|pair| pair[0] == pair[1] + 1),
        "{down:?}"
    );
    assert!(!server.log_contains("worker died"), "{base:?} {left:?}");
}

#[test]
fn there_are_never_more_than_the_most() {
    let arguments = "demo -w 1 --min-spare 2 --max-workers 4";
    let server = Server::start(&arguments.split(' ').collect::<Vec<_>>());
    // Two are to be idle, so it grows though nothing happens.
    server.workers(2);
    let clients = Clients::start(server.endpoint(), 20, "/sleep/50");
    let workers = server.workers(4);
    eventually("all of them work", || {
        workers.iter().all(|worker| sleeps(worker.pid))
    });
    clients.wait_for_each(20, 5);
    clients.stop().assert_all_ok_so_far();
    assert!(sizes(&server).iter().all(|size| *size <= 4));
}

#[test]
fn without_demand_there_is_no_change() {
    let server = Server::start(&["demo", "-w", "3", "--min-spare", "1"]);
    let workers = server.workers(3);
    let clients = Clients::start(server.endpoint(), 1, "/");
    clients.run_for(Duration::from_secs(3));
    clients.stop().assert_all_ok_so_far();
    assert_eq!(server.workers(3), workers);
    assert_eq!(sizes(&server), [0; 0]);
}

#[test]
fn ttin_and_ttou_change_how_many_there_are_without_demand() {
    let arguments = "demo -w 2 --min-spare 1 --max-spare 1";
    let server = Server::start(&arguments.split(' ').collect::<Vec<_>>());
    server.workers(2);
    server.signal(Signal::SIGTTIN);
    server.workers(3);
    let three = server.workers(3);
    // Two too many are idle, and stay.
    let clients = Clients::start(server.endpoint(), 1, "/sleep/10");
    clients.run_for(Duration::from_secs(7));
    clients.stop().assert_all_ok_so_far();
    assert_eq!(server.workers(3), three);
    server.signal(Signal::SIGTTOU);
    server.workers(2);
    assert_eq!(sizes(&server), [3, 2]);
}
