//! What clients have sent stays with the master and the worker that served it: a worker that is
//! forked later finds nothing of it in its memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::process::status_number;
use crate::harness::{Server, eventually, open_descriptors};

const CLIENTS: usize = 100;

/// How often the text is in the memory that a process can write to.
fn occurrences(pid: Pid, text: &str) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the maps");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory");
    let mut count = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let number = |hex| u64::from_str_radix(hex, 16).expect("an address");
        let (begin, end) = range.map(|(a, b)| (number(a), number(b))).expect("a range");
        let mut bytes = vec![0; (end - begin) as usize];
        // Some mappings can't be read, and some end within.
        let length = memory.read_at(&mut bytes, begin).unwrap_or(0);
        let found = bytes[..length].windows(text.len());
        count += found.filter(|at| *at == text.as_bytes()).count();
    }
    count
}

#[test]
fn a_fresh_worker_knows_nothing_of_what_clients_have_sent() {
    let server = Server::start(&["demo", "-w", "2"]);
    let before = server.workers(2);
    let descriptors = open_descriptors(server.master()).len();
    let secret = format!("secret-of-{}-", server.master());
    let mut clients = server.connect_all(CLIENTS);
    for (number, client) in clients.iter_mut().enumerate() {
        // Of many sizes, so that they do not overwrite each other by chance.
        let filler = "x".repeat(number * 50);
        client.send(format!(
            "GET / HTTP/1.1\r\nCookie: {secret}{number:03}{filler}\r\n"
        ));
    }
    let in_master = || occurrences(server.master(), &secret);
    eventually("the master has all of it", || in_master() >= CLIENTS);
    // Half of the clients go, and leave nothing behind in the master either.
    clients.truncate(CLIENTS / 2);
    eventually("they are gone", || {
        open_descriptors(server.master()).len() == descriptors + CLIENTS / 2
    });
    assert_eq!(
        in_master(),
        CLIENTS / 2,
        "it is overwritten, and there once"
    );
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    let fresh = server.workers(2);
    assert!(fresh.iter().all(|worker| !before.contains(worker)));
    for worker in &fresh {
        assert_eq!(occurrences(worker.pid, &secret), 0);
    }
    // What was kept is complete all the same.
    for client in &mut clients {
        client.send("Host: test\r\n\r\n");
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn what_was_kept_of_requests_takes_no_memory_when_the_clients_have_gone() {
    const LENGTH: usize = 12 * 1024;
    let server = Server::start(&["demo", "-w", "1"]);
    server.workers(1);
    let resident = || status_number(server.master(), "VmRSS");
    let before = resident();
    let mut clients = server.connect_all(5 * CLIENTS);
    for client in &mut clients {
        let filler = "x".repeat(LENGTH);
        client.send(format!("GET / HTTP/1.1\r\nCookie: {filler}"));
    }
    let all = (clients.len() * LENGTH / 1024) as u64;
    eventually("the master has all of it", || resident() >= before + all);
    drop(clients);
    eventually("most of it is given back", || resident() < before + all / 4);
}
