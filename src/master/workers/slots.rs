//! The slots of one generation of workers: which are wanted, which are taken, and when a vacant one
//! is filled again. Pure.

use std::time::Duration;

use crate::master::time::Time;

/// The delay before the first successor of a worker that died early. Each further one waits twice
/// as long, up to [`LAST_DELAY`].
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay before a successor.
pub const LAST_DELAY: Duration = Duration::from_secs(10);

/// A slot: a place in the pool for which a process is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotId {
    /// The generation of the slot; each reload begins a new one.
    pub generation: u32,
    /// The number of the slot, from 0.
    pub slot: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    /// No process is wanted in the slot.
    Unwanted,
    /// The slot has a process.
    Taken,
    /// A process should be started, at `from` or later.
    Vacant { from: Time },
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    state: SlotState,
    /// How long the last successor waited; zero after a worker that did not die early.
    delay: Duration,
    /// The successor waits only for as long as nobody needs it.
    patient: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Slots {
    /// The number of the generation.
    pub generation: u32,
    slots: Vec<Slot>,
}

impl Slots {
    /// Slots for a generation that wants `size` workers.
    #[must_use]
    pub fn new(generation: u32, size: usize) -> Self {
        let mut slots = Self {
            generation,
            slots: Vec::new(),
        };
        slots.resize(size);
        slots
    }

    /// How many workers are wanted.
    #[must_use]
    pub fn size(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_wanted()).count()
    }

    /// Wants `size` workers from now on. Further workers get the first free slots, and fewer
    /// workers give up the last slots.
    pub fn resize(&mut self, size: usize) {
        for _ in size..self.size() {
            let last = self.slots.iter().rposition(Slot::is_wanted);
            self.close(last.unwrap_or_default() as u32);
        }
        for _ in self.size()..size {
            let vacant = Slot {
                state: SlotState::Vacant {
                    from: Time::default(),
                },
                delay: Duration::ZERO,
                patient: false,
            };
            match self.slots.iter_mut().find(|slot| !slot.is_wanted()) {
                Some(slot) => *slot = vacant,
                None => self.slots.push(vacant),
            }
        }
    }

    /// Wants no worker in this slot any more.
    pub fn close(&mut self, slot: u32) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            slot.state = SlotState::Unwanted;
        }
    }

    /// Whether a worker is wanted in this slot.
    #[must_use]
    pub fn wants(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(Slot::is_wanted)
    }

    /// A slot that should be filled now, if there is one.
    #[must_use]
    pub fn due(&self, now: Time) -> Option<SlotId> {
        let vacant = |slot: &Slot| matches!(slot.state, SlotState::Vacant { from } if from <= now);
        let slot = self.slots.iter().position(vacant)?;
        Some(SlotId {
            generation: self.generation,
            slot: slot as u32,
        })
    }

    /// The time at which the next slot should be filled.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let times = self.slots.iter().filter_map(|slot| match slot.state {
            SlotState::Vacant { from } => Some(from),
            SlotState::Taken | SlotState::Unwanted => None,
        });
        times.min()
    }

    /// A process was started for the slot.
    pub fn fill(&mut self, slot: u32) {
        if let Some(slot) = self.wanted(slot) {
            slot.state = SlotState::Taken;
            slot.patient = false;
        }
    }

    /// The slot has no process any more, or none could be started. Returns the time at which the
    /// next one is started; `early` delays that, longer each time.
    pub fn vacate(&mut self, slot: u32, early: bool, now: Time) -> Option<Time> {
        let from = self.put_off(slot, early, now)?;
        self.wanted(slot)?.state = SlotState::Vacant { from };
        Some(from)
    }

    /// The time at which the next process of the slot is started, if one process has ended while
    /// another one still serves there.
    pub fn put_off(&mut self, slot: u32, early: bool, now: Time) -> Option<Time> {
        let slot = self.wanted(slot)?;
        slot.delay = match early {
            true => (slot.delay * 2).clamp(FIRST_DELAY, LAST_DELAY),
            false => Duration::ZERO,
        };
        Some(now.after(slot.delay))
    }

    /// The successor of the process that has left the slot waits only until somebody needs it.
    pub fn be_patient(&mut self, slot: u32) {
        if let Some(slot) = self.wanted(slot) {
            slot.patient = true;
        }
    }

    /// Somebody needs a process: those that would wait only for that wait no more.
    pub fn need(&mut self, now: Time) {
        for slot in self.slots.iter_mut().filter(|slot| slot.patient) {
            slot.patient = false;
            if let SlotState::Vacant { from } = &mut slot.state {
                *from = now.min(*from);
            }
        }
    }

    fn wanted(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots
            .get_mut(slot as usize)
            .filter(|slot| slot.is_wanted())
    }
}

impl Slot {
    fn is_wanted(&self) -> bool {
        self.state != SlotState::Unwanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_000_000_000_000);

    fn slots_due(slots: &mut Slots, now: Time) -> Vec<u32> {
        let mut due = Vec::new();
        while let Some(id) = slots.due(now) {
            slots.fill(id.slot);
            due.push(id.slot);
        }
        due
    }

    #[test]
    fn a_slot_that_was_given_up_is_the_first_to_be_filled_again() {
        let mut slots = Slots::new(0, 4);
        assert_eq!(slots_due(&mut slots, START), [0, 1, 2, 3]);
        slots.close(1);
        assert_eq!((slots.size(), slots.wants(1)), (3, false));
        slots.resize(2);
        assert_eq!(
            [0, 1, 2, 3].map(|slot| slots.wants(slot)),
            [true, false, true, false]
        );
        slots.resize(5);
        assert_eq!(slots_due(&mut slots, START), [1, 3, 4]);
    }

    #[test]
    fn a_successor_that_waits_only_until_it_is_needed() {
        let mut slots = Slots::new(0, 2);
        slots_due(&mut slots, START);
        let from = slots.vacate(0, true, START);
        let later = slots.vacate(1, true, START);
        slots.be_patient(0);
        assert_eq!(slots.due(START), None);
        slots.need(START);
        assert_eq!(slots_due(&mut slots, START), [0]);
        // The other one waits whatever happens, and delays grow all the same.
        assert_eq!(slots.next_due(), later);
        assert!(slots.vacate(0, true, START) > from);
    }

    #[test]
    fn who_dies_early_is_followed_ever_later_and_each_slot_counts_for_itself() {
        let mut slots = Slots::new(0, 2);
        slots_due(&mut slots, START);
        let mut waits = Vec::new();
        for _ in 0..9 {
            let from = slots.vacate(0, true, START).unwrap();
            assert_eq!(slots.next_due(), Some(from));
            assert_eq!(slots.due(Time(from.0 - 1)), None);
            assert_eq!(slots_due(&mut slots, from), [0]);
            waits.push(from.since(START).as_millis());
        }
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(slots.vacate(1, false, START), Some(START));
        assert_eq!(slots.vacate(0, false, START), Some(START));
        let first = slots.vacate(0, true, START).unwrap();
        assert_eq!(first.since(START), FIRST_DELAY);
    }

    #[test]
    fn nobody_follows_into_a_slot_that_is_not_wanted() {
        let mut slots = Slots::new(0, 2);
        slots_due(&mut slots, START);
        slots.resize(1);
        assert_eq!(slots.vacate(1, true, START), None);
        assert_eq!(slots.next_due(), None);
    }
}
