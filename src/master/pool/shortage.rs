//! Lends that the kernel refuses for want of something that no worker has: whether the operator
//! knows.
//!
//! A connection that could not be lent waits, and is turned away when it has waited for too long.
//! Clients would see that and the operator would not, so the beginning and the end of it are
//! logged, however many lends are refused in between.

use std::io;
use std::time::Duration;

use crate::error::Plain;
use crate::master::time::Time;

/// How long no lend must have been refused before the shortage counts as over.
const QUIET: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Shortage {
    current: Option<Refusals>,
}

#[derive(Debug)]
struct Refusals {
    first: Time,
    last: Time,
    count: u64,
}

impl Shortage {
    /// The kernel has refused to pass a descriptor on.
    pub fn refused(&mut self, pool: &str, error: io::Error, now: Time) {
        if self.count(now) == 1 {
            let why = Plain(&error);
            log::warn!("pool {pool} cannot lend connections to its workers: {why}; they wait");
        }
    }

    /// A lend went out.
    #[inline]
    pub fn sent(&mut self, pool: &str, now: Time) {
        if self.current.is_some()
            && let Some((count, lasted)) = self.end(now)
        {
            let seconds = lasted.as_secs_f64();
            log::warn!("pool {pool} lends again: {count} lends were refused in {seconds:.1} s");
        }
    }

    /// Counts a refusal. Returns how many there were since the shortage began.
    fn count(&mut self, now: Time) -> u64 {
        let refusals = self.current.get_or_insert(Refusals {
            first: now,
            last: now,
            count: 0,
        });
        refusals.last = now;
        refusals.count += 1;
        refusals.count
    }

    /// How many lends were refused, and for how long, if that is over.
    fn end(&mut self, now: Time) -> Option<(u64, Duration)> {
        let over = |refusals: &mut Refusals| now.since(refusals.last) >= QUIET;
        let refusals = self.current.take_if(over)?;
        Some((refusals.count, refusals.last.since(refusals.first)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::default().after(Duration::from_millis(3_600_000 + millis))
    }

    #[test]
    fn the_beginning_and_the_end_are_told_once_each() {
        let mut shortage = Shortage::default();
        assert_eq!(shortage.end(at(0)), None);
        let counts = [0, 400, 1300].map(|time| shortage.count(at(time)));
        assert_eq!(counts, [1, 2, 3]);
        // Some lends go out and others do not: that is one shortage, not many.
        assert_eq!(shortage.end(at(1400)), None);
        assert_eq!(shortage.count(at(1500)), 4);
        let over = Some((4, Duration::from_millis(1500)));
        assert_eq!(shortage.end(at(2600)), over);
        assert_eq!(shortage.end(at(2700)), None);
        assert_eq!(shortage.count(at(2800)), 1);
    }
}
