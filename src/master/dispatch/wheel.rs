//! Deadlines of many connections at a constant cost each: a hashed timing wheel (Varghese and
//! Lauck, 1987). Pure.
//!
//! The wheel trades precision for cost: a deadline is met up to [`TICK`] late, never early.
//!
//! A slot comes round every [`SLOTS`] ticks. What is due in a later round is *far*, and nobody is
//! woken for it: it is looked at when its slot is passed anyway, and at least once a round. From
//! its own round on it is *near*.

use std::time::Duration;

use crate::master::dispatch::chains::{Chains, List};
use crate::master::time::Time;

/// How late a deadline may be noticed.
pub const TICK: Duration = Duration::from_millis(100);

const TICK_NANOS: u64 = TICK.as_nanos() as u64;
const SLOTS: u64 = 1024;
const WORDS: usize = SLOTS as usize / 64;

/// The deadlines. The links are the caller's, for an index is in one list at a time.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<List>,
    /// A bit for each slot where something may be due within a round: whoever looks for the next
    /// one reads two cache lines.
    near: [u64; WORDS],
    /// The last tick whose slot has been looked through.
    done: u64,
    length: usize,
}

impl Default for Wheel {
    fn default() -> Self {
        Self {
            slots: vec![List::default(); SLOTS as usize],
            near: [0; WORDS],
            done: 0,
            length: 0,
        }
    }
}

fn tick_at_or_after(deadline: Time) -> u64 {
    deadline.0.div_ceil(TICK_NANOS)
}

fn slot_of(deadline: Time) -> usize {
    (tick_at_or_after(deadline) % SLOTS) as usize
}

impl Wheel {
    /// Adds `index`, to be noticed once `deadline` has passed.
    pub fn add(&mut self, chains: &mut Chains, index: u32, deadline: Time) {
        // A deadline in the past still belongs to a tick that is to come.
        debug_assert!(tick_at_or_after(deadline) > self.done);
        let slot = slot_of(deadline);
        chains.push_back(&mut self.slots[slot], index);
        if tick_at_or_after(deadline) <= self.done + SLOTS {
            self.near[slot / 64] |= 1 << (slot % 64);
        }
        self.length += 1;
    }

    /// Removes `index`, which was added with this `deadline`.
    pub fn remove(&mut self, chains: &mut Chains, index: u32, deadline: Time) {
        self.take_out(chains, slot_of(deadline), index);
    }

    fn take_out(&mut self, chains: &mut Chains, slot: usize, index: u32) {
        chains.remove(&mut self.slots[slot], index);
        if self.slots[slot].is_empty() {
            self.near[slot / 64] &= !(1 << (slot % 64));
        }
        self.length -= 1;
    }

    /// The earliest deadline that can be added at `now` without being missed.
    #[must_use]
    pub fn earliest(&self, now: Time) -> Time {
        Time(now.0.max(self.done * TICK_NANOS) + 1)
    }

    /// Calls `due` with each index in the slots up to `now`. An index whose deadline is in a later
    /// round stays: `due` says so by returning the deadline.
    pub fn turn(
        &mut self,
        chains: &mut Chains,
        now: Time,
        mut deadline_of: impl FnMut(u32) -> Time,
    ) -> Vec<u32> {
        let mut due = Vec::new();
        let last = now.0 / TICK_NANOS;
        if self.length == 0 || last <= self.done {
            self.done = self.done.max(last);
            return due;
        }
        // After a long sleep, one round over all slots sees everything.
        for tick in (last.saturating_sub(SLOTS - 1)).max(self.done + 1)..=last {
            let slot = (tick % SLOTS) as usize;
            // Known anew below, from what stays.
            self.near[slot / 64] &= !(1 << (slot % 64));
            let mut at = self.slots[slot].first();
            while let Some(index) = at {
                at = chains.after(index);
                let tick = tick_at_or_after(deadline_of(index));
                if tick <= last {
                    self.take_out(chains, slot, index);
                    due.push(index);
                } else if tick <= last + SLOTS {
                    self.near[slot / 64] |= 1 << (slot % 64);
                }
            }
        }
        self.done = last;
        due
    }

    /// When [`Wheel::turn`] is to be called next; `None` when the wheel is empty.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        let first = self.done + 1;
        let (word, bit) = ((first % SLOTS) as usize / 64, first % 64);
        // From the first slot on, then the other words, and again what comes before it in its own.
        let begin = self.near[word] & (u64::MAX << bit);
        let rest = (1..=WORDS).map(|step| self.near[(word + step) % WORDS]);
        let near = (0u64..)
            .zip(std::iter::once(begin).chain(rest))
            .find(|(_, bits)| *bits != 0);
        let tick = match near {
            Some((step, bits)) => first - bit + step * 64 + u64::from(bits.trailing_zeros()),
            // What is far becomes near when its slot is passed, which must be before its own round
            // is over.
            None if self.length > 0 => self.done + SLOTS,
            None => return None,
        };
        Some(Time(tick * TICK_NANOS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_deadline_is_met_once_and_at_most_a_tick_late(
            waits in proptest::collection::vec(0u64..300_000, 1..60),
            steps in proptest::collection::vec(1u64..40_000, 1..60),
        ) {
            let millis = 1_000_000;
            let mut wheel = Wheel::default();
            let mut chains = Chains::default();
            let mut deadlines = Vec::new();
            let mut met = vec![0; waits.len()];
            let mut now = Time(0);
            let mut waits = waits.into_iter();
            for step in steps {
                for wait in waits.by_ref().take(3) {
                    let index = deadlines.len() as u32;
                    deadlines.push(Time(now.0 + wait * millis).max(wheel.earliest(now)));
                    chains.admit(index);
                    wheel.add(&mut chains, index, deadlines[index as usize]);
                }
                now = Time(now.0 + step * millis);
                for index in wheel.turn(&mut chains, now, |index| deadlines[index as usize]) {
                    met[index as usize] += 1;
                    prop_assert!(deadlines[index as usize] <= now);
                }
                // Nobody is woken in vain, but for the look once a round.
                let first = (0..met.len().min(deadlines.len()))
                    .filter(|index| met[*index] == 0)
                    .map(|index| tick_at_or_after(deadlines[index]))
                    .min();
                let next = first.map(|first| Time(first.min(wheel.done + SLOTS) * TICK_NANOS));
                prop_assert_eq!(wheel.next(), next);
                for (index, deadline) in deadlines.iter().enumerate() {
                    let overdue = now.0 >= deadline.0 + TICK_NANOS;
                    prop_assert!(met[index] <= 1);
                    prop_assert!(met[index] == 1 || !overdue, "{deadline:?} missed at {now:?}");
                    if met[index] == 0 {
                        prop_assert!(wheel.next().expect("not empty").0 <= deadline.0 + TICK_NANOS);
                    }
                }
            }
        }
    }

    #[test]
    fn an_idle_server_with_far_deadlines_sleeps() {
        let mut wheel = Wheel::default();
        let mut chains = Chains::default();
        let second = 1_000_000_000;
        // Connections that were parked one after the other, and are closed after ten minutes.
        let deadlines: Vec<_> = (0..1000)
            .map(|n| Time(600 * second + n * TICK_NANOS))
            .collect();
        for (index, deadline) in (0..).zip(&deadlines) {
            chains.admit(index);
            wheel.add(&mut chains, index, *deadline);
        }
        let mut wakes = 0;
        while let Some(next) = wheel.next().filter(|next| *next < deadlines[0]) {
            let due = wheel.turn(&mut chains, next, |index| deadlines[index as usize]);
            assert!(due.is_empty());
            wakes += 1;
        }
        assert!(wakes <= 6, "{wakes} times in ten minutes");
    }

    #[test]
    fn what_was_removed_wakes_nobody_twice() {
        let mut wheel = Wheel::default();
        let mut chains = Chains::default();
        // In one slot: one in this round, and one in the next.
        let deadlines = [Time(10 * TICK_NANOS), Time((10 + SLOTS) * TICK_NANOS)];
        for (index, deadline) in (0..).zip(deadlines) {
            chains.admit(index);
            wheel.add(&mut chains, index, deadline);
        }
        wheel.remove(&mut chains, 0, deadlines[0]);
        let mut wakes = Vec::new();
        while let Some(next) = wheel.next() {
            wakes.push(next.0 / TICK_NANOS);
            wheel.turn(&mut chains, next, |index| deadlines[index as usize]);
        }
        assert_eq!(wakes, [10, 10 + SLOTS]);
    }
}
