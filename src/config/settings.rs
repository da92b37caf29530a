//! How a pool serves: its size, its limits, the lives of its workers. Pure.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::unix_access::UnixAccess;

/// The most serving threads that a worker may have. There is a limit because all the connections
/// that a worker has at one time must fit into the ring of its scoreboard.
pub const MAX_THREADS: usize = 64;

/// The longest time that a setting may have: more than a century. It is a bound for arithmetic,
/// which could overflow with [`Duration::MAX`].
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

/// The longest patience, the same that the command line accepts.
pub(crate) const LONGEST_PATIENCE: Duration = Duration::from_secs(10);

/// The most workers that a pool may have: few machines have room for so many processes, so that a
/// larger number is a mistake.
pub(crate) const MOST_WORKERS: usize = 10_000;

/// The longest time that the kernel may hold a silent connection back.
pub(crate) const LONGEST_DEFERRAL: Duration = Duration::from_secs(3600);

/// How a pool runs, apart from where it listens and what it serves. A limit that is `None` does not
/// apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How many worker processes there are, at least one.
    pub workers: usize,
    /// How many turns each worker serves at the same time, each in a thread of its own: from 1 to
    /// [`MAX_THREADS`].
    pub threads: usize,
    /// How long a graceful stop may take, and how long a worker that is replaced has for its last
    /// turns before it is killed.
    pub grace: Duration,
    /// How long a lent connection may wait behind another one before it is lent to another worker.
    pub patience: Duration,
    /// How long a turn may take before its worker is killed and the client gets an error reply.
    pub turn_timeout: Option<Duration>,
    /// How many connections there may be. At that number the one that was idle for longest is
    /// closed for a newcomer. If none is idle, the pool stops accepting until one is, or ends.
    pub max_connections: usize,
    /// How many connections one client may have. An IPv4 address counts as a client, and so does an
    /// IPv6 network with a prefix of 64 bits.
    pub per_client: Option<u32>,
    /// How many ready connections may wait for a worker. Further ones are turned away.
    pub queue: usize,
    /// How long a ready connection may wait for a worker before it is turned away.
    pub queue_wait: Option<Duration>,
    /// How long a client may be silent between two requests.
    pub idle_timeout: Option<Duration>,
    /// How long a client may take for the head of a request, from its first byte.
    pub head_timeout: Option<Duration>,
    /// How many bytes a second a client must send of a request's body, and take of a response, at
    /// the least.
    pub min_rate: Option<u64>,
    /// How long a client may be slower than `min_rate`, counted for each body and each response.
    pub min_rate_grace: Duration,
    /// The longest body of a request, in bytes.
    pub max_body: Option<u64>,
    /// The directory where the workers keep what a slow client sends, or does not take, if it is
    /// too much for memory: in files without a name. With a `chroot` it must be within that. `None`
    /// stands for the directory for temporary files (`TMPDIR`, or `/tmp`) as the workers see it.
    pub body_dir: Option<PathBuf>,
    /// How much of a response is kept for a client that does not take it, in bytes. A write beyond
    /// that sleeps.
    pub max_spool: u64,
    /// How long a finished connection stays open while its client is silent, to discard what it
    /// still sends.
    pub linger: Duration,
    /// How long a finished connection stays open in all, even if its client goes on sending. `None`
    /// stands for six times `linger`.
    pub linger_total: Option<Duration>,
    /// How long one read from or write to a client may sleep inside a turn.
    pub client_timeout: Duration,
    /// How long the kernel may hold back a new connection whose client has sent nothing yet
    /// (tcp(7), TCP_DEFER_ACCEPT).
    pub defer_accept: Duration,
    /// How long a new worker may take to report that it is ready. After that it is killed.
    pub start_timeout: Duration,
    /// How many turns a worker serves before it is replaced, give or take a tenth.
    pub max_turns: Option<u64>,
    /// How long a worker lives before it is replaced, give or take a tenth.
    pub max_lifetime: Option<Duration>,
    /// How much memory (RSS) a worker may use before it is replaced, in bytes.
    pub max_rss: Option<u64>,
    /// While fewer workers than this are idle, more are started, up to `max_workers`. `None` starts
    /// none for demand.
    pub min_spare: Option<usize>,
    /// While more workers than this are idle, some are retired, down to `workers`. `None` stands
    /// for three more than `min_spare`.
    pub max_spare: Option<usize>,
    /// How many workers there may be in all when demand (`min_spare`) starts more. `None` stands
    /// for four times `workers`.
    pub max_workers: Option<usize>,
    /// How many new connections the kernel may queue for each listener (listen(2)). It does not go
    /// beyond `net.core.somaxconn`.
    pub backlog: i32,
    /// Who may connect to the Unix sockets of the pool. It has no effect on those that another
    /// program passes, nor on those of [`Server::bind`](crate::Server::bind), which binds before it
    /// knows the settings.
    pub unix: UnixAccess,
}

impl Settings {
    /// The default settings on a machine with this many processors.
    #[must_use]
    pub fn for_processors(processors: usize) -> Self {
        Self {
            workers: (2 * processors).max(4),
            threads: 1,
            grace: Duration::from_secs(30),
            patience: Duration::from_micros(500),
            turn_timeout: None,
            max_connections: usize::MAX,
            per_client: None,
            queue: 10_000,
            queue_wait: Some(Duration::from_secs(30)),
            idle_timeout: Some(Duration::from_secs(75)),
            head_timeout: Some(Duration::from_secs(30)),
            min_rate: Some(240),
            min_rate_grace: Duration::from_secs(30),
            max_body: Some(1 << 20),
            body_dir: None,
            max_spool: 1 << 30,
            linger: Duration::from_secs(5),
            linger_total: None,
            client_timeout: Duration::from_secs(60),
            defer_accept: Duration::from_secs(5),
            start_timeout: Duration::from_secs(60),
            max_turns: None,
            max_lifetime: None,
            max_rss: None,
            min_spare: None,
            max_spare: None,
            max_workers: None,
            backlog: 4096,
            unix: UnixAccess::default(),
        }
    }

    /// The same settings with every value that is out of bounds moved to the nearest bound. A
    /// patience of zero would take back each lend at once, and a client timeout of zero would be
    /// none at all to the kernel (socket(7)).
    #[must_use]
    pub fn within_bounds(self) -> Self {
        let count = |number: usize| number.min(MOST_WORKERS);
        let time = |limit: Duration| limit.min(LONGEST);
        let microsecond = Duration::from_micros(1);
        let millisecond = Duration::from_millis(1);
        Self {
            workers: self.workers.clamp(1, MOST_WORKERS),
            threads: self.threads.clamp(1, MAX_THREADS),
            grace: time(self.grace),
            patience: self.patience.clamp(microsecond, LONGEST_PATIENCE),
            turn_timeout: self.turn_timeout.map(time),
            queue: self.queue.max(1),
            queue_wait: self.queue_wait.map(time),
            idle_timeout: self.idle_timeout.map(time),
            head_timeout: self.head_timeout.map(time),
            min_rate: self.min_rate.map(|rate| rate.max(1)),
            min_rate_grace: time(self.min_rate_grace),
            max_body: self.max_body,
            body_dir: self.body_dir,
            max_spool: self.max_spool,
            linger: time(self.linger),
            linger_total: self.linger_total.map(time),
            client_timeout: self.client_timeout.clamp(millisecond, LONGEST),
            defer_accept: self.defer_accept.min(LONGEST_DEFERRAL),
            start_timeout: self.start_timeout.clamp(millisecond, LONGEST),
            max_lifetime: self.max_lifetime.map(time),
            min_spare: self.min_spare.map(count),
            max_spare: self.max_spare.map(count),
            max_workers: self.max_workers.map(count),
            backlog: self.backlog.max(1),
            max_connections: self.max_connections.max(1),
            per_client: self.per_client.map(|most| most.max(1)),
            max_turns: self.max_turns,
            max_rss: self.max_rss,
            unix: self.unix,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::option::of as maybe;
    use proptest::prelude::*;

    use super::*;
    use crate::config::keys::{Choice, KEYS};

    fn time() -> impl Strategy<Value = Duration> {
        let extreme = prop_oneof![Just(Duration::ZERO), Just(Duration::MAX)];
        prop_oneof![
            extreme,
            any::<Duration>(),
            any::<u64>().prop_map(Duration::from_nanos)
        ]
    }

    fn number() -> impl Strategy<Value = usize> {
        prop_oneof![Just(0), Just(usize::MAX), any::<usize>(), 0..100_000usize]
    }

    fn settings() -> impl Strategy<Value = Settings> {
        let times = (time(), time(), time(), time(), time());
        let limits = (
            maybe(time()),
            maybe(time()),
            maybe(time()),
            maybe(time()),
            maybe(time()),
        );
        let numbers = (number(), number(), number(), number(), any::<i32>());
        let bounds = (
            maybe(number()),
            maybe(number()),
            maybe(number()),
            maybe(any::<u32>()),
        );
        let usage = (maybe(any::<u64>()), maybe(any::<u64>()));
        let kept = (maybe(any::<u64>()), maybe(any::<u64>()), any::<u64>());
        (times, limits, numbers, bounds, usage, kept).prop_map(
            |(times, limits, numbers, bounds, usage, kept)| Settings {
                grace: times.0,
                patience: times.1,
                linger: times.2,
                linger_total: limits.0,
                client_timeout: times.3,
                defer_accept: times.4,
                start_timeout: times.0,
                turn_timeout: limits.0,
                queue_wait: limits.1,
                idle_timeout: limits.2,
                head_timeout: limits.3,
                max_lifetime: limits.4,
                workers: numbers.0,
                threads: numbers.1,
                max_connections: numbers.2,
                queue: numbers.3,
                backlog: numbers.4,
                min_spare: bounds.0,
                max_spare: bounds.1,
                max_workers: bounds.2,
                per_client: bounds.3,
                max_turns: usage.0,
                max_rss: usage.1,
                min_rate: kept.0,
                min_rate_grace: times.1,
                max_body: kept.1,
                body_dir: None,
                max_spool: kept.2,
                unix: UnixAccess::default(),
            },
        )
    }

    proptest! {
        #[test]
        fn settings_within_bounds_survive_arithmetic(settings in settings()) {
            let Settings {
                grace,
                patience,
                turn_timeout,
                queue_wait,
                idle_timeout,
                head_timeout,
                min_rate,
                min_rate_grace,
                linger,
                linger_total,
                client_timeout,
                defer_accept,
                start_timeout,
                max_lifetime,
                ..
            } = settings.clone().within_bounds();
            prop_assert!(patience * 1000 <= LONGEST && patience > Duration::ZERO);
            let may_be_none = [
                turn_timeout,
                queue_wait,
                idle_timeout,
                head_timeout,
                linger_total,
                max_lifetime,
            ];
            prop_assert_ne!(min_rate, Some(0));
            let all = [
                grace,
                min_rate_grace,
                linger,
                client_timeout,
                defer_accept,
                start_timeout,
            ];
            for time in all.into_iter().chain(may_be_none.into_iter().flatten()) {
                prop_assert!(time <= LONGEST);
                // Some are added to others, multiplied, counted in nanoseconds or in milliseconds.
                prop_assert!(u64::try_from((time + LONGEST).as_nanos()).is_ok());
            }
        }

        #[test]
        fn settings_within_bounds_stay_as_they_are(settings in settings()) {
            let once = settings.within_bounds();
            prop_assert_eq!(once.clone().within_bounds(), once);
        }

        #[test]
        fn what_an_operator_may_write_is_within_bounds(values in proptest::collection::vec(any::<u64>(), KEYS.len())) {
            let mut settings = Settings::for_processors(1);
            for (key, value) in KEYS.iter().zip(values) {
                for value in [value, value % 1000, value % 100_000] {
                    if let Ok(value) = key.accept(Some(value)) {
                        Choice { key, value }.apply(&mut settings);
                    }
                }
            }
            prop_assert_eq!(settings.clone().within_bounds(), settings);
        }
    }
}
