//! A connection with a client in the same process.

mod slow;

use super::*;
use std::io::{IoSlice, Write};
use std::os::unix::net::UnixStream;

fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    (Connection::adopt(ours, Peer::Unix), theirs)
}

#[test]
fn fill_adds_to_the_buffer_and_never_sleeps() {
    let (mut connection, mut client) = pair();
    assert_eq!(connection.fill().unwrap(), Fill::Empty);
    client.write_all(b"abc").unwrap();
    assert_eq!(connection.fill().unwrap(), Fill::Bytes(3));
    client.write_all(b"de").unwrap();
    assert_eq!(connection.fill().unwrap(), Fill::Bytes(2));
    connection.consume(1);
    assert_eq!(connection.buffer(), b"bcde");
    drop(client);
    assert_eq!(connection.fill().unwrap(), Fill::End);
    assert_eq!(
        connection.traffic(),
        Traffic {
            read: 5,
            written: 0
        }
    );
}

#[test]
fn a_buffer_never_grows_past_what_the_wire_carries() {
    let (mut connection, mut client) = pair();
    let block = [b'x'; 8192];
    let error = loop {
        client.write_all(&block).unwrap();
        match connection.fill() {
            Ok(_) => assert!(connection.buffer().len() <= MAX_CARRY),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    assert_eq!(connection.buffer().len(), MAX_CARRY);
}

#[test]
fn parts_and_pieces_arrive_in_order_and_are_counted() {
    let (mut connection, mut client) = pair();
    connection.write_more(b"head ").unwrap();
    let parts = [IoSlice::new(b"and "), IoSlice::new(b"body")];
    assert_eq!(connection.write_vectored(&parts).unwrap(), 8);
    assert_eq!(connection.traffic().written, 13);
    drop(connection);
    let mut received = String::new();
    client.read_to_string(&mut received).unwrap();
    assert_eq!(received, "head and body");
}

#[test]
fn a_sleep_past_the_timeout_says_that_the_client_took_too_long() {
    let (mut connection, _client) = pair();
    connection
        .set_timeouts(Some(Duration::from_millis(10)), None)
        .unwrap();
    let error = connection.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
