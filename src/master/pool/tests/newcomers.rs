//! New connections at the limits: who gives way to them, and what becomes of those that are one too
//! many.

use super::*;
use crate::master::dispatch::Limits;

/// A pool with these bounds, in which a client may have so many connections.
fn narrow(connections: usize, per_client: Option<u32>) -> World {
    let mut world = World::new();
    set_connections(&mut world, connections);
    let clients = world.pool.listeners.clients();
    clients.set_limit(per_client, std::iter::empty());
    world
}

fn set_connections(world: &mut World, connections: usize) {
    let limits = world.pool.plan.limits(100);
    let limits = Limits {
        connections,
        ..limits
    };
    world.pool.dispatcher.set_limits(limits);
}

/// A client that has sent a request.
fn client(world: &World) -> TcpStream {
    let mut client = TcpStream::connect(world.address).unwrap();
    client.write_all(b"request").unwrap();
    client
}

#[test]
fn who_has_waited_for_a_place_of_its_client_is_not_turned_away_for_another_reason() {
    let mut world = narrow(3, Some(2));
    let (mut one, mut other) = (world.hire(0), world.hire(1));
    let _first = client(&world);
    let (id, socket) = world.lent(&mut one);
    let _second = client(&world);
    let (_, _socket) = world.lent(&mut other);
    let _third = client(&world);
    world.until("it is put aside", |world| !world.pool.aside.is_empty());
    // Its client has room for it now, and the pool has none: the second one is in a turn.
    set_connections(&mut world, 1);
    drop(socket);
    one.report(id, Outcome::Close, (7, 0), b"");
    let (_, mut socket) = world.lent(&mut one);
    assert_eq!(read(&mut socket, 7), b"request");
    assert_eq!(world.pool.dispatcher.connections(), 2);
}

/// Waits until so many connections lie in the backlog.
fn until_waiting(world: &World, count: usize) {
    let end = Instant::now() + DEADLINE;
    while world.pool.listeners.all()[0].backlog() < Some(count) {
        assert!(Instant::now() < end, "they do not come");
        std::thread::yield_now();
    }
}

/// Connections that are idle, because their request is answered.
fn idle(world: &mut World, worker: &mut Played, count: usize) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    for before in 0..count {
        idle.push(client(world));
        let (id, mut socket) = world.lent(worker);
        assert_eq!(read(&mut socket, 7), b"request");
        drop(socket);
        worker.report(id, Outcome::Park, (7, 0), b"");
        world.until("it is parked", |world| {
            world.pool.dispatcher.parked().count() == before + 1
        });
    }
    idle
}

#[test]
fn what_waits_in_the_backlog_of_a_full_pool_is_taken_when_its_listener_is_closed() {
    let mut world = narrow(3, None);
    let mut worker = world.hire(0);
    let _idle = idle(&mut world, &mut worker, 3);
    let waiting: Vec<_> = (0..3).map(|_| client(&world)).collect();
    until_waiting(&world, 3);
    let now = world.now();
    world.pool.close_listeners(|_| true, now);
    assert_eq!(world.pool.dispatcher.parked().count(), 0);
    for _ in &waiting {
        let (id, mut socket) = world.lent(&mut worker);
        assert_eq!(read(&mut socket, 7), b"request");
        drop(socket);
        worker.report(id, Outcome::Park, (7, 0), b"");
    }
}

#[test]
fn nobody_gives_way_to_a_newcomer_whom_another_master_accepts() {
    let mut world = narrow(2, None);
    let mut worker = world.hire(0);
    let _idle = idle(&mut world, &mut worker, 2);
    let _waiting = client(&world);
    until_waiting(&world, 1);
    let now = world.now();
    world
        .pool
        .on_event(PoolEvent::Listener(0), EventFlags::IN, now);
    world.pool.freeze(now);
    rounds(&mut world);
    assert_eq!(world.pool.dispatcher.parked().count(), 2);
    world.pool.thaw(now);
    let (_, mut socket) = world.lent(&mut worker);
    assert_eq!(read(&mut socket, 7), b"request");
}

#[test]
fn who_comes_again_is_not_turned_away_when_its_last_connection_comes_back_late() {
    let mut world = narrow(3, Some(1));
    let mut worker = world.hire(0);
    let first = client(&world);
    let (id, mut socket) = world.lent(&mut worker);
    assert_eq!(read(&mut socket, 7), b"request");
    drop(socket);
    drop(first);
    let _again = client(&world);
    world.until("it is put aside", |world| !world.pool.aside.is_empty());
    let long_enough = world.now().after(Duration::from_millis(20));
    world.until("it has waited", |world| world.now() >= long_enough);
    // That the first one is gone is an event of its own, which the master hears when it watches
    // that connection again.
    worker.report(id, Outcome::Park, (7, 0), b"");
    let (_, mut socket) = world.lent(&mut worker);
    assert_eq!(read(&mut socket, 7), b"request");
}
