//! What the events in the master's epoll set are about.

use crate::master::dispatch::WorkerId;
use crate::master::dispatch::table::ConnectionId;

/// What an event in the epoll set is about: which pool, and what of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The pool's place in the master's table.
    pub pool: u8,
    /// What of it.
    pub subject: Subject,
}

/// What of a pool, or of the master itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A parked or lingering connection.
    Connection(ConnectionId),
    /// The worker has rung: there are reports on its board, or it has sent a message.
    Doorbell(WorkerId),
    /// Somebody wants to connect.
    Listener(usize),
    /// A signal has come.
    Signals,
    /// Somebody asks at the control socket.
    Control,
    /// The master that takes over from this one has said something.
    Takeover,
    /// The master from which this one has taken over has said something.
    Succession,
    /// The last worker of a master that was killed has ended.
    Orphans,
}

// The 64 bits of an event: a kind, a pool, and then an index or a name. A name is a serial number of 28 bits and an
// index, for which 24 bits are left: there can't be more connections than that.
const KIND_SHIFT: u32 = 60;
const POOL_SHIFT: u32 = 52;
const SERIAL_SHIFT: u32 = 24;

/// How many connections a pool can have.
pub const MAX_INDEX: usize = 1 << SERIAL_SHIFT;

const KIND_CONNECTION: u64 = 0;
const KIND_DOORBELL: u64 = 1;
const KIND_LISTENER: u64 = 2;
const KIND_SIGNALS: u64 = 3;
const KIND_CONTROL: u64 = 4;
const KIND_TAKEOVER: u64 = 5;
const KIND_SUCCESSION: u64 = 6;
const KIND_ORPHANS: u64 = 7;

impl Token {
    /// What the master's own events are about, which are of no pool.
    #[must_use]
    pub fn own(subject: Subject) -> Self {
        Self { pool: 0, subject }
    }

    /// As the epoll set keeps it.
    pub fn encode(self) -> u64 {
        let (kind, rest) = match self.subject {
            Subject::Connection(id) => (KIND_CONNECTION, pack(id.into())),
            Subject::Doorbell(id) => (KIND_DOORBELL, pack(id.into())),
            Subject::Listener(index) => (KIND_LISTENER, index as u64),
            Subject::Signals => (KIND_SIGNALS, 0),
            Subject::Control => (KIND_CONTROL, 0),
            Subject::Takeover => (KIND_TAKEOVER, 0),
            Subject::Succession => (KIND_SUCCESSION, 0),
            Subject::Orphans => (KIND_ORPHANS, 0),
        };
        kind << KIND_SHIFT | u64::from(self.pool) << POOL_SHIFT | rest
    }

    /// As the epoll set gives it back.
    pub fn decode(data: u64) -> Self {
        let rest = data & ((1 << POOL_SHIFT) - 1);
        let subject = match data >> KIND_SHIFT {
            KIND_CONNECTION => Subject::Connection(unpack(rest).into()),
            KIND_DOORBELL => Subject::Doorbell(unpack(rest).into()),
            KIND_LISTENER => Subject::Listener(rest as usize),
            KIND_CONTROL => Subject::Control,
            KIND_TAKEOVER => Subject::Takeover,
            KIND_SUCCESSION => Subject::Succession,
            KIND_ORPHANS => Subject::Orphans,
            _ => Subject::Signals,
        };
        Self {
            pool: (data >> POOL_SHIFT) as u8,
            subject,
        }
    }
}

/// A name has its serial number in the upper half of 64 bits.
fn pack(name: u64) -> u64 {
    name >> 32 << SERIAL_SHIFT | name & (MAX_INDEX as u64 - 1)
}

fn unpack(bits: u64) -> u64 {
    bits >> SERIAL_SHIFT << 32 | bits & (MAX_INDEX as u64 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_epoll_set() {
        let name = 0x0fff_ffff_00ff_fffe;
        for subject in [
            Subject::Connection(name.into()),
            Subject::Doorbell(name.into()),
            Subject::Listener(7),
            Subject::Signals,
            Subject::Control,
            Subject::Takeover,
            Subject::Succession,
            Subject::Orphans,
        ] {
            for pool in [0, 1, 255] {
                let token = Token { pool, subject };
                assert_eq!(Token::decode(token.encode()), token);
            }
        }
    }
}
