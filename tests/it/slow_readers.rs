//! Clients that are slow to take what they are sent: they hold no worker, and get every byte, in
//! its place, whatever becomes of workers and masters meanwhile.

use std::fs;

use nix::sys::signal::Signal;

use crate::harness::{Client, Server, Setup, Worker, wait_until_idle};

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
