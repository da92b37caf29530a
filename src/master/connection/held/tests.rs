//! What the master holds, with a client and a worker in the same process.

use super::*;
use crate::wire::Extras;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// A client that reads nothing, a server that has sent it more than it has room for and is to
/// linger for so long, and what the master holds.
fn stuck(linger: Duration) -> (TcpStream, Held) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (worker, peer) = listener.accept().unwrap();
    let held = Held::new(worker.try_clone().unwrap().into(), Peer::Inet(peer));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    while send(&worker, &[b'x'; 65536], flags).is_ok() {}
    sockopt::set_socket_linger(&worker, Some(linger)).unwrap();
    (client, held)
}

#[test]
fn a_worker_that_lingers_does_not_hold_up_the_master() {
    let (mut client, held) = stuck(Duration::from_secs(20));
    let begin = std::time::Instant::now();
    drop(held);
    assert!(begin.elapsed() < Duration::from_secs(5));
    // And nothing is lost.
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert!(all.len() >= 65536);
}

#[test]
fn a_service_that_asks_for_a_reset_gets_it() {
    let (mut client, held) = stuck(Duration::ZERO);
    drop(held);
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn what_came_along_with_a_served_turn_does_not_come_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut worker, peer) = listener.accept().unwrap();
    let mut held = Held::new(worker.try_clone().unwrap().into(), Peer::Inet(peer));
    client.write_all(b"half and half").unwrap();
    worker.read_exact(&mut [0; 5]).unwrap();
    let moved = |read, written| Some(Traffic { read, written });
    held.count(
        &Report {
            id: 1,
            outcome: Outcome::Park,
            traffic: moved(5, 0),
            extras: Extras::default(),
            carry: b"half ",
        },
        None,
        true,
    );
    worker.read_exact(&mut [0; 8]).unwrap();
    worker.write_all(b"whole").unwrap();
    let pending = Entry {
        id: 1,
        outcome: Outcome::Park,
        turns: 1,
        traffic: Traffic {
            read: 8,
            written: 5,
        },
        took: std::time::Duration::ZERO,
    };
    let verdict = held.examine(None, Some(pending));
    assert_eq!(verdict, Verdict::Served(Outcome::Park));
    assert_eq!(held.carry(), b"");
    assert_eq!(held.examine(None, None), Verdict::Untouched);
}
