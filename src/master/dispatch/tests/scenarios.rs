//! Scenarios that chance makes up, the same in every run: whatever happens, the promises hold.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

fn limits() -> impl Strategy<Value = Limits> {
    let seconds =
        |range: std::ops::Range<u64>| proptest::option::of(range.prop_map(Duration::from_secs));
    (
        1usize..200,
        1usize..50,
        seconds(0..5),
        seconds(1..30),
        seconds(1..30),
        0u64..5,
        seconds(1..30),
        (1usize..20, 0usize..20),
        (proptest::option::of(1u64..1000), 0u64..10),
    )
        .prop_map(
            |(connections, queue, queue_wait, idle, head, linger, turn, more, rate)| Limits {
                patience: PATIENCE,
                few: 4,
                connections,
                lingering: more.0,
                descriptors: connections + more.1,
                queue,
                queue_wait,
                idle,
                head,
                rate: rate.0,
                rate_grace: Duration::from_secs(rate.1),
                linger: Duration::from_secs(linger),
                linger_total: Duration::from_secs(3 * linger),
                turn,
            },
        )
}

fn scenario(length: usize) -> impl Strategy<Value = (Limits, Vec<Step>)> {
    (
        limits(),
        proptest::collection::vec((0u8..28, any::<u16>()), 1..length),
    )
}

fn play(limits: Limits, steps: Vec<Step>) {
    let mut world = World::new(limits);
    for step in steps {
        world.step(step);
    }
    world.wind_up();
}

fn run(cases: u32, length: usize) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let result = runner.run(&scenario(length), |(limits, steps)| {
        play(limits, steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn the_promises_hold_whatever_happens() {
    run(400, 400);
}

#[test]
#[ignore = "takes minutes; the same with fewer and shorter scenarios runs always"]
fn the_promises_hold_whatever_happens_for_long() {
    run(20_000, 3000);
}
