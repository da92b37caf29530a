//! Both sides of a board in one thread, and what a rogue worker can write.

use std::time::Duration;

use proptest::prelude::*;

use super::entry::OUTCOMES;
use super::*;
use crate::wire::Traffic;

fn entry(id: u64) -> Entry {
    Entry {
        id,
        outcome: OUTCOMES[id as usize % OUTCOMES.len()],
        turns: 1 + id % 3,
        traffic: Traffic {
            read: id * 2,
            written: id * 3,
        },
        took: Duration::ZERO,
    }
}

proptest! {
    #[test]
    fn reports_come_out_as_they_went_in(steps: Vec<bool>) {
        let board = Board::default();
        let (mut sent, mut got) = (0, 0);
        for publish in steps {
            if publish {
                let full = board.publish(&entry(sent), Urgency::Urgent) == Published::Full;
                prop_assert_eq!(full, sent - got == RING as u64);
                sent += u64::from(!full);
            } else if sent == got {
                prop_assert_eq!(board.collect(), None);
            } else {
                prop_assert_eq!(board.collect(), Some(Ok(entry(got))));
                got += 1;
            }
        }
    }
}

#[test]
fn the_doorbell_is_rung_once_and_only_for_a_sleeper() {
    let board = Board::default();
    assert_eq!(board.publish(&entry(1), Urgency::Urgent), Published::Seen);
    assert!(!board.sleep(Sleep::Deep), "there is something to collect");
    assert!(board.collect().is_some());
    assert!(board.sleep(Sleep::Deep));
    assert_eq!(board.publish(&entry(2), Urgency::Urgent), Published::Ring);
    assert_eq!(board.publish(&entry(3), Urgency::Urgent), Published::Seen);
}

#[test]
fn a_deep_sleeper_is_rung_for_urgent_reports_only() {
    let board = Board::default();
    assert!(board.sleep(Sleep::Deep));
    assert_eq!(board.publish(&entry(1), Urgency::None), Published::Seen);
    assert_eq!(board.publish(&entry(2), Urgency::Urgent), Published::Ring);
    let board = Board::default();
    board.master.0.sent.store(LOW_WATER + 1, Ordering::Relaxed);
    assert!(board.sleep(Sleep::Light));
    assert_eq!(board.publish(&entry(1), Urgency::None), Published::Seen);
    board.worker.0.taken.store(1, Ordering::Relaxed);
    assert_eq!(board.publish(&entry(2), Urgency::None), Published::Ring);
}

#[test]
fn what_a_rogue_worker_writes_is_refused() {
    let board = Board::default();
    let _ = board.publish(&entry(1), Urgency::Urgent);
    board.ring[0]
        .id_and_outcome
        .store(u64::MAX, Ordering::Relaxed);
    assert_eq!(board.collect(), Some(Err(Malformed)));
    assert_eq!(board.collect(), None);
    board.worker.0.published.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(board.collect(), Some(Err(Malformed)));
    assert_eq!(board.collect(), None, "the master does not chase a number");
}

#[test]
fn the_board_fits_into_a_page() {
    assert!(size_of::<Board>() <= 4096);
}
