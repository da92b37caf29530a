//! Clients that send a body, or take a response, more slowly than they may.

use proptest::prelude::*;

use super::examples::{done, one_turn};
use super::*;

const RATE: u64 = 100;
const GRACE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        idle: Some(IDLE),
        rate: Some(RATE),
        rate_grace: GRACE,
        ..Limits::default()
    }
}

/// A turn that has read so much of a body, which goes on.
fn body(read: u64) -> TurnEnd {
    TurnEnd {
        outcome: Outcome::Park,
        owes: Owes::Body,
        answered: false,
        read,
        ..done()
    }
}

/// A turn after which a response goes on, of whose connection the client has taken so much.
fn response(taken: u64) -> TurnEnd {
    TurnEnd {
        outcome: Outcome::ParkWrite,
        taken,
        ..done()
    }
}

fn taken(taken: u64) -> Look {
    Look {
        taken,
        ..Look::default()
    }
}

/// A connection, its only worker, and what happens to them.
struct Stage {
    world: World,
    worker: WorkerId,
    id: ConnectionId,
    begin: Time,
}

impl Stage {
    fn new(limits: Limits) -> Self {
        let (world, worker, id) = one_turn(limits);
        let begin = world.now;
        Self {
            world,
            worker,
            id,
            begin,
        }
    }

    /// The turn ends so.
    fn report(&mut self, end: TurnEnd) {
        let now = self.world.now;
        let reported = self
            .world
            .dispatcher
            .report(self.worker, self.id, now, |_| end);
        reported.expect("it is lent");
        let _ = self.world.dispatcher.take_actions();
    }

    /// Something comes, or is taken, after so long: the next turn begins.
    fn next(&mut self, wait: Duration) {
        self.world.pass(wait);
        let actions = self.world.dispatcher.take_actions();
        assert_eq!(actions, [], "{:?}", self.age());
        self.world.dispatcher.readable(self.id, self.world.now);
        let _ = self.world.dispatcher.take_actions();
    }

    /// Waits until the master is to look at the connection, and says how old it is then, in
    /// seconds.
    fn until_look(&mut self) -> u64 {
        for _ in 0..10_000 {
            self.world.pass(SECOND / 10);
            match &self.world.dispatcher.take_actions()[..] {
                [] => {}
                [Action::Expire(id)] if *id == self.id => return self.age().as_secs(),
                other => panic!("{other:?}"),
            }
        }
        panic!("nobody looks");
    }

    fn look(&mut self, look: Look) -> Option<Late> {
        self.world.dispatcher.expired(self.id, look, self.world.now)
    }

    fn age(&self) -> Duration {
        self.world.now.since(self.begin)
    }
}

#[test]
fn who_sends_a_body_at_half_the_rate_has_twice_the_grace() {
    let mut stage = Stage::new(limits());
    stage.report(body(0));
    for _ in 0..18 {
        stage.next(SECOND);
        stage.report(body(RATE / 2));
    }
    assert_eq!(stage.until_look(), 19);
    // What has come meanwhile is read first.
    let unread = Look {
        unread: true,
        ..Look::default()
    };
    assert_eq!(stage.look(unread), None);
    assert!(matches!(
        stage.world.dispatcher.take_actions()[..],
        [Action::Lend(..)]
    ));
    stage.report(body(RATE));
    assert_eq!(stage.until_look(), 20);
    assert_eq!(stage.look(Look::default()), Some(Late::Body));
    assert_eq!(
        stage.world.dispatcher.take_actions(),
        [Action::Linger(stage.id, Some(Canned::RequestTimeout))]
    );
}

#[test]
fn who_sends_a_body_fast_enough_has_no_end() {
    let mut stage = Stage::new(limits());
    stage.report(body(0));
    for _ in 0..300 {
        stage.next(SECOND);
        stage.report(body(RATE + 1));
    }
}

#[test]
fn who_was_fast_and_stops_within_a_body_has_the_time_of_an_idle_client() {
    let mut stage = Stage::new(limits());
    stage.report(body(1_000_000));
    assert_eq!(stage.until_look(), 60);
    assert_eq!(stage.look(Look::default()), Some(Late::SilentBody));
    assert_eq!(
        stage.world.dispatcher.take_actions(),
        [Action::Linger(stage.id, Some(Canned::RequestTimeout))]
    );
}

#[test]
fn without_a_rate_only_silence_counts() {
    let any_rate = Limits {
        rate: None,
        ..limits()
    };
    let mut stage = Stage::new(any_rate);
    stage.report(body(0));
    for _ in 0..10 {
        stage.next(59 * SECOND);
        stage.report(body(1));
    }
    assert_eq!(stage.until_look(), 590 + 60);
    let for_ever = Limits {
        rate: None,
        idle: None,
        ..limits()
    };
    for end in [body(1), response(1)] {
        let mut stage = Stage::new(for_ever.clone());
        stage.report(end);
        stage.next(1_000_000 * SECOND);
    }
}

#[test]
fn each_body_has_its_own_time() {
    let mut stage = Stage::new(limits());
    stage.report(body(100_000));
    stage.next(30 * SECOND);
    // The request is served, and the next one has come along, of which so much is here.
    let next = TurnEnd {
        answered: true,
        ..body(100_000)
    };
    stage.report(next);
    assert_eq!(stage.until_look(), 40);
    assert_eq!(stage.look(Look::default()), Some(Late::Body));
}

#[test]
fn a_body_is_not_a_head_and_a_head_is_no_body() {
    let head = Limits {
        head: Some(20 * SECOND),
        ..limits()
    };
    let part = TurnEnd {
        owes: Owes::Head,
        ..body(1)
    };
    let mut stage = Stage::new(head.clone());
    stage.report(part);
    stage.next(19 * SECOND);
    stage.report(body(1));
    assert_eq!(stage.until_look(), 29, "the grace begins with the body");
    assert_eq!(stage.look(Look::default()), Some(Late::Body));
    let mut stage = Stage::new(head);
    stage.report(part);
    for _ in 0..19 {
        stage.next(SECOND);
        stage.report(TurnEnd {
            read: 10_000,
            ..part
        });
    }
    assert_eq!(stage.until_look(), 20, "a rate buys no time for a head");
    assert_eq!(stage.look(Look::default()), Some(Late::Head));
}

#[test]
fn who_takes_a_response_at_half_the_rate_is_cut_off_after_twice_the_grace() {
    let mut stage = Stage::new(limits());
    stage.report(response(5_000));
    // Nobody tells the master what the client takes: it looks. What it sends does not matter.
    let look = |more| Look {
        unread: true,
        unsent: true,
        taken: 5_000 + more,
    };
    assert_eq!(stage.until_look(), 10);
    assert_eq!(stage.look(look(RATE * 5)), None);
    assert_eq!(stage.until_look(), 15);
    assert_eq!(stage.look(look(RATE * 15 / 2)), None);
    assert_eq!(stage.until_look(), 17);
    assert_eq!(stage.look(look(RATE * 15 / 2)), Some(Late::Reader));
    let actions = stage.world.dispatcher.take_actions();
    assert!(matches!(actions[..], [Action::Reset(id, _)] if id == stage.id));
}

#[test]
fn who_takes_a_response_fast_enough_is_looked_at_and_left_alone() {
    let mut stage = Stage::new(limits());
    stage.report(response(0));
    for round in 1..100 {
        let age = stage.until_look();
        assert_eq!(stage.look(taken(age * (RATE + 20))), None, "{round}");
    }
    assert!(stage.age() > 100 * GRACE);
}

#[test]
fn who_was_fast_and_stops_taking_is_cut_off_as_an_idle_client() {
    let mut stage = Stage::new(limits());
    stage.report(response(1_000_000));
    stage.next(SECOND);
    stage.report(response(2_000_000));
    assert_eq!(stage.until_look(), 61);
    assert_eq!(stage.look(taken(2_000_001)), None);
    assert_eq!(stage.until_look(), 121);
    assert_eq!(stage.look(taken(2_000_001)), None);
    let actions = stage.world.dispatcher.take_actions();
    assert!(matches!(actions[..], [Action::Reset(id, _)] if id == stage.id));
}

#[test]
fn each_response_has_its_own_time() {
    let mut stage = Stage::new(limits());
    stage.report(response(0));
    stage.next(SECOND);
    stage.report(TurnEnd {
        outcome: Outcome::Park,
        ..done()
    });
    stage.next(59 * SECOND);
    stage.report(response(1_000_000));
    assert_eq!(stage.until_look(), 70);
    assert_eq!(stage.look(taken(1_000_000)), Some(Late::Reader));
}

#[test]
fn a_response_whose_report_was_lost_has_its_time_from_then_on() {
    let mut stage = Stage::new(limits());
    let (worker, id) = (stage.worker, stage.id);
    stage.world.dispatcher.worker_died(worker);
    stage.world.dispatcher.worker_gone(worker, stage.world.now);
    let served = Verdict::Served(Outcome::ParkWrite);
    stage.world.dispatcher.examined(id, served, stage.world.now);
    let _ = stage.world.dispatcher.take_actions();
    assert_eq!(stage.until_look(), 10);
    // How much it had taken before is not known, and buys no time.
    assert_eq!(stage.look(taken(1_000_000)), Some(Late::Reader));
}

#[test]
fn the_time_that_is_left_goes_to_another_master() {
    for end in [body(0), response(0)] {
        let mut stage = Stage::new(limits());
        stage.report(end);
        stage.world.pass(4 * SECOND);
        let progress = stage.world.dispatcher.progress(stage.id, stage.world.now);
        let progress = progress.expect("it is parked");
        assert_eq!(progress.remaining, Some(6 * SECOND));
        let left = match end.owes {
            Owes::Body => TimeLeft::Body(6 * SECOND),
            _ => TimeLeft::Reading(6 * SECOND),
        };
        assert_eq!(progress.time_left, Some(left));
        let interest = match end.owes {
            Owes::Body => Interest::Input,
            _ => Interest::Output,
        };
        let other = Time(77_000_000_000);
        let mut new = Dispatcher::new(limits());
        let worker = new.worker_started(1);
        new.worker_ready(worker, other);
        let id = new.adopt(0, (&progress, false), interest, other);
        new.readable(id, other.after(SECOND));
        let again = TurnEnd { took: None, ..end };
        new.report(worker, id, other.after(SECOND), |_| again)
            .expect("it is lent");
        let progress = new.progress(id, other.after(SECOND)).expect("it is parked");
        assert_eq!(progress.remaining, Some(5 * SECOND), "{left:?}");
    }
}

#[test]
fn a_response_of_which_the_other_master_does_not_say_has_the_whole_time() {
    let mut new = Dispatcher::new(limits());
    let now = Time(77_000_000_000);
    let progress = Progress {
        ready: false,
        ..Progress::before(3)
    };
    let id = new.adopt(0, (&progress, false), Interest::Output, now);
    let progress = new.progress(id, now).expect("it is parked");
    assert_eq!(progress.time_left, Some(TimeLeft::Reading(GRACE)));
}

proptest! {
    /// However a body comes, its client is too slow when it has sent less than the rate since the
    /// grace, and not before.
    #[test]
    fn what_came_buys_its_time_however_it_came(
        pieces in proptest::collection::vec((0u64..3_000, 0u64..5_000), 1..40),
        rate in 1u64..2_000,
    ) {
        let limits = Limits { rate: Some(rate), idle: None, ..limits() };
        let begin = Time(1_000_000_000);
        let (mut due, mut now, mut sent) = (Due::Nothing, begin, 0);
        for (wait, bytes) in pieces {
            due = due.after(&body(bytes), begin, &limits, now);
            sent += bytes;
            let enough = GRACE.as_secs_f64() + sent as f64 / rate as f64;
            let over = begin.after(Duration::from_secs_f64(enough));
            let left = due.limit(&limits, now).expect("there is a rate");
            let expected = over.since(now);
            prop_assert!(left.abs_diff(expected) < Duration::from_micros(1), "{left:?} {expected:?}");
            now = now.after(Duration::from_millis(wait));
        }
    }
}

#[test]
fn a_response_that_is_being_sent_is_not_turned_away_by_others() {
    let wait = Duration::from_secs(3);
    let mut stage = Stage::new(Limits {
        queue: 1,
        queue_wait: Some(wait),
        ..limits()
    });
    stage.report(response(1000));
    // Nobody serves, and another one fills the queue.
    stage.world.dispatcher.worker_stopped(stage.worker);
    let waiting = stage.world.dispatcher.accepted(2, true, stage.world.now);
    stage.world.dispatcher.readable(stage.id, stage.world.now);
    let _ = stage.world.dispatcher.take_actions();
    let ready = |stage: &Stage| stage.world.dispatcher.ready();
    assert_eq!(ready(&stage), [waiting, stage.id]);
    let late = stage.world.dispatcher.accepted(3, true, stage.world.now);
    let turned_away = Action::Linger(late, Some(Canned::Overloaded(Excess::Queue)));
    assert_eq!(stage.world.dispatcher.take_actions(), [turned_away]);
    // But for how long anybody waits is bounded.
    stage.world.pass(wait);
    let turned_away = |id| Action::Linger(id, Some(Canned::Overloaded(Excess::QueueWait)));
    let actions = stage.world.dispatcher.take_actions();
    assert!(
        [waiting, stage.id]
            .map(turned_away)
            .iter()
            .all(|action| actions.contains(action))
    );
    assert_eq!(ready(&stage), []);
}

#[test]
fn who_waits_gives_way_to_luggage_before_who_is_served() {
    let mut stage = Stage::new(limits());
    stage.report(response(1000));
    stage.world.pass(SECOND);
    let d = &mut stage.world.dispatcher;
    assert!(!d.are_all_serving(&[]) && d.are_all_serving(&[stage.worker]));
    d.worker_stopped(stage.worker);
    assert!(d.are_all_serving(&[]));
    let [first, second] = [2, 3].map(|payload| d.accepted(payload, true, stage.world.now));
    let half = d.accepted(4, false, stage.world.now);
    let _ = d.take_actions();
    let told = |id| Action::Linger(id, Some(Canned::Overloaded(Excess::Descriptors)));
    d.force_room(1, stage.world.now);
    assert_eq!(d.take_actions(), [told(first)]);
    d.force_room(2, stage.world.now);
    // One that has had no turn goes before one in the middle of a response.
    let [Action::Linger(..), Action::Linger(..)] = d.take_actions()[..] else {
        panic!("two are turned away");
    };
    assert!(d.ready().is_empty() && d.state(second) == Some(State::Lingering));
    assert_eq!(d.state(half), Some(State::Lingering));
    d.force_room(2, stage.world.now);
    let actions = d.take_actions();
    assert!(
        matches!(actions[..], [Action::Reset(id, _)] if id == stage.id),
        "{actions:?}"
    );
}
