//! How a pool serves: its size, its limits, the lives of its workers. Pure.

use std::time::Duration;

/// The most serving threads that a worker may have. There is a limit because all the connections
/// that a worker has at one time must fit into the ring of its scoreboard.
pub const MAX_THREADS: usize = 64;

/// How a pool runs, apart from where it listens and what it serves. A limit that is `None` does not
/// apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How many worker processes there are, at least one.
    pub workers: usize,
    /// How many turns each worker serves at the same time, each in a thread of its own: from 1 to
    /// [`MAX_THREADS`].
    pub threads: usize,
    /// How long a graceful stop may take.
    pub grace: Duration,
    /// How long a lent connection may wait behind another one before it is lent to another worker.
    pub patience: Duration,
    /// How long a turn may take before its worker is killed and the client gets an error reply.
    pub turn_timeout: Option<Duration>,
    /// How many connections there may be. At that number the pool stops accepting until one ends.
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
        }
    }

    /// The same settings with every value that is out of bounds moved to the nearest bound. A
    /// patience of zero would take back each lend at once, and a client timeout of zero would be
    /// none at all to the kernel (socket(7)).
    #[must_use]
    pub fn within_bounds(self) -> Self {
        Self {
            workers: self.workers.max(1),
            threads: self.threads.clamp(1, MAX_THREADS),
            patience: self.patience.max(Duration::from_micros(1)),
            client_timeout: self.client_timeout.max(Duration::from_millis(1)),
            queue: self.queue.max(1),
            ..self
        }
    }
}
