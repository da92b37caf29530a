//! What a message between master and worker costs to write and to read, without the system calls.

use std::hint::black_box;
use std::time::Duration;

use batond::wire::{Extras, FromWorker, Lend, Outcome, Peer, Report, ToWorker, Traffic};
use criterion::{Criterion, criterion_group, criterion_main};

fn wire(criterion: &mut Criterion) {
    let peer = Peer::Inet("127.0.0.1:54321".parse().expect("it is an address"));
    let lend = ToWorker::Lend(Lend {
        turn: 42,
        watched: true,
        ..Lend::first(7 << 32 | 12_345, peer)
    });
    let report = FromWorker::Report(Report {
        id: 7 << 32 | 12_345,
        outcome: Outcome::Park,
        traffic: Some(Traffic {
            read: 128,
            written: 4096,
        }),
        extras: Extras::default(),
        carry: b"GET / HT",
    });
    let lend_bytes = lend.header().as_bytes().to_vec();
    let report_bytes = [report.header().as_bytes(), b"GET / HT"].concat();
    assert_eq!(ToWorker::parse(&lend_bytes), Ok(lend.clone()));
    assert_eq!(FromWorker::parse(&report_bytes), Ok(report));

    let mut group = criterion.benchmark_group("wire");
    group
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    group.bench_function("lend, encode", |bencher| {
        bencher.iter(|| black_box(&lend).header());
    });
    group.bench_function("lend, parse", |bencher| {
        bencher.iter(|| ToWorker::parse(black_box(&lend_bytes)).is_ok());
    });
    group.bench_function("report, encode", |bencher| {
        bencher.iter(|| black_box(&report).header());
    });
    group.bench_function("report, parse", |bencher| {
        bencher.iter(|| FromWorker::parse(black_box(&report_bytes)).is_ok());
    });
    group.finish();
}

criterion_group!(benches, wire);
criterion_main!(benches);
