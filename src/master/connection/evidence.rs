//! What came of a turn whose worker died, by what the kernel has counted. Pure.
//!
//! The kernel counts what was read from a connection and what was written to it, whichever process
//! did so. What the master knows of the turns before, and what the dead worker has left on its
//! scoreboard, is compared with that.

use crate::channel::scoreboard::Entry;
use crate::master::dispatch::Verdict;
use crate::wire::{Outcome, Traffic};

/// What is known of a turn whose worker died.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// What all turns had moved that were reported.
    pub reported: Traffic,
    /// Bytes came along with the turn that an earlier one had read.
    pub carried: bool,
    /// What the worker had served without a report.
    pub unreported: Option<Entry>,
    /// What the worker would have reported if its last call came to its end.
    pub pending: Option<Entry>,
}

impl Evidence {
    /// What came of the turn if the kernel has counted so much `now`, and, if the turn was over,
    /// what all turns have moved.
    #[must_use]
    pub fn weigh(&self, now: Traffic) -> (Verdict, Traffic) {
        if let Some(entry) = self.pending {
            let then = sum(self.reported, entry.traffic);
            // The end of either side counts as one byte.
            let end = u64::from(!entry.outcome.keeps());
            let reached = |now: u64, then: u64| now == then || now == then.wrapping_add(end);
            if reached(now.read, then.read) && reached(now.written, then.written) {
                return served(entry.outcome, then);
            }
        }
        let unreported = self.unreported.map(|entry| entry.traffic);
        let before = sum(self.reported, unreported.unwrap_or_default());
        let verdict = if now.written != before.written {
            Verdict::Sent
        } else if now.read != before.read {
            Verdict::Consumed
        } else if let Some(entry) = self.unreported {
            return served(entry.outcome, before);
        } else if self.carried {
            // The worker had all of it without reading: nobody can say whether it has begun.
            Verdict::Consumed
        } else {
            Verdict::Untouched
        };
        (verdict, self.reported)
    }
}

fn served(outcome: Outcome, total: Traffic) -> (Verdict, Traffic) {
    (Verdict::Served(outcome), total)
}

/// What two parts of a connection's life have moved together.
#[must_use]
pub fn sum(one: Traffic, other: Traffic) -> Traffic {
    Traffic {
        read: one.read.wrapping_add(other.read),
        written: one.written.wrapping_add(other.written),
    }
}

/// What has been moved after a part of a connection's life.
#[must_use]
pub fn difference(now: Traffic, then: Traffic) -> Traffic {
    Traffic {
        read: now.read.wrapping_sub(then.read),
        written: now.written.wrapping_sub(then.written),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn moved(read: u64, written: u64) -> Traffic {
        Traffic { read, written }
    }

    fn entry(outcome: Outcome, traffic: Traffic) -> Option<Entry> {
        Some(Entry {
            id: 1,
            outcome,
            turns: 1,
            traffic,
            took: Duration::ZERO,
        })
    }

    const PLAIN: Evidence = Evidence {
        reported: Traffic {
            read: 100,
            written: 200,
        },
        carried: false,
        unreported: None,
        pending: None,
    };

    #[test]
    fn what_was_read_and_sent_decides() {
        let verdict = |read, written| PLAIN.weigh(moved(read, written)).0;
        assert_eq!(verdict(100, 200), Verdict::Untouched);
        assert_eq!(verdict(101, 200), Verdict::Consumed);
        assert_eq!(verdict(101, 201), Verdict::Sent);
        assert_eq!(verdict(100, 201), Verdict::Sent);
    }

    #[test]
    fn what_came_along_was_read_before() {
        let carried = Evidence {
            carried: true,
            ..PLAIN
        };
        assert_eq!(carried.weigh(moved(100, 200)).0, Verdict::Consumed);
    }

    #[test]
    fn a_turn_that_was_over_is_as_good_as_reported() {
        let stayed = Evidence {
            unreported: entry(Outcome::Park, moved(10, 20)),
            ..PLAIN
        };
        let total = moved(110, 220);
        assert_eq!(stayed.weigh(total), (Verdict::Served(Outcome::Park), total));
        assert_eq!(stayed.weigh(moved(111, 220)).0, Verdict::Consumed);
    }

    #[test]
    fn a_last_call_that_came_to_its_end_ends_the_turn() {
        let pending = |outcome| Evidence {
            pending: entry(outcome, moved(8, 5)),
            ..PLAIN
        };
        let parked = pending(Outcome::Park);
        let total = moved(108, 205);
        assert_eq!(parked.weigh(total), (Verdict::Served(Outcome::Park), total));
        assert_eq!(parked.weigh(moved(108, 204)).0, Verdict::Sent);
        // The end of the sending side counts as a byte.
        let closed = pending(Outcome::Close);
        let (verdict, _) = closed.weigh(moved(108, 206));
        assert_eq!(verdict, Verdict::Served(Outcome::Close));
    }
}
