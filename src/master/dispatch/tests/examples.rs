//! Single promises of the dispatcher, as examples.

use super::*;

/// A world with one worker, which is lent the only connection.
pub(super) fn one_turn(limits: Limits) -> (World, WorkerId, ConnectionId) {
    let mut world = World::new(limits);
    world.hire(1);
    let worker = world.some_fellow(0).expect("one");
    let id = world.dispatcher.accepted(0, true, world.now);
    (world, worker, id)
}

fn pool(workers: usize) -> (World, Vec<WorkerId>) {
    let mut world = World::new(Limits::default());
    for _ in 0..workers {
        world.hire(1);
    }
    let ids = world.fellows.keys().map(|id| WorkerId::from(*id)).collect();
    (world, ids)
}

pub(super) fn done() -> TurnEnd {
    TurnEnd {
        outcome: Outcome::Close,
        turns: 1,
        owes: Owes::Nothing,
        answered: true,
        reply: None,
        read: 0,
        taken: 0,
        took: None,
    }
}

/// Lets the pool learn that its turns are short, so that it packs.
fn make_quick(world: &mut World) {
    for _ in 0..100 {
        world.accept(0);
        world.settle();
        let (worker, fellow) = world
            .fellows
            .iter_mut()
            .find(|(_, f)| !f.inbox.is_empty())
            .expect("lent");
        let (worker, id) = (
            WorkerId::from(*worker),
            fellow.inbox.pop_front().expect("lent"),
        );
        world.now = world.now.after(Duration::from_micros(10));
        world
            .dispatcher
            .report(worker, id, world.now, |_| done())
            .unwrap();
        world.settle();
    }
}

fn loads(world: &World) -> Vec<usize> {
    world
        .fellows
        .values()
        .map(|fellow| fellow.inbox.len() + fellow.serving.len())
        .collect()
}

#[test]
fn quick_turns_are_packed_onto_few_workers() {
    let (mut world, _) = pool(4);
    make_quick(&mut world);
    for _ in 0..8 {
        world.accept(0);
    }
    world.settle();
    let mut loads = loads(&world);
    loads.sort_unstable();
    assert_eq!(loads, [0, 0, 0, 8]);
}

#[test]
fn slow_turns_are_spread() {
    let (mut world, _) = pool(4);
    for _ in 0..4 {
        world.accept(0);
    }
    world.settle();
    assert_eq!(loads(&world), [1, 1, 1, 1]);
}

#[test]
fn what_waits_behind_a_slow_turn_is_taken_back_in_order_and_lent_elsewhere() {
    let (mut world, _) = pool(2);
    make_quick(&mut world);
    for _ in 0..4 {
        world.accept(0);
    }
    world.settle();
    let (slow, fellow) = world
        .fellows
        .iter_mut()
        .find(|(_, fellow)| fellow.inbox.len() == 4)
        .expect("packed");
    let slow = *slow;
    fellow.serving.extend(fellow.inbox.pop_front());
    let waiting: Vec<_> = fellow.inbox.iter().copied().collect();
    world.pass(PATIENCE);
    world.settle();
    world.check();
    let other = world
        .fellows
        .iter()
        .find(|(id, _)| **id != slow)
        .expect("two workers")
        .1;
    assert_eq!(other.inbox, waiting);
}

#[test]
fn a_client_that_has_gone_is_no_progress_of_a_worker_that_hangs() {
    let (mut world, workers) = pool(1);
    make_quick(&mut world);
    world.accept(0);
    world.accept(0);
    world.settle();
    world.pick_up_by(workers[0]);
    for _ in 0..4 {
        world.now = world.now.after(PATIENCE / 4);
        let id = world.dispatcher.accepted(0, true, world.now);
        let actions = world.dispatcher.take_actions();
        assert_eq!(actions, [Action::Lend(workers[0], id)]);
        world.dispatcher.withdraw(workers[0], id, None, world.now);
        assert_eq!(world.dispatcher.take_actions(), [Action::Close(id, 0)]);
    }
    world.dispatcher.tick(world.now);
    let actions = world.dispatcher.take_actions();
    assert_eq!(actions, [Action::TakeBack(workers[0])]);
}

#[test]
fn a_worker_whose_only_client_has_gone_is_idle_again() {
    let (mut world, workers) = pool(1);
    let id = world.dispatcher.accepted(0, true, world.now);
    world.dispatcher.withdraw(workers[0], id, None, world.now);
    assert_eq!(world.dispatcher.idle(), 1);
    world.pass(PATIENCE);
    let id = world.dispatcher.accepted(0, true, world.now);
    let lent = Action::Lend(workers[0], id);
    assert!(world.dispatcher.take_actions().contains(&lent));
}

#[test]
fn a_worker_that_takes_nothing_up_loses_it_and_is_tried_again_later() {
    let (mut world, _) = pool(2);
    world.accept(0);
    world.settle();
    let stopped = *world
        .fellows
        .iter()
        .find(|(_, fellow)| !fellow.inbox.is_empty())
        .expect("lent")
        .0;
    world.pass(PATIENCE);
    world.settle();
    assert!(world.fellows[&stopped].inbox.is_empty());
    world.accept(0);
    world.accept(0);
    world.settle();
    world.check();
    assert!(
        world.fellows[&stopped].inbox.is_empty(),
        "it is not idle, it is suspect"
    );
    world.pass(Duration::from_millis(20));
    world.settle();
    assert_eq!(
        world.fellows[&stopped].inbox.len(),
        1,
        "it is given another chance"
    );
}

#[test]
fn a_worker_may_claim_any_number_of_turns() {
    let (mut world, _) = pool(1);
    world.accept(0);
    world.settle();
    for turns in [0, u64::MAX, u64::MAX] {
        let (worker, fellow) = world.fellows.first_key_value().expect("one worker");
        let (worker, id) = (WorkerId::from(*worker), fellow.inbox[0]);
        let end = TurnEnd {
            outcome: Outcome::Again,
            turns,
            ..done()
        };
        world.fellows.get_mut(&worker.into()).unwrap().inbox.clear();
        world
            .dispatcher
            .report(worker, id, world.now, |_| end)
            .unwrap();
        world.settle();
    }
}

#[test]
fn a_stopped_worker_can_be_retired() {
    let (mut world, workers) = pool(1);
    world.dispatcher.worker_stopped(workers[0]);
    world.settle();
    world.dispatcher.retire(workers[0]);
    let actions = world.dispatcher.take_actions();
    assert_eq!(actions, [Action::Retire(workers[0])]);
    world.dispatcher.worker_continued(workers[0], world.now);
    world.accept(0);
    world.settle();
    assert_eq!(loads(&world), [0]);
}

#[test]
fn a_kernel_that_takes_no_descriptor_is_not_asked_without_end() {
    let (mut world, _) = pool(4);
    world.refuse_lends = u32::MAX;
    world.accept(0);
    world.settle();
    let mut ticks = 0;
    let end = world.now.after(Duration::from_secs(1));
    while let Some(next) = world.dispatcher.next_tick().filter(|next| *next < end) {
        let wait = next.since(world.now);
        assert!(wait > Duration::ZERO, "a master that never sleeps");
        world.pass(wait);
        world.settle();
        ticks += 1;
    }
    assert!(ticks < 500, "{ticks} in a second");
    world.refuse_lends = 0;
    world.pass(Duration::from_secs(1));
    world.settle();
    assert_eq!(loads(&world).iter().sum::<usize>(), 1);
}

#[test]
fn a_full_queue_turns_away_what_comes_last() {
    let limits = Limits {
        queue: 2,
        ..Limits::default()
    };
    let mut world = World::new(limits);
    let ids: Vec<_> = (0..4)
        .map(|n| world.dispatcher.accepted(n, true, world.now))
        .collect();
    let turned_away: Vec<_> = world
        .dispatcher
        .take_actions()
        .into_iter()
        .map(|action| match action {
            Action::Linger(id, Some(Canned::Overloaded(Excess::Queue))) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(turned_away, ids[2..]);
}

#[test]
fn who_drips_a_head_gets_one_deadline_for_all_of_it() {
    let limits = Limits {
        head: Some(Duration::from_secs(10)),
        ..Limits::default()
    };
    let (mut world, worker, id) = one_turn(limits);
    let part = TurnEnd {
        outcome: Outcome::Park,
        turns: 1,
        owes: Owes::Head,
        answered: false,
        reply: None,
        read: 1,
        taken: 0,
        took: None,
    };
    for _ in 0..9 {
        let _ = world.dispatcher.take_actions();
        world
            .dispatcher
            .report(worker, id, world.now, |_| part)
            .unwrap();
        world.pass(Duration::from_secs(1));
        world.dispatcher.readable(id, world.now);
    }
    world
        .dispatcher
        .report(worker, id, world.now, |_| part)
        .unwrap();
    let _ = world.dispatcher.take_actions();
    world.pass(Duration::from_millis(1200));
    assert_eq!(world.dispatcher.take_actions(), [Action::Expire(id)]);
    world.dispatcher.expired(id, Look::default(), world.now);
    assert_eq!(
        world.dispatcher.take_actions(),
        [Action::Linger(id, Some(Canned::RequestTimeout))]
    );
}

#[test]
fn a_turn_that_takes_too_long_costs_its_worker_and_the_client_is_told() {
    let limits = Limits {
        turn: Some(Duration::from_secs(5)),
        ..Limits::default()
    };
    let (mut world, worker, id) = one_turn(limits);
    let mut said = Vec::new();
    for _ in 0..70 {
        world.pass(Duration::from_millis(100));
        said.extend(
            world
                .dispatcher
                .take_actions()
                .into_iter()
                .filter(|action| matches!(action, Action::End(_))),
        );
    }
    assert_eq!(said, [Action::End(worker)]);
    world.dispatcher.worker_died(worker);
    world.dispatcher.inbox_empty(worker, world.now);
    world.dispatcher.worker_gone(worker, world.now);
    let _ = world.dispatcher.take_actions();
    world.dispatcher.examined(id, Verdict::Consumed, world.now);
    let expected = [Action::Linger(id, Some(Canned::TimedOut))];
    assert_eq!(world.dispatcher.take_actions(), expected);
}

#[test]
fn a_master_that_was_suspended_takes_nobody_for_hung() {
    let limits = Limits {
        turn: Some(Duration::from_secs(5)),
        ..Limits::default()
    };
    let mut world = World::new(limits);
    world.hire(1);
    world.dispatcher.accepted(0, true, world.now);
    world.pass(Duration::from_millis(700));
    world.pass(Duration::from_secs(3600));
    world.pass(Duration::from_secs(2));
    let actions = world.dispatcher.take_actions();
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::End(_))),
        "{actions:?}"
    );
}

/// The connections that were told to end, one way or the other.
fn expired(actions: &[Action<u64>]) -> Vec<ConnectionId> {
    let expire = |action: &Action<u64>| match action {
        Action::Expire(id) => Some(*id),
        _ => None,
    };
    actions.iter().filter_map(expire).collect()
}

#[test]
fn the_one_that_has_been_idle_for_longest_gives_way_and_no_other() {
    let limits = Limits {
        connections: 5,
        ..Limits::default()
    };
    let mut world = World::new(limits);
    world.hire(4);
    let worker = world.some_fellow(0).expect("one");
    let d = &mut world.dispatcher;
    let now = world.now;
    let ends = [
        (Outcome::ParkWrite, Owes::Nothing),
        (Outcome::Park, Owes::Head),
        (Outcome::Park, Owes::Nothing),
    ];
    for (outcome, owes) in ends {
        let id = d.accepted(0, true, now);
        let end = TurnEnd {
            outcome,
            owes,
            ..done()
        };
        d.report(worker, id, now, |_| end).unwrap();
    }
    let silent = d.accepted(3, false, now);
    let lent = d.accepted(4, true, now);
    let actions = d.take_actions();
    assert!(!actions.contains(&Action::PauseAccepting), "{actions:?}");
    assert!(d.is_full() && !d.paused);
    // More newcomers than can be served, and two that are idle: one between requests, then one that
    // has not begun.
    d.make_room(9);
    let given = expired(&d.take_actions());
    assert_eq!(given.len(), 2);
    assert_eq!(given[1], silent);
    // The client of the first has just sent something.
    d.readable(given[0], now);
    d.expired(given[1], Look::default(), now);
    assert_eq!(d.connections(), 4);
    d.accepted(5, true, now);
    d.pause_if_full();
    let paused = d.take_actions();
    assert!(paused.contains(&Action::PauseAccepting), "{paused:?}");
    let parks = TurnEnd {
        outcome: Outcome::Park,
        ..done()
    };
    d.report(worker, lent, now, |_| parks).unwrap();
    assert!(d.take_actions().contains(&Action::ResumeAccepting));
}

#[test]
fn what_lingers_does_not_count_and_gives_its_descriptor_up() {
    let limits = Limits {
        connections: 2,
        lingering: 3,
        descriptors: 4,
        ..Limits::default()
    };
    let mut world = World::new(limits);
    let d = &mut world.dispatcher;
    let now = world.now;
    let lingering: Vec<_> = (0..4).map(|n| d.turned_away(n, now)).collect();
    let closed = |actions: Vec<Action<u64>>| -> Vec<_> {
        let closes = actions.into_iter().filter_map(|action| match action {
            Action::Close(id, _) => Some(id),
            _ => None,
        });
        closes.collect()
    };
    assert_eq!(closed(d.take_actions()), lingering[..1]);
    assert_eq!(d.connections(), 0);
    d.accepted(4, true, now);
    assert!(d.is_full() && !d.paused, "no descriptor is left");
    d.make_room(1);
    assert_eq!(closed(d.take_actions()), lingering[1..2]);
    d.accepted(5, true, now);
    d.pause_if_full();
    assert!(d.paused);
}

#[test]
fn a_lingering_client_that_goes_on_has_time_again_but_not_for_ever() {
    let second = Duration::from_secs(1);
    let limits = Limits {
        linger: 2 * second,
        linger_total: 7 * second,
        ..Limits::default()
    };
    let mut world = World::new(limits);
    let id = world.dispatcher.turned_away(0, world.now);
    let mut lasted = 0;
    while world.dispatcher.state(id).is_some() {
        let _ = world.dispatcher.take_actions();
        world.dispatcher.readable(id, world.now);
        world.dispatcher.drained(id, false, world.now);
        world.pass(second);
        lasted += 1;
        assert!(lasted < 20);
    }
    assert_eq!(lasted, 7);
}

/// Also when the server stops, or another master has taken over.
#[test]
fn a_client_that_still_takes_what_was_sent_is_not_silent() {
    let second = Duration::from_secs(1);
    let limits = Limits {
        linger: second,
        linger_total: 10 * second,
        ..Limits::default()
    };
    for (stops, lending) in [
        (false, Lending::Yes),
        (true, Lending::Yes),
        (false, Lending::PassingOn),
    ] {
        let mut world = World::new(limits.clone());
        let id = world.dispatcher.turned_away(0, world.now);
        world.dispatcher.set_lending(lending, world.now);
        if stops {
            world.dispatcher.stop(world.now);
        }
        for _ in 0..4 {
            let _ = world.dispatcher.take_actions();
            world.pass(Duration::from_millis(1200));
            assert_eq!(world.dispatcher.take_actions(), [Action::Expire(id)]);
            let unsent = Look {
                unsent: true,
                ..Look::default()
            };
            world.dispatcher.expired(id, unsent, world.now);
            // The master looks at it again after that time, and no sooner.
            world.pass(second / 2);
            assert_eq!(world.dispatcher.take_actions(), []);
        }
        world.dispatcher.expired(id, Look::default(), world.now);
        assert_eq!(world.dispatcher.state(id), None);
    }
}

#[test]
fn a_turn_that_others_go_on_with_outlives_more_deaths_than_any_other() {
    use Verdict::{Consumed, Resumable, Untouched};
    // How many workers may die under it, if this is said each time.
    let deaths = |verdict: Verdict| {
        let replays = std::iter::successors(Some(0), |before| verdict.replays_after(*before));
        replays.take(100).count()
    };
    assert_eq!(deaths(Consumed), 1);
    assert_eq!(deaths(Untouched), 2);
    assert_eq!(deaths(Resumable { progress: false }), 6);
    assert_eq!(deaths(Resumable { progress: true }), 100);
    assert_eq!(Resumable { progress: true }.replays_after(5), Some(0));
    assert_eq!(Untouched.replays_after(3), None);
}
