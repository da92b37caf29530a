//! What the dispatcher promises, looked at in all of its state and in the model beside it.

use super::{
    ConnectionId, Due, Fellow, Interest, MAX_DEPTH, PATIENCE, State, Watch, WorkerId, World,
};

impl World {
    pub(super) fn check(&self) {
        let d = &self.dispatcher;
        assert_eq!(
            d.table.len() as u64,
            self.accepted - self.closed,
            "a connection is lost or made up"
        );
        assert_eq!(d.table.len(), self.watched.len());
        self.check_room();
        let ready: Vec<u32> =
            std::iter::successors(d.ready.first(), |index| d.chains.after(*index)).collect();
        let orders: Vec<u64> = ready.iter().map(|index| d.table.at(*index).order).collect();
        assert!(
            orders.is_sorted_by(|a, b| a < b),
            "first come, first served: {orders:?}"
        );
        let bounded = ready.iter().filter(|at| !d.table.at(**at).is_read_from());
        assert!(
            bounded.count() <= d.limits.queue.saturating_add(12 * (MAX_DEPTH + 3)),
            "the ready queue is bounded"
        );
        if !ready.is_empty() {
            assert_eq!(
                d.workers.next(d.depth()),
                None,
                "a connection waits while a worker has room"
            );
        }
        self.check_states(ready.len());
        for (id, fellow) in &self.fellows {
            self.check_worker((*id).into(), fellow);
        }
    }

    fn check_room(&self) {
        let d = &self.dispatcher;
        assert!(
            d.connections() <= d.limits.connections && d.table.len() <= d.limits.descriptors,
            "more connections than there may be"
        );
        assert!(self.lingering.len() <= d.limits.lingering);
        let lingering: Vec<u64> = d.lingering().map(u64::from).collect();
        assert_eq!(lingering, self.lingering);
        let idle = d.chains.iter(&d.idle);
        let idle: Vec<u64> = idle.map(|index| d.table.id(index).into()).collect();
        let waits_for_a_request = |(id, interest): &&(u64, Interest)| {
            *interest != Interest::Output && !self.owing.contains(id)
        };
        let model = self.parked.iter().filter(waits_for_a_request);
        assert_eq!(idle, model.map(|(id, _)| *id).collect::<Vec<_>>());
        for (id, interest) in &self.parked {
            let due = d.table.get((*id).into()).expect("it is parked").due;
            let reads = matches!(due, Due::Reading { .. });
            assert_eq!(reads, *interest == Interest::Output, "{due:?}");
            assert_eq!(due.is_owed(), self.owing.contains(id) && !reads, "{due:?}");
        }
        assert_eq!(d.paused, self.paused);
        let room = !d.is_full() || d.can_make_room();
        assert!(
            d.stopping || !d.paused || !room,
            "newcomers wait outside while there is room"
        );
    }

    fn check_states(&self, ready: usize) {
        let d = &self.dispatcher;
        let count = |wanted: fn(&State) -> bool| {
            d.table
                .ids()
                .filter(|id| wanted(&d.table.at(id.index()).state))
                .count()
        };
        assert_eq!(count(|state| *state == State::Ready), ready);
        assert_eq!(
            count(|state| *state == State::Examined),
            0,
            "every examination is concluded"
        );
        let lent: usize = self
            .fellows
            .values()
            .map(|fellow| fellow.inbox.len() + fellow.serving.len())
            .sum();
        assert_eq!(count(|state| matches!(state, State::Lent(_))), lent);
        let waiting = self
            .watched
            .values()
            .filter(|watch| **watch == Watch::Client)
            .count();
        assert_eq!(
            count(|state| matches!(state, State::Parked | State::Lingering)),
            waiting
        );
    }

    fn check_worker(&self, id: WorkerId, fellow: &Fellow) {
        let d = &self.dispatcher;
        let worker = d.workers.get(id).expect("a living worker is known");
        let lent: Vec<ConnectionId> =
            std::iter::successors(worker.lent.first(), |index| d.chains.after(*index))
                .map(|index| d.table.id(index))
                .collect();
        assert_eq!(lent.len(), fellow.inbox.len() + fellow.serving.len());
        assert!(
            lent.ends_with(fellow.inbox.as_slices().0) || !fellow.inbox.as_slices().1.is_empty()
        );
        assert!(
            lent.len() < worker.capacity + MAX_DEPTH,
            "no worker has more than its depth"
        );
        assert_eq!(worker.waiting.is_some(), lent.len() > worker.capacity);
        // Time only passes together with a tick.
        let stale = worker.progress.after(PATIENCE) <= self.now;
        assert!(
            !stale || fellow.inbox.is_empty(),
            "waits behind a turn for longer than the patience"
        );
        if fellow.told_to_retire {
            assert!(lent.is_empty());
        }
    }
}
