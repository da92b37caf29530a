//! What an entry of the master's epoll set is for, encoded as the 64 bits of data that the kernel
//! keeps with it.

use crate::master::dispatch::WorkerId;
use crate::master::dispatch::table::ConnectionId;

/// The receiver of an event, and what has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// An event of the pool at this place of the master's table.
    Pool(u8, PoolEvent),
    /// An event of the master itself.
    Master(MasterEvent),
}

/// What can happen to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEvent {
    /// The client of a connection has sent something, taken something, or gone.
    Connection(ConnectionId),
    /// A worker has something to report: it has rung its doorbell, or it has no scoreboard and has
    /// sent a message.
    Worker(WorkerId),
    /// A client waits in the backlog of the listener at this place.
    Listener(usize),
}

/// What can happen to the master itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MasterEvent {
    /// A signal has arrived.
    Signals,
    /// A process has connected to the control socket.
    Control,
    /// The master to which this one hands over has sent a message.
    NewMaster,
    /// The master from which this one has taken over has sent a message.
    OldMaster,
    /// The last worker of a master that was killed has ended.
    LifeLine,
    /// The planner of a reload has its answer.
    Planner,
}

// The 64 bits: a kind, a pool, and then an index or a name. A name is a serial number of 28 bits
// and an index, for which 24 bits are left: there can't be more connections than that.
const KIND_SHIFT: u32 = 60;
const POOL_SHIFT: u32 = 52;
const SERIAL_SHIFT: u32 = 24;

/// The most connections that a pool can have.
pub const MAX_CONNECTIONS: usize = 1 << SERIAL_SHIFT;

const CONNECTION: u64 = 0;
const WORKER: u64 = 1;
const LISTENER: u64 = 2;
const MASTER: u64 = 3;

const MASTER_EVENTS: [MasterEvent; 6] = [
    MasterEvent::Signals,
    MasterEvent::Control,
    MasterEvent::NewMaster,
    MasterEvent::OldMaster,
    MasterEvent::LifeLine,
    MasterEvent::Planner,
];

impl Token {
    /// The token as the epoll set keeps it.
    #[must_use]
    pub fn encode(self) -> u64 {
        let (kind, pool, rest) = match self {
            Self::Pool(pool, PoolEvent::Connection(id)) => (CONNECTION, pool, pack(id.into())),
            Self::Pool(pool, PoolEvent::Worker(id)) => (WORKER, pool, pack(id.into())),
            Self::Pool(pool, PoolEvent::Listener(index)) => (LISTENER, pool, index as u64),
            Self::Master(event) => (MASTER, 0, event as u64),
        };
        kind << KIND_SHIFT | u64::from(pool) << POOL_SHIFT | rest
    }

    /// The token that [`encode`](Self::encode) made these bits of.
    #[must_use]
    pub fn decode(data: u64) -> Self {
        let pool = (data >> POOL_SHIFT) as u8;
        let rest = data & ((1 << POOL_SHIFT) - 1);
        match data >> KIND_SHIFT {
            CONNECTION => Self::Pool(pool, PoolEvent::Connection(unpack(rest).into())),
            WORKER => Self::Pool(pool, PoolEvent::Worker(unpack(rest).into())),
            LISTENER => Self::Pool(pool, PoolEvent::Listener(rest as usize)),
            _ => {
                let last = MASTER_EVENTS.len() - 1;
                Self::Master(MASTER_EVENTS[last.min(rest as usize)])
            }
        }
    }
}

/// A name has its serial number in the upper half of 64 bits.
fn pack(name: u64) -> u64 {
    name >> 32 << SERIAL_SHIFT | name & (MAX_CONNECTIONS as u64 - 1)
}

fn unpack(bits: u64) -> u64 {
    bits >> SERIAL_SHIFT << 32 | bits & (MAX_CONNECTIONS as u64 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_epoll_set() {
        let name = 0x0fff_ffff_00ff_fffe;
        let events = [
            PoolEvent::Connection(name.into()),
            PoolEvent::Worker(name.into()),
            PoolEvent::Listener(7),
        ];
        let of_pools = [0, 1, 255]
            .iter()
            .flat_map(|pool| events.map(|event| Token::Pool(*pool, event)));
        let all = of_pools.chain(MASTER_EVENTS.map(Token::Master));
        for token in all {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
