//! Workers that are killed again and again under load: every request is answered, with 200 or, if
//! it was in the killed worker, with 502; no client sees anything else.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{
    Clients, Habit, Server, Setup, Tally, Worker, eventually, field, open_descriptors, process,
};

/// Numbers that look random and are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: usize) -> usize {
        // xorshift64*, by Marsaglia and Vigna.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).expect("31 bits") % bound
    }
}

/// The workers that have said that they are ready and are not reported dead.
pub fn living(server: &Server) -> Vec<Worker> {
    let dead: Vec<i32> = server
        .log_lines("worker died slot=")
        .iter()
        .map(|line| field(line, "pid"))
        .collect();
    let ready = server.log_lines("worker ready");
    let ready = ready.iter().map(|line| Worker {
        slot: field(line, "slot"),
        pid: nix::unistd::Pid::from_raw(field(line, "pid")),
    });
    ready
        .filter(|worker| !dead.contains(&worker.pid.as_raw()))
        .collect()
}

/// Clients of both habits, half of them each.
struct Load(Vec<Clients>);

impl Load {
    fn start(server: &Server, clients: usize, path: &'static str) -> Self {
        let habits = [Habit::Reconnect, Habit::OneRequestEach];
        let start = |habit| Clients::with(server.endpoint(), clients / 2, habit, path);
        Self(habits.into_iter().map(start).collect())
    }

    fn run_for(&self, time: Duration) {
        self.0[0].run_for(time);
    }

    /// Waits until each of them goes on.
    fn wait_for_all(&self) {
        for clients in &self.0 {
            clients.wait_for_each(clients.progress().len(), 2);
        }
    }

    fn stop(self) -> Tally {
        Tally::sum(self.0.into_iter().map(Clients::stop))
    }
}

/// Workers that are killed under load: how many there are, and how they are killed.
struct Storm {
    workers: usize,
    threads: usize,
    path: &'static str,
    time: Duration,
    interval: Duration,
    at_once: usize,
}

/// What came of a storm.
struct Outcome {
    kills: usize,
    tally: Tally,
    /// Connections that the server closed because a reply had begun, and so it said.
    cut_off: usize,
}

impl Storm {
    /// Every 100 ms one of four workers.
    fn new(path: &'static str) -> Self {
        Self {
            workers: 4,
            threads: 1,
            path,
            time: SHORT,
            interval: Duration::from_millis(100),
            at_once: 1,
        }
    }

    /// Checks that every request is answered, with 200 or 502, as far as the turns that the killed
    /// workers were in allow.
    #[track_caller]
    fn pass(&self) -> Outcome {
        let (workers, threads) = (self.workers.to_string(), self.threads.to_string());
        let arguments = ["demo", "-w", &workers, "--threads", &threads];
        let server = Setup::new(&arguments).expect(" died ").start();
        server.workers(self.workers);
        let descriptors = || open_descriptors(server.master()).len();
        let before = descriptors();
        let load = Load::start(&server, 24, self.path);
        load.wait_for_all();
        let kills = self.kill_workers(&server, &load);
        // All slots are filled again, after a while if their workers died young.
        load.wait_for_all();
        let tally = load.stop();
        let cut_off = server.log_lines("something was sent").len();
        println!("{kills} kills, {cut_off} replies cut off: {tally:?}");
        let status = |status| tally.statuses.get(&status).copied().unwrap_or(0);
        assert_eq!(tally.answered(), status(200) + status(502), "{tally:?}");
        assert!(status(200) > 24, "{tally:?}");
        assert!(tally.failures.len() <= cut_off, "{cut_off}: {tally:?}");
        let lost = status(502) + cut_off;
        assert!(lost <= kills * self.threads, "{kills} kills: {tally:?}");
        assert_eq!(server.log_lines("worker died slot=").len(), kills);
        server.workers(self.workers);
        eventually("the master has the descriptors of the start", || {
            descriptors() == before
        });
        Outcome {
            kills,
            tally,
            cut_off,
        }
    }

    fn kill_workers(&self, server: &Server, load: &Load) -> usize {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let mut kills = 0;
        let start = Instant::now();
        while start.elapsed() < self.time {
            let mut victims = living(server);
            for _ in 0..self.at_once.min(victims.len()) {
                let victim = victims.swap_remove(numbers.below(victims.len()));
                process::signal(victim.pid, Signal::SIGKILL);
                kills += 1;
            }
            server.wait_for_lines("killed by SIGKILL", kills);
            load.run_for(self.interval);
        }
        assert!(kills >= self.at_once);
        kills
    }
}

const SHORT: Duration = Duration::from_secs(3);

#[test]
fn workers_killed_again_and_again_are_noticed_by_their_turns_only() {
    Storm::new("/").pass();
}

#[test]
fn workers_killed_in_slow_turns_are_noticed_by_those_only() {
    Storm::new("/sleep/5").pass();
}

#[test]
#[ignore = "takes a minute"]
fn workers_killed_for_a_minute_are_noticed_by_their_turns_only() {
    let time = Duration::from_secs(60);
    let storm = Storm {
        time,
        ..Storm::new("/")
    };
    storm.pass();
}

#[test]
fn no_client_of_a_killed_worker_sees_its_connection_broken() {
    let Outcome {
        kills,
        tally,
        cut_off,
    } = Storm::new("/").pass();
    assert!(tally.failures.is_empty(), "{kills} kills: {tally:?}");
    assert_eq!(cut_off, 0, "no reply of that size is ever sent in part");
}

#[test]
fn two_workers_killed_at_once_are_noticed_by_their_turns_only() {
    let interval = Duration::from_millis(300);
    Storm {
        interval,
        at_once: 2,
        ..Storm::new("/")
    }
    .pass();
}

#[test]
fn all_workers_killed_at_once_are_noticed_by_their_turns_only() {
    let interval = Duration::from_millis(300);
    Storm {
        workers: 2,
        interval,
        at_once: 2,
        ..Storm::new("/")
    }
    .pass();
}

#[test]
fn killed_workers_with_threads_are_noticed_by_their_turns_only() {
    let interval = Duration::from_millis(300);
    Storm {
        workers: 2,
        threads: 4,
        interval,
        ..Storm::new("/sleep/2")
    }
    .pass();
}

#[test]
fn workers_told_to_stop_are_noticed_by_nobody() {
    let server = Server::start(&["demo", "-w", "4"]);
    let workers = server.workers(4);
    let load = Load::start(&server, 24, "/sleep/2");
    load.wait_for_all();
    for worker in workers {
        process::signal(worker.pid, Signal::SIGTERM);
        let Worker { slot, pid } = worker;
        server.wait_for_log(&format!("worker retired slot={slot} pid={pid}"));
        server.replacement(worker);
        load.wait_for_all();
    }
    let tally = load.stop();
    tally.assert_all_ok_so_far();
}
