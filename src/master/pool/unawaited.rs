//! Connections that wait for a worker, and whose clients do not wait for the answer any more: they
//! are to count for nothing.

use std::time::Duration;

use super::{Phase, Pool};
use crate::master::connection::held::Held;
use crate::master::time::Time;
use crate::service::ServiceProfile;

/// When a connection has waited for this long, the master makes sure before it lends it that its
/// client is still there: a call that costs next to nothing beside such a wait.
pub(super) const LONG_WAIT: Duration = Duration::from_millis(200);

/// The least time between two looks at all that wait.
const LOOK: Duration = Duration::from_millis(100);

/// The time between two looks that nobody gives a reason for.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to become of a connection that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// A worker gets it.
    Serve,
    /// Its client is told that it is not served.
    Tell,
    /// It is closed.
    Close,
}

/// The fate of a connection, in a pool that may be stopping.
///
/// A client that has ended its side may have given up, or have no more to say (shutdown(2)); the
/// kernel does not know which. A pool that stops serves neither: the few that would still read the
/// answer are told, and all others hold up nothing. Unless the service has no words for that.
pub(super) fn fate(held: &Held, phase: Phase, profile: &ServiceProfile) -> Fate {
    let stopping = matches!(phase, Phase::Stopping { .. });
    if held.is_gone() {
        Fate::Close
    } else if stopping && !profile.overloaded.is_empty() && held.has_ended() {
        Fate::Tell
    } else {
        Fate::Serve
    }
}

impl Pool<'_> {
    /// Ends the connections that wait for a worker and whose clients do not wait.
    pub(super) fn drop_what_nobody_awaits(&mut self, now: Time) {
        for id in self.dispatcher.ready() {
            let Some(held) = self.held(id) else { continue };
            match fate(held, self.phase, &self.plan.profile) {
                Fate::Serve => {}
                Fate::Tell => self.dispatcher.give_up(id, now),
                Fate::Close => self.dispatcher.hung_up(id),
            }
        }
    }

    /// With all places taken, nothing is heard of newcomers, so it is looked by the clock.
    pub(super) fn drop_the_gone_if_full(&mut self, now: Time) {
        if self.next_look_for_gone().is_some_and(|due| due <= now) {
            self.drop_the_gone_if_crowded(now);
        }
    }

    /// When it is looked next for those whose clients have gone.
    pub(super) fn next_look_for_gone(&self) -> Option<Time> {
        let full = self.dispatcher.is_full() && self.dispatcher.waiting() > 0;
        full.then(|| self.looked_for_gone.after(PAUSE))
    }

    /// Before somebody is kept out or turned away: those whose clients have gone make room.
    pub(super) fn drop_the_gone_if_crowded(&mut self, now: Time) {
        if self.dispatcher.is_crowded() && self.looked_for_gone.after(LOOK) <= now {
            self.looked_for_gone = now;
            self.drop_what_nobody_awaits(now);
            self.carry_out(now);
        }
    }
}
