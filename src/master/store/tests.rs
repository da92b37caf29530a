//! What the manager is given, and when it is tried again. The tests play the manager.

use super::deposit::Stock;
use super::*;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use tempfile::TempDir;

use crate::fdpass::{MAX_DESCRIPTORS, Wait, receive};
use crate::master::listen::listener::Listener;
use crate::master::office::service_manager::ServiceManager;
use crate::systemd::Notifier;

/// What is always stored beside listeners and connections.
const STATES: usize = 2 * STATE;

/// The file to which messages to the manager are sent.
const INBOX: &str = "notify";

/// All that there is to store, and the manager.
struct World {
    directory: TempDir,
    inbox: UnixDatagram,
    manager: ServiceManager,
    listeners: Vec<Listener>,
    connections: Connections,
}

type Connections = Vec<(ConnectionId, Kept, UnixStream)>;

impl Stock for (&Vec<Listener>, &Connections) {
    fn listeners(&self) -> Option<Vec<&Listener>> {
        Some(self.0.iter().collect())
    }

    fn connection(&self, _: u8, id: ConnectionId) -> Option<BorrowedFd<'_>> {
        let found = self.1.iter().find(|(other, _, _)| *other == id)?;
        Some(found.2.as_fd())
    }

    /// The number of a connection is that of its luggage, too.
    fn luggage(&self, pool: u8, id: ConnectionId) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.connection(pool, id)?, id.into()))
    }
}

impl World {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join(INBOX);
        Self {
            inbox: UnixDatagram::bind(&path).unwrap(),
            manager: ServiceManager::new(Some(Notifier::at(path)), true),
            directory,
            listeners: Vec::new(),
            connections: Vec::new(),
        }
    }

    /// One more listener that the configuration calls so.
    fn listen(&mut self, asked: &str) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = Listener::inherit(socket.into(), asked.parse().unwrap());
        self.listeners.push(listener.unwrap());
    }

    /// One more connection; false when the store has no room for it.
    fn connect(&mut self, store: &Store) -> bool {
        let number = self.connections.len() as u64;
        let id = ConnectionId::from(number);
        let Some(kept) = store.keep(number, PoolKey::of("main")) else {
            return false;
        };
        kept.give(0, id);
        let (socket, _) = UnixStream::pair().unwrap();
        self.connections.push((id, kept, socket));
        true
    }

    fn deposit(&mut self, store: &Store, now: Time) {
        let stock = (&self.listeners, &self.connections);
        store.deposit(&stock, &mut self.manager, now);
    }

    /// The names in the messages that have come, each with how many descriptors were to be kept
    /// under it; 0 for those that are to be dropped.
    fn told(&self) -> Vec<(String, usize)> {
        let next = || {
            let mut buffer = [0; 4096];
            let message = receive(&self.inbox, &mut buffer, MAX_DESCRIPTORS, Wait::Dont).ok()?;
            let text = str::from_utf8(&buffer[..message.length]).unwrap();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
            Some((name.unwrap().to_owned(), message.descriptors.len()))
        };
        std::iter::from_fn(next).collect()
    }
}

fn store(limit: usize) -> Store {
    Store::open(limit, 1000, true, Time(0)).unwrap()
}

fn named(name: &str, count: usize) -> (String, usize) {
    (name.to_owned(), count)
}

fn state_of(store: &Store) -> (String, usize) {
    named(&names::of_state(store.instance()), STATE)
}

#[test]
fn every_socket_of_a_name_takes_room() {
    let mut world = World::new();
    let store = store(STATES + 2 + 1);
    world.listen("localhost:80");
    world.listen("localhost:80");
    world.deposit(&store, Time(0));
    let name = "baton-listen-localhost%3A80";
    assert_eq!(world.told(), [state_of(&store), named(name, 2)]);
    assert!(world.connect(&store));
    assert!(!world.connect(&store), "the manager would drop it");
    // One that is gone is stored no longer.
    world.listeners.pop();
    store.relist();
    world.deposit(&store, Time(0));
    let connection = named(names::CONNECTION, 1);
    assert_eq!(world.told(), [named(name, 0), named(name, 1), connection]);
    assert!(world.connect(&store));
}

#[test]
fn what_could_not_be_sent_is_sent_when_the_manager_is_back() {
    let mut world = World::new();
    let store = store(100);
    let path = world.directory.path().join(INBOX);
    std::fs::remove_file(&path).unwrap();
    world.listen("127.0.0.1:80");
    assert!(world.connect(&store) && world.connect(&store));
    world.deposit(&store, Time(0));
    assert!(
        world
            .connections
            .iter()
            .all(|(_, kept, _)| !kept.is_stored())
    );
    // One of them ends meanwhile.
    world.connections.pop();
    world.inbox = UnixDatagram::bind(&path).unwrap();
    world.deposit(&store, store.due().unwrap());
    let listener = named("baton-listen-127.0.0.1%3A80", 1);
    let connection = named(names::CONNECTION, 1);
    assert_eq!(world.told(), [state_of(&store), listener, connection]);
    assert!(
        world
            .connections
            .iter()
            .all(|(_, kept, _)| kept.is_stored())
    );
    assert_eq!(store.due(), None);
}

#[test]
fn after_a_takeover_that_failed_there_is_as_much_room_and_as_much_stored_as_before() {
    let mut world = World::new();
    let store = store(STATES + 1 + 3);
    world.listen("127.0.0.1:80");
    assert!(world.connect(&store) && world.connect(&store) && world.connect(&store));
    world.deposit(&store, Time(0));
    world.told();
    // Two are passed on, and one is lent.
    for (_, kept, _) in world.connections.drain(1..) {
        kept.pass_on();
    }
    store.give_up();
    world.deposit(&store, Time(0));
    assert_eq!(world.told(), []);
    store.resume();
    let (id, kept, _) = &world.connections[0];
    assert!(!kept.is_stored());
    kept.give(0, *id);
    assert!(world.connect(&store) && world.connect(&store));
    assert!(!world.connect(&store), "the manager would drop it");
    world.deposit(&store, Time(0));
    let gone = named(names::CONNECTION, 0);
    let listener = named("baton-listen-127.0.0.1%3A80", 1);
    let three = named(names::CONNECTION, 3);
    assert_eq!(world.told(), [gone, listener, three]);
}

#[test]
fn connections_share_messages() {
    let mut world = World::new();
    let store = store(1000);
    let count = MAX_DESCRIPTORS + 1;
    assert!((0..count).all(|_| world.connect(&store)));
    world.deposit(&store, Time(0));
    let connections = |count| named(names::CONNECTION, count);
    let expected = [connections(MAX_DESCRIPTORS), connections(1)];
    assert_eq!(world.told()[1..], expected);
    let mut all = world.connections.iter();
    assert!(all.all(|(_, kept, _)| kept.is_stored()));
}

/// Writes down that the connection at this place has luggage, or none, and is parked at this time.
fn park(world: &World, place: usize, luggage: bool, now: Time) {
    let (id, kept, _) = &world.connections[place];
    let number = u64::from(*id);
    let mut snapshot = snapshot();
    if luggage {
        snapshot.packed.luggage = match kept.has_stowed(number) {
            true => Packing::Stored(number),
            false => Packing::Held(number),
        };
    }
    kept.store(&snapshot, now);
    if luggage {
        kept.stow(number, (0, *id), now);
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        pool: PoolKey::of("main"),
        home: None,
        peer: None,
        place: Place::Parked,
        interest: crate::master::dispatch::Interest::Input,
        turns: 1,
        remaining: None,
        incomplete_for: None,
        time_left: None,
        total: crate::wire::Traffic::default(),
        stored: true,
        carry: Default::default(),
        packed: Default::default(),
    }
}

fn after(milliseconds: u64) -> Time {
    Time(0).after(Duration::from_millis(milliseconds))
}

#[test]
fn luggage_is_stored_when_it_has_been_there_for_a_while_and_removed_when_it_is_gone() {
    let mut world = World::new();
    let store = store(100);
    assert!((0..3).all(|_| world.connect(&store)));
    world.deposit(&store, Time(0));
    assert_eq!(store.due(), None);
    for (place, at) in [(0, 0), (1, 100), (2, 200)] {
        park(&world, place, true, after(at));
    }
    // One is gone before it was there for long, and one is parked again.
    park(&world, 1, false, after(300));
    park(&world, 2, true, after(400));
    assert_eq!(store.due(), Some(after(1000)));
    world.told();
    for (at, told) in [(999, vec![]), (1000, vec![named("baton-bag-0", 1)])] {
        world.deposit(&store, after(at));
        assert_eq!(world.told(), told, "{at}");
    }
    world.deposit(&store, after(1200));
    assert_eq!(world.told(), [named("baton-bag-2", 1)]);
    assert_eq!(store.due(), None);
    let noted = |place| {
        let inner = store.0.borrow();
        let entry = inner.ledger.entry(place, Duration::ZERO).unwrap().unwrap();
        entry.1.packed.luggage
    };
    let (none, stored) = (Packing::None, Packing::Stored(0));
    assert_eq!([0, 1, 2].map(noted), [stored, none, stored]);
    // It stays stored from turn to turn, until it is gone, or its connection.
    park(&world, 0, true, after(1300));
    assert_eq!(noted(0), stored);
    park(&world, 2, false, after(1300));
    drop(world.connections.remove(0));
    world.deposit(&store, after(1300));
    assert_eq!(
        world.told(),
        [named("baton-bag-2", 0), named("baton-bag-0", 0)]
    );
}

#[test]
fn luggage_for_which_the_manager_has_no_room_waits_and_connections_come_first() {
    let mut world = World::new();
    let store = store(STATES + 1 + names::LUGGAGE_TAKES);
    assert!(world.connect(&store) && world.connect(&store));
    world.deposit(&store, Time(0));
    park(&world, 0, true, Time(0));
    world.told();
    world.deposit(&store, after(1000));
    assert_eq!(world.told(), []);
    let again = store.due().unwrap();
    assert!(again > after(5000), "{again:?}");
    world.connections.pop();
    world.deposit(&store, again);
    assert_eq!(world.told(), [named("baton-bag-0", 1)]);
    // It takes its room.
    let mut more = 0;
    while world.connect(&store) {
        more += 1;
    }
    assert_eq!(more, names::LUGGAGE_TAKES - 1);
}

#[test]
fn luggage_that_was_passed_on_is_removed_if_that_master_fails() {
    let mut world = World::new();
    let store = store(100);
    assert!(world.connect(&store) && world.connect(&store));
    park(&world, 0, true, Time(0));
    park(&world, 1, true, Time(0));
    world.deposit(&store, after(1000));
    let (_, kept, _) = world.connections.remove(0);
    kept.pass_on();
    store.give_up();
    world.told();
    world.deposit(&store, after(1000));
    assert_eq!(world.told(), []);
    store.resume();
    world.deposit(&store, after(1000));
    let gone = named(names::CONNECTION, 0);
    assert_eq!(world.told(), [gone, named("baton-bag-0", 0)]);
    let (id, kept, _) = &world.connections[0];
    assert!(kept.has_stowed(u64::from(*id)));
}
