//! How many workers a pool has, by demand: more while too few are idle, fewer while too many are.
//! Pure.
//!
//! What keeps it from swinging: more are started than are missing only if connections wait, workers
//! that are starting count as if they were idle, and nobody is retired before there have been too
//! many for a while.

use std::time::Duration;

use crate::config::Settings;
use crate::master::time::Time;

/// The time between two looks, unless there is a hurry.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a connection must have waited before there is a hurry, because most queues last for a
/// moment only.
const HURRY: Duration = Duration::from_millis(10);

/// How long there must have been too many idle workers before the first one is retired.
const SETTLED: Duration = Duration::from_secs(5);

/// The most workers that are started at one look.
const FASTEST: usize = 16;

/// How many workers more than `min_spare` may be idle, if `max_spare` is not set.
const LEEWAY: usize = 3;

/// How many times as many workers demand may start, if `max_workers` is not set.
const MULTIPLE: usize = 4;

/// The bounds of a pool's size, and of its idle workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The fewest workers.
    pub least: usize,
    /// The most.
    pub most: usize,
    min_spare: usize,
    max_spare: usize,
}

/// What the pool has, and what waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// How many workers are wanted.
    pub size: usize,
    /// How many of the wanted workers do not serve yet.
    pub starting: usize,
    /// How many workers have nothing to do.
    pub idle: usize,
    /// How many connections wait for a worker.
    pub waiting: usize,
    /// Since when the first of these connections waits.
    pub since: Option<Time>,
}

/// The change of size that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Nothing.
    None,
    /// Start this many workers.
    Grow(usize),
    /// Retire one idle worker.
    Shrink,
}

/// See the module.
#[derive(Debug)]
pub struct Autoscale {
    /// How many workers the next look starts, if that many are missing.
    rate: usize,
    last: Time,
    /// Since when too many workers have been idle.
    surplus: Option<Time>,
}

impl Default for Autoscale {
    fn default() -> Self {
        Self {
            rate: 1,
            last: Time::default(),
            surplus: None,
        }
    }
}

impl Bounds {
    /// The bounds for a pool of `least` workers; `None` when its size is fixed.
    #[must_use]
    pub fn of(settings: &Settings, least: usize) -> Option<Self> {
        let min_spare = settings.min_spare?.max(1);
        let most = settings.max_workers.unwrap_or(MULTIPLE * settings.workers);
        let max_spare = settings.max_spare.unwrap_or(min_spare + LEEWAY);
        Some(Self {
            least,
            most: most.max(least),
            min_spare,
            max_spare: max_spare.max(min_spare),
        })
    }

    /// The most workers that a pool may come to have.
    #[must_use]
    pub fn most_of(settings: &Settings) -> usize {
        Self::of(settings, settings.workers).map_or(settings.workers, |bounds| bounds.most)
    }

    fn is_short(&self, demand: Demand) -> bool {
        demand.size < self.most && demand.idle + demand.starting < self.min_spare
    }

    /// When there is a hurry: nobody is idle or about to be, and a connection has waited for too
    /// long.
    fn hurry(&self, demand: Demand) -> Option<Time> {
        let none = demand.idle + demand.starting == 0 && demand.size < self.most;
        Some(demand.since.filter(|_| none)?.after(HURRY))
    }

    fn is_surplus(&self, demand: Demand) -> bool {
        demand.size > self.least && demand.idle > self.max_spare
    }
}

impl Autoscale {
    /// Decides whether the size should change. It keeps its own interval, so it may be called as
    /// often as the caller likes.
    #[must_use]
    pub fn look(&mut self, bounds: &Bounds, demand: Demand, now: Time) -> Resize {
        let short = bounds.is_short(demand);
        let hurry = bounds.hurry(demand).is_some_and(|from| from <= now);
        if now < self.last.after(INTERVAL) && !hurry {
            return Resize::None;
        }
        self.last = now;
        if short {
            self.surplus = None;
            let there = demand.idle + demand.starting;
            let missing = bounds.min_spare.saturating_sub(there) + demand.waiting;
            let count = self.rate.min(missing).min(bounds.most - demand.size);
            self.rate = (self.rate * 2).min(FASTEST);
            return match count {
                0 => Resize::None,
                count => Resize::Grow(count),
            };
        }
        self.rate = 1;
        if !bounds.is_surplus(demand) {
            self.surplus = None;
            return Resize::None;
        }
        let since = *self.surplus.get_or_insert(now);
        match now.since(since) >= SETTLED {
            true => Resize::Shrink,
            false => Resize::None,
        }
    }

    /// The time of the next look if nothing happens; `None` when nothing can become due.
    #[must_use]
    pub fn next(&self, bounds: &Bounds, demand: Demand) -> Option<Time> {
        let settled = self.rate == 1 && self.surplus.is_none();
        let settled_and_met = settled && !bounds.is_short(demand) && !bounds.is_surplus(demand);
        let regular = (!settled_and_met).then(|| self.last.after(INTERVAL));
        [regular, bounds.hurry(demand)].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::default().after(Duration::from_millis(3_600_000 + millis))
    }

    fn bounds(least: usize, most: usize, min_spare: usize, max_spare: usize) -> Bounds {
        Bounds {
            least,
            most,
            min_spare,
            max_spare,
        }
    }

    /// A pool of which so many workers are always busy if there are so many.
    struct Pool {
        bounds: Bounds,
        sizing: Autoscale,
        size: usize,
        load: usize,
    }

    impl Pool {
        fn new(bounds: Bounds) -> Self {
            let (sizing, size) = (Autoscale::default(), bounds.least);
            Self {
                bounds,
                sizing,
                size,
                load: 0,
            }
        }

        fn demand(&self) -> Demand {
            Demand {
                size: self.size,
                starting: 0,
                idle: self.size.saturating_sub(self.load),
                waiting: self.load.saturating_sub(self.size),
                since: (self.load > self.size).then_some(at(0)),
            }
        }

        /// One look, and the size after it.
        fn look(&mut self, now: Time) -> usize {
            match self.sizing.look(&self.bounds, self.demand(), now) {
                Resize::None => {}
                Resize::Grow(count) => self.size += count,
                Resize::Shrink => self.size -= 1,
            }
            assert!((self.bounds.least..=self.bounds.most).contains(&self.size));
            self.size
        }
    }

    #[test]
    fn the_defaults_follow_from_what_is_told() {
        let mut settings = Settings::for_processors(1);
        settings.workers = 5;
        assert_eq!(Bounds::of(&settings, 5), None);
        assert_eq!(Bounds::most_of(&settings), 5);
        settings.min_spare = Some(2);
        assert_eq!(Bounds::of(&settings, 5), Some(bounds(5, 20, 2, 5)));
        assert_eq!(Bounds::of(&settings, 30), Some(bounds(30, 30, 2, 5)));
        settings.max_spare = Some(1);
        settings.max_workers = Some(8);
        assert_eq!(Bounds::of(&settings, 5), Some(bounds(5, 8, 2, 2)));
        assert_eq!(Bounds::most_of(&settings), 8);
    }

    #[test]
    fn it_grows_ever_faster_while_connections_wait_and_at_once() {
        let mut pool = Pool::new(bounds(2, 100, 2, 4));
        pool.load = 60;
        let sizes = [0, 1, 2, 3, 4, 5, 6, 7].map(|now| pool.look(at(10 + now)));
        // The last ones are those that are to be idle.
        assert_eq!(sizes, [3, 5, 9, 17, 33, 49, 62, 62]);
        pool.load = 61;
        // Nobody waits: that is done at the next look.
        let sizes = [500, 1017, 2018].map(|now| pool.look(at(now)));
        assert_eq!(sizes, [62, 63, 63]);
    }

    #[test]
    fn a_queue_of_a_moment_is_no_hurry() {
        let mut sizing = Autoscale::default();
        let bounds = bounds(2, 100, 1, 4);
        let demand = |idle, since: Option<u64>| Demand {
            size: 2,
            starting: 0,
            idle,
            waiting: usize::from(since.is_some()),
            since: since.map(at),
        };
        assert_eq!(sizing.look(&bounds, demand(2, None), at(0)), Resize::None);
        let waits = demand(0, Some(100));
        assert_eq!(sizing.look(&bounds, waits, at(100)), Resize::None);
        assert_eq!(sizing.next(&bounds, waits), Some(at(110)));
        assert_eq!(sizing.look(&bounds, waits, at(110)), Resize::Grow(1));
    }

    #[test]
    fn it_starts_no_more_than_are_missing_when_nobody_waits() {
        let mut pool = Pool::new(bounds(4, 100, 3, 6));
        let mut sizes = Vec::new();
        for second in 0..20 {
            // One more client each second, which takes a worker for good.
            pool.load = 2 + second as usize;
            sizes.push(pool.look(at(1000 * second)));
            assert!(pool.demand().idle <= 3, "{sizes:?}");
        }
        assert_eq!(pool.size, 24, "{sizes:?}");
    }

    #[test]
    fn workers_that_are_starting_count_and_are_waited_for() {
        let mut sizing = Autoscale::default();
        let bounds = bounds(2, 100, 2, 4);
        let demand = |starting| Demand {
            size: 4,
            starting,
            idle: 0,
            waiting: 50,
            since: Some(at(0)),
        };
        assert_eq!(sizing.look(&bounds, demand(2), at(0)), Resize::None);
        assert_eq!(sizing.look(&bounds, demand(1), at(10)), Resize::None);
        assert_eq!(sizing.look(&bounds, demand(0), at(20)), Resize::Grow(1));
        // In a crash loop none of them serves, and more of them would be no help.
        assert_eq!(sizing.look(&bounds, demand(4), at(5000)), Resize::None);
    }

    #[test]
    fn it_shrinks_one_by_one_when_there_have_been_too_many_for_a_while() {
        let mut pool = Pool::new(bounds(2, 100, 2, 4));
        pool.size = 9;
        let sizes: Vec<_> = (0..12).map(|second| pool.look(at(1000 * second))).collect();
        assert_eq!(sizes, [9, 9, 9, 9, 9, 8, 7, 6, 5, 4, 4, 4]);
        assert_eq!(pool.sizing.next(&pool.bounds, pool.demand()), None);
    }

    #[test]
    fn a_surplus_that_comes_and_goes_retires_nobody() {
        let mut pool = Pool::new(bounds(2, 100, 2, 4));
        pool.size = 9;
        for second in 0..100 {
            pool.load = if second % 4 == 0 { 5 } else { 0 };
            assert_eq!(pool.look(at(1000 * second)), 9);
        }
    }

    #[test]
    fn it_comes_to_rest_under_any_steady_load() {
        for load in 0..30 {
            for start in 2..30 {
                let mut pool = Pool::new(bounds(2, 20, 3, 5));
                (pool.load, pool.size) = (load, start.min(20));
                let sizes: Vec<_> = (0..60).map(|second| pool.look(at(1000 * second))).collect();
                let rest = sizes[59];
                assert!(sizes[40..].iter().all(|size| *size == rest), "{sizes:?}");
                // It has gone one way only.
                let (up, down) = (sizes.is_sorted(), sizes.iter().rev().is_sorted());
                let overshot = sizes.iter().max().is_some_and(|most| *most > load + 5);
                assert!(up || down || !overshot, "load {load}: {sizes:?}");
            }
        }
    }

    #[test]
    fn a_pool_that_can_do_no_more_sleeps() {
        let pool = Pool::new(bounds(2, 20, 3, 5));
        let full = Demand {
            size: 20,
            starting: 0,
            idle: 0,
            waiting: 7,
            since: Some(at(0)),
        };
        assert_eq!(pool.sizing.next(&pool.bounds, full), None);
        let short = Demand { size: 19, ..full };
        assert!(pool.sizing.next(&pool.bounds, short).is_some());
    }
}
