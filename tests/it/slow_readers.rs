//! Clients that are slow to take what they are sent: they hold no worker, and get every byte, in
//! its place, whatever becomes of workers and masters meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::process::eventually_within;
use crate::harness::{
    Client, DEADLINE, Server, Setup, Worker, eventually, open_descriptors, process, wait_until_idle,
};

/// More than the sockets between a server and a client that reads nothing have room for.
const LONG: usize = 24 << 20;

/// The lines of `/bytes/N`.
const LINE: &[u8] = b"baton 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrs\n";

/// Bytes of which no part is like another.
fn unlike(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(length);
    bytes
}

/// `batond serve http` with a file of such bytes, `big`, and a small one.
fn files(arguments: &[&str], length: usize) -> (Setup, Vec<u8>) {
    let setup = Setup::new(&["http", "public"]).also(arguments);
    let public = setup.directory().join("public");
    fs::create_dir(&public).expect("a directory");
    let bytes = unlike(length, 1);
    fs::write(public.join("big"), &bytes).expect("a file");
    fs::write(public.join("small"), "small").expect("a file");
    (setup, bytes)
}

/// A client that has asked for a path, and takes no more than the first bytes of the answer. It has
/// room for some thousand bytes.
#[track_caller]
fn slow(server: &Server, path: &str) -> Client {
    let mut client = server.endpoint().connect_narrow();
    client.send_get(path);
    assert_eq!(client.read_exact(15), b"HTTP/1.1 200 OK");
    client
}

/// Waits until no worker is in a turn, and every connection is with the master.
#[track_caller]
fn wait_for_rest(workers: &[Worker]) {
    for worker in workers {
        wait_until_idle(worker.pid);
    }
}

/// The rest of the answer, which must have this body.
#[track_caller]
fn assert_rest(client: &mut Client, body: &[u8]) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend_from_slice(&client.read_exact(1));
    }
    let rest = client.read_exact(body.len());
    assert!(rest == body, "the bodies differ: {}", differ(&rest, body));
}

fn differ(one: &[u8], other: &[u8]) -> String {
    let place = one.iter().zip(other).position(|(a, b)| a != b);
    format!("{} and {} bytes, from {place:?} on", one.len(), other.len())
}

#[test]
fn slow_downloads_hold_no_worker() {
    let (setup, bytes) = files(&["-w", "2"], LONG);
    let server = setup.start();
    let workers = server.workers(2);
    let mut clients: Vec<_> = (0..4).map(|_| slow(&server, "/big")).collect();
    wait_for_rest(&workers);
    // A fifth one is served at once: no worker is in a turn, and none of the four reads.
    assert_eq!(server.get("/small").body, b"small");
    for client in &mut clients {
        assert_rest(client, &bytes);
        // The connection goes on.
        assert_eq!(client.get("/small").body, b"small");
    }
}

#[test]
fn what_is_made_in_memory_is_kept_by_its_size() {
    let server = Server::start(&["demo", "-w", "1"]);
    let workers = server.workers(1);
    let body = LINE.repeat(LONG / LINE.len() + 1);
    let mut client = slow(&server, &format!("/bytes/{LONG}"));
    wait_for_rest(&workers);
    assert_eq!(server.get("/").status, 200);
    assert_rest(&mut client, &body[..LONG]);
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn a_download_outlives_its_workers_between_turns_and_within() {
    let (setup, bytes) = files(&["-w", "1"], LONG);
    let server = setup.expect(" died ").start();
    let mut worker = server.workers(1)[0];
    let mut client = server.endpoint().connect_narrow();
    client.send_get("/big");
    let mut received = client.read_exact(15);
    for _ in 0..3 {
        wait_until_idle(worker.pid);
        server.kill(worker);
        received.extend(client.read_exact(100_000));
        worker = server.replacement(worker);
        received.extend(client.read_exact(2_000_000));
    }
    let rest = received.windows(4).position(|four| four == b"\r\n\r\n");
    let head = rest.expect("the head is complete") + 4;
    received.extend(client.read_exact(bytes.len() + head - received.len()));
    assert!(
        received[head..] == bytes,
        "{}",
        differ(&received[head..], &bytes)
    );
}

#[test]
fn a_download_outlives_a_reload() {
    let (setup, bytes) = files(&["-w", "2"], LONG);
    let server = setup.start();
    let workers = server.workers(2);
    let mut client = slow(&server, "/big");
    wait_for_rest(&workers);
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    assert_rest(&mut client, &bytes);
}

#[test]
fn random_kills_cost_no_byte() {
    // The seed is fixed; when the kills come is up to the machine.
    const CLIENTS: usize = 6;
    let (setup, bytes) = files(&["-w", "3"], LONG / 2);
    let server = setup.expect(" died ").expect("die at their start").start();
    let workers = server.workers(3);
    let mut downloads: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let path = match number % 2 {
                0 => "/big".to_owned(),
                _ => "/big?again".to_owned(),
            };
            let client = slow(&server, &path);
            let body = bytes.clone();
            thread::spawn(move || {
                let mut client = client;
                assert_rest(&mut client, &body);
            })
        })
        .collect();
    let mut random = 42_u64;
    let mut slots = workers;
    while downloads.iter().any(|download| !download.is_finished()) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let slot = (random >> 33) as usize % slots.len();
        server.kill(slots[slot]);
        slots[slot] = server.replacement(slots[slot]);
    }
    for download in downloads.drain(..) {
        download.join().expect("it has all bytes");
    }
    assert!(server.log_lines(" died ").len() > 1);
}

#[test]
fn requests_whose_answers_nobody_reads_are_answered_in_order() {
    const COUNT: usize = 10_000;
    let server = Server::start(&["demo", "-w", "1"]);
    let workers = server.workers(1);
    let mut client = server.endpoint().connect_narrow();
    let mut sender = client.try_clone().expect("a copy");
    let sending = thread::spawn(move || {
        for number in 0..COUNT {
            sender.send_get(&format!("/bytes/{}", number % 5000));
        }
    });
    // All of it: more than the sockets have room for.
    wait_until_idle(workers[0].pid);
    assert_eq!(server.get("/").status, 200);
    for number in 0..COUNT {
        let reply = client.reply();
        assert_eq!((reply.status, reply.body.len()), (200, number % 5000));
    }
    sending.join().expect("all was sent");
    wait_until_idle(workers[0].pid);
}

#[test]
fn what_is_long_goes_to_the_disk_and_all_of_it_goes_away() {
    // A body of a POST comes back from memory; a file is its own luggage.
    let setup = Setup::new(&["demo", "-w", "1", "--max-body", "32M"]);
    let server = setup.also(&["--body-dir", "."]).start();
    let workers = server.workers(1);
    let before = open_descriptors(server.master());
    // The sockets have room for some megabytes.
    for (length, stays) in [(LONG / 2, true), (400_000, false)] {
        let body = unlike(length, 3);
        let mut client = server.endpoint().connect_narrow();
        let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        client.send(head);
        client.send(&body);
        assert_eq!(client.read_exact(15), b"HTTP/1.1 200 OK");
        if stays {
            wait_until_idle(workers[0].pid);
            let now = open_descriptors(server.master());
            let disk = |name: &&String| name.ends_with("(deleted)") && !name.contains("memfd:");
            let kept = now.values().find(disk);
            assert!(kept.is_some(), "{now:?}");
        }
        assert_rest(&mut client, &body);
        drop(client);
        let mut left = BTreeMap::new();
        let let_go = eventually_within(DEADLINE, || {
            left = open_descriptors(server.master());
            left.len() == before.len()
        });
        assert!(let_go, "before: {before:#?}\nafter: {left:#?}");
    }
}

#[test]
fn the_end_of_a_connection_comes_after_the_last_byte() {
    let (setup, bytes) = files(&["-w", "1"], LONG / 2);
    let server = setup.start();
    let workers = server.workers(1);
    for request in [
        "GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET /big HTTP/1.0\r\n\r\n",
    ] {
        let mut client = server.endpoint().connect_narrow();
        client.send(request);
        assert_eq!(client.read_exact(15), b"HTTP/1.1 200 OK");
        wait_for_rest(&workers);
        assert_eq!(server.get("/small").body, b"small");
        let rest = client.read_until_close();
        assert!(rest.ends_with(&bytes), "{} bytes", rest.len());
    }
    // An answer to HEAD is short, however long the file.
    let mut client = server.connect();
    let reply = client.head("/big");
    assert_eq!(
        reply.header("content-length"),
        Some(&*bytes.len().to_string())
    );
    assert_eq!(client.get("/small").body, b"small");
}

#[test]
fn a_stop_waits_for_who_reads_and_not_beyond_its_grace_for_who_does_not() {
    let (setup, bytes) = files(&["-w", "1", "--grace", "5"], LONG);
    let setup = setup.expect("the grace period is over: closing 1 connections");
    let mut server = setup.start();
    let workers = server.workers(1);
    // One that has room for megabytes reads them at once.
    let mut reader = server.connect();
    reader.send_get("/big");
    assert_eq!(reader.read_exact(15), b"HTTP/1.1 200 OK");
    let mut other = slow(&server, "/big");
    wait_for_rest(&workers);
    server.signal(Signal::SIGTERM);
    assert_rest(&mut reader, &bytes);
    assert!(reader.is_closed());
    server.wait_for_log("the grace period is over: closing 1 connections");
    assert!(server.wait().success());
    let rest = other.read_until_close();
    assert!(rest.len() < bytes.len());
}

#[test]
fn a_worker_without_a_master_sends_what_it_was_asked_for() {
    let mut server = Setup::example("fragile", &["--mood", "mood", "-w", "1"]).start();
    let worker = server.workers(1)[0];
    let watched = process::Watched::new(worker.pid);
    let mut client = server.endpoint().connect_narrow();
    client.send_get("/late");
    eventually("the worker is in the turn", || process::sleeps(worker.pid));
    server.signal(Signal::SIGKILL);
    server.wait_for_master();
    let all = client.read_until_close();
    assert!(
        all.ends_with(&b"late".repeat(6 << 20)),
        "{} bytes",
        all.len()
    );
    watched.reap_orphan();
}

#[test]
fn on_a_unix_socket_a_death_closes_the_connection_and_nothing_else_does() {
    let (setup, bytes) = files(&["-w", "1"], LONG / 2);
    let setup = setup.listen("unix:socket").expect(" died ");
    let server = setup.start();
    let worker = server.workers(1)[0];
    let mut clients = server.connect_all(2);
    for client in &mut clients {
        client.send_get("/big");
        assert_eq!(client.read_exact(15), b"HTTP/1.1 200 OK");
    }
    wait_until_idle(worker.pid);
    assert_rest(&mut clients[0], &bytes);
    // Between two turns a death is nobody's business.
    server.kill(worker);
    server.replacement(worker);
    assert_rest(&mut clients[1], &bytes);
}

#[test]
fn a_stream_that_is_longer_than_what_is_kept_holds_its_worker_and_the_log_says_so() {
    let arguments = ["--mood", "mood", "-w", "2", "--max-spool", "1000000"];
    let setup = Setup::example("fragile", &arguments);
    let server = setup.expect("its worker waits for it").start();
    let mut client = slow(&server, "/endless");
    let line = server.wait_for_log("its worker waits for it");
    let words = "has yet to take 1000000 bytes (max-spool): its worker waits for it";
    assert!(line.ends_with(words), "{line}");
    // The other worker serves.
    assert_eq!(server.get("/").status, 200);
    client.read_exact(8_000_000);
    drop(client);
    server
        .workers(2)
        .into_iter()
        .for_each(|worker| wait_until_idle(worker.pid));
}

#[test]
fn downloads_outlive_upgrades() {
    let (setup, bytes) = files(&["-w", "2", "--body-dir", "."], LONG);
    let mut server = setup.start();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let workers = server.workers(2);
        clients.push(slow(&server, "/big"));
        wait_for_rest(&workers);
        server.upgrade();
    }
    server.workers(2);
    for client in &mut clients {
        assert_rest(client, &bytes);
        assert_eq!(client.get("/small").body, b"small");
    }
}

#[test]
fn more_slow_readers_than_descriptors_hold_up_nobody_for_long() {
    for workers in ["1", "2"] {
        let setup = Setup::new(&["demo", "-w", workers]).expect("limit of open files");
        let server = setup.descriptor_limit(80).start();
        let mut clients: Vec<_> = (0..80)
            .map(|_| server.endpoint().connect_narrow())
            .collect();
        for client in &mut clients {
            client.send_get("/bytes/8000000");
        }
        // All workers have an answer to keep for which there is no descriptor, so somebody gives
        // way, and a worker is there for who comes then.
        server.wait_for_log("limit of open files: turning clients away");
        drop(clients);
        // Who comes before the master has seen that they are gone may be turned away with them.
        eventually("somebody is served", || server.get("/").status == 200);
    }
}
