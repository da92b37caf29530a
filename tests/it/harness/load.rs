//! Many clients at once, and what became of their requests.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::{Client, Endpoint};
use super::process::{eventually, eventually_within};

/// What became of the requests of a load.
#[derive(Default, Clone)]
pub struct Tally {
    pub statuses: BTreeMap<u16, usize>,
    /// Requests without a response, and why.
    pub failures: Vec<String>,
    /// From the sending of a request to the end of its response, shortest first.
    pub latencies: Vec<Duration>,
}

impl Tally {
    fn count(&mut self, start: Instant, result: io::Result<u16>) {
        match result {
            Ok(status) => {
                *self.statuses.entry(status).or_default() += 1;
                self.latencies.push(start.elapsed());
            }
            Err(error) => self.failures.push(error.to_string()),
        }
    }

    pub fn sum(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut total = Self::default();
        for part in parts {
            for (status, count) in part.statuses {
                *total.statuses.entry(status).or_default() += count;
            }
            total.failures.extend(part.failures);
            total.latencies.extend(part.latencies);
        }
        total.latencies.sort_unstable();
        total
    }

    pub fn answered(&self) -> usize {
        self.statuses.values().sum()
    }

    /// The latency that `percent` of the answered requests did not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.latencies.len() * percent).div_ceil(100);
        let index = rank.max(1) - 1;
        self.latencies.get(index).copied().unwrap_or_default()
    }

    /// Panics unless `count` requests were made and each had the answer 200.
    #[track_caller]
    pub fn assert_all_ok(&self, count: usize) {
        let expected = BTreeMap::from([(200, count)]);
        assert!(
            self.statuses == expected && self.failures.is_empty(),
            "expected {count} times 200, got {self:?}"
        );
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}, {} failures{}, latency p50 {:?} p99 {:?} max {:?}",
            self.statuses,
            self.failures.len(),
            match self.failures.first() {
                Some(first) => format!(" ({first}, ...)"),
                None => String::new(),
            },
            self.percentile(50),
            self.percentile(99),
            self.percentile(100),
        )
    }
}

/// `clients` at once make `requests` each: on one connection each, or on a new one every time.
pub fn load(
    endpoint: &Endpoint,
    clients: usize,
    requests: usize,
    keep_alive: bool,
    path: &str,
) -> Tally {
    let one_client = || {
        let mut tally = Tally::default();
        let mut kept = None;
        for _ in 0..requests {
            let start = Instant::now();
            let result = request(endpoint, &mut kept, keep_alive, path);
            tally.count(start, result);
        }
        tally
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(one_client)).collect();
        Tally::sum(threads.into_iter().map(|thread| match thread.join() {
            Ok(tally) => tally,
            Err(panic) => std::panic::resume_unwind(panic),
        }))
    })
}

/// One request; on the connection in `kept` if there is one, which stays there unless it broke.
fn request(
    endpoint: &Endpoint,
    kept: &mut Option<Client>,
    keep_alive: bool,
    path: &str,
) -> io::Result<u16> {
    let mut client = match kept.take() {
        Some(client) => client,
        None => endpoint.try_connect()?,
    };
    if !keep_alive {
        client.try_send(format!(
            "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        ))?;
        return Ok(client.try_reply()?.status);
    }
    let reply = client.try_get(path)?;
    if !reply.closes() {
        *kept = Some(client);
    }
    Ok(reply.status)
}

/// How the clients of a load treat their connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// They keep the one that they have, and end with it, for whatever reason.
    KeepOne,
    /// They keep it while the server does, and go on with a new one.
    Reconnect,
    /// They make a new one for each request.
    OneRequestEach,
}

/// Clients that make one request after the other until they are stopped.
pub struct Clients {
    stop: Arc<AtomicBool>,
    /// By client: how many requests are over.
    done: Vec<Arc<AtomicUsize>>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Clients {
    /// Keep-alive clients, none of whose connections is ever replaced.
    pub fn start(endpoint: &Endpoint, clients: usize, path: &'static str) -> Self {
        Self::with(endpoint, clients, Habit::KeepOne, path)
    }

    pub fn with(endpoint: &Endpoint, clients: usize, habit: Habit, path: &'static str) -> Self {
        let mut all = Self {
            stop: Arc::default(),
            done: (0..clients).map(|_| Arc::default()).collect(),
            threads: Vec::new(),
        };
        for done in &all.done {
            let (stop, done) = (all.stop.clone(), done.clone());
            let endpoint = endpoint.clone();
            let mut kept = (habit == Habit::KeepOne).then(|| endpoint.connect());
            all.threads.push(thread::spawn(move || {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let keep_alive = habit != Habit::OneRequestEach;
                    let result = request(&endpoint, &mut kept, keep_alive, path);
                    let over = habit == Habit::KeepOne && kept.is_none();
                    tally.count(start, result);
                    done.fetch_add(1, Ordering::Relaxed);
                    if over {
                        break;
                    }
                }
                tally
            }));
        }
        all
    }

    /// How many requests of each client are over.
    pub fn progress(&self) -> Vec<usize> {
        let done = self.done.iter().map(|done| done.load(Ordering::Relaxed));
        done.collect()
    }

    fn total(&self) -> usize {
        self.progress().iter().sum()
    }

    /// Waits until `count` further requests are over.
    #[track_caller]
    pub fn wait_for_requests(&self, count: usize) {
        let goal = self.total() + count;
        eventually("the clients' requests are answered", || {
            self.total() >= goal
        });
    }

    /// Waits until `count` further requests of each of `clients` clients are over.
    #[track_caller]
    pub fn wait_for_each(&self, clients: usize, count: usize) {
        let before = self.progress();
        let what = format!("{clients} clients have {count} further answers each");
        eventually(&what, || {
            let now = self.progress();
            let moved = before
                .iter()
                .zip(now)
                .filter(|(before, now)| now - *before >= count);
            moved.count() >= clients
        });
    }

    /// Lets the clients go on for this long.
    pub fn run_for(&self, time: Duration) {
        eventually_within(time, || false);
    }

    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        Tally::sum(
            self.threads
                .drain(..)
                .map(|thread| match thread.join() {
                    Ok(tally) => tally,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect::<Vec<_>>(),
        )
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
