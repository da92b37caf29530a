//! Notes and luggage: what a service keeps for a client comes back in each turn, whoever serves it,
//! and leaves nothing behind. docs/examples/keeper.rs is the program. What a worker sends that is
//! no luggage costs it its life, and nobody else anything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::process;
use crate::harness::{Client, Server, Setup, eventually, open_descriptors};

mod masters;
mod rogues;

/// More than the master closes by itself.
const MUCH: usize = 3 << 20;

/// The example, with so many workers.
pub fn keeper(workers: usize) -> Setup {
    Setup::example("keeper", &["-w", &workers.to_string()])
}

/// What the example answers to a line.
#[track_caller]
pub fn ask(client: &mut Client, line: &str) -> String {
    client.send(format!("{line}\n"));
    let mut answer = Vec::new();
    loop {
        let byte = client.read_exact(1)[0];
        if byte == b'\n' {
            return String::from_utf8(answer).expect("the example answers in text");
        }
        answer.push(byte);
    }
}

#[track_caller]
pub fn say(client: &mut Client, line: &str) {
    assert_eq!(ask(client, line), "done", "{line}");
}

/// Checks what is kept for a client, by the size of its file if it has one.
#[track_caller]
pub fn assert_kept(client: &mut Client, note: &str, size: Option<usize>) {
    let told = ask(client, "tell");
    let file = match size {
        Some(size) => format!("{size} bytes of sum {}", size * usize::from(b'x')),
        None => "no file".to_owned(),
    };
    assert!(told.ends_with(&format!("note {note:?}, {file}")), "{told}");
}

/// What the master has open, and how many processes it has.
fn holdings(server: &Server) -> (BTreeMap<i32, String>, usize) {
    let open = open_descriptors(server.master());
    (open, process::children(server.master()).0.len())
}

#[test]
fn what_is_kept_for_a_client_does_not_depend_on_a_worker() {
    let server = keeper(2).expect(" died ").start();
    let kinds = [
        ("memory 70000", 70_000),
        ("file 5000000", 5_000_000),
        ("open some", 9),
    ];
    std::fs::write(server.directory().join("some"), "xxxxxxxxx").expect("a file");
    let mut clients = Vec::new();
    for (line, size) in kinds {
        let mut client = server.connect();
        say(&mut client, &format!("note of {line}"));
        say(&mut client, line);
        assert_kept(&mut client, &format!("of {line}"), Some(size));
        clients.push((client, line, size));
    }
    let assert_all = |clients: &mut [(Client, &str, usize)]| {
        for (client, line, size) in clients {
            assert_kept(client, &format!("of {line}"), Some(*size));
        }
    };
    for worker in server.workers(2) {
        server.kill(worker);
    }
    assert_all(&mut clients);
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    assert_all(&mut clients);
    // A worker that dies in a turn loses its own client, and no other one.
    let (mut victim, ..) = clients.pop().expect("there are some");
    victim.send("exit\n");
    assert!(victim.read_until_close().is_empty());
    assert_all(&mut clients);
    for (client, ..) in &mut clients {
        say(client, "note");
        say(client, "drop");
        assert_kept(client, "", None);
    }
}

#[test]
fn what_can_be_no_luggage_is_refused_where_it_is_packed() {
    let server = keeper(1).start();
    let mut client = server.connect();
    for path in ["/dev/null", "/proc/self/stat", "."] {
        let answer = ask(&mut client, &format!("open {path}"));
        assert!(answer.starts_with("luggage must be "), "{path}: {answer}");
    }
    let long = "x".repeat(5000);
    let answer = ask(&mut client, &format!("note {long}"));
    assert_eq!(answer, "the note has 5000 bytes; 4096 are the most");
    say(&mut client, &format!("note {}", &long[..4096]));
    assert_kept(&mut client, &long[..4096], None);
}

#[test]
fn luggage_that_is_gone_leaves_no_descriptor_and_no_process() {
    let server = keeper(2).start();
    server.workers(2);
    let before = holdings(&server);
    for _ in 0..20 {
        let mut clients = server.connect_all(5);
        for (client, line) in clients.iter_mut().zip([
            "memory 100",
            &format!("memory {MUCH}"),
            "file 100",
            &format!("file {MUCH}"),
            "open /etc/passwd",
        ]) {
            say(client, "note something");
            say(client, line);
            // Another one in its place.
            say(client, line);
        }
    }
    eventually("all is closed", || holdings(&server) == before);
}

#[test]
fn luggage_takes_its_place_among_the_descriptors() {
    const DESCRIPTORS: usize = 64;
    let setup = keeper(2).expect("limit of open files");
    let server = setup.descriptor_limit(DESCRIPTORS).start();
    server.workers(2);
    // Each is idle between two lines, so that those that came first give way.
    let mut clients: Vec<Client> = Vec::new();
    for number in 0..40 {
        let mut client = server.connect();
        say(&mut client, &format!("note {number}"));
        say(&mut client, "memory 10");
        clients.push(client);
        assert!(open_descriptors(server.master()).len() <= DESCRIPTORS);
    }
    let mut there = 0;
    for (number, client) in clients.iter_mut().enumerate() {
        if client.is_silent() {
            assert_kept(client, &number.to_string(), Some(10));
            there += 1;
        }
    }
    // Two descriptors each.
    assert!((5..DESCRIPTORS / 2).contains(&there), "{there} are left");
    let begin = Instant::now();
    let mut last = server.connect();
    assert_kept(&mut last, "", None);
    assert!(begin.elapsed() < Duration::from_secs(5));
}
