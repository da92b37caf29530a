//! Workers that die at their start, one after another: whether that is a loop, and when the loop is
//! over. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::master::time::Time;

/// This many early deaths within [`WITHIN`] are a loop.
const MANY: usize = 5;
const WITHIN: Duration = Duration::from_secs(10);

/// The early deaths in one pool. All slots are counted together, because what is wrong with one
/// worker is usually wrong with all of them.
#[derive(Debug, Default)]
pub struct CrashLoop {
    /// The times of the last deaths, at most [`MANY`].
    recent: VecDeque<Time>,
    looping: bool,
}

impl CrashLoop {
    /// Counts an early death. True when this death makes it a loop.
    #[must_use]
    pub fn count(&mut self, now: Time) -> bool {
        if self.recent.len() == MANY {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let first = self.recent.front().copied().unwrap_or(now);
        let many = self.recent.len() == MANY && now.since(first) <= WITHIN;
        many && !std::mem::replace(&mut self.looping, true)
    }

    /// Whether workers keep dying.
    #[must_use]
    pub fn is_loop(&self) -> bool {
        self.looping
    }

    /// A worker that was started at `born` has outlived its start. True when that ends the loop,
    /// because no worker has died since then.
    #[must_use]
    pub fn outlived(&mut self, born: Time) -> bool {
        let over = self.looping && self.recent.back().is_none_or(|last| *last <= born);
        if over {
            *self = Self::default();
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::default().after(Duration::from_millis(3_600_000 + millis))
    }

    #[test]
    fn many_deaths_within_a_short_time_are_a_loop_and_said_once() {
        let mut deaths = CrashLoop::default();
        let said = [0, 100, 300, 700, 1500, 3100, 6300].map(|time| deaths.count(at(time)));
        assert_eq!(said, [false, false, false, false, true, false, false]);
        assert!(deaths.is_loop());
        assert!(!deaths.outlived(at(6000)), "born before the last death");
        assert!(deaths.outlived(at(16_300)));
        assert!(!deaths.is_loop() && !deaths.outlived(at(16_300)));
        // It takes as many again.
        let said = [1, 2, 3, 4, 5].map(|time| deaths.count(at(20_000 + time)));
        assert_eq!(said, [false, false, false, false, true]);
    }

    #[test]
    fn deaths_now_and_then_are_no_loop() {
        let mut deaths = CrashLoop::default();
        for time in (0..100).map(|number| number * 3000) {
            assert!(!deaths.count(at(time)));
        }
        assert!(!deaths.outlived(at(400_000)));
    }
}
