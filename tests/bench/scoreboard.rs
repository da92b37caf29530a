//! What a report in shared memory costs: to a master that is awake, and to one that must be rung.

use std::hint::black_box;
use std::time::Duration;

use batond::internals::{Entry, Scoreboard, Sleep, Urgency};
use batond::wire::{Outcome, Traffic};
use criterion::{Criterion, criterion_group, criterion_main};

fn scoreboard(criterion: &mut Criterion) {
    let board = Scoreboard::new().expect("there is memory, and a descriptor for the doorbell");
    let mut publisher = board.publisher();
    let entry = Entry {
        id: 7 << 32 | 12_345,
        outcome: Outcome::Close,
        turns: 1,
        traffic: Traffic {
            read: 128,
            written: 4096,
        },
        took: Duration::ZERO,
    };

    let mut group = criterion.benchmark_group("scoreboard");
    group
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    group.bench_function("publish, collect", |bencher| {
        bencher.iter(|| {
            assert!(publisher.publish(black_box(&entry), Urgency::Urgent));
            board.collect(&mut [])
        });
    });
    // With the system call that rings.
    group.bench_function("sleep, publish, ring, collect", |bencher| {
        bencher.iter(|| {
            assert!(board.sleep(Sleep::Deep));
            assert!(publisher.publish(black_box(&entry), Urgency::Urgent));
            board.collect(&mut [])
        });
    });
    group.bench_function("collect nothing", |bencher| {
        bencher.iter(|| board.collect(&mut []));
    });
    group.finish();
}

criterion_group!(benches, scoreboard);
criterion_main!(benches);
