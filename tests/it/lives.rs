//! A life without downtime: what clients may expect while a server goes over to new workers, in
//! whatever way it does that. The tests are in the modules of those ways; here is what they have in
//! common.

use std::time::{Duration, Instant};

use crate::harness::process::{reserve_descriptors, sleeps};
use crate::harness::{
    Client, Counting, DEADLINE, Habit, Ledger, Server, Setup, Worker, begin_sleep, eventually,
};
use crate::harness::{Clients, Tally};
use crate::slow_writers::wait_until_taken;

/// A way in which a server goes over to new workers while it serves.
pub trait ChangeOver {
    /// What the server will say of it.
    type Expected;

    /// How a server is started that can do this.
    fn setup(&self, arguments: &[&str]) -> Setup {
        Setup::new(arguments)
    }

    /// Tells the server to change over.
    fn begin(&self, server: &mut Server) -> Self::Expected;

    /// Waits until new workers serve. The old ones may still be in their last turns.
    fn finish(&self, server: &mut Server, expected: Self::Expected);

    fn change_over(&self, server: &mut Server) {
        let expected = self.begin(server);
        self.finish(server, expected);
    }

    fn start(&self, arguments: &[&str]) -> Server {
        self.setup(arguments).start()
    }
}

fn pids(workers: &[Worker]) -> Vec<i32> {
    workers.iter().map(|worker| worker.pid.as_raw()).collect()
}

/// Waits until there are only new workers, `old` being none of them.
#[track_caller]
pub fn new_workers(server: &Server, old: &[Worker]) -> Vec<Worker> {
    let new = server.workers(old.len());
    assert!(
        old.iter().all(|worker| !new.contains(worker)),
        "{old:?} {new:?}"
    );
    new
}

/// One request, which neither of these workers may serve.
#[track_caller]
fn assert_served_by_others(client: &mut Client, old: &[Worker], ledger: &mut Ledger) {
    let served = ledger.enter(&client.get("/"));
    assert!(!pids(old).contains(&served.worker), "{old:?} {served:?}");
}

/// A thousand clients that had a turn before all the changes have their second one after them.
pub fn idle_connections_stay(way: &impl ChangeOver, changes: usize) {
    const CONNECTIONS: usize = 1000;
    let _reserved = reserve_descriptors(CONNECTIONS as u64);
    let mut server = way.start(&["demo", "-w", "4"]);
    let first = server.workers(4);
    let mut ledger = Ledger::default();
    let mut clients = server.connect_all(CONNECTIONS);
    for client in &mut clients {
        assert_eq!(ledger.enter(&client.get("/")).turn, 1);
    }
    let start = Instant::now();
    for _ in 0..changes {
        way.change_over(&mut server);
    }
    let last = new_workers(&server, &first);
    for client in &mut clients {
        let served = ledger.enter(&client.get("/"));
        assert_eq!(served.turn, 2);
        assert!(pids(&last).contains(&served.worker), "{served:?}");
    }
    let took = start.elapsed();
    println!("{changes} changes, then {CONNECTIONS} second requests: {took:?}");
    assert!(took < DEADLINE, "{took:?}");
    ledger.assert_exactly_once();
}

/// Clients of both habits ask without a pause, and no request of theirs fails or is served twice.
pub fn nobody_notices(way: &impl ChangeOver, changes: usize, interval: Duration) {
    let mut server = way.start(&["demo", "-w", "4"]);
    let first = server.workers(4);
    let clients = Counting::start(server.endpoint(), 24);
    clients.wait_for_each(2);
    let mut longest = Duration::ZERO;
    for _ in 0..changes {
        let begin = Instant::now();
        way.change_over(&mut server);
        longest = longest.max(begin.elapsed());
        clients.run_until(begin + interval);
    }
    clients.wait_for_each(2);
    let ledger = clients.stop();
    println!(
        "{changes} changes, the longest in {longest:?}: {} answers of {} workers",
        ledger.answered(),
        ledger.workers().len()
    );
    ledger.assert_exactly_once();
    new_workers(&server, &first);
}

/// The same with workers that serve several turns at a time, whose requests are not counted as one.
pub fn nobody_notices_with_threads(way: &impl ChangeOver, changes: usize) {
    let mut server = way.start(&["demo", "-w", "2", "--threads", "4"]);
    let first = server.workers(2);
    let start = |habit| Clients::with(server.endpoint(), 12, habit, "/sleep/2");
    let clients = [Habit::KeepOne, Habit::OneRequestEach].map(start);
    let wait = || clients.iter().for_each(|part| part.wait_for_each(12, 2));
    wait();
    for _ in 0..changes {
        way.change_over(&mut server);
        wait();
    }
    let tally = Tally::sum(clients.map(Clients::stop));
    tally.assert_all_ok_so_far();
    new_workers(&server, &first);
}

/// A turn that has begun ends where it began, however many changes there are meanwhile.
pub fn a_slow_request_ends_in_its_old_worker(way: &impl ChangeOver) {
    let mut server = way.start(&["demo", "-w", "2"]);
    let mut seen = Vec::new();
    let mut sleepers = Vec::new();
    for milliseconds in [1500, 1000] {
        let workers = server.workers(2 + sleepers.len());
        seen.extend(workers.clone());
        let mut sleeper = server.connect();
        let fresh: Vec<_> = workers
            .into_iter()
            .filter(|worker| !sleeps(worker.pid))
            .collect();
        let busy = begin_sleep(&mut sleeper, milliseconds, &fresh);
        way.change_over(&mut server);
        assert!(sleeps(busy.pid), "it is in its turn");
        sleepers.push(sleeper);
    }
    let mut other = server.connect();
    assert_served_by_others(&mut other, &seen, &mut Ledger::default());
    for mut sleeper in sleepers {
        assert_eq!(sleeper.reply().status, 200);
        let mut ledger = Ledger::default();
        assert_served_by_others(&mut sleeper, &seen, &mut ledger);
    }
    let last = server.workers(2);
    assert!(seen.iter().all(|worker| !last.contains(worker)));
}

/// A head of which one half came before the change, and a small body likewise: the master has the
/// first half.
pub fn half_a_request_goes_along(way: &impl ChangeOver) {
    let mut server = way.start(&["demo", "-w", "1"]);
    let old = server.workers(1);
    let mut ledger = Ledger::default();
    let mut head = server.connect();
    head.send("GET / HTTP/1.1\r\nHost: te");
    let content = vec![b'x'; 20_000];
    let mut body = server.connect();
    body.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 20000\r\n\r\n");
    body.send(&content[..10_000]);
    // Both had a turn before that: the only worker serves in the order in which they came.
    ledger.enter(&server.get("/"));
    way.change_over(&mut server);
    let [new] = new_workers(&server, &old)[..] else {
        unreachable!("there was one worker")
    };
    head.send("st\r\n\r\n");
    let served = ledger.enter(&head.reply());
    assert_eq!((served.turn, served.worker), (2, new.pid.as_raw()));
    body.send(&content[10_000..]);
    assert!(body.reply().body == content);
    ledger.count(new.pid.as_raw(), 2);
    ledger.assert_exactly_once();
}

/// Requests that were sent at once, with a change between the first and the others.
pub fn pipelined_requests_are_answered_in_order(way: &impl ChangeOver) {
    const REQUESTS: usize = 100;
    let mut server = way.start(&["demo", "-w", "2"]);
    let old = server.workers(2);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut client = server.connect();
    client.send(get("/sleep/700") + &get("/").repeat(REQUESTS));
    eventually("the first request is being served", || {
        old.iter().any(|worker| sleeps(worker.pid))
    });
    way.change_over(&mut server);
    assert_eq!(client.reply().text(), "slept 700 ms\n");
    let mut ledger = Ledger::default();
    let served: Vec<_> = (0..REQUESTS)
        .map(|_| ledger.enter(&client.reply()))
        .collect();
    let (first, last) = (served[0], served[REQUESTS - 1]);
    // The turn that had begun answers what it had read, up to a bound, and the others are no
    // business of that worker.
    assert!(pids(&old).contains(&first.worker));
    assert!(!pids(&old).contains(&last.worker));
    assert!(served.is_sorted_by_key(|served| (served.turn, served.request)));
    ledger.count(first.worker, 1);
    ledger.assert_exactly_once();
    new_workers(&server, &old);
}

/// A body that is still coming belongs to no worker.
pub fn a_slow_body_goes_on_with_new_workers(way: &impl ChangeOver) {
    let mut server = way.start(&["demo", "-w", "1"]);
    let old = server.workers(1);
    let content = vec![b'x'; 400_000];
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 400000\r\n\r\n");
    client.send(&content[..200_000]);
    wait_until_taken(&server, &client);
    way.change_over(&mut server);
    let mut ledger = Ledger::default();
    assert_served_by_others(&mut server.connect(), &old, &mut ledger);
    let new = new_workers(&server, &old)[0];
    for part in content[200_000..].chunks(50_000) {
        client.send(part);
    }
    assert!(client.reply().body == content);
    ledger.count(new.pid.as_raw(), 2);
    assert_served_by_others(&mut client, &old, &mut ledger);
    ledger.assert_exactly_once();
}

/// Who waits for a worker while all of them are busy gets a new one, without waiting for the old
/// ones.
pub fn the_ready_go_to_new_workers(way: &impl ChangeOver) {
    let mut server = way.start(&["demo", "-w", "2"]);
    let old = server.workers(2);
    let mut sleepers = server.connect_all(2);
    let mut free = old.clone();
    for sleeper in &mut sleepers {
        let busy = begin_sleep(sleeper, 2500, &free);
        free.retain(|worker| *worker != busy);
    }
    let mut waiting = server.connect_all(20);
    waiting.iter_mut().for_each(|client| client.send_get("/"));
    assert!(waiting.iter_mut().all(Client::is_silent));
    way.change_over(&mut server);
    let mut ledger = Ledger::default();
    for client in &mut waiting {
        let served = ledger.enter(&client.reply());
        assert_eq!(served.turn, 1);
        assert!(!pids(&old).contains(&served.worker), "{served:?}");
    }
    ledger.assert_exactly_once();
    for sleeper in &mut sleepers {
        assert_eq!(sleeper.reply().status, 200);
    }
    new_workers(&server, &old);
}

/// A Unix socket stays the file that it was, and its clients are served on.
pub fn a_unix_socket_stays(way: &impl ChangeOver) {
    let mut server = way
        .setup(&["demo", "-w", "2"])
        .listen("unix:socket")
        .listen("127.0.0.1:0")
        .start();
    let old = server.workers(2);
    let path = server.directory().join("socket");
    let inode = || std::os::unix::fs::MetadataExt::ino(&path.metadata().expect("it is there"));
    let before = inode();
    let endpoints = server.endpoints().to_vec();
    let mut clients: Vec<_> = endpoints.iter().map(|place| place.connect()).collect();
    let mut ledger = Ledger::default();
    for client in &mut clients {
        assert_eq!(ledger.enter(&client.get("/")).turn, 1);
    }
    way.change_over(&mut server);
    assert_eq!(inode(), before);
    for (client, endpoint) in clients.iter_mut().zip(&endpoints) {
        assert_eq!(ledger.enter(&client.get("/")).turn, 2);
        assert_served_by_others(&mut endpoint.connect(), &old, &mut ledger);
    }
    ledger.assert_exactly_once();
}

/// A new worker that is killed after the change is replaced like any other.
pub fn new_workers_are_replaced_too(way: &impl ChangeOver) {
    let mut server = way.setup(&["demo", "-w", "2"]).expect(" died ").start();
    let old = server.workers(2);
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    way.change_over(&mut server);
    for worker in new_workers(&server, &old) {
        server.kill(worker);
        server.replacement(worker);
    }
    assert_eq!(client.get("/").status, 200);
    server.workers(2);
}
