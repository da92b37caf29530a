//! The main job: connections are lent for a turn at a time, by whatever address they come.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::thread;

use crate::harness::client::Served;
use crate::harness::process::sleeps;
use crate::harness::skip::{lacks, skip};
use crate::harness::{Endpoint, Server, Setup, command, eventually, finish, load};

#[test]
fn each_request_on_a_connection_is_one_turn() {
    let server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let mut client = server.connect();
    for turn in 1..=3 {
        let served = Served::of(&client.get("/"));
        assert_eq!(served.turn, turn);
        assert_eq!(served.master, server.master().as_raw());
        let worker = workers.iter().find(|worker| worker.slot == served.slot);
        assert_eq!(
            worker.map(|worker| worker.pid.as_raw()),
            Some(served.worker)
        );
    }
    assert_eq!(Served::of(&server.get("/")).turn, 1, "a new connection");
}

#[test]
fn the_demo_is_the_default_and_speaks_text_or_html() {
    let server = Server::start(&["-w", "1"]);
    let mut client = server.connect();
    let text = client.get_with("/", "Accept: */*");
    assert_eq!(text.status, 200);
    assert!(
        text.header("content-type")
            .unwrap()
            .starts_with("text/plain"),
        "{text:?}"
    );
    let page = client.get_with("/", "Accept: text/html,application/xhtml+xml,*/*;q=0.8");
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-type")
            .unwrap()
            .starts_with("text/html"),
        "{page:?}"
    );
    assert!(
        page.text()
            .to_ascii_lowercase()
            .starts_with("<!doctype html>"),
        "{page:?}"
    );
}

#[test]
fn without_a_number_there_are_two_workers_for_each_cpu_and_at_least_four() {
    let server = Server::start(&["demo"]);
    let cpus = thread::available_parallelism()
        .expect("a number of CPUs")
        .get();
    server.workers(4.max(2 * cpus));
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn echo_returns_what_it_gets() {
    let server = Server::start(&["echo", "-w", "2"]);
    let mut client = server.connect();
    for line in ["hello\n", "a longer line, in a turn of its own\n"] {
        client.send(line);
        assert_eq!(client.read_exact(line.len()), line.as_bytes());
    }
    client.send("the last words");
    client.half_close();
    assert_eq!(client.read_until_close(), b"the last words");
}

#[test]
fn echo_returns_more_than_fits_into_the_kernel() {
    let server = Server::start(&["echo", "-w", "1"]);
    // Longer than what the sockets' buffers take, so that both directions come to a halt.
    let block: Vec<u8> = (0..16 << 20)
        .map(|at: u32| (at ^ (at >> 8)) as u8)
        .collect();
    let mut client = server.connect();
    let mut sender = client.try_clone().expect("a second handle");
    let returned = thread::scope(|scope| {
        scope.spawn(|| {
            sender.send(&block);
            sender.half_close();
        });
        client.read_until_close()
    });
    assert!(
        returned == block,
        "{} of {} bytes, or others",
        returned.len(),
        block.len()
    );
}

#[test]
fn nc_gets_its_answer_although_it_ends_its_side_first() {
    let server = Server::start(&["demo", "-w", "1"]);
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    client.half_close();
    assert_eq!(Served::of(&client.reply()).turn, 1);
    assert!(client.is_closed());
}

#[test]
fn workers_serve_side_by_side() {
    let server = Server::start(&["demo", "-w", "3"]);
    let workers = server.workers(3);
    let mut sleepers = server.connect_all(2);
    for sleeper in &mut sleepers {
        sleeper.send_get("/sleep/1000");
    }
    let asleep = || {
        let asleep = workers.iter().filter(|worker| sleeps(worker.pid));
        asleep.map(|worker| worker.slot).collect::<Vec<_>>()
    };
    eventually("two workers sleep at the same time", || asleep().len() == 2);
    let asleep = asleep();
    let served = Served::of(&server.get("/"));
    assert!(!asleep.contains(&served.slot), "{served:?} {asleep:?}");
    for sleeper in &mut sleepers {
        assert_eq!(sleeper.reply().status, 200);
    }
}

#[test]
fn a_thousand_requests_are_answered_with_and_without_keep_alive() {
    let server = Server::start(&["demo", "-w", "3"]);
    load(server.endpoint(), 20, 50, true, "/").assert_all_ok(1000);
    load(server.endpoint(), 20, 50, false, "/").assert_all_ok(1000);
}

#[test]
fn several_listeners_are_served_at_once() {
    let mut setup = Setup::new(&["demo", "-w", "2"])
        .listen("127.0.0.1:0")
        .listen(":0")
        .listen("unix:baton.sock");
    let mut count = 3;
    // Some machines have no IPv6, not even on the loopback.
    if TcpListener::bind("[::1]:0").is_ok() {
        setup = setup.listen("[::1]:0");
        count = 4;
    } else {
        skip("there is no IPv6 to listen on; the rest is done");
    }
    let mut server = setup.start();
    assert_eq!(server.endpoints().len(), count);
    let distinct: BTreeSet<_> = server
        .endpoints()
        .iter()
        .map(|e| format!("{e:?}"))
        .collect();
    assert_eq!(distinct.len(), count, "{:?}", server.endpoints());
    let mut clients: Vec<_> = server.endpoints().iter().map(Endpoint::connect).collect();
    for turn in 1..=2 {
        for client in &mut clients {
            assert_eq!(Served::of(&client.get("/")).turn, turn);
        }
    }
    let socket = server.directory().join("baton.sock");
    assert!(socket.exists());
    assert!(server.stop().success());
    assert!(!socket.exists(), "the socket's file outlives the server");
}

#[test]
fn rust_log_says_how_much_is_logged() {
    let server = Server::start(&["demo", "-w", "1"]);
    assert_eq!(server.get("/").status, 200);
    assert!(!server.log_contains("DEBUG"));
    let server = Setup::new(&["demo", "-w", "1"])
        .environment("RUST_LOG", "debug")
        .start();
    assert_eq!(server.get("/").status, 200);
    server.wait_for_log("DEBUG");
}

#[test]
fn strace_shows_one_descriptor_sent_and_received_for_each_turn() {
    let strace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "trace",
        "-e",
        "signal=none",
        "-e",
    ];
    if lacks("strace") {
        return;
    }
    let mut trial = command("strace");
    trial.args(["-o", "/dev/null", "true"]);
    if !finish(trial).status.success() {
        skip("strace may trace nothing here, as in some containers");
        return;
    }
    let mut strace = strace.to_vec();
    strace.push("trace=sendmsg,recvmsg,recvfrom");
    // With threads, no worker stays with a connection to serve several turns of it in a row.
    let arguments = ["demo", "-w", "2", "--threads", "2"];
    let mut server = Setup::new(&arguments).under(&strace).start();
    let mut turns = 0;
    let mut clients = server.connect_all(8);
    for turn in 1..=3 {
        for client in &mut clients {
            assert_eq!(Served::of(&client.get("/")).turn, turn);
            turns += 1;
        }
    }
    let master = server.master().to_string();
    assert!(server.stop().success());
    let trace = fs::read_to_string(server.directory().join("trace")).expect("a trace");
    let rights = |call: &str, by_master: bool| {
        trace
            .lines()
            .filter(|line| line.contains(call) && line.contains("SCM_RIGHTS"))
            .filter(|line| (line.split(' ').next() == Some(&master)) == by_master)
            .count()
    };
    assert_eq!(
        rights("recvmsg", false),
        turns,
        "received by a worker:\n{trace}"
    );
    // What waits for too long behind another turn, the master takes back (without the descriptor,
    // for it has its own), and lends it once more.
    let taken_back = trace
        .lines()
        .filter(|line| line.split(' ').next() == Some(&master))
        .filter(|line| line.contains("recvfrom") && line.contains("LEND "))
        .count();
    assert_eq!(
        rights("sendmsg", true),
        turns + taken_back,
        "lent by the master:\n{trace}"
    );
}

#[test]
fn a_client_that_is_quicker_than_the_end_of_its_turn_is_not_left_waiting() {
    // A master that sleeps through the end of a turn would wake when the patience is over.
    let server = Server::start(&["demo", "-w", "2", "--patience", "10000000"]);
    let mut client = server.connect();
    for _ in 0..2000 {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn whoever_waits_for_a_place_gets_it_as_soon_as_another_one_has_ended() {
    // As above: a master that sleeps on would do so until the patience is over.
    let server = Server::start(&[
        "demo",
        "-w",
        "2",
        "--patience",
        "10000000",
        "--max-connections",
        "1",
    ]);
    for _ in 0..200 {
        let mut client = server.connect();
        let reply = client.get_with("/", "Connection: close");
        assert_eq!(reply.status, 200);
        assert!(client.is_closed());
    }
}

#[test]
fn connections_are_logged_if_that_is_asked_for() {
    let setup = Setup::new(&["demo", "-w", "1"]).environment("RUST_LOG", "debug");
    let server = setup.start();
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    let line = server.wait_for_log(" accepted 127.0.0.1:");
    assert!(line.contains(" DEBUG master["), "{line}");
    let (_, peer) = line.split_once(" accepted ").expect("it has it");
    drop(client);
    server.wait_for_log(&format!(" closing {peer}"));
}
