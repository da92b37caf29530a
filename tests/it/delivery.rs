//! What was sent arrives, although the client reads it late and sends something after the end of
//! the connection: a socket that is closed then is reset by the kernel, and what the client has not
//! taken is lost (RFC 9112 §9.6).

use std::fs;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::harness::process::{signal, sleeping_threads};
use crate::harness::systemd::Manager;
use crate::harness::{
    Client, Server, Setup, Watched, eventually, wait_until_asleep, wait_until_idle,
};
use crate::store::wait_until_parked;

/// More than a narrow client has room for.
const MUCH: usize = 12_000;

/// Waits until the server has ended its side of the connection.
#[track_caller]
fn wait_until_ended(server: &Server, client: &Client) {
    let (server_port, client_port) = (server.endpoint().tcp().port(), client.port());
    // Local address, remote address, and the state: FIN_WAIT1 (proc(5), net/tcp.h).
    let wanted = format!(":{server_port:04X} 0100007F:{client_port:04X} 04 ");
    eventually("the server has ended its side", || {
        let connections = fs::read_to_string("/proc/net/tcp").expect("procfs is there");
        connections.contains(&wanted)
    });
}

/// Sends something that comes too late, then reads until the end, which must be one in order.
#[track_caller]
fn read_late(client: &mut Client) -> Vec<u8> {
    for _ in 0..3 {
        client.send("\r\n");
    }
    client.read_until_close()
}

#[test]
fn a_small_last_response_destroys_no_earlier_one() {
    let server = Server::start(&["demo", "-w", "1"]);
    let worker = server.workers(1)[0];
    let mut client = server.endpoint().connect_narrow();
    client.send_get(&format!("/bytes/{MUCH}"));
    assert_eq!(client.read_exact(15), b"HTTP/1.1 200 OK");
    wait_until_idle(worker.pid);
    client.send("GET /bytes/3 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    wait_until_ended(&server, &client);
    assert!(read_late(&mut client).len() > MUCH);
}

#[test]
fn a_response_that_the_client_has_no_room_for_is_not_short() {
    let server = Server::start(&["demo", "-w", "1"]);
    let mut client = server.endpoint().connect_narrow();
    client.send(format!(
        "GET /bytes/{MUCH} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    ));
    wait_until_ended(&server, &client);
    assert!(read_late(&mut client).len() > MUCH);
}

#[test]
fn a_stop_in_the_middle_of_the_next_request_destroys_no_response() {
    let mut server = Server::start(&["demo", "-w", "1"]);
    let worker = server.workers(1)[0];
    let mut client = server.endpoint().connect_narrow();
    client.send_get(&format!("/bytes/{MUCH}"));
    assert_eq!(client.read_exact(15), b"HTTP/1.1 200 OK");
    client.send("GET / HT");
    wait_until_idle(worker.pid);
    server.signal(Signal::SIGTERM);
    wait_until_ended(&server, &client);
    assert!(read_late(&mut client).len() > MUCH);
    assert!(server.wait().success());
}

#[test]
fn workers_whose_master_was_killed_destroy_no_response() {
    for threads in ["1", "2"] {
        let mut server = Server::start(&["demo", "-w", "1", "--threads", threads]);
        let worker = server.workers(1)[0].pid;
        let watched = Watched::new(worker);
        let mut client = server.endpoint().connect_narrow();
        client.send(format!(
            "GET /bytes/{MUCH} HTTP/1.1\r\nHost: test\r\n\r\n\
             GET /sleep/300 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        ));
        // More than the worker reads at a time.
        client.send([b'x'; 60_000]);
        eventually("the worker sleeps", || sleeping_threads(worker) == 1);
        server.signal(Signal::SIGKILL);
        assert!(!server.wait_for_master().success());
        wait_until_ended(&server, &client);
        assert!(read_late(&mut client).len() > MUCH);
        drop(client);
        assert_eq!(watched.reap_orphan(), WaitStatus::Exited(worker, 0));
    }
}

#[test]
fn a_master_that_follows_a_killed_one_destroys_no_response() {
    let manager = Manager::new(100);
    let mut first = manager.manage(Setup::new(&["demo", "-w", "1"])).start();
    let worker = first.workers(1)[0];
    let mut client = first.endpoint().connect_narrow();
    assert_eq!(client.get("/").status, 200);
    wait_until_parked(&manager, 1);
    // The worker sleeps when it has sent the response, and more is waiting to be read.
    client.send(format!(
        "GET /bytes/{MUCH} HTTP/1.1\r\nHost: test\r\n\r\n\
         GET /sleep/60000 HTTP/1.1\r\nHost: test\r\n\r\n"
    ));
    client.send([b'x'; 60_000]);
    wait_until_asleep(worker.pid);
    let watched = Watched::new(worker.pid);
    first.signal(Signal::SIGKILL);
    first.wait_for_master();
    signal(worker.pid, Signal::SIGKILL);
    watched.reap_orphan();
    let second = manager.manage(Setup::new(&["demo", "-w", "1"])).start();
    second.wait_for_log("something was sent, so it is closed");
    assert!(read_late(&mut client).len() > MUCH);
}
