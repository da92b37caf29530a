//! A client that takes nothing for now: what is written for it is kept, and sent on.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use rustix::net::sockopt::set_socket_send_buffer_size;

use super::*;
use crate::service::Turn;
use crate::service::outgoing::record::Record;
use crate::sys::unlinked::Directory;
use crate::wire::MAX_NOTE;

/// What a worker keeps that has room for so much, in files in memory or in a directory.
fn keeping(max_spool: u64, directory: Option<Directory>) -> &'static Keeping {
    Box::leak(Box::new(Keeping {
        directory,
        max_body: 1 << 20,
        max_spool,
    }))
}

/// A connection that has room for a few KiB, and its client.
fn slow(keeping: &'static Keeping) -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    set_socket_send_buffer_size(&ours, 4096).unwrap();
    theirs
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut connection = Connection::adopt(ours, Peer::Unix).with_keeping(keeping);
    // A write that sleeps all the same fails soon.
    connection
        .set_timeouts(None, Some(Duration::from_millis(50)))
        .unwrap();
    (connection, theirs)
}

/// The connection as the next worker has it, after a report.
fn relent(connection: Connection, moved: u64) -> Connection {
    let keeping = connection.keeping;
    let (socket, buffer, mut baggage) = connection.into_parts();
    let note = baggage.extras().note.unwrap_or_default().to_vec();
    assert!(note.len() <= MAX_NOTE && buffer.bytes().len() <= MAX_CARRY);
    let lend = Lend {
        note: &note,
        moved: Traffic {
            read: 0,
            written: moved,
        },
        carry: buffer.bytes(),
        ..Lend::first(1, Peer::Unix)
    };
    let luggage = baggage.take_luggage();
    Connection::lent((socket, luggage), &lend, 0, keeping, Buffer::default())
}

/// Ends the service's turn, and lets others send on until the connection is the service's again.
/// Returns how that turn ends, and what the client has got.
fn send_on(
    mut connection: Connection,
    then: Outcome,
    client: &mut UnixStream,
) -> (Connection, Outcome, Vec<u8>) {
    let outcome = connection.settle(then);
    go_on(connection, outcome, client)
}

/// The same, when the turn has ended so.
fn go_on(
    mut connection: Connection,
    mut outcome: Outcome,
    client: &mut UnixStream,
) -> (Connection, Outcome, Vec<u8>) {
    let mut received = Vec::new();
    let mut block = vec![0; 64 * 1024];
    while connection.sends_on() {
        assert!(matches!(outcome, Outcome::ParkWrite | Outcome::Again));
        assert!(connection.baggage().resumable);
        connection = relent(connection, 0);
        outcome = connection.send_on(false);
        if connection.sends_on() {
            let count = client.read(&mut block).unwrap();
            received.extend_from_slice(&block[..count]);
        }
    }
    assert!(!connection.baggage().resumable);
    client.set_nonblocking(true).unwrap();
    while let Ok(count @ 1..) = client.read(&mut block) {
        received.extend_from_slice(&block[..count]);
    }
    client.set_nonblocking(false).unwrap();
    (connection, outcome, received)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251 + at) as u8).collect()
}

#[test]
fn writes_of_any_size_are_kept_in_their_order() {
    let sizes = [100, 5000, 9000, 70_000, 300_000, 2_000_000, 3, 40_000];
    for memory in [true, false] {
        let directory = Directory::open(&std::env::temp_dir()).unwrap();
        let keeping = keeping(1 << 30, (!memory).then_some(directory));
        let (mut connection, mut client) = slow(keeping);
        let mut wanted = Vec::new();
        for size in sizes {
            let part = pattern(size);
            match size % 3 {
                0 => connection.write_all(&part).unwrap(),
                1 => connection.write_more(&part).unwrap(),
                _ => {
                    let halves = part.split_at(size / 2);
                    let parts = [IoSlice::new(halves.0), IoSlice::new(halves.1)];
                    assert_eq!(connection.write_vectored(&parts).unwrap(), size);
                }
            }
            wanted.extend(part);
        }
        assert!(connection.is_behind());
        let (connection, outcome, received) = send_on(connection, Outcome::Park, &mut client);
        assert_eq!(outcome, Outcome::Park);
        assert!(received == wanted, "{} of {}", received.len(), wanted.len());
        assert!(connection.luggage().is_none() && connection.buffer().is_empty());
        assert!(connection.baggage().record().is_empty());
    }
}

#[test]
fn a_little_travels_in_front_of_the_carry_and_more_in_a_file() {
    let is_memory = |connection: &Connection| {
        let luggage = connection.baggage().luggage();
        luggage.map(|file| rustix::fs::fcntl_get_seals(file).is_ok())
    };
    let directory = || Directory::open(&std::env::temp_dir()).ok();
    for (size, file) in [
        (12_000, None),
        (100_000, Some(true)),
        (3 << 20, Some(false)),
    ] {
        let (mut connection, mut client) = slow(keeping(1 << 30, directory()));
        client.write_all(b"next").unwrap();
        connection.fill().unwrap();
        connection.set_note(b"who").unwrap();
        connection.write_all(&pattern(size)).unwrap();
        // The service sees nothing of it.
        assert_eq!(connection.buffer(), b"next");
        let outcome = connection.settle(Outcome::Park);
        assert_eq!(is_memory(&connection), file, "{size}");
        assert_eq!(connection.buffer().len() > 4, file.is_none());
        let (connection, outcome, received) = go_on(connection, outcome, &mut client);
        assert!(received == pattern(size));
        // What it has read may be a request.
        assert_eq!(
            (connection.buffer(), outcome),
            (&b"next"[..], Outcome::Again)
        );
        assert_eq!(connection.note(), b"who");
    }
}

#[test]
fn a_file_that_is_sent_is_the_luggage_itself_and_a_short_rest_is_copied() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(900_000)).unwrap();
    let (mut connection, mut client) = slow(keeping(1000, None));
    connection.write_more(b"head ").unwrap();
    // It may be longer than what is kept.
    connection.send_file(&file, 7, 800_000).unwrap();
    connection.write_all(b" tail").unwrap();
    let (_, outcome, received) = send_on(connection, Outcome::Close, &mut client);
    let wanted = [b"head ", &pattern(900_000)[7..800_007], b" tail"].concat();
    assert!(received == wanted && outcome == Outcome::Close);

    let (mut connection, mut client) = slow(keeping(1 << 20, None));
    connection.send_file(&file, 0, 50_000).unwrap();
    drop(file);
    let (_, _, received) = send_on(connection, Outcome::Home, &mut client);
    assert!(received == pattern(50_000));
}

#[test]
fn what_is_repeated_is_one_file_for_all() {
    static PATTERN: [u8; 1000] = [7; 1000];
    let (mut connection, mut client) = slow(keeping(1 << 20, None));
    connection.write_more(b"head").unwrap();
    connection.send_repeated(&PATTERN, 1_234_567).unwrap();
    assert_eq!(connection.traffic().written, 0, "it is kept first");
    let (_, _, received) = send_on(connection, Outcome::Park, &mut client);
    assert_eq!(received.len(), 4 + 1_234_567);
    assert!(received[4..].iter().all(|byte| *byte == 7));
    let place = |connection: &Connection| {
        let stat = rustix::fs::fstat(connection.baggage().luggage().unwrap()).unwrap();
        stat.st_ino
    };
    let settled = || {
        let (mut connection, _client) = slow(keeping(1 << 20, None));
        connection.send_repeated(&PATTERN, 1_234_567).unwrap();
        assert_eq!(connection.settle(Outcome::Park), Outcome::Again);
        place(&connection)
    };
    assert_eq!(settled(), settled());
}

#[test]
fn beyond_the_limit_a_write_waits_for_its_client() {
    let (mut connection, mut client) = slow(keeping(100_000, None));
    connection.write_all(&pattern(90_000)).unwrap();
    let error = connection.write_all(&pattern(30_000)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    // Nothing more can come in its place.
    assert!(!connection.is_behind());
    client.set_nonblocking(true).unwrap();
    let mut received = vec![0; 200_000];
    let mut length = 0;
    while let Ok(count @ 1..) = client.read(&mut received[length..]) {
        length += count;
    }
    assert!(received[..length] == pattern(90_000)[..length]);
}

#[test]
fn a_service_with_luggage_of_its_own_waits_beyond_what_fits_into_memory() {
    let (mut connection, mut client) = slow(keeping(1 << 20, None));
    connection
        .set_luggage(Keeping::memory_file().unwrap())
        .unwrap();
    connection.write_all(&pattern(12_000)).unwrap();
    let error = connection.write_all(&pattern(30_000)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let (mut connection, _) = (connection, ());
    connection.kept = None;
    assert!(client.read(&mut [0; 100_000]).unwrap() > 0);
    connection.write_all(&pattern(12_000)).unwrap();
    let (connection, _, _) = send_on(connection, Outcome::Park, &mut client);
    assert!(connection.luggage().is_some(), "it is the service's");
}

#[test]
fn a_client_that_takes_nothing_is_not_read_from() {
    let (mut connection, mut client) = slow(keeping(1 << 30, None));
    client.write_all(b"more").unwrap();
    connection.write_all(&pattern(200_000)).unwrap();
    assert_eq!(connection.fill().unwrap(), Fill::Bytes(4));
    connection.write_all(&pattern(200_000)).unwrap();
    client.write_all(b"more").unwrap();
    assert_eq!(connection.fill().unwrap(), Fill::Empty);
    assert!(!connection.is_drained());
}

#[test]
fn a_read_that_sleeps_sends_all_first() {
    let (mut connection, mut client) = slow(keeping(1 << 30, None));
    connection
        .set_timeouts(Some(Duration::from_secs(10)), Some(Duration::from_secs(10)))
        .unwrap();
    connection.write_more(b"what ").unwrap();
    connection.write_all(&pattern(100_000)).unwrap();
    let question = std::thread::spawn(move || {
        let mut received = vec![0; 100_005];
        client.read_exact(&mut received).unwrap();
        client.write_all(b"that").unwrap();
        received
    });
    let mut answer = [0; 4];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"that");
    assert!(question.join().unwrap()[5..] == pattern(100_000));
    assert!(!connection.is_behind());
}

#[test]
fn a_turn_that_ends_early_is_gone_on_with_from_the_kernels_count() {
    let (mut connection, mut client) = slow(keeping(1 << 30, None));
    connection.write_more(&pattern(3000)).unwrap();
    connection.send_repeated(&[1; 500], 400_000).unwrap();
    assert_eq!(connection.settle(Outcome::Park), Outcome::Again);
    // A worker sends 3500 bytes, and dies.
    let socket = connection.as_fd().try_clone_to_owned().unwrap();
    let sent = [&pattern(3000)[..], &[1; 500]].concat();
    let sent_now = rustix::net::send(&socket, &sent, rustix::net::SendFlags::DONTWAIT).unwrap();
    let mut connection = relent(connection, sent_now as u64);
    let record = connection.baggage().record().to_vec();
    assert_eq!(Record::decode(&record).unwrap().remaining(), 403_000);
    let outcome = connection.send_on(false);
    assert_eq!(outcome, Outcome::ParkWrite);
    let (_, outcome, received) = go_on(connection, outcome, &mut client);
    assert_eq!(outcome, Outcome::Park);
    assert_eq!(received.len(), 403_000);
    assert!(received[..3000] == pattern(3000) && received[3000..].iter().all(|one| *one == 1));
}

#[test]
fn a_record_that_makes_no_sense_closes_the_connection() {
    let (mut connection, _client) = slow(keeping(1 << 30, None));
    connection.write_all(&pattern(100_000)).unwrap();
    let _ = connection.settle(Outcome::Park);
    let mut connection = relent(connection, 1 << 40);
    assert_eq!(connection.send_on(false), Outcome::Close);
}

#[test]
fn on_tcp_a_fast_client_gets_a_file_in_one_turn() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, peer) = listener.accept().unwrap();
    let mut connection =
        Connection::adopt(ours, Peer::Inet(peer)).with_keeping(keeping(1 << 30, None));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(2_000_000)).unwrap();
    let reader = std::thread::spawn(move || {
        let mut received = vec![0; 200_004 + 1_000_004];
        client.read_exact(&mut received).unwrap();
        received
    });
    connection.write_more(b"head").unwrap();
    connection.send_file(&file, 0, 200_000).unwrap();
    connection.write_more(b"head").unwrap();
    connection.send_file(&file, 0, 1_000_000).unwrap();
    let mut outcome = connection.settle(Outcome::Park);
    while connection.sends_on() {
        connection = relent(connection, 0);
        outcome = connection.send_on(false);
    }
    assert_eq!(outcome, Outcome::Park);
    let wanted = [b"head", &pattern(200_000)[..], b"head", &pattern(1_000_000)].concat();
    assert!(reader.join().unwrap() == wanted);
}

#[test]
fn a_turn_may_return_anything_when_all_is_sent() {
    for turn in [
        Turn::Park,
        Turn::ParkForWriting,
        Turn::Again,
        Turn::Home,
        Turn::Close,
        Turn::Linger,
    ] {
        let (mut connection, mut client) = slow(keeping(1 << 30, None));
        connection.write_all(&pattern(50_000)).unwrap();
        let (_, outcome, received) = send_on(connection, turn.outcome(), &mut client);
        assert_eq!((outcome, received.len()), (turn.outcome(), 50_000));
    }
}
