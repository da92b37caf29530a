//! The settings of a pool as operators write them: name, unit and bounds of each. The command line,
//! the file and their documents are made or checked from one list, so that they agree. Pure.

use std::time::Duration;

use crate::config::settings::{self, LONGEST_DEFERRAL, LONGEST_PATIENCE, MAX_THREADS, Settings};

/// The unit of a setting's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A count of things, such as connections or workers.
    Number,
    Seconds,
    Milliseconds,
    Microseconds,
    /// Bytes, which may also be written as text with a unit: `200M`.
    Bytes,
}

/// The heading under which the help of the command line shows a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heading {
    /// How many workers there are, and how long each lives.
    Workers,
    /// What clients may do, and how long they wait.
    Limits,
}

/// A setting. Its value is a number in its unit; 0 stands for "no limit" where the setting allows
/// that.
#[derive(Debug)]
pub(crate) struct Key {
    /// The name of the key in the file, and of the flag after two hyphens.
    pub(crate) name: &'static str,
    /// The letter of the flag after one hyphen, if it has one.
    pub(crate) short: Option<char>,
    pub(crate) heading: Heading,
    pub(crate) unit: Unit,
    /// The text of the help: a sentence in the imperative.
    pub(crate) help: &'static str,
    least: u64,
    most: u64,
    /// The text that documents show as the default, where it is no fixed number.
    default: Option<&'static str>,
    get: fn(&Settings) -> u64,
    set: fn(&mut Settings, u64),
}

/// A value that the operator has chosen for a setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) key: &'static Key,
    /// A value that the key accepts.
    pub(crate) value: u64,
}

impl Choice {
    /// Stores the value in `settings`.
    pub(crate) fn apply(self, settings: &mut Settings) {
        (self.key.set)(settings, self.value);
    }
}

impl Key {
    /// Parses a value. The error says what was expected instead.
    pub(crate) fn parse(&self, text: &str) -> Result<u64, String> {
        self.accept(match self.unit {
            Unit::Bytes => size(text),
            _ => text.parse().ok(),
        })
    }

    /// Checks that there is a number and that it is within bounds. The error says what was expected
    /// instead.
    pub(crate) fn accept(&self, number: Option<u64>) -> Result<u64, String> {
        number
            .filter(|number| (self.least..=self.most).contains(number))
            .ok_or_else(|| self.expected())
    }

    fn expected(&self) -> String {
        let what = match self.unit {
            Unit::Number => "a number",
            Unit::Seconds => "a whole number of seconds",
            Unit::Milliseconds => "a whole number of milliseconds",
            Unit::Microseconds => "a whole number of microseconds",
            Unit::Bytes => "a number of bytes, or a size such as 200M",
        };
        let Self { least, most, .. } = self;
        match (least, most) {
            (0, UNBOUNDED..) => format!("expected {what}"),
            (_, UNBOUNDED..) => format!("expected {what}, at least {least}"),
            _ => format!("expected {what} from {least} to {most}"),
        }
    }

    /// The default, as documents show it.
    pub(crate) fn default(&self) -> String {
        match self.default {
            Some(words) => words.to_owned(),
            None => (self.get)(&Settings::for_processors(1)).to_string(),
        }
    }
}

/// Finds two settings that contradict each other. Returns the name of one of them and the reason.
pub(crate) fn contradiction(settings: &Settings) -> Option<(&'static str, String)> {
    let Settings {
        workers,
        min_spare,
        max_spare,
        max_workers,
        ..
    } = *settings;
    let above = |low: Option<usize>, high: Option<usize>| low.zip(high).filter(|(l, h)| l > h);
    if let Some((workers, most)) = above(Some(workers), max_workers) {
        let reason = format!("{most} is less than workers, which is {workers}");
        return Some(("max-workers", reason));
    }
    let (low, high, name) = match above(min_spare, max_spare) {
        Some((low, high)) => (low, high, "max-spare"),
        None => above(min_spare, max_workers).map(|(low, high)| (low, high, "max-workers"))?,
    };
    let reason = format!("{low} is more than {name}, which is {high}");
    Some(("min-spare", reason))
}

/// Parses a number of bytes: digits, then optionally K, M, G or T for a power of 1024.
pub(super) fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// An upper bound of this size or more only says what the type can hold, so messages omit it.
const UNBOUNDED: u64 = i32::MAX as u64;

/// What most keys have in common.
const KEY: Key = Key {
    name: "",
    short: None,
    heading: Heading::Limits,
    unit: Unit::Number,
    help: "",
    least: 0,
    most: u32::MAX as u64,
    default: None,
    get: |_| 0,
    set: |_, _| {},
};

/// See [`settings::MOST_WORKERS`].
const MOST_WORKERS: u64 = settings::MOST_WORKERS as u64;

// A setting that may be absent is an `Option` in `Settings` and 0 for operators. These convert one
// into the other.

fn nonzero(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number > 0)
}

fn nonzero_count(number: u64) -> Option<usize> {
    nonzero(number).map(|number| number as usize)
}

fn nonzero_seconds(number: u64) -> Option<Duration> {
    nonzero(number).map(Duration::from_secs)
}

fn count_or_zero(limit: Option<usize>) -> u64 {
    limit.map_or(0, |limit| limit as u64)
}

fn seconds_or_zero(limit: Option<Duration>) -> u64 {
    limit.map_or(0, |limit| limit.as_secs())
}

/// Every setting, in the order of the help and of the documents.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "workers",
        short: Some('w'),
        heading: Heading::Workers,
        help: "Run this many worker processes.",
        least: 1,
        most: MOST_WORKERS,
        default: Some("two for each processor, at least 4"),
        get: |s| s.workers as u64,
        set: |s, n| s.workers = n as usize,
        ..KEY
    },
    Key {
        name: "threads",
        heading: Heading::Workers,
        help: "Let each worker serve this many turns at the same time, in threads.",
        least: 1,
        most: MAX_THREADS as u64,
        get: |s| s.threads as u64,
        set: |s, n| s.threads = n as usize,
        ..KEY
    },
    Key {
        name: "min-spare",
        heading: Heading::Workers,
        help: "Start more workers while fewer than this many are idle, up to --max-workers. 0: never.",
        most: MOST_WORKERS,
        get: |s| count_or_zero(s.min_spare),
        set: |s, n| s.min_spare = nonzero_count(n),
        ..KEY
    },
    Key {
        name: "max-spare",
        heading: Heading::Workers,
        help: "Retire workers while more than this many are idle, down to --workers. 0: three more than --min-spare.",
        most: MOST_WORKERS,
        get: |s| count_or_zero(s.max_spare),
        set: |s, n| s.max_spare = nonzero_count(n),
        ..KEY
    },
    Key {
        name: "max-workers",
        heading: Heading::Workers,
        help: "Start at most this many workers in all for --min-spare. 0: four times --workers.",
        most: MOST_WORKERS,
        get: |s| count_or_zero(s.max_workers),
        set: |s, n| s.max_workers = nonzero_count(n),
        ..KEY
    },
    Key {
        name: "start-timeout",
        heading: Heading::Workers,
        unit: Unit::Seconds,
        help: "Kill a new worker that is not ready after this many seconds.",
        least: 1,
        get: |s| s.start_timeout.as_secs(),
        set: |s, n| s.start_timeout = Duration::from_secs(n),
        ..KEY
    },
    Key {
        name: "turn-timeout",
        heading: Heading::Workers,
        unit: Unit::Seconds,
        help: "Kill a worker whose turn takes longer than this many seconds. 0: never.",
        get: |s| seconds_or_zero(s.turn_timeout),
        set: |s, n| s.turn_timeout = nonzero_seconds(n),
        ..KEY
    },
    Key {
        name: "max-turns",
        heading: Heading::Workers,
        help: "Replace a worker that has served this many turns, give or take a tenth. 0: never.",
        most: u64::MAX,
        get: |s| s.max_turns.unwrap_or(0),
        set: |s, n| s.max_turns = nonzero(n),
        ..KEY
    },
    Key {
        name: "max-lifetime",
        heading: Heading::Workers,
        unit: Unit::Seconds,
        help: "Replace a worker after this many seconds, give or take a tenth. 0: never.",
        get: |s| seconds_or_zero(s.max_lifetime),
        set: |s, n| s.max_lifetime = nonzero_seconds(n),
        ..KEY
    },
    Key {
        name: "max-rss",
        heading: Heading::Workers,
        unit: Unit::Bytes,
        help: "Replace a worker that uses this much memory, in bytes or such as 200M. 0: never.",
        most: u64::MAX,
        get: |s| s.max_rss.unwrap_or(0),
        set: |s, n| s.max_rss = nonzero(n),
        ..KEY
    },
    Key {
        name: "grace",
        unit: Unit::Seconds,
        help: "When stopping, give requests this many seconds to finish.",
        get: |s| s.grace.as_secs(),
        set: |s, n| s.grace = Duration::from_secs(n),
        ..KEY
    },
    Key {
        name: "patience",
        unit: Unit::Microseconds,
        help: "Let a connection wait this many microseconds behind another one before another worker gets it.",
        least: 1,
        most: LONGEST_PATIENCE.as_micros() as u64,
        get: |s| s.patience.as_micros() as u64,
        set: |s, n| s.patience = Duration::from_micros(n),
        ..KEY
    },
    Key {
        name: "max-connections",
        help: "At this many connections, close the one that was idle for longest for a newcomer; if none is idle, stop accepting. 0: as many as descriptors allow.",
        most: u64::MAX,
        get: |s| {
            Some(s.max_connections)
                .filter(|n| *n < usize::MAX)
                .unwrap_or(0) as u64
        },
        set: |s, n| s.max_connections = nonzero_count(n).unwrap_or(usize::MAX),
        ..KEY
    },
    Key {
        name: "per-client",
        help: "Turn away clients that have this many connections already (IPv6: by /64). 0: nobody.",
        get: |s| s.per_client.unwrap_or(0).into(),
        set: |s, n| s.per_client = nonzero(n).map(|n| n as u32),
        ..KEY
    },
    Key {
        name: "queue",
        help: "Turn requests away while this many wait for a worker.",
        least: 1,
        most: u64::MAX,
        get: |s| s.queue as u64,
        set: |s, n| s.queue = n as usize,
        ..KEY
    },
    Key {
        name: "queue-wait",
        unit: Unit::Milliseconds,
        help: "Turn a request away when it has waited this many milliseconds for a worker. 0: never.",
        get: |s| s.queue_wait.map_or(0, |limit| limit.as_millis() as u64),
        set: |s, n| s.queue_wait = nonzero(n).map(Duration::from_millis),
        ..KEY
    },
    Key {
        name: "idle-timeout",
        unit: Unit::Seconds,
        help: "Close a connection that was idle for this many seconds. 0: never.",
        default: Some("75, echo: 0"),
        get: |s| seconds_or_zero(s.idle_timeout),
        set: |s, n| s.idle_timeout = nonzero_seconds(n),
        ..KEY
    },
    Key {
        name: "head-timeout",
        unit: Unit::Seconds,
        help: "Give a client this many seconds to send the head of a request. 0: no limit.",
        get: |s| seconds_or_zero(s.head_timeout),
        set: |s, n| s.head_timeout = nonzero_seconds(n),
        ..KEY
    },
    Key {
        name: "client-timeout",
        unit: Unit::Seconds,
        help: "Let one read from or write to a client sleep this many seconds inside a turn.",
        least: 1,
        get: |s| s.client_timeout.as_secs(),
        set: |s, n| s.client_timeout = Duration::from_secs(n),
        ..KEY
    },
    Key {
        name: "linger",
        unit: Unit::Seconds,
        help: "Drain a finished connection until its client is silent for this many seconds.",
        get: |s| s.linger.as_secs(),
        set: |s, n| s.linger = Duration::from_secs(n),
        ..KEY
    },
    Key {
        name: "linger-total",
        unit: Unit::Seconds,
        help: "Drain a finished connection for this many seconds in all. 0: six times --linger.",
        get: |s| seconds_or_zero(s.linger_total),
        set: |s, n| s.linger_total = nonzero_seconds(n),
        ..KEY
    },
    Key {
        name: "defer-accept",
        unit: Unit::Seconds,
        help: "Let the kernel hold back a new connection for this many seconds while its client is silent.",
        most: LONGEST_DEFERRAL.as_secs(),
        get: |s| s.defer_accept.as_secs(),
        set: |s, n| s.defer_accept = Duration::from_secs(n),
        ..KEY
    },
    Key {
        name: "backlog",
        help: "Let the kernel queue this many new connections for each address (listen(2)).",
        least: 1,
        most: i32::MAX as u64,
        get: |s| s.backlog as u64,
        set: |s, n| s.backlog = n as i32,
        ..KEY
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_survive_being_written_and_read() {
        let usual = Settings::for_processors(3);
        for key in KEYS {
            let mut settings = usual.clone();
            let value = key.accept(Some((key.get)(&usual)));
            let value = value.unwrap_or_else(|error| panic!("{}: {error}", key.name));
            Choice { key, value }.apply(&mut settings);
            assert_eq!(settings, usual, "{}", key.name);
        }
    }

    #[test]
    fn each_key_sets_one_thing_of_its_own() {
        let usual = Settings::for_processors(3);
        for key in KEYS {
            let value = (key.get)(&usual) + 7;
            let mut settings = usual.clone();
            Choice { key, value }.apply(&mut settings);
            assert_eq!((key.get)(&settings), value, "{}", key.name);
            for other in KEYS.iter().filter(|other| other.name != key.name) {
                let kept = (other.get)(&settings) == (other.get)(&usual);
                assert!(kept, "{} sets {}", key.name, other.name);
            }
        }
    }

    #[test]
    fn a_value_out_of_bounds_says_what_was_expected() {
        for (name, text, expected) in [
            ("workers", "0", "expected a number from 1 to 10000"),
            ("workers", "-1", "expected a number from 1 to 10000"),
            ("threads", "65", "expected a number from 1 to 64"),
            ("queue", "0", "expected a number, at least 1"),
            ("grace", "soon", "expected a whole number of seconds"),
            (
                "queue-wait",
                "1.5",
                "expected a whole number of milliseconds",
            ),
            (
                "patience",
                "0",
                "expected a whole number of microseconds from 1 to 10000000",
            ),
            (
                "max-rss",
                "200 M",
                "expected a number of bytes, or a size such as 200M",
            ),
            (
                "max-rss",
                "M",
                "expected a number of bytes, or a size such as 200M",
            ),
            (
                "max-rss",
                "",
                "expected a number of bytes, or a size such as 200M",
            ),
        ] {
            let key = KEYS.iter().find(|key| key.name == name).unwrap();
            assert_eq!(key.parse(text), Err(expected.to_owned()), "{name} {text}");
        }
    }

    #[test]
    fn a_size_may_have_a_unit() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("200M", Some(200 << 20)),
            ("3k", Some(3 << 10)),
            ("1G", Some(1 << 30)),
            ("2T", Some(2 << 40)),
            ("18446744073709551615K", None),
            ("1MB", None),
            ("ü", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::for_processors(2);
            change(&mut settings);
            contradiction(&settings).map(|(name, _)| name)
        };
        assert_eq!(with(|_| {}), None);
        assert_eq!(with(|s| s.max_workers = Some(4)), None);
        assert_eq!(with(|s| s.max_workers = Some(3)), Some("max-workers"));
        let spare = |s: &mut Settings| (s.min_spare, s.max_spare) = (Some(3), Some(2));
        assert_eq!(with(spare), Some("min-spare"));
        let spare = |s: &mut Settings| (s.min_spare, s.max_workers) = (Some(9), Some(8));
        assert_eq!(with(spare), Some("min-spare"));
    }
}
