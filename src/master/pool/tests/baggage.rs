//! What travels with a connection, as the worker sees it that has the next turn; and what a worker
//! sends that it may not.

use std::io::IoSlice;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::EventFd;
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::net::sockopt;

use super::*;
use crate::fdpass::{self, MAX_DESCRIPTORS, Wait};
use crate::master::connection::descriptors;
use crate::master::connection::luggage::Luggage;
use crate::master::dispatch::Interest;
use crate::master::snapshot::{Packed, Packing, Place, Snapshot};
use crate::service::Peer;
use crate::wire::LuggageChange;

/// A turn, as its worker was given it.
struct Turn {
    id: u64,
    number: u64,
    moved: (u64, u64),
    note: Vec<u8>,
    carry: Vec<u8>,
    luggage: Option<OwnedFd>,
    socket: TcpStream,
}

#[track_caller]
fn turn(world: &mut World, worker: &mut Played) -> Turn {
    let end = Instant::now() + DEADLINE;
    while !worker.has_mail() {
        assert!(Instant::now() < end, "nothing is lent");
        world.round();
    }
    match worker.end.receive(&mut worker.messages).unwrap() {
        Assignment::Serve(lend, borrowed) => Turn {
            id: lend.id,
            number: lend.turn,
            moved: (lend.moved.read, lend.moved.written),
            note: lend.note.to_vec(),
            carry: lend.carry.to_vec(),
            luggage: borrowed.luggage,
            socket: TcpStream::from(borrowed.connection),
        },
        Assignment::Retire => panic!("it is to exit"),
    }
}

const RESUMABLE: Extras<'_> = Extras {
    note: None,
    luggage: LuggageChange::None,
    resumable: true,
    body: false,
    pool: "",
};

fn extras(note: Option<&[u8]>, luggage: LuggageChange) -> Extras<'_> {
    Extras {
        note,
        luggage,
        ..Extras::default()
    }
}

fn report<'a>(id: u64, outcome: Outcome, extras: Extras<'a>) -> Report<'a> {
    Report {
        id,
        outcome,
        traffic: Some(Traffic::default()),
        extras,
        carry: b"",
    }
}

impl Turn {
    /// Ends the turn with this report.
    fn end(self, worker: &Played, said: Report<'_>, luggage: Option<BorrowedFd<'_>>) {
        drop(self.socket);
        worker.end.send(&FromWorker::Report(said), luggage).unwrap();
    }
}

fn memory() -> OwnedFd {
    memfd_create("luggage", MemfdFlags::CLOEXEC).unwrap()
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let (one, other) = (fstat(one).unwrap(), fstat(other).unwrap());
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

#[test]
fn note_and_luggage_stay_until_a_report_says_otherwise() {
    let mut world = World::new();
    let mut worker = world.hire(0);
    let mut client = TcpStream::connect(world.address).unwrap();
    client.write_all(b"x").unwrap();
    let (first, second) = (memory(), memory());
    let again = Outcome::Again;

    let begun = turn(&mut world, &mut worker);
    assert!(begun.note.is_empty() && begun.luggage.is_none());
    let id = begun.id;
    let both = extras(Some(b"who"), LuggageChange::New);
    begun.end(&worker, report(id, again, both), Some(first.as_fd()));
    // Two reports that say nothing of it.
    for _ in 0..2 {
        let kept = turn(&mut world, &mut worker);
        assert_eq!(kept.note, b"who");
        assert!(is_same(kept.luggage.as_ref().unwrap(), &first));
        kept.end(&worker, report(id, again, Extras::default()), None);
    }
    let replaced = turn(&mut world, &mut worker);
    let new = extras(None, LuggageChange::New);
    replaced.end(&worker, report(id, again, new), Some(second.as_fd()));
    let other = turn(&mut world, &mut worker);
    assert_eq!(other.note, b"who");
    assert!(is_same(other.luggage.as_ref().unwrap(), &second));
    assert_eq!(descriptors::count(), 2);
    let gone = extras(Some(b"whom"), LuggageChange::Gone);
    other.end(&worker, report(id, again, gone), None);
    let without = turn(&mut world, &mut worker);
    assert_eq!(
        (&without.note[..], without.luggage.is_none()),
        (&b"whom"[..], true)
    );
    let cleared = extras(Some(b""), LuggageChange::New);
    without.end(&worker, report(id, again, cleared), Some(first.as_fd()));
    let last = turn(&mut world, &mut worker);
    assert!(last.note.is_empty() && last.luggage.is_some());

    // What is over keeps nothing, though its client is still there.
    last.end(
        &worker,
        report(id, Outcome::Linger, Extras::default()),
        None,
    );
    world.until("the luggage is gone", |_| descriptors::count() == 1);
}

#[test]
fn a_resumable_turn_is_repeated_as_long_as_it_moves_something() {
    let mut world = World::new();
    let mut worker = world.hire(0);
    let mut client = TcpStream::connect(world.address).unwrap();
    client.write_all(b"request").unwrap();
    let mut begun = turn(&mut world, &mut worker);
    assert_eq!(read(&mut begun.socket, 7), b"request");
    begun.socket.write_all(b"0123").unwrap();
    let (id, luggage) = (begun.id, memory());
    let mut resumable = extras(Some(b"from 4 on"), LuggageChange::New);
    resumable.resumable = true;
    let said = Report {
        traffic: Some(Traffic {
            read: 7,
            written: 4,
        }),
        carry: b"next",
        ..report(id, Outcome::ParkWrite, resumable)
    };
    begun.end(&worker, said, Some(luggage.as_fd()));

    // Three workers die in the next turn, and each moves something.
    for (count, slot) in [(0, 1), (5, 2), (10, 3)] {
        let mut resumed = turn(&mut world, &mut worker);
        assert_eq!((resumed.number, resumed.moved), (2, (0, count)));
        assert_eq!(
            (&resumed.note[..], &resumed.carry[..]),
            (&b"from 4 on"[..], &b"next"[..])
        );
        assert!(is_same(resumed.luggage.as_ref().unwrap(), &luggage));
        resumed.socket.write_all(b"56789").unwrap();
        drop(resumed);
        world.kill(worker);
        worker = world.hire(slot);
    }
    // What was moved counts from the next report on, which says nothing of luggage and note.
    let resumed = turn(&mut world, &mut worker);
    assert_eq!(resumed.moved, (0, 15));
    let said = report(id, Outcome::Again, RESUMABLE);
    resumed.end(&worker, said, None);
    let next = turn(&mut world, &mut worker);
    assert_eq!((next.number, next.moved), (3, (0, 0)));
    assert!(next.luggage.is_some());

    // Workers that move nothing are forgiven some times, and no more.
    drop(next);
    for slot in 4..9 {
        world.kill(worker);
        worker = world.hire(slot);
        let once_more = turn(&mut world, &mut worker);
        assert_eq!((once_more.number, once_more.moved), (3, (0, 0)));
    }
    world.kill(worker);
    // A part of an answer was sent, so there is no reply.
    assert_eq!(read(&mut client, 19), b"0123567895678956789");
    world.until("the connection is over", |world| {
        world.pool.dispatcher.connections() == 0
    });
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_turn_that_is_resumable_no_more_is_settled_as_any_other() {
    let mut world = World::new();
    let mut worker = world.hire(0);
    let mut client = TcpStream::connect(world.address).unwrap();
    client.write_all(b"half").unwrap();
    let begun = turn(&mut world, &mut worker);
    let id = begun.id;
    begun.end(&worker, report(id, Outcome::Park, RESUMABLE), None);
    let mut gathered = turn(&mut world, &mut worker);
    assert_eq!(read(&mut gathered.socket, 4), b"half");
    drop(gathered);
    world.kill(worker);
    worker = world.hire(1);
    // It takes up what the dead one has read, and is done with it.
    let resumed = turn(&mut world, &mut worker);
    assert_eq!(resumed.moved, (4, 0));
    resumed.end(&worker, report(id, Outcome::Again, Extras::default()), None);
    let mut whole = turn(&mut world, &mut worker);
    client.write_all(b"more").unwrap();
    assert_eq!(read(&mut whole.socket, 4), b"more");
    drop(whole);
    world.kill(worker);
    assert_eq!(read(&mut client, 18), b"the worker is gone");
}

#[test]
fn a_resumable_turn_goes_on_when_its_master_was_killed() {
    let mut world = World::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut socket, peer) = listener.accept().unwrap();
    // The last report is of the first four bytes.
    socket.write_all(b"0123456789").unwrap();
    let luggage = memory();
    let snapshot = Snapshot {
        pool: world.pool.key(),
        home: None,
        peer: Some(Peer::Inet(peer)),
        place: Place::Lent,
        interest: Interest::Output,
        turns: 6,
        remaining: None,
        incomplete_for: None,
        time_left: None,
        total: Traffic {
            read: 0,
            written: 4,
        },
        stored: true,
        carry: (&b"next"[..]).into(),
        packed: Packed {
            note: (&b"from 4 on"[..]).into(),
            luggage: Packing::Stored(0),
            resumable: true,
        },
    };
    let copy = luggage.try_clone().unwrap();
    let descriptors = (OwnedFd::from(socket), Some(Luggage::from(copy)));
    let now = world.now();
    world
        .pool
        .adopt((&snapshot, None), Peer::Inet(peer), descriptors, now);
    let mut worker = world.hire(0);
    let resumed = turn(&mut world, &mut worker);
    assert_eq!((resumed.number, resumed.moved), (7, (0, 6)));
    assert_eq!(
        (&resumed.note[..], &resumed.carry[..]),
        (&b"from 4 on"[..], &b"next"[..])
    );
    assert!(is_same(resumed.luggage.as_ref().unwrap(), &luggage));
    assert_eq!(read(&mut client, 10), b"0123456789");
}

// ---- room ---------------------------------------------------------------------------------------

/// The client sends something, and the worker ends the turn so. Half of a request in the carry
/// keeps a connection from giving way.
fn have_turn(
    world: &mut World,
    worker: &mut Played,
    client: &mut TcpStream,
    carry: &[u8],
    luggage: Option<&OwnedFd>,
) -> u64 {
    client.write_all(b"x").unwrap();
    let mut begun = turn(world, worker);
    assert_eq!(read(&mut begun.socket, 1), b"x");
    let change = match luggage {
        Some(_) => LuggageChange::New,
        None => LuggageChange::None,
    };
    let id = begun.id;
    let said = Report {
        traffic: Some(Traffic {
            read: 1,
            written: 0,
        }),
        carry,
        ..report(id, Outcome::Park, extras(None, change))
    };
    begun.end(worker, said, luggage.map(AsFd::as_fd));
    id
}

fn is_parked(world: &World, count: usize) -> bool {
    world.pool.dispatcher.parked().count() == count
}

/// A full pool with two connections: the first one is as its carry says, the second one has sent
/// half of a request.
fn full(first: &[u8]) -> (World, Played, [TcpStream; 2], [u64; 2]) {
    let mut world = World::with_room(2);
    let mut worker = world.hire(0);
    let mut clients = [(); 2].map(|()| TcpStream::connect(world.address).unwrap());
    let mut ids = [0; 2];
    for (place, carry) in [first, b"half"].into_iter().enumerate() {
        ids[place] = have_turn(&mut world, &mut worker, &mut clients[place], carry, None);
        world.until("it is parked", |world| is_parked(world, place + 1));
    }
    (world, worker, clients, ids)
}

/// The client sends its last bytes, and the worker closes the connection.
fn end_of(world: &mut World, worker: &mut Played, mut client: TcpStream) {
    client.write_all(b"x").unwrap();
    let mut last = turn(world, worker);
    assert_eq!(read(&mut last.socket, 1), b"x");
    let id = last.id;
    last.end(worker, report(id, Outcome::Close, Extras::default()), None);
}

#[test]
fn idle_connections_give_way_to_luggage() {
    let (mut world, mut worker, [mut idle, mut busy], _) = full(b"");
    let (first, second) = (memory(), memory());
    have_turn(&mut world, &mut worker, &mut busy, b"half", Some(&first));
    world.until("the luggage is there", |world| is_parked(world, 2));
    // That was the descriptor that is kept back.
    assert_eq!(descriptors::count(), 3);
    have_turn(&mut world, &mut worker, &mut busy, b"half", Some(&second));
    world.until("the other luggage is there", |world| {
        is_parked(world, 1) && descriptors::count() == 2
    });
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0);
    busy.write_all(b"x").unwrap();
    let next = turn(&mut world, &mut worker);
    assert!(is_same(next.luggage.as_ref().unwrap(), &second));
}

#[test]
fn luggage_for_which_there_is_no_descriptor_waits_and_does_no_harm() {
    let (mut world, mut worker, mut clients, ids) = full(b"half");
    for client in &mut clients {
        have_turn(&mut world, &mut worker, client, b"half", Some(&memory()));
        rounds(&mut world);
    }
    assert_eq!(descriptors::count(), 3);
    assert!(world.pool.is_laden());
    assert_eq!(world.pool.dispatcher.lent(worker_of(&world, &worker)), 1);
    // Nothing turns in circles.
    assert!(world.pool.fall_asleep(false));
    world.pool.wake_up();
    let mut events = Events::default();
    world.epoll.wait(&mut events, Some(Duration::ZERO)).unwrap();
    assert_eq!(events.drain().count(), 0);
    // A client goes, and there is room.
    let [gone, mut other] = clients;
    let mut second = world.hire(1);
    end_of(&mut world, &mut second, gone);
    world.until("the other one has its luggage", |world| {
        !world.pool.is_laden() && descriptors::count() == 2
    });
    other.write_all(b"x").unwrap();
    let whole = turn(&mut world, &mut worker);
    assert_eq!((whole.id, &whole.carry[..]), (ids[1], &b"half"[..]));
    assert!(whole.luggage.is_some());
}

#[test]
fn luggage_keeps_newcomers_out_until_it_is_gone() {
    let (mut world, mut worker, [mut one, other], _) = full(b"half");
    end_of(&mut world, &mut worker, other);
    world.until("it is gone", |_| descriptors::count() == 1);
    have_turn(&mut world, &mut worker, &mut one, b"half", Some(&memory()));
    world.until("it is parked", |world| is_parked(world, 1));
    let mut other = TcpStream::connect(world.address).unwrap();
    other.write_all(b"x").unwrap();
    rounds(&mut world);
    assert!(!worker.has_mail() && descriptors::count() == 2);
    end_of(&mut world, &mut worker, one);
    let served = turn(&mut world, &mut worker);
    assert_eq!(served.number, 1);
}

fn worker_of(world: &World, worker: &Played) -> WorkerId {
    let pid = Pid::from_raw(worker.program.id().cast_signed());
    world.pool.workers.by_pid(pid).unwrap()
}

// ---- what no honest worker sends ----------------------------------------------------------------

/// A socket that close(2) sleeps on for 20 s when it is closed for the last time, as long as its
/// other end does not read.
fn slow_to_close() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let other = listener.accept().unwrap().0;
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[b'x'; 65536]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    sockopt::set_socket_linger(&socket, Some(Duration::from_secs(20))).unwrap();
    (socket.into(), other)
}

/// What a worker sends instead of a report, with these descriptors, costs it its life, and the
/// master no time.
#[track_caller]
fn assert_condemned(luggage: bool, message: &[u8], sent: Vec<OwnedFd>) {
    let mut world = World::new();
    let (worker, rogue) = world.start(0);
    let ready = FromWorker::Ready { luggage };
    rogue.end.send(&ready, None).unwrap();
    world.until("the worker is ready", |world| {
        let process = world.pool.workers.get(worker);
        process.is_some_and(|one| one.is_serving())
    });
    let borrowed: Vec<_> = sent.iter().map(AsFd::as_fd).collect();
    let data = [IoSlice::new(message)];
    let refused = fdpass::send(&rogue.end, &data, &borrowed, Wait::Dont);
    // The kernel refuses descriptors of a worker that did not say that it sends some.
    let refused = match refused {
        Err(error) if !luggage => std::io::Error::from(error).raw_os_error() == Some(libc::EPERM),
        sent => {
            sent.unwrap();
            false
        }
    };
    drop(sent);
    if refused {
        return;
    }
    let begin = Instant::now();
    let pid = Pid::from_raw(rogue.program.id().cast_signed());
    world.until("the rogue is dead", |world| world.is_condemned(pid));
    world.kill(rogue);
    assert!(begin.elapsed() < Duration::from_secs(8), "the master slept");
    assert_eq!(descriptors::count(), 0);
}

#[test]
fn a_worker_that_sends_what_is_no_luggage_is_killed_and_holds_nobody_up() {
    let with = b"PARK 7 0 0 luggage\n";
    let (lingers, _reader) = slow_to_close();
    let devices = std::fs::File::open("/dev/zero").unwrap();
    let directory = std::fs::File::open("/").unwrap();
    let alone: [OwnedFd; 5] = [
        lingers,
        rustix::pipe::pipe().unwrap().0,
        devices.into(),
        directory.into(),
        EventFd::new().unwrap().into(),
    ];
    for descriptor in alone {
        assert_condemned(true, with, vec![descriptor]);
    }
    assert_condemned(true, with, vec![]);
    assert_condemned(true, with, vec![memory(), memory()]);
    assert_condemned(true, b"PARK 7 0 0\n", vec![memory()]);
    assert_condemned(true, b"nonsense\n", vec![memory()]);
    // A report of nothing that it has, with luggage that would be right.
    assert_condemned(true, with, vec![memory()]);
}

#[test]
fn a_worker_that_sends_as_many_descriptors_as_it_can_is_killed_and_holds_nobody_up() {
    let with = b"PARK 7 0 0 luggage\n";
    let (lingers, _reader) = slow_to_close();
    let mut many: Vec<_> = (1..MAX_DESCRIPTORS)
        .map(|_| lingers.try_clone().unwrap())
        .collect();
    many.push(lingers);
    assert_condemned(true, with, many);
    // The kernel may have refused these.
    assert_condemned(false, with, vec![memory(), memory()]);
    let many = (0..MAX_DESCRIPTORS).map(|_| memory()).collect();
    assert_condemned(false, b"PARK 7 0 0\n", many);
}

#[test]
fn luggage_before_it_was_announced_breaks_the_protocol() {
    let mut world = World::new();
    let (worker, rogue) = world.start(0);
    let data = [IoSlice::new(b"READY luggage\n")];
    let memory = memory();
    match fdpass::send(&rogue.end, &data, &[memory.as_fd()], Wait::Dont) {
        Err(error) => {
            let refused = std::io::Error::from(error).raw_os_error();
            assert_eq!(refused, Some(libc::EPERM));
        }
        Ok(_) => {
            let pid = Pid::from_raw(rogue.program.id().cast_signed());
            world.until("the rogue is dead", |world| world.is_condemned(pid));
        }
    }
    let process = world.pool.workers.get(worker).unwrap();
    assert!(!process.is_serving());
    drop(memory);
    world.kill(rogue);
}
