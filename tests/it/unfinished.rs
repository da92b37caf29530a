//! A response that is unfinished when its master is replaced or killed: it is so for the next
//! master, too, which must put none of its own replies into the middle of it.

use nix::sys::signal::Signal;

use crate::harness::systemd::Manager;
use crate::harness::{Client, Server, Setup, Worker, process, wait_until_idle};
use crate::store::wait_until_parked;

fn setup() -> Setup {
    let arguments = ["--mood", "mood", "-w", "1"];
    Setup::example("fragile", &arguments).expect(" died ")
}

/// A client that has had a part of a response and reads no more for now. The next turn is the
/// worker's last.
#[track_caller]
fn with_a_half(server: &Server, worker: Worker) -> Client {
    let mut client = server.connect();
    client.send_get("/half");
    assert_eq!(client.read_exact(15), b"HTTP/1.1 200 OK");
    wait_until_idle(worker.pid);
    client
}

#[track_caller]
fn assert_cut_off(server: &Server, mut client: Client) {
    let rest = client.read_until_close();
    let line = server.wait_for_log(" died in turn ");
    let words = "a part of the response was sent, so it is closed";
    assert!(line.ends_with(words), "{line}");
    let rest = String::from_utf8(rest).expect("it is text");
    let (_, body) = rest.split_once("\r\n\r\n").expect("the head ends");
    assert!(!body.is_empty());
    let other = body.trim_start_matches('x');
    assert!(other.is_empty(), "in the middle of a response: {other}");
}

#[test]
fn nothing_gets_into_it_after_an_upgrade() {
    let mut server = setup().start();
    let worker = server.workers(1)[0];
    let client = with_a_half(&server, worker);
    server.upgrade();
    server.workers(1);
    assert_cut_off(&server, client);
}

#[test]
fn nothing_gets_into_it_after_a_crash_of_the_master() {
    let manager = Manager::new(100);
    let mut first = manager.manage(setup()).start();
    let worker = first.workers(1)[0];
    let watched = process::Watched::new(worker.pid);
    let client = with_a_half(&first, worker);
    wait_until_parked(&manager, 1);
    first.signal(Signal::SIGKILL);
    first.wait_for_master();
    watched.reap_orphan();
    let second = manager.manage(setup()).start();
    second.workers(1);
    assert_cut_off(&second, client);
}
