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
