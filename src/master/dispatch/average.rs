//! How long the turns of a pool take. Pure.

use std::time::Duration;

/// A moving average of durations: each new one counts for a sixteenth.
#[derive(Debug)]
pub struct Average {
    nanos: u64,
    ceiling: u64,
}

const WEIGHT_SHIFT: u32 = 4;

impl Average {
    /// An average that starts at `patience` (so that an unknown service gets one connection at a
    /// time), and counts none of the durations for more than four times that: a single very long
    /// turn says nothing about the others, and what waits behind it is taken back anyway.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        Self {
            nanos: patience,
            ceiling: patience.saturating_mul(4),
        }
    }

    /// Counts one duration in.
    pub fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos())
            .unwrap_or(u64::MAX)
            .min(self.ceiling);
        self.nanos = self.nanos - (self.nanos >> WEIGHT_SHIFT) + (nanos >> WEIGHT_SHIFT);
    }

    /// How many durations of the average fit into `span`.
    #[must_use]
    pub fn fit_into(&self, span: Duration) -> usize {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        usize::try_from(span / self.nanos.max(1)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_the_turns_and_forgives_a_long_one() {
        let patience = Duration::from_micros(500);
        let mut average = Average::new(patience);
        assert_eq!(average.fit_into(patience), 1);
        for _ in 0..100 {
            average.add(Duration::from_micros(20));
        }
        assert!(average.fit_into(patience) > 20);
        average.add(Duration::from_secs(10));
        assert!(average.fit_into(patience) >= 3);
        for _ in 0..100 {
            average.add(Duration::from_secs(10));
        }
        assert_eq!(average.fit_into(patience), 0);
    }
}
