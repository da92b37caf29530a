//! What a process is, which each of its log lines says.

use std::fmt;
use std::sync::{PoisonError, RwLock};

/// What this process is, at the head of each of its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Owns the listeners and the connections.
    Master,
    /// Serves turns.
    Worker {
        /// Its place in the pool, from 0. A replacement gets the slot of the worker it replaces.
        slot: u32,
    },
    /// A command that is neither, by its name: `recv-fd`.
    Command(&'static str),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Worker { slot } => write!(f, "worker {slot}"),
            Self::Command(name) => f.write_str(name),
        }
    }
}

static ROLE: RwLock<Role> = RwLock::new(Role::Master);

/// What this process has become: for the child, after a fork.
pub(crate) fn set_role(role: Role) {
    *ROLE.write().unwrap_or_else(PoisonError::into_inner) = role;
}

/// What this process is now.
pub(super) fn role() -> Role {
    *ROLE.read().unwrap_or_else(PoisonError::into_inner)
}
