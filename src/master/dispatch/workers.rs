//! The dispatcher's view of its workers: which are idle, which are moving, which have room. Pure.
//!
//! A worker is *idle* when nothing is lent to it, *moving* while it has made progress (a report, or
//! its first lend) within the patience, and *slow* otherwise. Only idle and moving workers are lent
//! anything.

use std::fmt;
use std::time::Duration;

use crate::master::dispatch::chains::{Chains, List};
use crate::master::time::Time;

/// How many connections a worker has at most, the ones included that wait behind its turns.
pub const MAX_DEPTH: usize = 8;

/// Names a worker process. Never used twice for two processes, until 2^28 of them have had the same
/// place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerId {
    index: u32,
    serial: u32,
}

impl WorkerId {
    /// The place in the worker table.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }
}

impl From<WorkerId> for u64 {
    fn from(id: WorkerId) -> Self {
        u64::from(id.serial) << 32 | u64::from(id.index)
    }
}

impl From<u64> for WorkerId {
    fn from(number: u64) -> Self {
        Self {
            index: number as u32,
            serial: (number >> 32) as u32 & 0x0fff_ffff,
        }
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.serial)
    }
}

/// What a worker is doing, as far as the dispatcher knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Has not said yet that it is ready.
    Starting,
    /// Nothing is lent to it.
    Idle,
    /// Something is lent to it, and it has made progress within the patience.
    Moving,
    /// Something is lent to it, and it has made no progress within the patience.
    Slow,
    /// It has served what is lent to it, and waits for that client's next request: as good as idle.
    Staying,
    /// It did not take up what was lent to it, which was taken back. It is tried again at this
    /// time.
    OnProbation(Time),
}

/// Whether a worker is lent anything more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenure {
    /// It is.
    Serving,
    /// It is not for now: its process is stopped (SIGSTOP).
    Stopped,
    /// It is not, and it exits when nothing is lent to it any more.
    Retiring,
    /// Its process has ended, or is being ended; what it leaves behind is being settled.
    Dead,
}

/// One worker.
#[derive(Debug)]
pub struct Worker {
    /// What it is doing.
    pub pace: Pace,
    /// Whether it is lent anything more.
    pub tenure: Tenure,
    /// How many turns it serves at the same time.
    pub capacity: usize,
    /// The kernel took no more for its inbox. It gets nothing more until it has made progress.
    pub full: bool,
    /// What is lent to it, in the order of lending.
    pub lent: List,
    /// The first connection in `lent` that it can't have taken up yet.
    pub waiting: Option<u32>,
    /// How often its patience was extended since it last made progress.
    extensions: u32,
    /// When it last made progress.
    pub progress: Time,
    /// How long its next probation lasts.
    probation: Duration,
    serial: u32,
}

/// How often the patience of a worker that was lent to but has not run yet is renewed.
const MAX_EXTENSIONS: u32 = 8;
const FIRST_PROBATION: Duration = Duration::from_millis(10);
const LAST_PROBATION: Duration = Duration::from_secs(1);

impl Worker {
    /// How many connections wait behind the turns that it can serve at once, the last of those
    /// turns included; 0 when it could take up one more at once.
    fn key(&self) -> usize {
        (self.lent.len() + 1).saturating_sub(self.capacity)
    }

    /// Its key while it is moving, if it may be lent more.
    fn room(&self) -> Option<usize> {
        let key = self.key();
        (self.tenure == Tenure::Serving && !self.full && key <= MAX_DEPTH).then_some(key)
    }
}

/// All workers of a pool.
#[derive(Debug, Default)]
pub struct Workers {
    places: Vec<Option<Worker>>,
    serials: Vec<u32>,
    idle: Chains<1>,
    idle_list: List,
    /// Moving workers, the one without progress for longest first.
    age: Chains<1>,
    age_list: List,
    /// Moving workers by [`Worker::key`].
    room: Chains<1>,
    room_lists: [List; MAX_DEPTH + 1],
    /// Workers put aside, in the order of that.
    on_probation: List,
    /// How many moving workers have connections waiting behind a turn.
    crowded: usize,
}

impl Workers {
    /// Adds a worker that serves `capacity` turns at a time and has yet to say that it is ready.
    pub fn add(&mut self, capacity: usize) -> WorkerId {
        let free = self.places.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.places.push(None);
            self.serials.push(0);
            self.places.len() - 1
        });
        let index = u32::try_from(place).expect("fewer processes than places");
        for chains in [&mut self.idle, &mut self.age, &mut self.room] {
            chains.admit(index);
        }
        self.serials[place] = (self.serials[place] + 1) & 0x0fff_ffff;
        let serial = self.serials[place];
        self.places[place] = Some(Worker {
            pace: Pace::Starting,
            tenure: Tenure::Serving,
            full: false,
            capacity,
            lent: List::default(),
            waiting: None,
            extensions: 0,
            progress: Time::default(),
            probation: FIRST_PROBATION,
            serial,
        });
        WorkerId { index, serial }
    }

    /// Forgets a worker to which nothing is lent.
    pub fn remove(&mut self, id: WorkerId) {
        if self.get(id).is_some() {
            self.set_pace(id.index, Pace::Starting);
            self.places[id.index as usize] = None;
        }
    }

    /// The worker of this name, if it is still there.
    #[must_use]
    pub fn get(&self, id: WorkerId) -> Option<&Worker> {
        let worker = self.places.get(id.index as usize)?.as_ref()?;
        (worker.serial == id.serial).then_some(worker)
    }

    /// The worker at a place that is known to be taken.
    #[must_use]
    pub fn at(&self, index: u32) -> &Worker {
        self.places[index as usize]
            .as_ref()
            .expect("a linked worker is in the table")
    }

    /// The same, to change it.
    pub fn at_mut(&mut self, index: u32) -> &mut Worker {
        self.places[index as usize]
            .as_mut()
            .expect("a linked worker is in the table")
    }

    /// The name of the worker at a place that is known to be taken.
    #[must_use]
    pub fn id(&self, index: u32) -> WorkerId {
        WorkerId {
            index,
            serial: self.at(index).serial,
        }
    }

    /// The worker that serves next: the moving worker with the fewest connections waiting, if it
    /// has fewer than `depth`; else the worker that became idle last, for its caches are the
    /// warmest.
    #[must_use]
    pub fn next(&self, depth: usize) -> Option<u32> {
        self.room_lists[..depth.clamp(1, MAX_DEPTH)]
            .iter()
            .find_map(List::first)
            .or_else(|| self.idle_list.first())
    }

    /// Notes that `change` was done to what is lent to the worker, and that it made progress at
    /// `now`.
    pub fn moved(&mut self, index: u32, now: Time, change: impl FnOnce(&mut Worker)) {
        self.unlink(index);
        let worker = self.at_mut(index);
        change(worker);
        worker.progress = now;
        worker.full = false;
        worker.extensions = 0;
        worker.probation = FIRST_PROBATION;
        worker.pace = if worker.lent.is_empty() {
            Pace::Idle
        } else {
            Pace::Moving
        };
        self.link(index);
    }

    /// Notes that `change` was done to what is lent to the worker, without any progress of its own.
    pub fn changed(&mut self, index: u32, change: impl FnOnce(&mut Worker)) {
        self.unlink_room(index);
        change(self.at_mut(index));
        self.link_room(index);
    }

    /// Puts the worker into another pace.
    pub fn set_pace(&mut self, index: u32, pace: Pace) {
        self.unlink(index);
        self.at_mut(index).pace = pace;
        self.link(index);
    }

    /// Ends all lending to the worker. Its place among the moving ones stays: it is still watched
    /// for lateness.
    pub fn dismiss(&mut self, index: u32, tenure: Tenure) {
        if self.at(index).pace == Pace::Moving {
            self.changed(index, |worker| worker.tenure = tenure);
        } else {
            self.unlink(index);
            self.at_mut(index).tenure = tenure;
            self.link(index);
        }
    }

    /// Puts a worker aside that took up nothing: tried again later, each time after twice as long.
    pub fn put_on_probation(&mut self, index: u32, now: Time) {
        let worker = self.at_mut(index);
        let until = now.after(worker.probation);
        worker.probation = (worker.probation * 2).min(LAST_PROBATION);
        self.set_pace(index, Pace::OnProbation(until));
    }

    /// Lets a slow worker count as moving for another while: it has been woken, but has not run
    /// yet. False when that has lasted for too long, unless `always`.
    pub fn extend_patience(&mut self, index: u32, now: Time, always: bool) -> bool {
        let worker = self.at_mut(index);
        if worker.extensions >= MAX_EXTENSIONS && !always
            || worker.pace != Pace::Slow
            || worker.tenure == Tenure::Stopped
        {
            return false;
        }
        worker.extensions += 1;
        worker.progress = now;
        self.set_pace(index, Pace::Moving);
        true
    }

    /// How many workers are idle.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle_list.len()
    }

    /// The worker to which nothing has been lent for longest.
    #[must_use]
    pub fn coldest(&self) -> Option<WorkerId> {
        let idle = std::iter::successors(self.idle_list.first(), |index| self.idle.after(*index));
        let idle = idle.filter(|index| self.at(*index).pace == Pace::Idle);
        idle.last().map(|index| self.id(index))
    }

    /// The places of all workers to which something is lent.
    pub fn busy(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.places).filter_map(|(index, place)| {
            let worker = place.as_ref()?;
            (!worker.lent.is_empty()).then_some(index)
        })
    }

    /// Whether a turn may end in this worker, now or when it is lent something.
    #[must_use]
    pub fn may_end_a_turn(&self, id: WorkerId) -> bool {
        self.get(id).is_some_and(|worker| {
            let has_begun = worker.pace != Pace::Starting;
            match worker.tenure {
                Tenure::Serving => has_begun,
                Tenure::Retiring => has_begun && !worker.lent.is_empty(),
                Tenure::Stopped | Tenure::Dead => false,
            }
        })
    }

    /// The names of all of them.
    pub fn ids(&self) -> impl Iterator<Item = WorkerId> + '_ {
        let places = self.places.iter().zip(&self.serials).zip(0..);
        places.filter_map(|((worker, serial), index)| {
            let serial = *serial;
            worker.is_some().then_some(WorkerId { index, serial })
        })
    }

    /// The moving workers.
    pub fn moving(&self) -> impl Iterator<Item = WorkerId> + '_ {
        std::iter::successors(self.age_list.first(), |index| self.age.after(*index))
            .map(|index| self.id(index))
    }

    /// The moving worker that has made no progress for longest, and when it last did.
    #[must_use]
    pub fn stalest(&self) -> Option<(u32, Time)> {
        self.age_list
            .first()
            .map(|index| (index, self.at(index).progress))
    }

    /// Workers whose probation is over are idle again, last in line. With `early`, so is one whose
    /// time is not.
    pub fn end_probation(&mut self, now: Time, early: bool) {
        let mut early = early;
        let mut next = self.on_probation.first();
        while let Some(index) = next {
            next = self.idle.after(index);
            let due = matches!(self.at(index).pace, Pace::OnProbation(until) if until <= now);
            if due || std::mem::take(&mut early) {
                self.unlink(index);
                self.at_mut(index).pace = Pace::Idle;
                if self.at(index).tenure == Tenure::Serving {
                    self.idle.push_back(&mut self.idle_list, index);
                }
            }
        }
    }

    /// When the next probation ends.
    #[must_use]
    pub fn next_probation_end(&self) -> Option<Time> {
        let on_probation =
            std::iter::successors(self.on_probation.first(), |index| self.idle.after(*index));
        let times = on_probation.filter_map(|index| match self.at(index).pace {
            Pace::OnProbation(until) => Some(until),
            _ => None,
        });
        times.min()
    }

    fn link(&mut self, index: u32) {
        let worker = self.at(index);
        let (pace, serving) = (worker.pace, worker.tenure == Tenure::Serving);
        match pace {
            Pace::Idle if serving => self.idle.push_front(&mut self.idle_list, index),
            Pace::Moving => {
                self.age.push_back(&mut self.age_list, index);
                self.link_room(index);
            }
            Pace::OnProbation(_) => self.idle.push_back(&mut self.on_probation, index),
            Pace::Staying if serving => self.idle.push_back(&mut self.idle_list, index),
            Pace::Starting | Pace::Slow | Pace::Staying | Pace::Idle => {}
        }
    }

    fn unlink(&mut self, index: u32) {
        let worker = self.at(index);
        let (pace, serving) = (worker.pace, worker.tenure == Tenure::Serving);
        match pace {
            Pace::Idle | Pace::Staying if serving => {
                self.idle.remove(&mut self.idle_list, index);
            }
            Pace::Moving => {
                self.unlink_room(index);
                self.age.remove(&mut self.age_list, index);
            }
            Pace::OnProbation(_) => self.idle.remove(&mut self.on_probation, index),
            Pace::Starting | Pace::Slow | Pace::Staying | Pace::Idle => {}
        }
    }

    /// Whether something waits behind the turn of a moving worker.
    #[must_use]
    pub fn any_waiting(&self) -> bool {
        self.crowded > 0
    }

    fn link_room(&mut self, index: u32) {
        let worker = self.at(index);
        if worker.pace == Pace::Moving {
            let (crowded, room) = (worker.waiting.is_some(), worker.room());
            self.crowded += usize::from(crowded);
            if let Some(key) = room {
                self.room.push_back(&mut self.room_lists[key], index);
            }
        }
    }

    fn unlink_room(&mut self, index: u32) {
        let worker = self.at(index);
        if worker.pace == Pace::Moving {
            let (crowded, room) = (worker.waiting.is_some(), worker.room());
            self.crowded -= usize::from(crowded);
            if let Some(key) = room {
                self.room.remove(&mut self.room_lists[key], index);
            }
        }
    }
}
