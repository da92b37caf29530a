//! Connections that one dispatcher serves for another one: two of them, each with its workers, and
//! between them what the master does.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

const HOME: usize = 0;
const AWAY: usize = 1;

/// The model: which connection is where, and how many are over.
struct Pair {
    sides: [Side; 2],
    now: Time,
    accepted: u64,
    closed: BTreeSet<u64>,
    /// The connections of the first dispatcher that the second one has, and are not over.
    visiting: BTreeSet<u64>,
    dice: u64,
}

struct Side {
    dispatcher: Dispatcher<u64>,
    /// What each worker has been lent, the first one first.
    workers: BTreeMap<u64, VecDeque<ConnectionId>>,
    /// Parked and lingering connections that are watched.
    watched: Vec<ConnectionId>,
    paused: bool,
}

impl Side {
    fn new(limits: Limits, now: Time) -> Self {
        let mut side = Self {
            dispatcher: Dispatcher::new(limits),
            workers: BTreeMap::new(),
            watched: Vec::new(),
            paused: false,
        };
        for _ in 0..2 {
            side.hire(now);
        }
        side
    }

    fn hire(&mut self, now: Time) {
        let worker = self.dispatcher.worker_started(1);
        self.workers.insert(worker.into(), VecDeque::new());
        self.dispatcher.worker_ready(worker, now);
    }

    /// The payloads in the table, and which of them linger.
    fn here(&self) -> BTreeMap<u64, bool> {
        let table = &self.dispatcher.table;
        let each = table.ids().map(|id| table.at(id.index()));
        each.map(|one| (one.payload, one.state == State::Lingering))
            .collect()
    }
}

impl Pair {
    fn new(limits: [Limits; 2]) -> Self {
        let now = Time(1_000_000_000);
        Self {
            sides: limits.map(|limits| Side::new(limits, now)),
            now,
            accepted: 0,
            closed: BTreeSet::new(),
            visiting: BTreeSet::new(),
            dice: 1,
        }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(11);
        (self.dice >> 33) % sides
    }

    fn step(&mut self, (what, choice): Step) {
        let side = usize::from(choice % 2);
        match what % 9 {
            0 | 1 => self.accept(side),
            2 => self.client_moves(side, choice),
            3..=6 => self.end_turn(side, choice),
            7 if choice % 4 == 0 => self.crash(side, choice),
            7 => self.pass_time(Duration::from_millis(choice.into())),
            _ if choice % 64 == 0 => self.pass_time(Duration::from_secs(40)),
            _ => {}
        }
        self.settle();
        self.check();
    }

    fn accept(&mut self, side: usize) {
        let (payload, now) = (self.accepted, self.now);
        let one = &mut self.sides[side];
        if !one.paused && !one.dispatcher.stopping && !one.dispatcher.is_full() {
            one.dispatcher
                .accepted(payload, payload.is_multiple_of(2), now);
            self.accepted += 1;
        }
    }

    fn client_moves(&mut self, side: usize, choice: u16) {
        let now = self.now;
        let one = &mut self.sides[side];
        if one.watched.is_empty() {
            return;
        }
        let id = one
            .watched
            .swap_remove(usize::from(choice) % one.watched.len());
        match choice % 5 {
            0 => one.dispatcher.hung_up(id),
            _ => one.dispatcher.readable(id, now),
        }
    }

    fn some_worker(&self, side: usize, choice: u16) -> WorkerId {
        let workers = &self.sides[side].workers;
        let at = usize::from(choice) % workers.len();
        (*workers.keys().nth(at).expect("there are some")).into()
    }

    fn end_turn(&mut self, side: usize, choice: u16) {
        let worker = self.some_worker(side, choice / 2);
        self.end_turn_of(side, worker, choice);
    }

    fn end_turn_of(&mut self, side: usize, worker: WorkerId, choice: u16) {
        let now = self.now;
        let one = &mut self.sides[side];
        let inbox = one.workers.get_mut(&worker.into()).expect("it is there");
        let Some(id) = inbox.pop_front() else { return };
        let guest = one.dispatcher.is_guest(id);
        assert!(!guest || side == AWAY);
        let outcome = match choice % 13 {
            0 => Outcome::Close,
            1 => Outcome::Linger,
            2 => Outcome::Again,
            3 => Outcome::ParkWrite,
            // As the master does, which lets nobody pass a guest on.
            4..=6 if side == HOME => Outcome::Pass,
            4..=8 => Outcome::Home,
            _ => Outcome::Park,
        };
        let end = TurnEnd {
            outcome,
            turns: 1,
            owes: match choice % 6 {
                0 => Owes::Head,
                3 => Owes::Body,
                _ => Owes::Nothing,
            },
            answered: choice.is_multiple_of(5),
            reply: None,
            read: (choice % 99).into(),
            taken: choice.into(),
            took: None,
        };
        let reported = one.dispatcher.report(worker, id, now, |_| end);
        assert_eq!(reported, Ok(()));
    }

    fn crash(&mut self, side: usize, choice: u16) {
        let (worker, now) = (self.some_worker(side, choice), self.now);
        let one = &mut self.sides[side];
        one.dispatcher.worker_died(worker);
        one.workers.remove(&worker.into());
        one.dispatcher.inbox_empty(worker, now);
        one.dispatcher.worker_gone(worker, now);
        one.hire(now);
    }

    fn pass_time(&mut self, time: Duration) {
        self.now = self.now.after(time);
        let now = self.now;
        for side in &mut self.sides {
            side.dispatcher.tick(now);
        }
    }

    /// Carries out what both want done, and takes connections from one to the other.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "the two chase each other");
            let mut quiet = true;
            for side in [HOME, AWAY] {
                for action in self.sides[side].dispatcher.take_actions() {
                    quiet = false;
                    self.act(side, action);
                }
                for departure in self.sides[side].dispatcher.take_departures() {
                    quiet = false;
                    self.deliver(side, departure);
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn deliver(&mut self, from: usize, departure: Departure<u64>) {
        let (payload, now) = (departure.payload, self.now);
        assert_eq!(departure.homewards, from == AWAY);
        if departure.homewards {
            assert!(self.visiting.remove(&payload));
            self.sides[HOME].dispatcher.came_home(departure, now);
        } else if self.roll(8) == 0 {
            // There is no such pool.
            let reply = Some(Canned::Crashed);
            self.sides[HOME]
                .dispatcher
                .turned_back(departure, reply, now);
        } else {
            assert!(self.visiting.insert(payload));
            self.sides[AWAY].dispatcher.arrived(departure, now);
        }
    }

    /// A connection is over in this dispatcher, and counts for its home no longer.
    fn count_out(&mut self, side: usize, payload: u64) {
        if self.visiting.remove(&payload) {
            assert_eq!(side, AWAY);
            self.sides[HOME].dispatcher.ended_away();
        }
    }

    fn act(&mut self, side: usize, action: Action<u64>) {
        let now = self.now;
        let luck = self.roll(7);
        let one = &mut self.sides[side];
        match action {
            Action::Lend(worker, id) => match one.workers.get_mut(&worker.into()) {
                Some(inbox) => inbox.push_back(id),
                None => one.dispatcher.lend_refused(worker, id, now),
            },
            Action::TakeBack(worker) => {
                let inbox = one.workers.get_mut(&worker.into());
                for id in inbox
                    .into_iter()
                    .flat_map(|inbox| inbox.split_off(inbox.len().min(1)))
                {
                    one.dispatcher.taken_back(worker, id);
                }
                one.dispatcher.inbox_empty(worker, now);
            }
            Action::Arm(id, _) if one.dispatcher.state(id).is_some() => one.watched.push(id),
            Action::Linger(id, _) => {
                one.watched.push(id);
                if let Some(payload) = one.dispatcher.payload(id).copied() {
                    self.count_out(side, payload);
                }
            }
            Action::Expire(id) => {
                let look = Look {
                    unread: luck == 1,
                    unsent: luck == 0,
                    taken: luck * 1000,
                };
                one.dispatcher.expired(id, look, now);
            }
            Action::Drain(id) => one.dispatcher.drained(id, luck < 4, now),
            Action::Examine(id, _) => {
                let verdict = match luck {
                    0 => Verdict::Sent,
                    1 => Verdict::Consumed,
                    2 => Verdict::Served(Outcome::Home),
                    3 => Verdict::Resumable { progress: true },
                    _ => Verdict::Untouched,
                };
                one.dispatcher.examined(id, verdict, now);
            }
            Action::Close(_, payload) | Action::Reset(_, payload) => {
                assert!(self.closed.insert(payload), "closed once");
                self.count_out(side, payload);
            }
            Action::PauseAccepting => one.paused = true,
            Action::ResumeAccepting => one.paused = false,
            Action::Arm(..) | Action::Retire(_) | Action::End(_) => {}
        }
    }

    fn check(&mut self) {
        let [home, away] = &self.sides;
        let (at_home, elsewhere) = (home.here(), away.here());
        let everywhere: Vec<u64> = at_home.keys().chain(elsewhere.keys()).copied().collect();
        let different: BTreeSet<u64> = everywhere.iter().copied().collect();
        assert_eq!(different.len(), everywhere.len(), "in two places");
        let all: BTreeSet<u64> = different.union(&self.closed).copied().collect();
        assert_eq!(all.len() as u64, self.accepted, "one is lost");
        assert!(different.is_disjoint(&self.closed));
        for visitor in &self.visiting {
            assert_eq!(elsewhere.get(visitor), Some(&false), "away, and not over");
        }
        let (guests, visiting) = (away.dispatcher.guests, self.visiting.len());
        assert_eq!((home.dispatcher.away, guests), (visiting, visiting));
        assert_eq!((home.dispatcher.guests, away.dispatcher.away), (0, 0));
        let count = |here: &BTreeMap<u64, bool>| here.values().filter(|over| !**over).count();
        let counted = (home.dispatcher.connections(), away.dispatcher.connections());
        let expected = (count(&at_home) + visiting, count(&elsewhere) - visiting);
        assert_eq!(counted, expected);
        for side in &self.sides {
            let d = &side.dispatcher;
            assert!(d.connections() <= d.limits.connections);
            let idle = d.chains.iter(&d.idle);
            assert!(idle.into_iter().all(|index| !d.table.at(index).guest));
            let room = !d.is_full() || d.can_make_room();
            assert!(d.stopping || !side.paused || !room, "there is room");
        }
        for side in &mut self.sides {
            let d = &side.dispatcher;
            let waits =
                |id: &ConnectionId| matches!(d.state(*id), Some(State::Parked | State::Lingering));
            side.watched.retain(waits);
        }
    }

    /// Both stop, and everything ends.
    fn wind_up(&mut self) {
        let now = self.now;
        for side in &mut self.sides {
            side.dispatcher.stop(now);
        }
        for round in 0..5000_u16 {
            self.settle();
            self.check();
            if self.sides.iter().all(|side| side.dispatcher.is_empty()) {
                assert_eq!(self.closed.len() as u64, self.accepted);
                return;
            }
            for side in [HOME, AWAY] {
                // What is parked ends when its pool stops, but for guests, which have their time.
                let d = &self.sides[side].dispatcher;
                let over = |id: &ConnectionId| !d.is_guest(*id);
                let parked: Vec<_> = d.parked().filter(over).collect();
                for id in parked {
                    self.sides[side].dispatcher.hung_up(id);
                }
                self.end_turn(side, round);
            }
            if round % 8 == 0 {
                self.pass_time(Duration::from_secs(1));
            }
        }
        panic!("some never end");
    }
}

fn limits() -> impl Strategy<Value = Limits> {
    (1usize..8, 0usize..8, 1usize..6, 1u64..4).prop_map(|(connections, more, queue, seconds)| {
        Limits {
            patience: PATIENCE,
            connections,
            descriptors: connections + more,
            lingering: 1 + more,
            queue,
            queue_wait: Some(Duration::from_secs(seconds)),
            idle: Some(Duration::from_secs(2 * seconds)),
            head: Some(Duration::from_secs(seconds)),
            linger: Duration::from_secs(seconds),
            ..Limits::default()
        }
    })
}

#[test]
fn a_connection_is_in_one_place_and_counts_once_whatever_happens() {
    let config = Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    };
    let chance = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, chance);
    let steps = proptest::collection::vec((any::<u8>(), any::<u16>()), 1..300);
    let result = runner.run(&(limits(), limits(), steps), |(home, away, steps)| {
        let mut pair = Pair::new([home, away]);
        for step in steps {
            pair.step(step);
        }
        pair.wind_up();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
