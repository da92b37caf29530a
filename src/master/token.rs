//! What the events in the master's epoll set are about.

use super::connections::ConnectionId;
use super::dispatch::WorkerId;

/// What an event in the epoll set is about: four bits of its 64, next to an index or a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A parked or lingering connection.
    Connection(ConnectionId),
    /// A message of the worker.
    Worker(WorkerId),
    /// The worker has rung: there are reports on its board.
    Doorbell(WorkerId),
    /// Somebody wants to connect.
    Listener(usize),
    /// A signal has come.
    Signals,
}

const KIND_SHIFT: u32 = 60;
const KIND_CONNECTION: u64 = 0;
const KIND_WORKER: u64 = 1;
const KIND_LISTENER: u64 = 2;
const KIND_SIGNALS: u64 = 3;
const KIND_DOORBELL: u64 = 4;

impl Token {
    /// As the epoll set keeps it.
    pub fn encode(self) -> u64 {
        match self {
            Self::Connection(id) => KIND_CONNECTION << KIND_SHIFT | u64::from(id),
            Self::Doorbell(id) => KIND_DOORBELL << KIND_SHIFT | u64::from(id),
            Self::Worker(id) => KIND_WORKER << KIND_SHIFT | u64::from(id),
            Self::Listener(index) => KIND_LISTENER << KIND_SHIFT | index as u64,
            Self::Signals => KIND_SIGNALS << KIND_SHIFT,
        }
    }

    /// As the epoll set gives it back.
    pub fn decode(data: u64) -> Self {
        let rest = data & ((1 << KIND_SHIFT) - 1);
        match data >> KIND_SHIFT {
            KIND_CONNECTION => Self::Connection(rest.into()),
            KIND_WORKER => Self::Worker(rest.into()),
            KIND_DOORBELL => Self::Doorbell(rest.into()),
            KIND_LISTENER => Self::Listener(rest as usize),
            _ => Self::Signals,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_epoll_set() {
        let name = 0x0fff_ffff_ffff_fffe;
        for token in [
            Token::Connection(ConnectionId::from(name)),
            Token::Worker(WorkerId::from(name)),
            Token::Doorbell(WorkerId::from(name)),
            Token::Listener(3),
            Token::Signals,
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
