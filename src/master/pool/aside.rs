//! New connections that are one too many for their client, unless another one has just ended.

use std::time::Duration;

use crate::master::connection::held::Held;
use crate::master::time::Time;

/// How long a client that comes again waits for its last connection to be counted out: a worker may
/// have answered, and the client have read that and gone, before the master has the report.
const SECOND_LOOK: Duration = Duration::from_millis(5);

/// How long it waits if a worker has one of its connections, which may be about to end.
const LAST_LOOK: Duration = Duration::from_millis(200);

/// How many connections wait for that at a time. Further ones are turned away at once.
pub(super) const MOST_ASIDE: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) held: Held,
    /// The client has most likely sent something (`TCP_DEFER_ACCEPT`).
    pub(super) deferred: bool,
    since: Time,
    /// When it is looked at again.
    pub(super) next_look: Time,
}

impl Aside {
    pub(super) fn new(held: Held, deferred: bool, now: Time) -> Self {
        Self {
            held,
            deferred,
            since: now,
            next_look: now.after(SECOND_LOOK),
        }
    }

    /// Whether it has waited for long enough, which depends on whether a worker has a connection of
    /// its client.
    pub(super) fn has_waited(&self, now: Time, client_is_served: impl FnOnce() -> bool) -> bool {
        self.since.after(LAST_LOOK) <= now
            || self.since.after(SECOND_LOOK) <= now && !client_is_served()
    }

    pub(super) fn until_next_look(self, now: Time) -> Self {
        Self {
            next_look: now.after(SECOND_LOOK),
            ..self
        }
    }
}
