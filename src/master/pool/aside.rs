//! New connections that are one too many for their client, unless another one has just ended.

use std::time::Duration;

use crate::master::connection::held::Held;
use crate::master::time::Time;

/// The time between two looks at a client that comes again, whose last connection may not have been
/// counted out yet: a worker may have answered, and the client have read that and gone, before the
/// master has the report.
const INTERVAL: Duration = Duration::from_millis(5);

/// How long it waits if a worker has one of its connections, which may be about to end.
const LONGEST: Duration = Duration::from_millis(200);

/// How many connections wait for that at a time. Further ones are turned away at once.
pub(super) const MOST_ASIDE: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) held: Held,
    /// The client has most likely sent something (`TCP_DEFER_ACCEPT`).
    pub(super) deferred: bool,
    /// When it is turned away if a worker has a connection of its client all the time.
    end: Time,
    /// When it is looked at again.
    pub(super) next_look: Time,
    /// A worker had a connection of its client at the last look, as far as there was one.
    served: bool,
}

impl Aside {
    pub(super) fn new(held: Held, deferred: bool, now: Time) -> Self {
        Self {
            held,
            deferred,
            end: now.after(LONGEST),
            next_look: now.after(INTERVAL),
            served: true,
        }
    }

    /// Looks at it if that is due; `served` says whether a worker has a connection of its client.
    /// True when it has waited for long enough. One look without such a connection does not
    /// suffice: what has just come back from a worker is watched again, and that its client has
    /// gone is heard after that.
    pub(super) fn has_waited(&mut self, now: Time, served: impl FnOnce() -> bool) -> bool {
        if self.next_look > now {
            return false;
        }
        self.next_look = now.after(INTERVAL);
        let served = served();
        let before = std::mem::replace(&mut self.served, served);
        self.end <= now || !served && !before
    }
}
