//! Loom models that try all interleavings of one worker and the master, with weakly ordered memory:
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib scoreboard`.

use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::thread;

use super::*;
use crate::wire::{Outcome, Traffic};

fn entry(id: u64) -> Entry {
    Entry {
        id,
        outcome: Outcome::Park,
        turns: 1,
        traffic: Traffic {
            read: id + 10,
            written: id + 20,
        },
        took: Duration::ZERO,
    }
}

/// A master that sleeps has collected every report, or is rung.
#[test]
fn no_report_is_slept_through() {
    loom::model(|| {
        let board = Arc::new(Board::default());
        let bell = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let (board, bell) = (board.clone(), bell.clone());
            move || {
                for id in 0..2 {
                    match board.publish(&entry(id), Urgency::Urgent) {
                        Published::Ring => bell.store(true, Ordering::SeqCst),
                        Published::Seen => {}
                        Published::Full => unreachable!("two reports fit"),
                    }
                }
            }
        });
        let mut got = 0;
        let mut slept = false;
        for _ in 0..2 {
            while let Some(report) = board.collect(&mut []) {
                assert_eq!(report, Ok(entry(got)), "whole and in order");
                got += 1;
            }
            slept = board.sleep(Sleep::Deep);
            if slept {
                break;
            }
        }
        worker.join().expect("the worker does not panic");
        let missed = board.collect(&mut []).is_some();
        assert!(
            !(slept && missed) || bell.load(Ordering::SeqCst),
            "slept through a report"
        );
    });
}

/// No report overwrites another one when the ring is used for the second time.
#[test]
fn a_full_ring_loses_nothing() {
    loom::model(|| {
        let board = Arc::new(Board::default());
        let worker = thread::spawn({
            let board = board.clone();
            move || {
                (0..3)
                    .filter(|id| board.publish(&entry(*id), Urgency::Urgent) == Published::Full)
                    .count() as u64
            }
        });
        let mut got = Vec::new();
        for _ in 0..2 {
            got.extend(board.collect(&mut []));
        }
        let refused = worker.join().expect("the worker does not panic");
        got.extend(std::iter::from_fn(|| board.collect(&mut [])));
        assert_eq!(got.len() as u64 + refused, 3);
        for report in got {
            let report = report.expect("well-formed");
            assert_eq!(report, entry(report.id), "no report is torn");
        }
    });
}

/// A text is whole when its entry is collected, and the next one does not overwrite it.
#[test]
fn no_text_is_torn() {
    loom::model(|| {
        let board = Arc::new(Board::default());
        let worker = thread::spawn({
            let board = board.clone();
            move || {
                let each = (b'a'..b'c').map(|letter| [letter; 8]);
                each.filter(|text| board.publish_text(1, &[text]) != Published::Full)
                    .count()
            }
        });
        let mut got = 0;
        let mut take = || {
            let mut text = [0; 8];
            while let Some(entry) = board.collect(&mut text) {
                assert_eq!(entry.ok().and_then(|entry| entry.text_length()), Some(8));
                assert!(text.iter().all(|byte| *byte == text[0] && *byte >= b'a'));
                got += 1;
            }
        };
        take();
        let published = worker.join().expect("the worker does not panic");
        take();
        assert_eq!(got, published);
    });
}
