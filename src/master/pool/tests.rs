//! A pool whose workers have no scoreboard: all that they say are messages, and the pool serves and
//! settles with them as with any other. The test plays the workers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child as Program, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::channel::inbox::{self, Assignment, WorkerEnd};
use crate::config::Settings;
use crate::master::child::{Child, ChildEvent, Exit};
use crate::master::events::epoll::Events;
use crate::master::events::token::Token;
use crate::master::listen::bind::bind_all;
use crate::master::workers::channel::Channel;
use crate::master::workers::slots::SlotId;
use crate::service::ServiceProfile;
use crate::wire::{Extras, FromWorker, Outcome, Report, Traffic};

mod baggage;
mod endings;
mod newcomers;
mod visits;

const DEADLINE: Duration = Duration::from_secs(10);

struct World {
    epoll: Epoll,
    pool: Pool<'static>,
    address: SocketAddr,
    begin: Instant,
}

/// A worker that is played, and a program that stands for its process.
struct Played {
    end: WorkerEnd,
    program: Program,
    messages: MessageBuffer,
}

/// What a pool of the tests is.
fn plan(name: &str) -> Plan<'static> {
    Plan {
        name: name.into(),
        listen: Vec::new(),
        settings: Settings::for_processors(1),
        profile: ServiceProfile {
            crashed: b"the worker is gone".into(),
            overloaded: b"too many".into(),
            ..ServiceProfile::default()
        },
        main: Rc::new(|_| 0),
        keep: Vec::new(),
    }
}

/// Starts a worker of the pool that has said nothing yet.
fn start(pool: &mut Pool<'_>, slot: u32, now: Time) -> (WorkerId, Played) {
    let (ours, end) = inbox::pair().unwrap();
    // It ends when its input does, which is when the test does.
    let program = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let child = Child::new(Pid::from_raw(program.id().cast_signed()));
    let worker = pool.dispatcher.worker_started(1);
    let slot = SlotId {
        generation: 0,
        slot,
    };
    let settings = pool.plan.settings.clone();
    let parts = (child, Channel::new(ours, None));
    pool.workers.admit(slot, worker, parts, &settings, now);
    let played = Played {
        end,
        program,
        messages: MessageBuffer::default(),
    };
    (worker, played)
}

impl World {
    fn new() -> Self {
        Self::with_room(100)
    }

    /// A pool with descriptors for so many connections.
    fn with_room(room: usize) -> Self {
        let epoll = Epoll::new().unwrap();
        let plan = plan("main");
        let listeners = bind_all(&"127.0.0.1:0".parse().unwrap(), &plan.settings).unwrap();
        let address = listeners[0].local_address().unwrap();
        let mut pool = Pool::new((0, 0, &epoll), plan, 0, room, None, false);
        pool.listen_on(listeners).unwrap();
        Self {
            epoll,
            pool,
            address,
            begin: Instant::now(),
        }
    }

    fn now(&self) -> Time {
        Time::default().after(Duration::from_secs(3600) + self.begin.elapsed())
    }

    /// Starts a worker that has said that it can serve.
    fn hire(&mut self, slot: u32) -> Played {
        let (worker, played) = self.start(slot);
        played
            .end
            .send(&FromWorker::Ready { luggage: true }, None)
            .unwrap();
        self.until("the worker is ready", |world| {
            world
                .pool
                .workers
                .get(worker)
                .is_some_and(|one| one.is_serving())
        });
        played
    }

    /// Starts a worker that has said nothing yet.
    fn start(&mut self, slot: u32) -> (WorkerId, Played) {
        let now = self.now();
        start(&mut self.pool, slot, now)
    }

    /// One round of the master's loop, as far as it concerns a pool.
    fn round(&mut self) {
        self.pool.carry_out(self.now());
        let wait = match self.pool.fall_asleep(false) {
            true => Duration::from_millis(2),
            false => Duration::ZERO,
        };
        let mut events = Events::default();
        self.epoll.wait(&mut events, Some(wait)).unwrap();
        self.pool.wake_up();
        let now = self.now();
        for (token, flags) in events.drain() {
            match token {
                Token::Pool(0, event) => self.pool.on_event(event, flags, now),
                other => panic!("{other:?}"),
            }
        }
        self.pool.tick(now);
        self.pool.carry_out(now);
    }

    #[track_caller]
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(Instant::now() < end, "{what}");
            self.round();
        }
    }

    /// The connection that the worker is lent next: its name, and its descriptor.
    #[track_caller]
    fn lent(&mut self, worker: &mut Played) -> (u64, TcpStream) {
        let end = Instant::now() + DEADLINE;
        while !worker.has_mail() {
            assert!(Instant::now() < end, "nothing is lent");
            self.round();
        }
        match worker.end.receive(&mut worker.messages).unwrap() {
            Assignment::Serve(lend, borrowed) => (lend.id, TcpStream::from(borrowed.connection)),
            Assignment::Retire => panic!("it is to exit"),
        }
    }

    /// Whether the worker was killed because it broke the protocol.
    fn is_condemned(&self, pid: Pid) -> bool {
        let worker = self.pool.workers.by_pid(pid).unwrap();
        let process = self.pool.workers.get(worker).unwrap();
        process.stage() == crate::master::workers::process::Stage::Dead
    }

    /// The worker's process has been killed.
    fn kill(&mut self, mut worker: Played) {
        worker.program.kill().unwrap();
        worker.program.wait().unwrap();
        let pid = Pid::from_raw(worker.program.id().cast_signed());
        let exit = Exit::Killed(nix::sys::signal::Signal::SIGKILL);
        let now = self.now();
        assert!(self.pool.on_child(pid, ChildEvent::Ended(exit), now));
        self.pool.carry_out(now);
    }
}

impl Played {
    fn has_mail(&self) -> bool {
        let mut polled = [PollFd::new(&self.end, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())) == Ok(1)
    }

    fn report(&self, id: u64, outcome: Outcome, (read, written): (u64, u64), carry: &[u8]) {
        let report = Report {
            id,
            outcome,
            traffic: Some(Traffic { read, written }),
            extras: Extras::default(),
            carry,
        };
        self.end.send(&FromWorker::Report(report), None).unwrap();
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn rounds(world: &mut World) {
    for _ in 0..5 {
        world.round();
    }
}

fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_worker_without_a_scoreboard_is_served_and_settled_like_the_others() {
    let mut world = World::new();
    let mut worker = world.hire(0);
    let mut client = TcpStream::connect(world.address).unwrap();

    // A turn, and a second one with what the first one did not consume.
    client.write_all(b"one tw").unwrap();
    let (id, mut socket) = world.lent(&mut worker);
    assert_eq!(read(&mut socket, 6), b"one tw");
    socket.write_all(b"ONE").unwrap();
    drop(OwnedFd::from(socket));
    worker.report(id, Outcome::Park, (6, 3), b"tw");
    assert_eq!(read(&mut client, 3), b"ONE");
    world.until("the client is parked", |world| {
        world.pool.dispatcher.parked().count() == 1
    });
    client.write_all(b"o").unwrap();
    let (again, mut socket) = world.lent(&mut worker);
    assert_eq!(again, id);
    assert_eq!(read(&mut socket, 1), b"o");
    socket.write_all(b"TWO").unwrap();
    drop(socket);
    worker.report(id, Outcome::Park, (1, 3), b"");
    assert_eq!(read(&mut client, 3), b"TWO");
    world.until("the client is parked", |world| {
        world.pool.dispatcher.parked().count() == 1
    });

    // It dies with one connection in hand, of which it has read, and one that it has not taken up.
    client.write_all(b"three").unwrap();
    let (_, mut socket) = world.lent(&mut worker);
    assert_eq!(read(&mut socket, 5), b"three");
    let mut second = TcpStream::connect(world.address).unwrap();
    second.write_all(b"me too").unwrap();
    let mut other = world.hire(1);
    drop(socket);
    world.kill(worker);
    assert_eq!(read(&mut client, 18), b"the worker is gone");
    let (_, mut socket) = world.lent(&mut other);
    assert_eq!(read(&mut socket, 6), b"me too");

    // What breaks the protocol costs the worker its life.
    let pid = Pid::from_raw(other.program.id().cast_signed());
    other.report(7, Outcome::Park, (0, 0), b"");
    world.until("the rogue is dead", |world| world.is_condemned(pid));
    drop(socket);
    world.kill(other);
    assert_eq!(world.pool.workers.all().count(), 0);
}

#[test]
fn a_worker_that_is_ready_twice_breaks_the_protocol() {
    let mut world = World::new();
    let rogue = world.hire(0);
    rogue
        .end
        .send(&FromWorker::Ready { luggage: true }, None)
        .unwrap();
    let pid = Pid::from_raw(rogue.program.id().cast_signed());
    world.until("the rogue is dead", |world| world.is_condemned(pid));
    world.kill(rogue);
    assert_eq!(world.pool.workers.all().count(), 0);
}

#[test]
fn nothing_of_a_client_is_left_of_a_message_that_is_refused() {
    let mut world = World::new();
    for (outcome, carry) in [(Outcome::Park, &b"secret"[..]), (Outcome::Close, b"secret")] {
        let rogue = world.hire(0);
        rogue.report(7, outcome, (0, 0), carry);
        let pid = Pid::from_raw(rogue.program.id().cast_signed());
        world.until("the rogue is dead", |world| world.is_condemned(pid));
        assert!(world.pool.buffers.message.is_wiped(), "{outcome:?}");
        world.kill(rogue);
    }
}

#[test]
fn a_worker_that_broke_the_protocol_is_lent_nothing_more_and_not_listened_to() {
    let mut world = World::new();
    let mut rogue = world.hire(0);
    let mut client = TcpStream::connect(world.address).unwrap();
    client.write_all(b"first").unwrap();
    let (id, _socket) = world.lent(&mut rogue);
    rogue.report(id, Outcome::Park, (0, 0), b"");
    rogue.report(7, Outcome::Park, (0, 0), b"");
    rogue.report(7, Outcome::Park, (0, 0), b"");
    let pid = Pid::from_raw(rogue.program.id().cast_signed());
    world.until("the rogue is dead", |world| world.is_condemned(pid));
    // The input that it left unread makes the connection ready again.
    let mut other = world.hire(1);
    let (again, _socket) = world.lent(&mut other);
    assert_eq!(again, id);
    assert!(!rogue.has_mail(), "it is lent a connection");
    let worker = world.pool.workers.by_pid(pid).unwrap();
    let now = world.now();
    world.pool.receive(worker, now);
    let process = world.pool.workers.get_mut(worker).unwrap();
    assert!(
        process
            .channel
            .next_message(&mut MessageBuffer::default(), true)
            .unwrap()
            .is_none()
    );
    world.kill(rogue);
}
