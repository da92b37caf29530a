//! Clients that keep every answer, and the proof that each request was served exactly once.
//!
//! The demo says which request of its worker it answers. So all the answers of one worker, whoever
//! got them, are the numbers from 1 on without a hole or a double: a request that was served twice,
//! or whose answer was lost, shows. This holds if nobody else asks that server for anything, if
//! each worker serves one turn at a time, and as long as no pid is used again for a later worker,
//! which would look like doubles; the kernel hands out all others first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::client::{Client, Endpoint, Reply, Served};
use super::process::{eventually, eventually_within};

/// How many failures and wrong numbers a test shows.
const SHOWN: usize = 20;

/// All answers that clients got, and all that they did not get.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By worker: the numbers of the requests that it answered.
    answers: BTreeMap<i32, Vec<u64>>,
    /// What went wrong for a client, one by one: who, in which request of its own, and how.
    failures: Vec<String>,
}

impl Ledger {
    /// Enters an answer to `GET /`.
    #[track_caller]
    pub fn enter(&mut self, reply: &Reply) -> Served {
        let served = Served::of(reply);
        self.add(served);
        served
    }

    /// Enters an answer that does not say its number, which is known otherwise.
    pub fn count(&mut self, worker: i32, number: u64) {
        self.answers.entry(worker).or_default().push(number);
    }

    fn add(&mut self, served: Served) {
        self.count(served.worker, served.request);
    }

    /// Takes over what another one has.
    pub fn join(&mut self, other: Self) {
        for (worker, numbers) in other.answers {
            self.answers.entry(worker).or_default().extend(numbers);
        }
        self.failures.extend(other.failures);
    }

    pub fn answered(&self) -> usize {
        self.answers.values().map(Vec::len).sum()
    }

    /// The workers that answered.
    pub fn workers(&self) -> Vec<i32> {
        self.answers.keys().copied().collect()
    }

    /// Panics unless each request was served once, and its answer came.
    #[track_caller]
    pub fn assert_exactly_once(&self) {
        let mut faults = self.failures.clone();
        for (worker, numbers) in &self.answers {
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            let mut expected = 1;
            for number in sorted {
                if number < expected {
                    faults.push(format!("worker {worker}: request {number} twice"));
                    continue;
                }
                if number > expected {
                    let lost = format!("worker {worker}: no answer {expected} to {}", number - 1);
                    faults.push(lost);
                }
                expected = number + 1;
            }
        }
        let mut shown = String::new();
        for fault in faults.iter().take(SHOWN) {
            let _ = writeln!(shown, "{fault}");
        }
        let (answered, workers) = (self.answered(), self.answers.len());
        assert!(
            faults.is_empty(),
            "{} faults in {answered} answers of {workers} workers:\n{shown}",
            faults.len()
        );
    }
}

/// Clients that ask `GET /` again and again, and keep all their answers. Half of them stay on one
/// connection, half make a new one for each request.
pub struct Counting {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Ledger>>,
}

struct Shared {
    stop: AtomicBool,
    endpoint: Endpoint,
    /// By client: how many requests are over.
    done: Vec<AtomicUsize>,
}

impl Counting {
    pub fn start(endpoint: &Endpoint, clients: usize) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            endpoint: endpoint.clone(),
            done: (0..clients).map(|_| AtomicUsize::new(0)).collect(),
        });
        let start = |number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.ask_on(number))
        };
        let threads = (0..clients).map(start).collect();
        Self { shared, threads }
    }

    /// Waits until each client has so many further requests behind it.
    #[track_caller]
    pub fn wait_for_each(&self, count: usize) {
        let done = || {
            self.shared
                .done
                .iter()
                .map(|done| done.load(Ordering::Relaxed))
        };
        let goals: Vec<_> = done().map(|done| done + count).collect();
        eventually(&format!("each client has {count} further answers"), || {
            done().zip(&goals).all(|(done, goal)| done >= *goal)
        });
    }

    /// Lets them go on until then.
    pub fn run_until(&self, end: Instant) {
        eventually_within(end.saturating_duration_since(Instant::now()), || false);
    }

    pub fn stop(mut self) -> Ledger {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(part) => ledger.join(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        ledger
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    /// One client, from its first request to its last.
    fn ask_on(&self, number: usize) -> Ledger {
        let keeps = number.is_multiple_of(2);
        let mut ledger = Ledger::default();
        let mut kept = None;
        let mut request = 0;
        while !self.stop.load(Ordering::Relaxed) {
            request += 1;
            let fresh = kept.is_none();
            match self.ask(&mut kept, keeps) {
                Ok(served) => ledger.add(served),
                Err(error) => {
                    let habit = if keeps { "keep-alive" } else { "closing" };
                    let connection = if fresh { "a new" } else { "its old" };
                    let failure = format!(
                        "{habit} client {number}, request {request}, on {connection} connection: {error}"
                    );
                    ledger.failures.push(failure);
                }
            }
            self.done[number].fetch_add(1, Ordering::Relaxed);
        }
        ledger
    }

    /// One request, on the connection in `kept` if there is one. It stays there unless it broke.
    fn ask(&self, kept: &mut Option<Client>, keeps: bool) -> io::Result<Served> {
        let during = |what: &'static str| {
            move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
        };
        let mut client = match kept.take() {
            Some(client) => client,
            None => self.endpoint.try_connect().map_err(during("connect"))?,
        };
        let connection = if keeps { "keep-alive" } else { "close" };
        let request = format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n");
        client.try_send(request).map_err(during("send"))?;
        let reply = client.try_reply().map_err(during("receive"))?;
        if reply.status != 200 || reply.closes() == keeps {
            return Err(io::Error::other(format!("{reply:?}")));
        }
        if keeps {
            *kept = Some(client);
        }
        Ok(Served::of(&reply))
    }
}

#[test]
fn a_ledger_shows_what_was_lost_and_what_was_served_twice() {
    let faults = |numbers: &[u64]| {
        let mut ledger = Ledger::default();
        ledger.answers.insert(7, numbers.to_vec());
        let check = std::panic::AssertUnwindSafe(|| ledger.assert_exactly_once());
        std::panic::catch_unwind(check).is_err()
    };
    assert!(!faults(&[]));
    assert!(!faults(&[3, 1, 2]));
    assert!(faults(&[1, 3]));
    assert!(faults(&[2, 3]));
    assert!(faults(&[1, 2, 2, 3]));
}
