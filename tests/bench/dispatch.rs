//! What a decision of the dispatcher costs: it must not depend on the number of workers or
//! connections.
//!
//! The time is for 32 requests, each readable, lent, reported and parked again, or accepted, lent,
//! reported and closed.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use batond::internals::{Action, ConnectionId, Dispatcher, Limits, Owes, Time, TurnEnd, WorkerId};
use batond::wire::Outcome;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Connections that have requests; all others are parked.
const BUSY: usize = 32;

/// A dispatcher, and a world in which each lent connection is reported in turn, and time passes.
struct World {
    dispatcher: Dispatcher<()>,
    now: Time,
    lent: VecDeque<(WorkerId, ConnectionId)>,
}

impl World {
    fn new(workers: usize) -> Self {
        let limits = Limits {
            // So that parking includes setting a deadline.
            idle: Some(Duration::from_secs(24 * 60 * 60)),
            ..Limits::default()
        };
        let mut world = Self {
            dispatcher: Dispatcher::new(limits),
            now: Time(1_000_000_000),
            lent: VecDeque::new(),
        };
        for _ in 0..workers {
            let worker = world.dispatcher.worker_started(1);
            world.dispatcher.worker_ready(worker, world.now);
        }
        world
    }

    /// Parks so many connections.
    fn fill(&mut self, connections: usize) -> Vec<ConnectionId> {
        let ids = (0..connections)
            .map(|_| self.dispatcher.accepted((), false, self.now))
            .collect();
        self.carry_out();
        ids
    }

    fn pass(&mut self) {
        self.now = self.now.after(Duration::from_micros(1));
    }

    fn carry_out(&mut self) {
        loop {
            let mut actions = self.dispatcher.take_actions();
            if actions.is_empty() {
                self.dispatcher.reuse(actions);
                return;
            }
            for action in actions.drain(..) {
                match action {
                    Action::Lend(worker, id) => self.lent.push_back((worker, id)),
                    Action::TakeBack(worker) => self.dispatcher.inbox_empty(worker, self.now),
                    Action::Arm(..) | Action::Close(..) => {}
                    other => panic!("there is no reason for {other:?}"),
                }
            }
            self.dispatcher.reuse(actions);
        }
    }

    /// Ends all turns, those that begin meanwhile included.
    fn report_all(&mut self, outcome: Outcome) {
        self.carry_out();
        while let Some((worker, id)) = self.lent.pop_front() {
            self.pass();
            let end = TurnEnd {
                outcome,
                turns: 1,
                owes: Owes::Nothing,
                answered: true,
                read: 100,
                taken: 0,
                reply: None,
                took: None,
            };
            self.dispatcher
                .report(worker, id, self.now, |()| end)
                .expect("it was lent to this worker");
            self.carry_out();
        }
        self.dispatcher.tick(self.now);
        self.carry_out();
    }

    fn requests(&mut self, busy: &[ConnectionId]) {
        for id in busy {
            self.pass();
            self.dispatcher.readable(*id, self.now);
        }
        self.report_all(Outcome::Park);
    }

    fn visits(&mut self) {
        for _ in 0..BUSY {
            self.pass();
            black_box(self.dispatcher.accepted((), true, self.now));
        }
        self.report_all(Outcome::Close);
    }
}

fn dispatch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dispatch");
    group
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .throughput(Throughput::Elements(BUSY as u64));
    for workers in [2, 256] {
        for parked in [0, 100_000] {
            let mut world = World::new(workers);
            let all = world.fill(parked + BUSY);
            // From all over the table, as clients come.
            let step = all.len() / BUSY;
            let busy: Vec<_> = all.into_iter().step_by(step).take(BUSY).collect();
            let case = format!("{workers} workers, {parked} parked");
            group.bench_function(BenchmarkId::new("keep-alive", &case), |bencher| {
                bencher.iter(|| world.requests(&busy));
            });
            group.bench_function(BenchmarkId::new("new connection", &case), |bencher| {
                bencher.iter(|| world.visits());
            });
            assert_eq!(world.dispatcher.connections(), parked + BUSY);
        }
    }
    group.finish();
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
