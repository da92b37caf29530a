//! How long clients may take: for the head of a request, for its body, for reading a response.
//! Pure.
//!
//! The head has one time for all of it. A body and a response have a least rate: a client that has
//! moved `b` bytes since the phase began at `t0` is too slow from `t0 + grace + b / rate` on. Each
//! byte puts that point off, so it is all that has to be kept. Beside that, a client must not be
//! silent for longer than one that is idle (`idle`).
//!
//! What counts of a response is what the client has taken, not what the kernel has room for. So
//! when the time of a client that reads is over, the master looks how much that is by now.

use std::time::Duration;

use crate::master::dispatch::table::Due;
use crate::master::dispatch::vocabulary::{Late, Limits, Look, Owes, TimeLeft, TurnEnd};
use crate::master::time::Time;
use crate::wire::Outcome;

/// The point in time that stands for none.
pub const NEVER: Time = Time(u64::MAX / 2);

/// Whether the time of a parked connection is over, now that the master has looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The client has gone on meanwhile.
    Not,
    /// It was silent for longer than one may be that is idle.
    Idle,
    /// It was too slow.
    Late(Late),
}

/// It has not been looked how much a client has taken.
const UNKNOWN: u64 = u64::MAX;

impl Limits {
    /// How much time so many bytes may take.
    fn time_for(&self, bytes: u64) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Until when a client has time that has moved so many bytes of a phase.
    fn until(&self, begin: Time, bytes: u64) -> Time {
        match self.rate {
            Some(_) => Self::later(begin.after(self.rate_grace), self.time_for(bytes)),
            None => NEVER,
        }
    }

    fn later(until: Time, by: Duration) -> Time {
        until.after(by).min(NEVER)
    }
}

impl Due {
    /// What is due after a turn that was begun by something that came at `ready_at`. What came
    /// along with a request that was answered in this turn is counted from the end of the turn on,
    /// for the client could not know that it is awaited.
    #[must_use]
    pub fn after(self, end: &TurnEnd, ready_at: Time, limits: &Limits, now: Time) -> Self {
        let (begin, read) = match end.answered {
            true => (now, 0),
            false => (ready_at, end.read),
        };
        let goes_on = !end.answered;
        match (end.outcome, end.owes, self) {
            (Outcome::ParkWrite, _, _) => self.reading(end.taken, limits, now),
            (Outcome::Close | Outcome::Linger, _, _) | (_, Owes::Nothing, _) => Self::Nothing,
            // Whatever it owed is still due when the connection is parked.
            (Outcome::Again, _, Self::Head { .. } | Self::Body { .. }) if goes_on => self,
            (Outcome::Again, _, _) => Self::Nothing,
            (_, Owes::Head, Self::Head { since }) if goes_on => Self::Head { since },
            (_, Owes::Head, _) => Self::Head { since: begin },
            (_, Owes::Body, Self::Body { until }) if goes_on => Self::Body {
                until: Limits::later(until, limits.time_for(read)),
            },
            (_, Owes::Body, _) => Self::Body {
                until: limits.until(begin, read),
            },
        }
    }

    /// What is due after a turn whose worker died when it was over.
    #[must_use]
    pub fn after_lost_report(outcome: Outcome, limits: &Limits, now: Time) -> Self {
        match outcome {
            Outcome::ParkWrite => Self::Nothing.reading(UNKNOWN, limits, now),
            _ => Self::Nothing,
        }
    }

    fn reading(mut self, taken: u64, limits: &Limits, now: Time) -> Self {
        if self.has_taken(taken, limits).is_some() {
            return self;
        }
        let until = limits.until(now, 0);
        Self::Reading { until, taken }
    }

    /// The client has taken so much by now, in all. Whether that is more than before; `None` if
    /// that is not what is due.
    fn has_taken(&mut self, now: u64, limits: &Limits) -> Option<bool> {
        let Self::Reading { until, taken } = self else {
            return None;
        };
        // It wraps around below zero.
        let more = match *taken {
            UNKNOWN => 0,
            before => u64::try_from(now.wrapping_sub(before).cast_signed()).unwrap_or(0),
        };
        let first = *taken == UNKNOWN;
        *until = Limits::later(*until, limits.time_for(more));
        *taken = now;
        Some(first || more > 0)
    }

    /// How much longer a parked connection has, if there is a bound.
    #[must_use]
    pub fn limit(self, limits: &Limits, now: Time) -> Option<Duration> {
        match self {
            Self::Nothing => limits.idle,
            Self::Head { since } => limits
                .head
                .map(|head| head.saturating_sub(now.since(since))),
            Self::Body { until } | Self::Reading { until, .. } => {
                let left = (until < NEVER).then(|| until.since(now));
                left.into_iter().chain(limits.idle).min()
            }
        }
    }

    /// Whether the client owes the rest of a request.
    #[must_use]
    pub fn is_owed(self) -> bool {
        matches!(self, Self::Head { .. } | Self::Body { .. })
    }

    /// The time of a parked connection is over, and the master has looked at it.
    pub fn over(&mut self, look: &Look, limits: &Limits, now: Time) -> Over {
        let has_gone_on = self.has_taken(look.taken, limits).unwrap_or(false);
        match *self {
            Self::Nothing => Over::Idle,
            Self::Head { .. } => Over::Late(Late::Head),
            Self::Body { until } if until <= now => Over::Late(Late::Body),
            Self::Body { .. } => Over::Late(Late::SilentBody),
            Self::Reading { until, .. } if until <= now => Over::Late(Late::Reader),
            Self::Reading { .. } if has_gone_on => Over::Not,
            Self::Reading { .. } => Over::Idle,
        }
    }

    // ---- for another master ---------------------------------------------------------------------

    /// How long ago the client began the head that it owes, and how much time it has left for
    /// anything else.
    #[must_use]
    pub fn told(self, now: Time) -> (Option<Duration>, Option<TimeLeft>) {
        match self {
            Self::Nothing => (None, None),
            Self::Head { since } => (Some(now.since(since)), None),
            Self::Body { until } => (None, Some(TimeLeft::Body(until.since(now)))),
            Self::Reading { until, .. } => (None, Some(TimeLeft::Reading(until.since(now)))),
        }
    }

    /// What another master has told.
    #[must_use]
    pub fn adopted(head: Option<Duration>, left: Option<TimeLeft>, now: Time) -> Self {
        let until = |left| now.after(left).min(NEVER);
        match (left, head) {
            (Some(TimeLeft::Body(left)), _) => Self::Body { until: until(left) },
            (Some(TimeLeft::Reading(left)), _) => Self::Reading {
                until: until(left),
                taken: UNKNOWN,
            },
            (None, Some(head)) => Self::Head {
                since: Time(now.0.saturating_sub(head.as_nanos() as u64)),
            },
            (None, None) => Self::Nothing,
        }
    }
}
