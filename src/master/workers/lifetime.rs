//! How long a worker lives: until it has served, aged or grown enough. Pure.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::config::Settings;
use crate::master::time::Time;

/// The bounds of one worker's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    born: Time,
    turns: Option<u64>,
    age: Option<Duration>,
    memory: Option<u64>,
}

/// Why another worker is to take a worker's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The worker has served this many turns.
    Turns(u64),
    /// The worker has lived for this long.
    Age(Duration),
    /// The worker has this many bytes of memory.
    Memory(u64),
}

impl Lifetime {
    /// The life of a worker that starts now. Each seed gives other limits, so that workers with the
    /// same settings are not all replaced at the same time.
    #[must_use]
    pub fn new(settings: &Settings, seed: u64, born: Time) -> Self {
        let age = settings.max_lifetime.map(|limit| {
            let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
            Duration::from_nanos(jittered(nanos, (seed, "age")))
        });
        Self {
            born,
            turns: settings.max_turns.map(|turns| jittered(turns, seed)),
            age,
            memory: settings.max_rss,
        }
    }

    /// Whether the limit was reached by the last `more` of these turns.
    #[must_use]
    pub fn is_served_by(&self, turns: u64, more: u64) -> bool {
        self.turns
            .is_some_and(|limit| turns >= limit && turns - more < limit)
    }

    /// Why the life is over, if it is.
    #[must_use]
    pub fn over(&self, turns: u64, memory: u64, now: Time) -> Option<Reason> {
        let age = now.since(self.born);
        if self.turns.is_some_and(|limit| turns >= limit) {
            Some(Reason::Turns(turns))
        } else if self.age.is_some_and(|limit| age >= limit) {
            Some(Reason::Age(age))
        } else if self.memory.is_some_and(|limit| memory > limit) {
            Some(Reason::Memory(memory))
        } else {
            None
        }
    }

    /// The time at which the age limit is reached, if there is one.
    #[must_use]
    pub fn end(&self) -> Option<Time> {
        self.age.map(|age| self.born.after(age))
    }

    /// Whether memory is one of the limits.
    #[must_use]
    pub fn is_measured(&self) -> bool {
        self.memory.is_some()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turns(turns) => write!(f, "{turns} turns"),
            Self::Age(age) => write!(f, "{} s of age", age.as_secs()),
            Self::Memory(bytes) => write!(f, "{} KiB of memory", bytes / 1024),
        }
    }
}

/// The limit, plus or minus up to a tenth; at least one.
fn jittered(limit: u64, seed: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    let tenth = limit / 10;
    let offset = hasher.finish() % (2 * tenth + 1);
    (limit - tenth).saturating_add(offset).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings() -> Settings {
        Settings::for_processors(1)
    }

    proptest! {
        #[test]
        fn a_limit_varies_by_a_tenth_at_most(limit in 1u64.., seed: u64) {
            let jittered = jittered(limit, seed);
            prop_assert!(jittered >= (limit - limit / 10).max(1));
            prop_assert!(jittered <= limit.saturating_add(limit / 10));
        }
    }

    #[test]
    fn workers_that_are_born_together_do_not_end_together() {
        let settings = Settings {
            max_turns: Some(1000),
            max_lifetime: Some(Duration::from_secs(1000)),
            ..settings()
        };
        let lives = [1, 2, 3, 4].map(|pid| Lifetime::new(&settings, pid, Time(0)));
        for (at, life) in lives.iter().enumerate() {
            for other in &lives[..at] {
                assert_ne!(life.turns, other.turns);
                assert_ne!(life.end(), other.end());
            }
        }
    }

    #[test]
    fn each_limit_ends_a_life_and_says_why() {
        let second = Duration::from_secs(1);
        let unbounded = settings();
        let born = Time::default().after(second);
        let over = |settings: &Settings, turns, memory, now| {
            let life = Lifetime::new(settings, 7, born);
            life.over(turns, memory, now)
                .map(|reason| reason.to_string())
        };
        let late = born.after(12 * second);
        assert_eq!(over(&unbounded, u64::MAX, u64::MAX, late), None);
        let turns = Settings {
            max_turns: Some(9),
            ..unbounded.clone()
        };
        assert_eq!(over(&turns, 8, 0, late), None);
        assert_eq!(over(&turns, 9, 0, late).unwrap(), "9 turns");
        let age = Settings {
            max_lifetime: Some(10 * second),
            ..unbounded.clone()
        };
        assert_eq!(over(&age, 0, 0, born.after(8 * second)), None);
        assert_eq!(over(&age, 0, 0, late).unwrap(), "12 s of age");
        let memory = Settings {
            max_rss: Some(4096),
            ..unbounded
        };
        assert_eq!(over(&memory, 0, 4096, late), None);
        assert_eq!(over(&memory, 0, 8192, late).unwrap(), "8 KiB of memory");
    }

    #[test]
    fn the_turn_that_was_the_last_is_noticed_once() {
        let settings = Settings {
            max_turns: Some(9),
            ..settings()
        };
        let life = Lifetime::new(&settings, 7, Time(0));
        let noticed = [(8, 1), (9, 1), (10, 1), (12, 4), (12, 3)]
            .map(|(turns, more)| life.is_served_by(turns, more));
        assert_eq!(noticed, [false, true, false, true, false]);
    }
}
