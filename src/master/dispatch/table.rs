//! The table of connections: which there are, the state of each, and what the master holds for it.
//! Pure.
//!
//! The table owns a payload per connection (the master's descriptor, address and carry; nothing in
//! tests) and gives it back when the connection is forgotten, so that a connection can't be lost
//! without somebody dropping it.

use std::fmt;

use crate::master::time::Time;

/// Names a connection. No two connections have the same name until 2^28 of them have had the same
/// place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    index: u32,
    serial: u32,
}

/// Serial numbers stay below this, so that a name leaves four bits of its 64 to others.
const SERIALS: u32 = 1 << 28;

impl ConnectionId {
    /// The place in the table.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }
}

impl From<ConnectionId> for u64 {
    fn from(id: ConnectionId) -> Self {
        u64::from(id.serial) << 32 | u64::from(id.index)
    }
}

impl From<u64> for ConnectionId {
    fn from(number: u64) -> Self {
        Self {
            index: number as u32,
            serial: (number >> 32) as u32,
        }
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        u64::from(*self).fmt(f)
    }
}

/// Where a connection is. It is in exactly one of these states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Waits in the master's epoll set for the client.
    Parked,
    /// Waits in the ready queue for a worker.
    Ready,
    /// With the worker at this place in the worker table: in its inbox, or under service.
    Lent(u32),
    /// Its worker died during the turn; the master is asking the kernel what came of it.
    Examined,
    /// Over for the server; the client's last bytes are being drained.
    Lingering,
}

/// What a client is to do next, and by when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It owes nothing.
    Nothing,
    /// It has begun a request, and owes the rest of its head.
    Head {
        /// When it began.
        since: Time,
    },
    /// It owes the rest of a body.
    Body {
        /// If nothing more comes, it is too slow from then on.
        until: Time,
    },
    /// It is to take what was sent, so that more can be.
    Reading {
        /// If it takes nothing more, it is too slow from then on.
        until: Time,
        /// How much it had taken when that was reckoned, in all its life.
        taken: u64,
    },
}

/// One connection.
#[derive(Debug)]
pub struct Connection<C> {
    /// What the master holds for it.
    pub payload: C,
    /// Where it is.
    pub state: State,
    /// How many turns it has had, the present one included.
    pub turns: u64,
    /// Its place in the order of service, kept when it is taken back or replayed.
    pub order: u64,
    /// When it became ready for this turn.
    pub ready_at: Time,
    /// When a worker took it up, as far as the master can tell; for connections that are lent.
    pub started: Time,
    /// Parked or lingering: when that ends. Else meaningless.
    pub deadline: Time,
    /// What its client is to do next, and by when.
    pub due: Due,
    /// Lingering: when it ends, however much its client still sends. Else meaningless.
    pub linger_end: Time,
    /// Its worker was taken for hung in this turn.
    pub hung: bool,
    /// How many workers have died under it in this turn and left no sign of having done anything.
    pub replays: u8,
    /// It is another dispatcher's, and here for a request.
    pub guest: bool,
    serial: u32,
}

impl<C> Connection<C> {
    /// Whether it is in the middle of a response, which its client is to take.
    #[must_use]
    pub fn is_read_from(&self) -> bool {
        matches!(self.due, Due::Reading { .. })
    }
}

/// All connections, each at a place of its own.
#[derive(Debug)]
pub struct Table<C> {
    places: Vec<Place<C>>,
    vacant: Option<u32>,
    length: usize,
}

#[derive(Debug)]
enum Place<C> {
    Taken(Connection<C>),
    Vacant { serial: u32, next: Option<u32> },
}

impl<C> Default for Table<C> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            vacant: None,
            length: 0,
        }
    }
}

impl<C> Table<C> {
    /// How many connections there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Adds a connection, parked and without a deadline.
    pub fn insert(&mut self, payload: C) -> ConnectionId {
        let (index, serial) = match self.vacant {
            Some(index) => match self.places[index as usize] {
                Place::Vacant { serial, next } => {
                    self.vacant = next;
                    (index, serial)
                }
                Place::Taken(_) => unreachable!("the list of vacant places holds vacant places"),
            },
            None => (
                u32::try_from(self.places.len()).expect("fewer descriptors than places"),
                0,
            ),
        };
        let place = Place::Taken(Connection {
            payload,
            state: State::Parked,
            turns: 0,
            order: 0,
            ready_at: Time::default(),
            started: Time::default(),
            deadline: Time::default(),
            due: Due::Nothing,
            linger_end: Time::default(),
            hung: false,
            replays: 0,
            guest: false,
            serial,
        });
        if index as usize == self.places.len() {
            self.places.push(place);
        } else {
            self.places[index as usize] = place;
        }
        self.length += 1;
        ConnectionId { index, serial }
    }

    /// Forgets a connection and gives its payload back.
    pub fn remove(&mut self, index: u32) -> C {
        let place = &mut self.places[index as usize];
        let Place::Taken(Connection { serial, .. }) = place else {
            unreachable!("only connections that are there are removed")
        };
        let vacant = Place::Vacant {
            serial: (*serial + 1) % SERIALS,
            next: self.vacant,
        };
        let Place::Taken(connection) = std::mem::replace(place, vacant) else {
            unreachable!("it was taken a line ago")
        };
        self.vacant = Some(index);
        self.length -= 1;
        connection.payload
    }

    /// The connection of this name, if it is still there.
    #[must_use]
    pub fn get(&self, id: ConnectionId) -> Option<&Connection<C>> {
        match self.places.get(id.index as usize)? {
            Place::Taken(connection) if connection.serial == id.serial => Some(connection),
            _ => None,
        }
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection<C>> {
        match self.places.get_mut(id.index as usize)? {
            Place::Taken(connection) if connection.serial == id.serial => Some(connection),
            _ => None,
        }
    }

    /// The connection at a place that is known to be taken.
    #[must_use]
    pub fn at(&self, index: u32) -> &Connection<C> {
        match &self.places[index as usize] {
            Place::Taken(connection) => connection,
            Place::Vacant { .. } => unreachable!("a linked connection is in the table"),
        }
    }

    /// The same, to change it.
    pub fn at_mut(&mut self, index: u32) -> &mut Connection<C> {
        match &mut self.places[index as usize] {
            Place::Taken(connection) => connection,
            Place::Vacant { .. } => unreachable!("a linked connection is in the table"),
        }
    }

    /// The name of the connection at a place that is known to be taken.
    #[must_use]
    pub fn id(&self, index: u32) -> ConnectionId {
        ConnectionId {
            index,
            serial: self.at(index).serial,
        }
    }

    /// The names of all connections.
    pub fn ids(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        (0u32..)
            .zip(&self.places)
            .filter_map(|(index, place)| match place {
                Place::Taken(connection) => Some(ConnectionId {
                    index,
                    serial: connection.serial,
                }),
                Place::Vacant { .. } => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_outlive_its_connection() {
        let mut table = Table::default();
        let first = table.insert("first");
        assert_eq!(table.remove(first.index()), "first");
        let second = table.insert("second");
        assert_eq!(first.index(), second.index());
        assert!(table.get(first).is_none());
        assert_eq!(table.get(second).map(|c| c.payload), Some("second"));
        assert_eq!(table.len(), 1);
        assert_eq!(ConnectionId::from(u64::from(second)), second);
    }
}
