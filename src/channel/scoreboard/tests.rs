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
                prop_assert_eq!(board.collect(&mut []), None);
            } else {
                prop_assert_eq!(board.collect(&mut []), Some(Ok(entry(got))));
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
    assert!(board.collect(&mut []).is_some());
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
    assert_eq!(board.collect(&mut []), Some(Err(Malformed)));
    assert_eq!(board.collect(&mut []), None);
    board.worker.0.published.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(board.collect(&mut []), Some(Err(Malformed)));
    assert_eq!(
        board.collect(&mut []),
        None,
        "the master does not chase a number"
    );
}

#[test]
fn reports_fit_into_a_page_and_messages_into_two_more() {
    assert!(std::mem::offset_of!(Board, texts) <= 4096);
    assert!(size_of::<Board>() <= 3 * 4096);
}

/// Everything that is published, messages as their text.
fn texts(board: &Board) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut text = [0; TEXT];
    while let Some(entry) = board.collect(&mut text) {
        let length = entry.unwrap().text_length().expect("it is a text");
        found.push(text[..length].to_vec());
    }
    found
}

#[test]
fn short_messages_arrive_whole_and_leave_nothing_behind() {
    let board = Board::default();
    let long = [7; TEXT];
    let messages: [&[&[u8]]; 6] = [
        &[b"PARK 7\n", b"", b"half"],
        &[b"1234567", b"8", b"9"],
        &[b"12345678", b"12345678"],
        &[b"", b"x"],
        &[&long],
        &[&long[3..], b"abc"],
    ];
    for message in messages.iter().cycle().take(3 * RING) {
        assert_eq!(board.publish_text(1, message), Published::Seen);
        assert_eq!(texts(&board), [message.concat()]);
        let words = board.texts.iter();
        assert!(words.into_iter().all(text::Text::is_empty));
    }
}

#[test]
fn what_has_no_room_on_the_board_is_sent() {
    let board = Board::default();
    assert_eq!(board.publish_text(1, &[&[7; TEXT], b"x"]), Published::Full);
    for round in 0..20 {
        // Reports take places of the ring, and so of texts.
        let reports = round % 3;
        for id in 0..reports {
            assert_eq!(board.publish(&entry(id), Urgency::None), Published::Seen);
        }
        let mut sent = Vec::new();
        while board.publish_text(1, &[&[round as u8, sent.len() as u8]]) == Published::Seen {
            sent.push(vec![round as u8, sent.len() as u8]);
        }
        assert_eq!(sent.len() as u64, text::TEXTS as u64 - reports);
        for id in 0..reports {
            assert_eq!(board.collect(&mut []), Some(Ok(entry(id))));
        }
        assert_eq!(texts(&board), sent);
    }
}

#[test]
fn a_text_that_claims_to_be_longer_than_its_place_is_cut_off() {
    let board = Board::default();
    let claim = Entry::of_text(1, usize::MAX);
    assert_eq!(board.publish(&claim, Urgency::None), Published::Seen);
    assert_eq!(board.collect(&mut [0; TEXT]), Some(Ok(claim)));
}
