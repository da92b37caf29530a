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
