//! The dispatcher against a small model of the world: clients, inboxes and workers that crash,
//! stall, are replaced and refuse. After every step the whole state is compared and the promises of
//! the module are checked.

mod examples;
mod passing;
mod promises;
mod scenarios;
mod slow;
mod visits;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::*;
use crate::wire::Outcome;

const PATIENCE: Duration = Duration::from_micros(500);

/// One step of a scenario; the number chooses whom it befalls, or how.
type Step = (u8, u16);

/// A worker as it really is.
#[derive(Debug, Default)]
struct Fellow {
    inbox: VecDeque<ConnectionId>,
    serving: Vec<ConnectionId>,
    capacity: usize,
    stalled: bool,
    told_to_retire: bool,
    terminated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    Nothing,
    Client,
}

struct World {
    dispatcher: Dispatcher<u64>,
    now: Time,
    fellows: BTreeMap<u64, Fellow>,
    watched: BTreeMap<u64, Watch>,
    accepted: u64,
    closed: u64,
    refuse_lends: u32,
    /// Decides what chance decides: verdicts, whether a drained client had more to say.
    dice: u64,
    paused: bool,
    examined_this_turn: BTreeMap<u64, u32>,
    /// Parked connections in the order in which they came to be so, with what they wait for.
    parked: Vec<(u64, Interest)>,
    /// Connections that linger, in the order in which they came to do so.
    lingering: Vec<u64>,
    /// Connections whose clients have sent a part of a request.
    owing: BTreeSet<u64>,
    /// Workers that were asked to end, and when they are dead at the latest.
    doomed: Vec<(WorkerId, Time)>,
    /// Clients go while their connections wait.
    clients_go: bool,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            dispatcher: Dispatcher::new(limits),
            now: Time(1_000_000_000),
            fellows: BTreeMap::new(),
            watched: BTreeMap::new(),
            accepted: 0,
            closed: 0,
            refuse_lends: 0,
            dice: 1,
            paused: false,
            examined_this_turn: BTreeMap::new(),
            parked: Vec::new(),
            lingering: Vec::new(),
            owing: BTreeSet::new(),
            doomed: Vec::new(),
            clients_go: false,
        }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % sides
    }

    fn some_fellow(&self, choice: u16) -> Option<WorkerId> {
        let place = usize::from(choice) % self.fellows.len().max(1);
        self.fellows.keys().nth(place).map(|id| WorkerId::from(*id))
    }

    fn some_watched(&self, choice: u16) -> Option<ConnectionId> {
        let mut waiting = self
            .watched
            .iter()
            .filter(|(_, watch)| **watch == Watch::Client);
        let count = waiting.clone().count().max(1);
        waiting
            .nth(usize::from(choice) % count)
            .map(|(id, _)| ConnectionId::from(*id))
    }

    fn step(&mut self, (kind, choice): Step) {
        self.dice ^= u64::from(choice);
        self.clients_go = true;
        match kind {
            0..=3 => self.accept(choice),
            4..=7 => self.client_sends(choice),
            8 => self.client_goes(choice),
            9..=11 => self.pick_up(choice),
            12..=16 => self.finish_turn(choice),
            17 => self.crash(choice),
            18 => self.stall(choice),
            19 => self.hire(choice),
            20 => {
                if let Some(worker) = self.some_fellow(choice).filter(|_| self.fellows.len() > 2) {
                    self.dispatcher.retire(worker);
                }
            }
            26 => self.stay(choice),
            27 => self.pack(choice),
            21 => self.refuse_lends += u32::from(choice % 3),
            22 | 23 => self.pass(Duration::from_micros(u64::from(choice % 700))),
            24 => self.pass(Duration::from_millis(u64::from(choice % 300))),
            25 => self.pass(Duration::from_secs(u64::from(choice % 20))),
            _ => unreachable!("scenarios have no other steps"),
        }
        self.settle();
        self.bury_the_doomed(choice);
        self.forget_what_moved_on();
        self.check();
    }

    /// Others take descriptors, or give some back.
    fn pack(&mut self, choice: u16) {
        let elsewhere = usize::from(choice % 8);
        let d = &mut self.dispatcher;
        d.set_in_use(d.table.len() + elsewhere);
        let short = d.table.len() + elsewhere;
        d.free_descriptors(short.saturating_sub(d.descriptors()));
    }

    fn forget_what_moved_on(&mut self) {
        let d = &self.dispatcher;
        let state = |id: &u64| d.state(ConnectionId::from(*id));
        self.lingering
            .retain(|id| state(id) == Some(State::Lingering));
        // Of one that was parked twice, the last time counts.
        let mut seen = BTreeSet::new();
        self.parked.reverse();
        self.parked
            .retain(|(id, _)| state(id) == Some(State::Parked) && seen.insert(*id));
        self.parked.reverse();
    }

    fn bury_the_doomed(&mut self, choice: u16) {
        let now = self.now;
        let dead: Vec<_> = self.doomed.extract_if(.., |one| one.1 <= now).collect();
        for (worker, _) in dead {
            if self.fellows.contains_key(&worker.into()) {
                self.crash_of(worker, choice);
                self.settle();
            }
        }
    }

    /// As the master accepts: at the limit, others give way first.
    fn accept(&mut self, choice: u16) {
        if !self.paused && self.dispatcher.is_full() {
            self.dispatcher.make_room(1 + usize::from(choice % 3));
            self.settle();
            self.dispatcher.pause_if_full();
            self.settle();
        }
        if !self.paused && !self.dispatcher.is_full() {
            let id = if choice % 16 == 15 {
                self.dispatcher.turned_away(self.accepted, self.now)
            } else {
                self.dispatcher
                    .accepted(self.accepted, choice.is_multiple_of(2), self.now)
            };
            self.accepted += 1;
            self.watched.entry(id.into()).or_insert(Watch::Nothing);
        }
    }

    fn client_sends(&mut self, choice: u16) {
        if let Some(id) = self.some_watched(choice) {
            self.watched.insert(id.into(), Watch::Nothing);
            self.dispatcher.readable(id, self.now);
        }
    }

    fn client_goes(&mut self, choice: u16) {
        let ready = self
            .dispatcher
            .ready
            .first()
            .filter(|_| choice.is_multiple_of(3));
        if let Some(index) = ready {
            let id = self.dispatcher.table.id(index);
            self.dispatcher.hung_up(id);
        } else if let Some(id) = self.some_watched(choice) {
            self.watched.insert(id.into(), Watch::Nothing);
            self.dispatcher.hung_up(id);
        }
    }

    fn pick_up(&mut self, choice: u16) {
        if let Some(worker) = self.some_fellow(choice) {
            self.pick_up_by(worker);
        }
    }

    fn pick_up_by(&mut self, worker: WorkerId) {
        let fellow = self
            .fellows
            .get_mut(&worker.into())
            .expect("chosen from the map");
        if !fellow.stalled && fellow.serving.len() < fellow.capacity {
            fellow.serving.extend(fellow.inbox.pop_front());
        }
    }

    fn finish_turn(&mut self, choice: u16) {
        if let Some(worker) = self.some_fellow(choice) {
            self.finish_turn_of(worker, choice);
        }
    }

    fn finish_turn_of(&mut self, worker: WorkerId, choice: u16) {
        self.pick_up_by(worker);
        let fellow = self
            .fellows
            .get_mut(&worker.into())
            .expect("chosen from the map");
        if fellow.stalled || fellow.serving.is_empty() {
            return;
        }
        let id = fellow
            .serving
            .remove(usize::from(choice) % fellow.serving.len());
        let outcome = match choice % 11 {
            0 => Outcome::Close,
            1 => Outcome::Linger,
            2 => Outcome::Again,
            3 => Outcome::ParkWrite,
            _ => Outcome::Park,
        };
        let end = TurnEnd {
            outcome,
            turns: 1,
            owes: match choice % 5 {
                0 if outcome.keeps() => Owes::Head,
                1 if outcome.keeps() => Owes::Body,
                _ => Owes::Nothing,
            },
            answered: choice.is_multiple_of(3),
            reply: None,
            read: (choice % 700).into(),
            taken: (choice / 7).into(),
            // Some workers do not measure, and what others say may be nonsense.
            took: choice
                .is_multiple_of(2)
                .then(|| Duration::from_micros(choice.into())),
        };
        self.examined_this_turn.remove(&id.into());
        self.owing.remove(&id.into());
        if end.owes != Owes::Nothing {
            self.owing.insert(id.into());
        }
        assert_eq!(
            self.dispatcher.report(worker, id, self.now, |_| end),
            Ok(())
        );
        if outcome != Outcome::Again {
            assert_eq!(
                self.dispatcher.report(worker, id, self.now, |_| end),
                Err(Stray),
                "a turn ends once"
            );
        }
    }

    /// As the master reaps: the inbox is taken back first.
    fn crash(&mut self, choice: u16) {
        if let Some(worker) = self.some_fellow(choice) {
            self.crash_of(worker, choice);
        }
    }

    fn crash_of(&mut self, worker: WorkerId, choice: u16) {
        self.dispatcher.worker_died(worker);
        self.settle();
        if choice.is_multiple_of(2) {
            // Its last report was already under way.
            self.finish_turn_of(worker, choice);
        }
        let fellow = self
            .fellows
            .remove(&worker.into())
            .expect("chosen from the map");
        for id in fellow.inbox {
            self.dispatcher.taken_back(worker, id);
        }
        self.dispatcher.inbox_empty(worker, self.now);
        self.dispatcher.worker_gone(worker, self.now);
    }

    fn stall(&mut self, choice: u16) {
        if let Some(worker) = self.some_fellow(choice) {
            let fellow = self
                .fellows
                .get_mut(&worker.into())
                .expect("chosen from the map");
            fellow.stalled = !fellow.stalled;
            // The kernel tells of some stalls, and not of others.
            match (fellow.stalled, choice % 3) {
                (true, 0) => self.dispatcher.worker_stopped(worker),
                (false, _) => self.dispatcher.worker_continued(worker, self.now),
                (true, _) => {}
            }
        }
    }

    /// A worker with one connection stays with it, and says so when the master looks.
    fn stay(&mut self, choice: u16) {
        if let Some(worker) = self.some_fellow(choice) {
            self.pick_up_by(worker);
            let fellow = &self.fellows[&worker.into()];
            if fellow.inbox.is_empty() && fellow.serving.len() == 1 {
                self.dispatcher.worker_stays(worker, self.now);
            }
        }
    }

    fn hire(&mut self, choice: u16) {
        if self.fellows.len() < 12 {
            let capacity = if choice.is_multiple_of(4) { 3 } else { 1 };
            let worker = self.dispatcher.worker_started(capacity);
            self.fellows.insert(
                worker.into(),
                Fellow {
                    capacity,
                    ..Fellow::default()
                },
            );
            self.dispatcher.worker_ready(worker, self.now);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.dispatcher.tick(self.now);
    }

    /// Carries out all actions, as the master does.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(
                round < 1000,
                "the dispatcher and the master chase each other"
            );
            let mut actions = self.dispatcher.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions.drain(..) {
                self.act(action);
            }
            self.dispatcher.reuse(actions);
        }
    }

    fn act(&mut self, action: Action<u64>) {
        match action {
            Action::Lend(worker, id) => {
                assert!(
                    self.watched.contains_key(&id.into()),
                    "lends what does not exist"
                );
                let fellow = self
                    .fellows
                    .get_mut(&worker.into())
                    .expect("lends to a worker that exists");
                assert!(
                    !fellow.told_to_retire,
                    "lends to a worker that was told to exit"
                );
                if self.clients_go && self.roll(32) == 0 {
                    return self.dispatcher.withdraw(worker, id, None, self.now);
                }
                let fellow = self.fellows.get_mut(&worker.into()).expect("as above");
                if self.refuse_lends > 0 {
                    self.refuse_lends -= 1;
                    self.dispatcher.lend_refused(worker, id, self.now);
                } else {
                    fellow.inbox.push_back(id);
                }
            }
            Action::TakeBack(worker) => {
                let fellow = self
                    .fellows
                    .get_mut(&worker.into())
                    .expect("takes back from a worker that exists");
                for id in std::mem::take(&mut fellow.inbox) {
                    self.dispatcher.taken_back(worker, id);
                }
                self.dispatcher.inbox_empty(worker, self.now);
            }
            Action::Arm(id, interest) if self.dispatcher.stopping && self.is_parked(id) => {
                self.parked.push((id.into(), interest));
                if self.roll(4) == 0 {
                    self.dispatcher.readable(id, self.now);
                } else {
                    self.dispatcher.hung_up(id);
                }
            }
            Action::Arm(id, _) | Action::Linger(id, _) => {
                match action {
                    Action::Linger(..) => self.lingering.push(id.into()),
                    Action::Arm(_, interest) if self.is_parked(id) => {
                        self.parked.push((id.into(), interest));
                    }
                    _ => {}
                }
                let watch = self
                    .watched
                    .get_mut(&id.into())
                    .expect("watches what exists");
                *watch = Watch::Client;
            }
            Action::Expire(id) => {
                let state = self.dispatcher.state(id);
                if state.is_none() {
                    // One that lingered, and had to give way in the same moment.
                    return;
                }
                let lingers = state == Some(State::Lingering);
                assert!(
                    self.is_parked(id) || lingers,
                    "expires what waits for a client"
                );
                let look = Look {
                    unread: self.roll(4) == 0,
                    unsent: self.roll(4) == 0,
                    taken: self.roll(9000),
                };
                self.dispatcher.expired(id, look, self.now);
                if self.dispatcher.state(id) != state {
                    self.watched
                        .entry(id.into())
                        .and_modify(|watch| *watch = Watch::Nothing);
                }
            }
            Action::Drain(id) => {
                let ended = self.roll(2) == 0;
                self.dispatcher.drained(id, ended, self.now);
            }
            Action::Examine(id, worker) => {
                assert!(
                    !self.fellows.contains_key(&worker.into()),
                    "examines what a living worker has"
                );
                let verdict = match self.roll(5) {
                    0 => Verdict::Sent,
                    1 => Verdict::Consumed,
                    2 => Verdict::Served(Outcome::Park),
                    _ => Verdict::Untouched,
                };
                let times = self.examined_this_turn.entry(id.into()).or_default();
                *times += 1;
                assert!(*times <= 2, "one turn was replayed twice");
                if verdict == Verdict::Served(Outcome::Park) {
                    self.examined_this_turn.remove(&id.into());
                    self.owing.remove(&id.into());
                }
                self.dispatcher.examined(id, verdict, self.now);
            }
            Action::Retire(worker) => {
                let fellow = self
                    .fellows
                    .get_mut(&worker.into())
                    .expect("retires a worker that exists");
                assert!(
                    fellow.inbox.is_empty() && fellow.serving.is_empty(),
                    "retires a worker that has something"
                );
                assert!(!fellow.told_to_retire, "retires a worker once");
                fellow.told_to_retire = true;
            }
            Action::End(worker) => {
                let fellow = self.fellows.get_mut(&worker.into());
                let fellow = fellow.expect("ends a worker that exists");
                assert!(!fellow.terminated, "ends a worker once");
                fellow.terminated = true;
                let last_chance = Duration::from_secs(1);
                self.doomed.push((worker, self.now.after(last_chance)));
            }
            Action::Close(id, _) | Action::Reset(id, _) => {
                assert!(
                    self.watched.remove(&id.into()).is_some(),
                    "closes what exists, once"
                );
                self.examined_this_turn.remove(&id.into());
                self.owing.remove(&id.into());
                self.closed += 1;
            }
            Action::PauseAccepting => self.paused = true,
            Action::ResumeAccepting => self.paused = false,
        }
    }

    fn is_parked(&self, id: ConnectionId) -> bool {
        self.dispatcher.state(id) == Some(State::Parked)
    }

    /// After a stop, and with workers that work, everything ends.
    fn wind_up(&mut self) {
        self.refuse_lends = 0;
        self.dispatcher.stop(self.now);
        self.settle();
        for (id, fellow) in &mut self.fellows {
            fellow.stalled = false;
            self.dispatcher.worker_continued((*id).into(), self.now);
        }
        for round in 0u16..5000 {
            if self.dispatcher.is_empty() {
                assert_eq!(self.accepted, self.closed);
                assert!(self.watched.is_empty());
                return;
            }
            if self
                .fellows
                .values()
                .all(|fellow| fellow.told_to_retire || fellow.terminated)
            {
                // One that was told to retire exits, and makes room for another one.
                let retired = self.fellows.iter().find(|(_, one)| one.told_to_retire);
                if let Some(worker) = retired.map(|(id, _)| WorkerId::from(*id)) {
                    self.crash_of(worker, 1);
                    self.settle();
                }
                self.hire(1);
            }
            if let Some(worker) = self.some_fellow(round) {
                self.finish_turn_of(worker, 4);
            }
            if round % 16 == 0 {
                self.pass(Duration::from_secs(1));
            }
            self.settle();
            self.bury_the_doomed(1);
            self.forget_what_moved_on();
            self.check();
        }
        let d = &self.dispatcher;
        let remaining: Vec<_> = d
            .table
            .ids()
            .map(|id| (id, d.table.at(id.index()).state))
            .collect();
        let workers: Vec<_> = self
            .fellows
            .iter()
            .map(|(id, fellow)| (d.workers.get((*id).into()), fellow))
            .collect();
        panic!(
            "connections that never ended: {remaining:?}; the workers: {workers:?}; watched {:?}",
            self.watched
        );
    }
}
