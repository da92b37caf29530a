//! Every setting: its name, unit, bounds and help. Pure.

use std::time::Duration;

use super::key::{Heading, KEY, Key, Unit};
use crate::config::settings::{self, LONGEST_DEFERRAL, LONGEST_PATIENCE, MAX_THREADS};

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
        name: "min-rate",
        unit: Unit::Bytes,
        help: "Let a client send a body, and take a response, no slower than this many bytes a second. 0: as slowly as it likes.",
        get: |s| s.min_rate.unwrap_or(0),
        set: |s, n| s.min_rate = nonzero(n),
        ..KEY
    },
    Key {
        name: "min-rate-grace",
        unit: Unit::Seconds,
        help: "Let a client be slower than --min-rate for this many seconds.",
        get: |s| s.min_rate_grace.as_secs(),
        set: |s, n| s.min_rate_grace = Duration::from_secs(n),
        ..KEY
    },
    Key {
        name: "max-body",
        unit: Unit::Bytes,
        help: "Refuse a request whose body has more than this many bytes. 0: no limit.",
        most: u64::MAX,
        default: Some("1M"),
        get: |s| s.max_body.unwrap_or(0),
        set: |s, n| s.max_body = nonzero(n),
        ..KEY
    },
    Key {
        name: "max-spool",
        unit: Unit::Bytes,
        help: "Keep this many bytes of a response that a client does not take, before a write sleeps.",
        most: u64::MAX,
        default: Some("1G"),
        get: |s| s.max_spool,
        set: |s, n| s.max_spool = n,
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
