//! Connections that go from one dispatcher to another, as in a takeover.

use super::*;

fn ticks(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn parked(dispatcher: &mut Dispatcher<u64>, payload: u64, now: Time) -> ConnectionId {
    let id = dispatcher.accepted(payload, false, now);
    let _ = dispatcher.take_actions();
    id
}

/// Takes all that can be passed on from one to the other, in order.
fn pass(from: &mut Dispatcher<u64>, to: &mut Dispatcher<u64>, now: Time) -> Vec<u64> {
    let mut payloads = Vec::new();
    for id in from.passable() {
        let progress = from.progress(id, now).expect("it can be passed on");
        let payload = from.release(id).expect("it can be passed on");
        to.adopt(payload, (&progress, false), Interest::Input, now);
        payloads.push(payload);
    }
    payloads
}

#[test]
fn a_frozen_dispatcher_lends_nothing_and_lets_nothing_expire() {
    let limits = Limits {
        idle: Some(ticks(200)),
        ..Limits::default()
    };
    let mut world = World::new(limits);
    world.hire(1);
    let id = parked(&mut world.dispatcher, 1, world.now);
    world.dispatcher.set_lending(Lending::Frozen, world.now);
    world.pass(ticks(1000));
    world.dispatcher.readable(id, world.now);
    assert_eq!(world.dispatcher.take_actions(), []);
    assert_eq!(world.dispatcher.state(id), Some(State::Ready));
    world.dispatcher.set_lending(Lending::Yes, world.now);
    assert!(matches!(world.dispatcher.take_actions()[..], [Action::Lend(_, lent)] if lent == id));
}

#[test]
fn what_is_let_go_makes_room() {
    let now = Time(1_000_000_000);
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let mut dispatcher = Dispatcher::new(limits);
    let id = dispatcher.accepted(1, true, now);
    dispatcher.pause_if_full();
    assert_eq!(dispatcher.take_actions(), [Action::PauseAccepting]);
    assert_eq!(dispatcher.release(id), Some(1));
    assert!(!dispatcher.is_full());
    assert_eq!(dispatcher.take_actions(), [Action::ResumeAccepting]);
}

#[test]
fn the_ready_ones_go_first_and_in_their_order() {
    let now = Time(1_000_000_000);
    let (mut old, mut new) = (
        Dispatcher::new(Limits::default()),
        Dispatcher::new(Limits::default()),
    );
    let ids: Vec<_> = (0..6).map(|n| parked(&mut old, n, now)).collect();
    for place in [4, 1, 3] {
        old.readable(ids[place], now);
    }
    assert_eq!(pass(&mut old, &mut new, now), [4, 1, 3, 0, 2, 5]);
    assert!(old.is_empty());
    assert_eq!(old.take_actions(), [], "nothing is closed");
    let worker = new.worker_started(1);
    new.worker_ready(worker, now);
    let lent: Vec<_> = new
        .take_actions()
        .into_iter()
        .filter_map(|action| match action {
            Action::Lend(_, id) => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(lent.len(), 1);
    assert_eq!(new.payload(lent[0]).copied(), Some(4));
}

#[test]
fn deadlines_go_on_where_they_were() {
    let limits = Limits {
        idle: Some(ticks(10_000)),
        ..Limits::default()
    };
    let begin = Time(1_000_000_000);
    let mut old = Dispatcher::new(limits.clone());
    parked(&mut old, 7, begin);
    let later = begin.after(ticks(8_000));
    // The clock of the other master has another beginning.
    let other = Time(77_000_000_000);
    let mut new = Dispatcher::new(limits);
    let id = old.passable()[0];
    let progress = old.progress(id, later).expect("parked");
    assert_eq!(progress.remaining, Some(ticks(2_000)));
    let id = new.adopt(7, (&progress, false), Interest::Input, other);
    let _ = new.take_actions();
    new.tick(other.after(ticks(1_500)));
    assert_eq!(new.take_actions(), []);
    new.tick(other.after(ticks(2_300)));
    assert_eq!(new.take_actions(), [Action::Expire(id)]);
}

#[test]
fn turns_and_what_is_owed_come_along() {
    let limits = Limits {
        head: Some(ticks(10_000)),
        idle: None,
        ..Limits::default()
    };
    let mut world = World::new(limits.clone());
    world.hire(1);
    let worker = world.some_fellow(0).expect("one");
    let id = world.dispatcher.accepted(0, true, world.now);
    let half = TurnEnd {
        outcome: Outcome::Park,
        turns: 3,
        owes: Owes::Head,
        answered: false,
        reply: None,
        read: 1,
        taken: 0,
        took: None,
    };
    let report = world.dispatcher.report(worker, id, world.now, |_| half);
    assert_eq!(report, Ok(()));
    world.pass(ticks(4_000));
    let progress = world.dispatcher.progress(id, world.now).expect("parked");
    assert_eq!(progress.turns, 3);
    assert_eq!(progress.incomplete_for, Some(ticks(4_000)));
    assert_eq!(progress.remaining, Some(ticks(6_000)));
    let mut new = Dispatcher::<u64>::new(limits);
    let id = new.adopt(0, (&progress, false), Interest::Input, world.now);
    assert_eq!(new.turn_number(id), 3);
    // The client drips on, and the time for its head is not renewed.
    let worker = new.worker_started(1);
    new.worker_ready(worker, world.now);
    new.readable(id, world.now);
    let again = TurnEnd { turns: 1, ..half };
    assert_eq!(new.report(worker, id, world.now, |_| again), Ok(()));
    assert_eq!(
        new.progress(id, world.now).expect("parked").remaining,
        Some(ticks(6_000))
    );
}

#[test]
fn what_is_lent_stays_until_its_turn_ends() {
    let mut world = World::new(Limits::default());
    world.hire(1);
    let worker = world.some_fellow(0).expect("one");
    let id = world.dispatcher.accepted(0, true, world.now);
    assert_eq!(world.dispatcher.passable(), []);
    assert_eq!(world.dispatcher.progress(id, world.now), None);
    assert_eq!(world.dispatcher.release(id), None);
    world.dispatcher.set_lending(Lending::PassingOn, world.now);
    let end = TurnEnd {
        outcome: Outcome::Again,
        turns: 1,
        owes: Owes::Nothing,
        answered: true,
        reply: None,
        read: 1,
        taken: 0,
        took: None,
    };
    let report = world.dispatcher.report(worker, id, world.now, |_| end);
    assert_eq!(report, Ok(()));
    let lends = |action: &Action<u64>| matches!(action, Action::Lend(..));
    let actions = world.dispatcher.take_actions();
    assert_eq!(
        actions.iter().filter(|action| lends(action)).count(),
        1,
        "the first lend"
    );
    assert_eq!(world.dispatcher.passable(), [id]);
}
