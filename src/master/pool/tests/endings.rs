//! How connections end: nothing that was sent is lost, and nothing is sent into the middle of a
//! response.

use std::net::Shutdown;

use super::*;

/// Sends as much as the kernel takes without a reader.
fn fill(socket: &mut TcpStream) -> u64 {
    socket.set_nonblocking(true).unwrap();
    let block = [b'x'; 64 * 1024];
    let mut sent = 0;
    while let Ok(count) = socket.write(&block) {
        sent += count as u64;
    }
    socket.set_nonblocking(false).unwrap();
    sent
}

/// Reads to the end of the connection while the master works.
#[track_caller]
fn read_all(world: &mut World, client: &mut TcpStream) -> Vec<u8> {
    client.set_nonblocking(true).unwrap();
    let end = Instant::now() + DEADLINE;
    let mut bytes = Vec::new();
    loop {
        assert!(Instant::now() < end, "the connection does not end");
        match client.read_to_end(&mut bytes) {
            Ok(_) => return bytes,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => world.round(),
            Err(error) => panic!("after {} bytes: {error}", bytes.len()),
        }
    }
}

/// Waits until the client's kernel has all that was sent.
fn until_delivered(socket: &TcpStream) {
    let end = Instant::now() + DEADLINE;
    while crate::sys::tcp::unacknowledged(socket).unwrap() > 0 {
        assert!(Instant::now() < end, "it does not take what was sent");
        std::thread::yield_now();
    }
}

/// A worker and a client whose request it has read, in the turn with this name and descriptor.
fn begin_turn(mut world: World) -> (World, Played, TcpStream, u64, TcpStream) {
    let mut worker = world.hire(0);
    let mut client = TcpStream::connect(world.address).unwrap();
    client.write_all(b"request").unwrap();
    let (id, mut socket) = world.lent(&mut worker);
    assert_eq!(read(&mut socket, 7), b"request");
    (world, worker, client, id, socket)
}

#[test]
fn input_that_nobody_has_read_destroys_no_output() {
    let mut world = World::new();
    let mut worker = world.hire(0);
    let mut client = TcpStream::connect(world.address).unwrap();
    client.write_all(b"request, and more").unwrap();
    let (id, mut socket) = world.lent(&mut worker);
    assert_eq!(read(&mut socket, 7), b"request");
    let sent = fill(&mut socket);
    drop(socket);
    worker.report(id, Outcome::Close, (7, sent), b"");
    rounds(&mut world);
    assert_eq!(world.pool.dispatcher.connections(), 0, "it is over");
    assert_eq!(read_all(&mut world, &mut client).len() as u64, sent);
    drop(client);
    world.until("it is forgotten", |world| world.pool.dispatcher.is_empty());
}

#[test]
fn input_that_comes_after_the_end_destroys_no_output() {
    let (mut world, worker, mut client, id, mut socket) = begin_turn(World::new());
    let sent = fill(&mut socket);
    socket.shutdown(Shutdown::Write).unwrap();
    drop(socket);
    worker.report(id, Outcome::Close, (7, sent), b"");
    for _ in 0..5 {
        client.write_all(b"\r\n").unwrap();
        rounds(&mut world);
    }
    assert_eq!(read_all(&mut world, &mut client).len() as u64, sent);
}

/// Who has sent a request in pieces may be sending more of them. A client whose next write is told
/// of a reset does not look for the answer.
#[test]
fn a_client_that_sends_piece_by_piece_may_go_on_after_the_end() {
    let (mut world, mut worker, mut client, id, socket) = begin_turn(World::new());
    drop(socket);
    worker.report(id, Outcome::Park, (7, 0), b"request");
    client.write_all(b", the rest").unwrap();
    let (id, mut socket) = world.lent(&mut worker);
    assert_eq!(read(&mut socket, 10), b", the rest");
    socket.write_all(b"response").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    until_delivered(&socket);
    drop(socket);
    worker.report(id, Outcome::Close, (10, 8), b"");
    world.until("it is over", |world| {
        world.pool.dispatcher.connections() == 0
    });
    for _ in 0..5 {
        client.write_all(b"more").unwrap();
        rounds(&mut world);
    }
    assert_eq!(read_all(&mut world, &mut client), b"response");
    drop(client);
    world.until("it is forgotten", |world| world.pool.dispatcher.is_empty());
}

#[test]
fn with_nothing_under_way_a_connection_is_closed_at_once() {
    let (mut world, worker, mut client, id, mut socket) = begin_turn(World::new());
    socket.write_all(b"response").unwrap();
    assert_eq!(read(&mut client, 8), b"response");
    until_delivered(&socket);
    drop(socket);
    worker.report(id, Outcome::Close, (7, 8), b"");
    world.until("it is over", |world| world.pool.dispatcher.is_empty());
    assert_eq!(read_all(&mut world, &mut client), b"");
}

/// What a client gets whose worker has sent a part of the response, ended its turn so, and dies in
/// the next one after it has read what the client has sent meanwhile.
fn killed_after(outcome: Outcome, carry: &[u8]) -> Vec<u8> {
    let (mut world, mut worker, mut client, id, mut socket) = begin_turn(World::new());
    socket.write_all(b"a part").unwrap();
    client.write_all(b"more").unwrap();
    drop(socket);
    worker.report(id, outcome, (7, 6), carry);
    let (_, mut socket) = world.lent(&mut worker);
    assert_eq!(read(&mut socket, 4), b"more");
    drop(socket);
    world.kill(worker);
    read_all(&mut world, &mut client)
}

#[test]
fn nothing_is_said_in_the_middle_of_a_response() {
    assert_eq!(
        killed_after(Outcome::Park, b""),
        b"a partthe worker is gone"
    );
    assert_eq!(killed_after(Outcome::ParkWrite, b""), b"a part");
    assert_eq!(killed_after(Outcome::ParkWrite, b"quest"), b"a part");
    assert_eq!(killed_after(Outcome::Again, b""), b"a part");
}

#[test]
fn a_connection_that_waits_for_its_worker_in_vain_gets_no_reply_into_its_response() {
    let mut world = World::new();
    let mut limits = world.pool.plan.limits(100);
    limits.queue_wait = Some(Duration::from_millis(50));
    world.pool.dispatcher.set_limits(limits);
    let (mut world, worker, mut client, id, mut socket) = begin_turn(world);
    socket.write_all(b"a part").unwrap();
    drop(socket);
    // The worker is busy with another one, and its program stands still.
    let mut other = TcpStream::connect(world.address).unwrap();
    other.write_all(b"request").unwrap();
    rounds(&mut world);
    let name = Pid::from_raw(worker.program.id().cast_signed());
    let name = world.pool.workers.by_pid(name).unwrap();
    world.pool.dispatcher.worker_stopped(name);
    worker.report(id, Outcome::Again, (7, 6), b"");
    assert_eq!(read_all(&mut world, &mut client), b"a part");
}

#[test]
fn a_client_that_takes_too_little_of_a_response_gets_a_reset_and_no_more() {
    let mut world = World::new();
    let mut limits = world.pool.plan.limits(100);
    (limits.rate, limits.rate_grace) = (Some(1 << 40), Duration::from_millis(50));
    world.pool.dispatcher.set_limits(limits);
    let (mut world, worker, mut client, id, mut socket) = begin_turn(world);
    let sent = fill(&mut socket);
    drop(socket);
    worker.report(id, Outcome::ParkWrite, (7, sent), b"");
    world.until("it is forgotten", |world| world.pool.dispatcher.is_empty());
    let mut taken = Vec::new();
    let end = client.read_to_end(&mut taken).unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    assert!((taken.len() as u64) < sent, "{sent}");
}

/// Such a client need not end the connection, and no time needs to pass.
#[test]
fn a_connection_whose_client_has_all_that_was_sent_holds_up_no_stop() {
    // It lingers before the stop, or since then.
    for before in [true, false] {
        let (mut world, worker, mut client, id, mut socket) = begin_turn(World::new());
        let mut limits = world.pool.plan.limits(100);
        limits.linger = 10 * DEADLINE;
        world.pool.dispatcher.set_limits(limits);
        let sent = fill(&mut socket);
        drop(socket);
        let now = world.now();
        if !before {
            world.pool.stop(now);
        }
        worker.report(id, Outcome::Close, (7, sent), b"");
        world.until("it lingers", |world| {
            world.pool.dispatcher.lingering().count() == 1
        });
        if before {
            world.pool.stop(now);
        }
        rounds(&mut world);
        assert!(!world.pool.is_done(), "the client has read nothing");
        assert_eq!(read_all(&mut world, &mut client).len() as u64, sent);
        world.until("it is closed", |world| world.pool.is_done());
    }
}

/// An upload that was answered before its end.
#[test]
fn a_client_that_goes_on_sending_is_reset_neither_by_a_stop_nor_by_an_upgrade() {
    for stops in [true, false] {
        let (mut world, worker, mut client, id, mut socket) = begin_turn(World::new());
        socket.write_all(b"response").unwrap();
        until_delivered(&socket);
        drop(socket);
        worker.report(id, Outcome::Linger, (7, 8), b"");
        client.write_all(b"more").unwrap();
        world.until("it is discarded, and the client has its answer", |world| {
            let mut lingering = world.pool.dispatcher.lingering();
            let held = lingering.next().and_then(|id| world.pool.held(id));
            held.is_some_and(|held| held.goes_on() && !held.has_unsent())
        });
        let now = world.now();
        match stops {
            true => world.pool.stop(now),
            false => world.pool.leave(|_| true, now),
        }
        for _ in 0..5 {
            rounds(&mut world);
            client.write_all(b"more").unwrap();
        }
        assert_eq!(read_all(&mut world, &mut client), b"response");
        drop(client);
        world.until("it is closed", |world| world.pool.is_done());
    }
}

/// The client has not read the response yet when it sends its next request, which comes too late.
#[test]
fn a_request_that_comes_after_the_stop_destroys_no_output() {
    let (mut world, worker, mut client, id, mut socket) = begin_turn(World::new());
    let now = world.now();
    world.pool.stop(now);
    let sent = fill(&mut socket);
    drop(socket);
    worker.report(id, Outcome::Park, (7, sent), b"");
    world.until("it is over", |world| {
        world.pool.dispatcher.connections() == 0
    });
    for _ in 0..5 {
        let _ = client.write_all(b"request");
        rounds(&mut world);
    }
    assert_eq!(read_all(&mut world, &mut client).len() as u64, sent);
}

#[test]
fn a_client_that_is_gone_for_good_does_not_wait_for_a_worker() {
    let mut world = World::new();
    let mut worker = world.hire(0);
    let mut client = TcpStream::connect(world.address).unwrap();
    client.write_all(b"request").unwrap();
    let (_, _socket) = world.lent(&mut worker);
    let name = Pid::from_raw(worker.program.id().cast_signed());
    let name = world.pool.workers.by_pid(name).unwrap();
    world.pool.dispatcher.worker_stopped(name);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let mut client = TcpStream::connect(world.address).unwrap();
            client.write_all(b"request").unwrap();
            client
        })
        .collect();
    world.until("they wait", |world| world.pool.dispatcher.waiting() == 3);
    let mut waiting = waiting.into_iter();
    // A reset instead of an end, an end, and the end of one side.
    let reset = waiting.next().unwrap();
    rustix::net::sockopt::set_socket_linger(&reset, Some(Duration::ZERO)).unwrap();
    drop(reset);
    drop(waiting.next());
    let mut half = waiting.next().unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let now = world.now();
    world.pool.stop(now);
    assert_eq!(read_all(&mut world, &mut half), b"too many");
    world.until("nobody waits", |world| world.pool.dispatcher.waiting() == 0);
}
