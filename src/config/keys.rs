//! The settings of a pool as an operator writes them: what each is called, counts, and may be. One list for the command
//! line, for the file, and for what is documented of both. Pure.

use std::time::Duration;

use super::{MAX_THREADS, Settings};

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Things, connections or workers.
    Number,
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Bytes; as a text also such as 200M.
    Bytes,
}

/// Under which heading the help shows a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heading {
    /// How many workers there are, and how long each lives.
    Workers,
    /// What clients may do, and how long they wait.
    Limits,
}

/// A setting. Its value is a number in its unit; 0 stands for no bound, where there may be none.
#[derive(Debug)]
pub(crate) struct Key {
    /// In the file; behind two hyphens on the command line.
    pub(crate) name: &'static str,
    /// Behind one hyphen.
    pub(crate) short: Option<char>,
    /// Where the help shows it.
    pub(crate) heading: Heading,
    /// What its number counts.
    pub(crate) unit: Unit,
    /// What it is for, in an order to the server.
    pub(crate) help: &'static str,
    least: u64,
    most: u64,
    /// What is said of a default that is no fixed number.
    default: Option<&'static str>,
    get: fn(&Settings) -> u64,
    set: fn(&mut Settings, u64),
}

/// A setting that was told, and its value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    /// Which one.
    pub(crate) key: &'static Key,
    /// A value that the key accepts.
    pub(crate) value: u64,
}

impl Choice {
    /// Makes it so.
    pub(crate) fn apply(self, settings: &mut Settings) {
        (self.key.set)(settings, self.value);
    }
}

impl Key {
    /// The value that a text stands for, or what was expected instead.
    pub(crate) fn parse(&self, text: &str) -> Result<u64, String> {
        self.accept(match self.unit {
            Unit::Bytes => size(text),
            _ => text.parse().ok(),
        })
    }

    /// The number, if it is one and within bounds, or what was expected instead.
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
            Unit::Bytes => "a number of bytes, or such as 200M",
        };
        let Self { least, most, .. } = self;
        match (least, most) {
            (0, ENDLESS..) => format!("expected {what}"),
            (_, ENDLESS..) => format!("expected {what} from {least} on"),
            _ => format!("expected {what} from {least} to {most}"),
        }
    }

    /// What it is when nobody says anything.
    pub(crate) fn default(&self) -> String {
        match self.default {
            Some(words) => words.to_owned(),
            None => (self.get)(&Settings::for_processors(1)).to_string(),
        }
    }
}

/// Two settings that contradict each other: the one to blame, and why.
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

/// A number of bytes: digits, and K, M, G or T for a power of 1024.
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

/// From here on an upper bound is not worth a word: it is what fits.
const ENDLESS: u64 = i32::MAX as u64;

/// What is most often so.
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

/// More is a slip of the finger: the process table would be full long before.
const MOST_WORKERS: u64 = 10_000;

fn seconds(count: u64) -> Option<Duration> {
    bound(count).map(Duration::from_secs)
}

fn bound(count: u64) -> Option<u64> {
    Some(count).filter(|count| *count > 0)
}

fn some(count: u64) -> Option<usize> {
    bound(count).map(|count| count as usize)
}

fn secs(limit: Option<Duration>) -> u64 {
    limit.map_or(0, |limit| limit.as_secs())
}

fn number(limit: Option<usize>) -> u64 {
    limit.map_or(0, |limit| limit as u64)
}

/// All of them, in the order in which the help and the documents have them.
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
        get: |s| number(s.min_spare),
        set: |s, n| s.min_spare = some(n),
        ..KEY
    },
    Key {
        name: "max-spare",
        heading: Heading::Workers,
        help: "Retire workers while more than this many are idle, down to --workers. 0: --min-spare and 3.",
        most: MOST_WORKERS,
        get: |s| number(s.max_spare),
        set: |s, n| s.max_spare = some(n),
        ..KEY
    },
    Key {
        name: "max-workers",
        heading: Heading::Workers,
        help: "Let --min-spare make them this many at most. 0: four times --workers.",
        most: MOST_WORKERS,
        get: |s| number(s.max_workers),
        set: |s, n| s.max_workers = some(n),
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
        get: |s| secs(s.turn_timeout),
        set: |s, n| s.turn_timeout = seconds(n),
        ..KEY
    },
    Key {
        name: "max-turns",
        heading: Heading::Workers,
        help: "Replace a worker that has served this many turns, give or take a tenth. 0: never.",
        most: u64::MAX,
        get: |s| s.max_turns.unwrap_or(0),
        set: |s, n| s.max_turns = bound(n),
        ..KEY
    },
    Key {
        name: "max-lifetime",
        heading: Heading::Workers,
        unit: Unit::Seconds,
        help: "Replace a worker after this many seconds, give or take a tenth. 0: never.",
        get: |s| secs(s.max_lifetime),
        set: |s, n| s.max_lifetime = seconds(n),
        ..KEY
    },
    Key {
        name: "max-rss",
        heading: Heading::Workers,
        unit: Unit::Bytes,
        help: "Replace a worker that has this much memory, in bytes or such as 200M. 0: never.",
        most: u64::MAX,
        get: |s| s.max_rss.unwrap_or(0),
        set: |s, n| s.max_rss = bound(n),
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
        help: "Let a connection wait this many microseconds behind another one before it goes elsewhere.",
        least: 1,
        most: 10_000_000,
        get: |s| s.patience.as_micros() as u64,
        set: |s, n| s.patience = Duration::from_micros(n),
        ..KEY
    },
    Key {
        name: "max-connections",
        help: "Stop accepting while there are this many connections. 0: as many as descriptors allow.",
        most: u64::MAX,
        get: |s| {
            Some(s.max_connections)
                .filter(|n| *n < usize::MAX)
                .unwrap_or(0) as u64
        },
        set: |s, n| s.max_connections = some(n).unwrap_or(usize::MAX),
        ..KEY
    },
    Key {
        name: "per-client",
        help: "Turn away whoever has this many connections already (IPv6: by /64). 0: nobody.",
        get: |s| s.per_client.unwrap_or(0).into(),
        set: |s, n| s.per_client = bound(n).map(|n| n as u32),
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
        set: |s, n| s.queue_wait = bound(n).map(Duration::from_millis),
        ..KEY
    },
    Key {
        name: "idle-timeout",
        unit: Unit::Seconds,
        help: "Close a connection that was idle for this many seconds. 0: never.",
        default: Some("75, echo: 0"),
        get: |s| secs(s.idle_timeout),
        set: |s, n| s.idle_timeout = seconds(n),
        ..KEY
    },
    Key {
        name: "head-timeout",
        unit: Unit::Seconds,
        help: "Give a client this many seconds to send the head of a request. 0: for ever.",
        get: |s| secs(s.head_timeout),
        set: |s, n| s.head_timeout = seconds(n),
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
        help: "Drain a finished connection for this many seconds at most.",
        get: |s| s.linger.as_secs(),
        set: |s, n| s.linger = Duration::from_secs(n),
        ..KEY
    },
    Key {
        name: "defer-accept",
        unit: Unit::Seconds,
        help: "Let the kernel keep a silent new connection to itself for this many seconds.",
        most: 3600,
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
            ("queue", "0", "expected a number from 1 on"),
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
                "expected a number of bytes, or such as 200M",
            ),
            (
                "max-rss",
                "M",
                "expected a number of bytes, or such as 200M",
            ),
            ("max-rss", "", "expected a number of bytes, or such as 200M"),
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
