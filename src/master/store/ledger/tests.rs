//! A ledger that one master writes and another one reads.

use super::*;
use proptest::prelude::*;

const NOW: Duration = Duration::from_secs(1000);

fn memory(count: usize) -> Vec<AtomicU64> {
    std::iter::repeat_with(AtomicU64::default)
        .take(count)
        .collect()
}

fn ledger(capacity: usize) -> Ledger<Vec<AtomicU64>> {
    Ledger::begin(memory(size(capacity)), capacity, Duration::from_secs(1))
}

fn snapshot(carry: &[u8]) -> Snapshot {
    Snapshot {
        pool: PoolKey::of("main"),
        home: None,
        peer: Some(Peer::Inet("10.1.2.3:4567".parse().unwrap())),
        place: Place::Parked,
        interest: Interest::NewInput,
        turns: 3,
        remaining: Some(Duration::from_secs(6)),
        incomplete_for: None,
        time_left: None,
        total: Traffic {
            read: 4,
            written: 5,
        },
        stored: true,
        carry: carry.into(),
        packed: Packed::default(),
    }
}

fn packed(note: &[u8], luggage: Packing, resumable: bool) -> Snapshot {
    Snapshot {
        packed: Packed {
            note: note.into(),
            luggage,
            resumable,
        },
        ..snapshot(b"carry")
    }
}

#[test]
fn what_was_written_is_read_by_the_next_master() {
    let written = ledger(3);
    let full = snapshot(&[7; MAX_CARRY]);
    written.write(0, 20, &full, NOW);
    written.write(2, 22, &snapshot(b"half"), NOW);
    written.write(2, 22, &snapshot(b""), NOW);
    written.enter(2, Place::Lent);
    let read = Ledger::read(written.words).unwrap();
    assert_eq!(read.since(), Duration::from_secs(1));
    assert_eq!(read.entry(0, NOW), Ok(Some((20, full))));
    assert_eq!(read.entry(1, NOW), Ok(None));
    let lent = Snapshot {
        place: Place::Lent,
        remaining: Some(Duration::from_secs(4)),
        ..snapshot(b"")
    };
    let later = NOW + Duration::from_secs(2);
    assert_eq!(read.entry(2, later), Ok(Some((22, lent))));
    read.clear(2);
    assert_eq!(read.entry(2, NOW), Ok(None));
}

#[test]
fn a_connection_that_is_away_is_found_at_its_home_wherever_it_is() {
    let ledger = ledger(1);
    let home = |name: &str| Home {
        name: "".into(),
        ..Home::named(name.into())
    };
    let away = Snapshot {
        home: Some(Box::new(home("site"))),
        ..snapshot(b"carried")
    };
    ledger.write(0, 20, &away, NOW);
    assert_eq!(ledger.entry(0, NOW), Ok(Some((20, away.clone()))));
    for (_, place) in PLACES {
        ledger.enter(0, place);
        let expected = Snapshot {
            place,
            ..away.clone()
        };
        assert_eq!(ledger.entry(0, NOW), Ok(Some((20, expected))));
        // Who does not know where it is at home must not go on with it.
        let state = ledger.field(0, STATE);
        assert_eq!(meaning(&PLACES, state), Err(Malformed));
    }
    // A note is not written down, and not to be missed at home.
    let mut noted = home("site");
    noted.note = b"note"[..].into();
    let noted = Snapshot {
        home: Some(Box::new(noted)),
        ..away
    };
    ledger.write(0, 20, &noted, NOW);
    let (_, read) = ledger.entry(0, NOW).unwrap().unwrap();
    assert_ne!(read.home, Some(Box::new(home("site"))));
    ledger.write(0, 20, &snapshot(b""), NOW);
    assert_eq!(ledger.entry(0, NOW), Ok(Some((20, snapshot(b"")))));
}

#[test]
fn a_shorter_carry_leaves_nothing_of_a_longer_one() {
    let ledger = ledger(1);
    for length in [MAX_CARRY, 100, 17, 16, 1, 0] {
        ledger.write(0, 20, &snapshot(&vec![7; length]), NOW);
        let words = ledger.words[ledger.carry_of(0)].iter();
        let bytes: Vec<_> = words
            .flat_map(|word| word.load(Relaxed).to_ne_bytes())
            .collect();
        assert_eq!(bytes[..length], vec![7; length]);
        assert!(bytes[length..].iter().all(|byte| *byte == 0), "{length}");
    }
}

#[test]
fn what_travels_is_read_by_the_next_master_and_by_no_older_one() {
    let ledger = ledger(2);
    let (full, held, stored) = ([7; MAX_NOTE], Packing::Held(0), Packing::Stored(0));
    for (note, luggage, resumable) in [
        (&full[..], held, true),
        (b"note", Packing::None, false),
        (b"", held, false),
        (b"", stored, false),
        (b"", Packing::None, true),
    ] {
        let written = packed(note, luggage, resumable);
        ledger.write(1, 20, &written, NOW);
        assert_eq!(ledger.entry(1, NOW), Ok(Some((20, written.clone()))));
        ledger.enter(1, Place::Lent);
        let lent = Snapshot {
            place: Place::Lent,
            ..written
        };
        assert_eq!(ledger.entry(1, NOW), Ok(Some((20, lent))));
        // An older one knows the states from 2 to 5.
        assert!(!(2..=5).contains(&ledger.field(1, STATE)));
        let behind = &ledger.words[ledger.note_of(1)][note.len().div_ceil(8)..];
        assert!(behind.iter().all(|word| word.load(Relaxed) == 0));
    }
    ledger.write(1, 20, &snapshot(b""), NOW);
    assert_eq!(ledger.field(1, STATE), 2);
    assert_eq!(ledger.entry(1, NOW), Ok(Some((20, snapshot(b"")))));
}

#[test]
fn luggage_is_stored_when_that_is_written() {
    let ledger = ledger(1);
    ledger.write(0, 20, &packed(b"", Packing::Held(7), false), NOW);
    ledger.luggage_is_stored(0);
    let stored = packed(b"", Packing::Stored(0), false);
    assert_eq!(ledger.entry(0, NOW), Ok(Some((20, stored))));
    ledger.write(0, 20, &snapshot(b""), NOW);
    ledger.luggage_is_stored(0);
    assert_eq!(ledger.entry(0, NOW), Ok(Some((20, snapshot(b"")))));
}

/// The words as a program writes them whose version 2 knows nothing of notes.
#[test]
fn a_ledger_without_notes_is_read() {
    let written = ledger(1);
    written.write(0, 20, &snapshot(b"half"), NOW);
    let size = written.layout.first_note();
    let mut words = written.words;
    words.truncate(size);
    words[AT_FIELDS].store(NOTE_LENGTH as u64, Relaxed);
    let read = Ledger::read(words).unwrap();
    assert_eq!(read.entry(0, NOW), Ok(Some((20, snapshot(b"half")))));
    assert_eq!(read.words.len(), read.layout.size());
}

#[test]
fn every_kind_of_client_is_known_again() {
    let ledger = ledger(1);
    for peer in ["unix", "1.2.3.4:5", "[::1]:80", "[fe80::1%7]:65535"] {
        let peer: Peer = peer.parse().unwrap();
        let written = Snapshot {
            peer: Some(peer),
            ..snapshot(b"")
        };
        ledger.write(0, 1, &written, NOW);
        assert_eq!(ledger.entry(0, NOW), Ok(Some((1, written))));
    }
}

/// The words as the program wrote them that had version 1.
#[test]
fn a_ledger_of_version_1_is_read() {
    let words = memory(Layout::of_version_1(2).size());
    let set = |at: usize, value: u64| words[at].store(value, Relaxed);
    for (at, value) in [(0, MAGIC), (1, 1), (2, 2), (3, 1_000_000_000)] {
        set(at, value);
    }
    let deadline = 1_006_000_000_000;
    let entry = [2, 20, PoolKey::of("main").0, 2, 3, 4, 5, deadline, 0, 4];
    for (at, value) in entry.into_iter().enumerate() {
        set(16 + 16 + at, value);
    }
    set(512 + 8192, u64::from_ne_bytes(*b"half\0\0\0\0"));
    let read = Ledger::read(words).unwrap();
    assert_eq!(read.entry(0, NOW), Ok(None));
    let expected = Snapshot {
        peer: None,
        ..snapshot(b"half")
    };
    assert_eq!(read.entry(1, NOW), Ok(Some((20, expected))));
}

#[test]
fn a_field_of_a_later_version_is_passed_over_unless_it_must_be_known() {
    let ledger = ledger(1);
    ledger.write(0, 20, &snapshot(b""), NOW);
    // It has the place of one that is not used here.
    let words = ledger.words;
    let name = u64::from_be_bytes(*b"wings\0\0\0");
    words[AT_NAMES + HOME].store(name, Relaxed);
    let read = Ledger::read(words).unwrap();
    assert_eq!(read.entry(0, NOW), Ok(Some((20, snapshot(b"")))));
    let words = read.words;
    words[AT_NAMES + HOME].store(name | REQUIRED, Relaxed);
    let refusal = Ledger::read(words).unwrap_err();
    assert_eq!(refusal, Refusal::Field(name | REQUIRED));
    assert_eq!(
        refusal.to_string(),
        "its field \"wings\\\\x00\\\\x00\\\\x00\" is not known here"
    );
}

#[test]
fn fields_in_another_order_are_found_by_their_names() {
    let ledger = ledger(1);
    ledger.write(0, 20, &snapshot(b""), NOW);
    let words = ledger.words;
    let swap = |one: usize, other: usize| {
        let value = words[one].load(Relaxed);
        words[one].store(words[other].swap(value, Relaxed), Relaxed);
    };
    swap(AT_NAMES + TURNS, AT_NAMES + COOKIE);
    swap(48 + TURNS, 48 + COOKIE);
    let read = Ledger::read(words).unwrap();
    assert_eq!(read.entry(0, NOW), Ok(Some((20, snapshot(b"")))));
}

#[test]
fn what_is_no_ledger_that_can_be_read_is_refused() {
    let refusal = |words| Ledger::<Vec<AtomicU64>>::read(words).unwrap_err();
    assert_eq!(refusal(memory(0)), Refusal::NoLedger);
    assert_eq!(refusal(memory(1000)), Refusal::NoLedger);
    let other = ledger(1).words;
    other[AT_VERSION].store(3, Relaxed);
    assert_eq!(refusal(other), Refusal::Version(3));
    for capacity in [2, u64::MAX] {
        let short = ledger(1).words;
        short[AT_CAPACITY].store(capacity, Relaxed);
        assert_eq!(refusal(short), Refusal::Truncated);
    }
}

#[test]
fn an_entry_that_was_being_written_is_worth_nothing() {
    let ledger = ledger(1);
    ledger.write(0, 20, &snapshot(b""), NOW);
    ledger.set(ledger.begin_of(0), BEING_WRITTEN);
    assert_eq!(ledger.entry(0, NOW), Err(Malformed));
}

proptest! {
    #[test]
    fn no_words_make_the_reader_panic(entry: [u64; ENTRY], names: [u64; ENTRY], state in 0..12u64) {
        let ledger = ledger(1);
        let begin = ledger.begin_of(0);
        for (at, word) in entry.iter().enumerate() {
            ledger.set(begin + at, *word);
        }
        ledger.set(begin + STATE, state);
        ledger.set(begin + INTEREST, entry[INTEREST] % 4);
        ledger.set(begin + CARRY_LENGTH, entry[CARRY_LENGTH] % (2 * MAX_CARRY as u64));
        ledger.set(begin + NOTE_LENGTH, entry[NOTE_LENGTH] % (2 * MAX_NOTE as u64));
        ledger.set(begin + BAGGAGE, entry[BAGGAGE] % 16);
        let _ = ledger.entry(0, NOW);
        ledger.set(AT_FIELDS, entry[0]);
        for (at, name) in names.iter().enumerate() {
            ledger.set(AT_NAMES + at, *name);
        }
        if let Ok(ledger) = Ledger::read(ledger.words) {
            let _ = ledger.entry(0, NOW);
        }
    }
}
