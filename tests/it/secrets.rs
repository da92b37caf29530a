//! What clients have sent stays with the master and the worker that served it: a worker that is
//! forked later finds nothing of it in its memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::process::status_number;
use crate::harness::session::Session;
use crate::harness::systemd::Manager;
use crate::harness::upgrade::COMPLETE;
use crate::harness::{Client, Server, Setup, eventually};
use crate::store::{kill_all, wait_until_parked};

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

/// Half a request for each client, with a text that stands nowhere else.
fn begin_requests(clients: &mut [Client], secret: &str) {
    for (number, client) in clients.iter_mut().enumerate() {
        // Of many sizes, so that they do not overwrite each other by chance.
        let filler = "x".repeat(number * 50);
        client.send(format!(
            "GET / HTTP/1.1\r\nCookie: {secret}{number:03}{filler}\r\n"
        ));
    }
}

/// Sends the other halves: what was kept is complete.
fn end_requests(clients: &mut [Client]) {
    for client in clients {
        client.send("Host: test\r\n\r\n");
        assert_eq!(client.reply().status, 200);
    }
}

/// A server whose master has half a request of each client; the clients, and the text in them.
fn with_half_requests(setup: Setup) -> (Server, Vec<Client>, String) {
    let server = setup.start();
    server.workers(2);
    let secret = format!("secret-of-{}-", server.master());
    let mut clients = server.connect_all(CLIENTS);
    begin_requests(&mut clients, &secret);
    eventually("the master has all of it", || {
        occurrences(server.master(), &secret) >= CLIENTS
    });
    (server, clients, secret)
}

/// Some of the clients go. The master is left with what the others have sent, and with that once;
/// workers that it starts then have nothing of it.
fn nothing_is_inherited(server: &Server, clients: &mut Vec<Client>, secret: &str) {
    clients.truncate(CLIENTS / 2);
    eventually("it is overwritten, and there once", || {
        occurrences(server.master(), secret) == CLIENTS / 2
    });
    replaced_workers_have_nothing(server, secret);
    end_requests(clients);
}

/// New workers have nothing of this text.
fn replaced_workers_have_nothing(server: &Server, secret: &str) {
    let before = server.workers(2);
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    let fresh = server.workers(2);
    assert!(fresh.iter().all(|worker| !before.contains(worker)));
    for worker in &fresh {
        assert_eq!(occurrences(worker.pid, secret), 0);
    }
}

#[test]
fn a_fresh_worker_knows_nothing_of_what_clients_have_sent() {
    let setup = Setup::new(&["demo", "-w", "2"]);
    let (server, mut clients, secret) = with_half_requests(setup);
    nothing_is_inherited(&server, &mut clients, &secret);
}

#[test]
fn nor_does_one_of_a_master_that_has_taken_over() {
    let setup = Setup::new(&["demo", "-w", "2"]);
    let (mut server, mut clients, secret) = with_half_requests(setup);
    server.upgrade();
    server.wait_for_log(COMPLETE);
    nothing_is_inherited(&server, &mut clients, &secret);
}

#[test]
fn nor_does_one_of_a_master_that_could_not_hand_over() {
    let setup = Setup::new(&["demo", "-w", "2", "--control", "control"]);
    let setup = setup.expect("takeover failed");
    let (server, mut clients, secret) = with_half_requests(setup);
    let session = Session::connect(&server.directory().join("control"));
    session.say("TAKEOVER 3\n");
    session.hear_until("OFFER");
    session.say("READY main\n");
    assert_eq!(session.hear_until("ALL").len(), CLIENTS + 1);
    drop(session);
    server.wait_for_log("this master serves on");
    nothing_is_inherited(&server, &mut clients, &secret);
}

/// The ledger has the text too: it is not inherited, and the count is another one.
#[test]
fn nor_does_one_of_a_master_that_comes_after_a_crash() {
    let manager = Manager::new(2 * CLIENTS);
    let start = || manager.manage(Setup::new(&["demo", "-w", "2"])).start();
    let mut first = start();
    let workers = first.workers(2);
    let secret = format!("secret-of-{}-", first.master());
    let mut clients = first.connect_all(CLIENTS);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    wait_until_parked(&manager, CLIENTS);
    begin_requests(&mut clients, &secret);
    eventually("the master has all of it, and the ledger", || {
        occurrences(first.master(), &secret) >= 2 * CLIENTS
    });
    wait_until_parked(&manager, CLIENTS);
    kill_all(&mut first, &workers);
    let second = start();
    second.wait_for_log(&format!("{CLIENTS} connections, and 0 that were lent"));
    replaced_workers_have_nothing(&second, &secret);
    end_requests(&mut clients);
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
