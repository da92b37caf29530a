//! SIGHUP after the configuration file has changed: pools and listeners come, go and move.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::client::Served;
use crate::harness::process::{self, Births, children};
use crate::harness::systemd::Manager;
use crate::harness::{Client, Endpoint, Server, Setup, eventually};

/// A pool that listens on Unix sockets of these names.
fn pool(name: &str, service: &str, sockets: &[&str], more: &str) -> String {
    let listen: Vec<_> = sockets
        .iter()
        .map(|socket| format!("\"unix:{socket}\""))
        .collect();
    let listen = listen.join(", ");
    format!(
        "[[pool]]\nname = \"{name}\"\nservice = \"{service}\"\nlisten = [{listen}]\n\
         workers = 2\n{more}\n"
    )
}

fn start(text: &str, addresses: usize) -> Server {
    Setup::new(&[])
        .file(text, addresses)
        .expect("reload refused")
        .start()
}

fn rewrite(server: &Server, text: &str) {
    fs::write(server.directory().join("batond.toml"), text).expect("a file");
    server.signal(Signal::SIGHUP);
}

/// Changes the file, and waits until it is what is served.
#[track_caller]
fn change(server: &Server, text: &str) {
    let before = server.log_lines("reloaded").len();
    rewrite(server, text);
    server.wait_for_lines("reloaded", before + 1);
}

fn at(server: &Server, socket: &str) -> Endpoint {
    let endpoint = Endpoint::parse(&format!("unix:{socket}")).expect("an address");
    endpoint.within(server.directory())
}

fn connect(server: &Server, socket: &str) -> Client {
    at(server, socket).connect()
}

#[track_caller]
fn answers(server: &Server, socket: &str) {
    let reply = connect(server, socket).get("/");
    assert_eq!(reply.status, 200, "{socket}: {reply:?}");
}

#[track_caller]
fn is_gone(server: &Server, socket: &str) {
    eventually("nobody listens there", || {
        at(server, socket).try_connect().is_err()
    });
}

#[test]
fn a_pool_and_its_listener_are_added_and_removed() {
    let site = pool("site", "demo", &["a"], "");
    let more = pool("more", "demo", &["b"], "");
    let server = start(&site, 1);
    let mut early = server.connect();
    assert_eq!(Served::of(&early.get("/")).turn, 1);
    change(&server, &(site.clone() + &more));
    answers(&server, "b");
    let mut late = connect(&server, "b");
    assert_eq!(Served::of(&late.get("/")).turn, 1);
    change(&server, &site);
    is_gone(&server, "b");
    // Its connections end with it: the idle ones at once.
    assert!(late.is_closed());
    assert_eq!(Served::of(&early.get("/")).turn, 2);
    answers(&server, "a");
}

#[test]
fn a_removed_pool_finishes_what_it_has_begun() {
    let site = pool("site", "demo", &["a"], "");
    let more = pool("more", "demo", &["b"], "");
    let server = start(&(site.clone() + &more), 2);
    let mut busy = connect(&server, "b");
    let before = busy.get("/");
    assert_eq!(before.status, 200);
    busy.send_get("/sleep/700");
    let mut probe = connect(&server, "b");
    assert_eq!(probe.get("/").status, 200);
    change(&server, &site);
    assert_eq!(busy.reply().status, 200);
    assert!(busy.is_closed());
}

#[test]
fn listeners_are_added_and_removed_and_connections_stay() {
    let server = start(&pool("site", "demo", &["a", "b"], ""), 2);
    let mut client = connect(&server, "b");
    assert_eq!(Served::of(&client.get("/")).turn, 1);
    change(&server, &pool("site", "demo", &["a", "c"], ""));
    is_gone(&server, "b");
    answers(&server, "a");
    answers(&server, "c");
    assert_eq!(Served::of(&client.get("/")).turn, 2);
}

#[test]
fn a_renamed_pool_keeps_its_listener() {
    let server = start(&pool("one", "demo", &["a"], ""), 1);
    change(&server, &pool("two", "demo", &["a"], ""));
    answers(&server, "a");
    let line = server.wait_for_log("worker ready slot=0");
    assert!(line.contains("pool=one"), "{line}");
    change(&server, &pool("three", "demo", &["a", "b"], ""));
    answers(&server, "a");
    answers(&server, "b");
}

#[test]
fn an_address_moves_from_one_pool_to_another() {
    let one = pool("one", "demo", &["a", "b"], "");
    let two = pool("two", "echo", &["c"], "");
    let server = start(&(one + &two), 3);
    let one = pool("one", "demo", &["a"], "");
    let two = pool("two", "echo", &["c", "b"], "");
    change(&server, &(one + &two));
    answers(&server, "a");
    let mut echo = connect(&server, "b");
    echo.send("hello");
    assert_eq!(echo.read_exact(5), b"hello");
}

#[test]
fn an_address_of_a_pool_that_is_still_draining_goes_to_the_next_one() {
    let one = pool("one", "demo", &["a"], "");
    let two = pool("two", "demo", &["b"], "");
    let server = start(&(one.clone() + &two), 2);
    let mut busy = connect(&server, "b");
    busy.send_get("/sleep/1500");
    let mut probe = connect(&server, "b");
    assert_eq!(probe.get("/").status, 200);
    change(&server, &one);
    is_gone(&server, "b");
    change(&server, &pool("one", "demo", &["a", "b"], ""));
    answers(&server, "b");
    // And back again, to a pool of the same name as the one that drains.
    change(&server, &(one + &two));
    answers(&server, "b");
    assert_eq!(busy.reply().status, 200);
    answers(&server, "b");
}

#[test]
fn the_service_the_settings_and_the_number_of_workers_change() {
    let server = start(&pool("site", "demo", &["a"], "idle-timeout = 60"), 1);
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    let echo = pool("site", "echo", &["a"], "").replace("workers = 2", "workers = 3");
    change(&server, &echo);
    let of_new = |line: &&String| line.contains("generation=1");
    let ready = server.log_lines("worker ready");
    assert_eq!(ready.iter().filter(of_new).count(), 3, "{ready:?}");
    let retired = |server: &Server| server.log_lines("worker retired").len();
    eventually("both old workers are gone", || retired(&server) == 2);
    // The connection is the same, and now that no old worker waits for its next request, what comes
    // is for the new service.
    client.send("hello");
    assert_eq!(client.read_exact(5), b"hello");
}

#[test]
fn a_bad_file_changes_nothing() {
    let good = pool("site", "demo", &["a"], "");
    let server = start(&good, 1);
    let workers = server.workers(2);
    for (text, expected) in [
        ("[[pool]\n".to_owned(), "batond.toml:1"),
        (good.replace("workers", "wrokers"), "did you mean workers?"),
        (good.replace("demo", "http\"\nroot = \"nowhere"), "nowhere"),
        (good.clone() + "user = \"no such user\"\n", "no such user"),
        (good.replace("unix:a", "unix:/nowhere/a"), "/nowhere/a"),
    ] {
        let before = server.log_lines("reload refused").len();
        rewrite(&server, &text);
        let lines = server.wait_for_lines("reload refused", before + 1);
        let line = &lines[before];
        assert!(line.contains(expected), "{expected}: {line}");
        assert!(line.ends_with("nothing has changed"), "{line}");
        answers(&server, "a");
    }
    assert_eq!(server.workers(2), workers);
    change(&server, &good);
    answers(&server, "a");
}

/// A pool whose workers do not come to serve: there is no room for their threads.
fn broken(name: &str, socket: &str, more: &str) -> String {
    let more = format!("{more}threads = 2\nlimits = {{ as = \"1M\" }}");
    pool(name, "demo", &[socket], &more)
}

#[test]
fn nothing_is_left_of_a_new_pool_that_does_not_come_to_serve() {
    let manager = Manager::new(0);
    let good = pool("site", "demo", &["a"], "");
    let setup = Setup::new(&[])
        .file(&good, 1)
        .expect(" died ")
        .expect("cannot go on")
        .expect("reload failed");
    let server = manager.manage(setup).start();
    let workers = server.workers(2);
    manager.wait_for("READY=1");
    // It would grow by itself if it stayed.
    let more = broken("more", "b", "min-spare = 1\n");
    rewrite(&server, &(good.clone() + &more));
    server.wait_for_log("reload failed");
    // It says what it is that there is no room for.
    let line = server.wait_for_log("cannot go on: ");
    let cause = "of 2 does not start: Not possible at the moment";
    assert!(line.ends_with(cause), "{line}");
    // The manager waits for it; and nobody else does.
    manager.wait_for_messages("READY=1", 2);
    eventually("nothing is left of it", || {
        children(server.master()).0.len() == 2
    });
    server.signal(Signal::SIGTTIN);
    server.wait_for_log("pool size");
    assert_eq!(server.workers(3)[..2], workers);
    // For longer than the pool that is gone would take to grow.
    assert!(connect(&server, "a").is_silent_for(Duration::from_millis(1500)));
    let sizes = server.log_lines("pool size");
    assert!(
        sizes.iter().all(|line| line.contains("pool=site")),
        "{sizes:?}"
    );
    // What comes next under its name begins anew.
    change(&server, &(good + &pool("more", "demo", &["b"], "")));
    answers(&server, "a");
    answers(&server, "b");
}

/// Changes the file until the first of the new workers is stopped before it can say that it is
/// ready.
#[track_caller]
fn hold_up(server: &Server, text: &str) -> Pid {
    let mut held = None;
    eventually("a new worker is stopped before it is ready", || {
        let done = server.log_lines("reloaded").len();
        let mut births = Births::watch(server.master());
        rewrite(server, text);
        // The first child makes the look-ups of the reload.
        let planner = births.next_within(Duration::from_secs(5));
        if let Some(new) = planner.and_then(|_| births.next_within(Duration::from_secs(5))) {
            process::signal(new, Signal::SIGSTOP);
            let pid = format!("pid={new} ");
            let said = |pattern: &str| {
                let lines = server.log_lines(pattern);
                lines.iter().any(|line| line.contains(&pid))
            };
            eventually("the master knows of it", || said("worker stopped"));
            // What it had said before is known too when this is answered.
            answers(server, "a");
            if !said("worker ready") {
                held = Some(new);
                return true;
            }
            process::signal(new, Signal::SIGCONT);
        }
        server.wait_for_lines("reloaded", done + 1);
        false
    });
    held.expect("one is held")
}

#[test]
fn a_pool_that_is_ready_waits_for_a_slow_one_without_work() {
    let one = pool("one", "demo", &["a"], "start-timeout = 1");
    // The workers of the first pool are born first.
    let text = pool("two", "demo", &["b"], "") + &one;
    let server = Setup::new(&[])
        .file(&text, 2)
        .expect("worker stopped")
        .start();
    let held = hold_up(&server, &text);
    // The first pool's time to get ready passes, and then some more in which nothing is to be done.
    let mut idle = connect(&server, "a");
    assert!(idle.is_silent_for(Duration::from_millis(1200)));
    let before = process::cpu_time(server.master());
    assert!(idle.is_silent_for(Duration::from_millis(1000)));
    let spent = process::cpu_time(server.master()) - before;
    assert!(spent < Duration::from_millis(300), "{spent:?}");
    let done = server.log_lines("reloaded").len();
    process::signal(held, Signal::SIGCONT);
    server.wait_for_lines("reloaded", done + 1);
    answers(&server, "b");
}

#[test]
fn each_pool_has_a_free_port_of_its_own() {
    let site = |name: &str, service: &str| {
        pool(name, service, &[], "").replace("[]", "[\"127.0.0.1:0\", \"127.0.0.1:0\"]")
    };
    let two = site("one", "demo") + &site("two", "echo");
    let server = start(&two, 4);
    let ports: BTreeSet<_> = server.endpoints().iter().map(|one| one.tcp()).collect();
    assert_eq!(ports.len(), 4);
    let echoes = || {
        let hello = |one: &SocketAddr| {
            let mut client = TcpStream::connect(one).expect("it listens");
            client.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("sent");
            let mut start = [0; 4];
            client.read_exact(&mut start).expect("an answer");
            (&start == b"GET ").then_some(*one)
        };
        ports.iter().filter_map(hello).collect::<Vec<_>>()
    };
    let of_two = echoes();
    assert_eq!(of_two.len(), 2);
    // They stay, and another pool gets others.
    change(&server, &(site("three", "echo") + &two));
    assert_eq!(echoes(), of_two);
    assert_eq!(server.log_lines("listening on").len(), 6);
}
