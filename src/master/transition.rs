//! What changes a master as a whole: a reload, or a takeover in one direction or the other, which
//! exclude each other; and its end.
//!
//! The recovery of what a killed master had lent ([`UnsettledTurns`]) is none of them: it lasts for
//! as long as that one's workers do, and a reload need not wait for it.
//!
//! [`UnsettledTurns`]: super::succession::recover::UnsettledTurns

use super::pools::Pools;
use super::reload::Reload;
use super::succession::new_side::TakeoverClient;
use super::succession::old_side::TakeoverServer;
use super::time::Time;

/// Whether the server goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// It does.
    Serving,
    /// It finishes what it has.
    Stopping {
        /// How many SIGINT it has got.
        interrupts: u32,
    },
    /// It ends without waiting for anything.
    Quitting,
}

impl Run {
    /// How many SIGINT it has got, if it finishes or has yet to finish anything.
    #[must_use]
    pub fn interrupts(self) -> Option<u32> {
        match self {
            Self::Serving => Some(0),
            Self::Stopping { interrupts } => Some(interrupts),
            Self::Quitting => None,
        }
    }
}

/// See the module.
pub enum Transition<'a> {
    /// Nothing changes.
    None,
    /// All pools go over to another configuration.
    Reload(Reload<'a>),
    /// Another master takes over from this one.
    HandOver(TakeoverServer),
    /// This master takes over from another one.
    TakeOver(TakeoverClient),
}

impl Transition<'_> {
    /// Takes what is under way, so that nothing is.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::None)
    }

    /// When something is to be done if nothing happens.
    #[must_use]
    pub fn due(&self, pools: &Pools<'_>) -> Option<Time> {
        match self {
            Self::None => None,
            Self::Reload(reload) => reload.due(),
            Self::HandOver(server) => server.due(),
            Self::TakeOver(client) => client.due(pools),
        }
    }

    /// Why no other master can take over now.
    #[must_use]
    pub fn obstacle(&self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Reload(_) => Some("a reload is under way"),
            Self::HandOver(_) => Some("another one is under way"),
            Self::TakeOver(_) => Some("this master is still taking over itself"),
        }
    }

    /// Whether a master that is not in charge yet waits for its workers.
    #[must_use]
    pub fn is_pending_takeover(&self) -> bool {
        matches!(self, Self::TakeOver(client) if !client.is_active())
    }
}
