//! The format, in both directions.

use super::*;
use proptest::prelude::*;

fn peers() -> impl Strategy<Value = Peer> {
    prop_oneof![
        Just(Peer::Unix),
        any::<([u8; 4], u16)>().prop_map(|(ip, port)| Peer::Inet((ip, port).into())),
        any::<([u16; 8], u16, u32)>().prop_map(|(ip, port, scope)| Peer::Inet(
            std::net::SocketAddrV6::new(ip.into(), port, 0, scope).into()
        )),
    ]
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    proptest::sample::select(Outcome::ALL.map(|(outcome, _)| outcome).to_vec())
}

fn luggage_changes() -> impl Strategy<Value = LuggageChange> {
    proptest::sample::select(vec![
        LuggageChange::None,
        LuggageChange::New,
        LuggageChange::Gone,
    ])
}

fn message(header: Header, carry: &[u8]) -> Vec<u8> {
    [header.as_bytes(), carry].concat()
}

proptest! {
    #[test]
    fn a_lend_survives_the_wire(
        id: u64,
        turn: u64,
        peer in peers(),
        (watched, luggage, away) in any::<(bool, bool, bool)>(),
        (read, written) in any::<(u64, u64)>(),
        note: Vec<u8>,
        carry: Vec<u8>,
    ) {
        let moved = Traffic { read, written };
        let lend = Lend { turn, watched, luggage, away, moved, ..Lend::first(id, peer) };
        let lend = ToWorker::Lend(Lend { note: &note, carry: &carry, ..lend });
        let bytes = message(lend.header(), &[&note[..], &carry].concat());
        prop_assert!(lend.header().as_bytes().len() <= MAX_HEADER);
        prop_assert_eq!(ToWorker::parse(&bytes), Ok(lend));
    }

    #[test]
    fn a_report_survives_the_wire(
        id: u64,
        outcome in outcomes(),
        traffic: Option<(u64, u64)>,
        note: Option<Vec<u8>>,
        luggage in luggage_changes(),
        (resumable, body) in any::<(bool, bool)>(),
        pool in "[a-z%0-9]{1,96}",
        carry: Vec<u8>,
    ) {
        let carry = if outcome.keeps() { carry } else { Vec::new() };
        let traffic = traffic.map(|(read, written)| Traffic { read, written });
        let extras = match outcome {
            Outcome::Pass => Extras { pool: &pool, ..Extras::default() },
            Outcome::Close | Outcome::Linger => Extras::default(),
            _ => Extras { note: note.as_deref(), luggage, resumable, body, pool: "" },
        };
        let report = Report { id, outcome, traffic, extras, carry: &carry };
        let report = FromWorker::Report(report);
        let note = extras.note.unwrap_or_default();
        let bytes = message(report.header(), &[note, &carry].concat());
        prop_assert_eq!(FromWorker::parse(&bytes), Ok(report));
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(bytes: Vec<u8>) {
        let _ = ToWorker::parse(&bytes);
        let _ = FromWorker::parse(&bytes);
    }
}

#[test]
fn what_an_external_worker_may_leave_out() {
    let report = FromWorker::parse(b"CLOSE 7\n");
    assert_eq!(
        report,
        Ok(FromWorker::Report(Report {
            id: 7,
            outcome: Outcome::Close,
            traffic: None,
            extras: Extras::default(),
            carry: b""
        }))
    );
}

#[test]
fn malformed_messages_are_refused() {
    for bytes in [
        &b""[..],
        b"PARK 7",
        b"PARK\n",
        b"PARK x\n",
        b"PARK +7\n",
        b"PARK  7\n",
        b"PARK \n",
        b"PARK 18446744073709551616\n",
        b"PARK 7 1\n",
        b"PARK 7 1 2 3\n",
        b"PARK 99999999999999999999999\n",
        b"CLOSE 7\nleft over",
        b"READY now\n",
        b"READY luggage luggage\n",
        b"READY\nx",
        b"PARK 7 note=3\nab",
        b"PARK 7 note=4353\n",
        b"PARK 7 note=\n",
        b"PARK 7 mood=1\n",
        b"PARK 7 1 2 hurried\n",
        b"PARK 7 resumable 1 2\n",
        b"CLOSE 7 note=0\n",
        b"LINGER 7 luggage\n",
        b"PASS 7\n",
        b"PASS 7 app luggage\n",
        b"PASS 7 app note=1\nx",
        b"LEND 1 1 unix\n",
        b"\xff\n",
    ] {
        assert!(
            FromWorker::parse(bytes).is_err(),
            "{:?}",
            String::from_utf8_lossy(bytes)
        );
    }
    for bytes in [
        &b"LEND 1 1\n"[..],
        b"LEND 1 1 nowhere\n",
        b"LEND 1 unix\n",
        b"LEND 1 1 unix moved=1\n",
        b"LEND 1 1 unix moved=1,2,3\n",
        b"LEND 1 1 unix note=1\n",
        b"LEND 1 1 unix mood=1\n",
        b"RETIRE\nx",
        b"RETIRE 1\n",
    ] {
        assert!(
            ToWorker::parse(bytes).is_err(),
            "{:?}",
            String::from_utf8_lossy(bytes)
        );
    }
}

#[test]
fn the_longest_lines_fit() {
    let peer = "[1111:2222:3333:4444:5555:6666:7777:8888%4294967295]:65535";
    let (moved, note) = (
        Traffic {
            read: u64::MAX,
            written: u64::MAX,
        },
        &[0; MAX_NOTE],
    );
    let mut lend = Lend::first(u64::MAX, peer.parse().unwrap());
    (lend.turn, lend.moved, lend.note) = (u64::MAX, moved, note);
    (lend.watched, lend.luggage, lend.away) = (true, true, true);
    assert!(ToWorker::Lend(lend).header().as_bytes().len() <= MAX_HEADER);
    let pool = "p".repeat(MAX_POOL_NAME);
    let mut report = Report {
        id: u64::MAX,
        outcome: Outcome::Pass,
        traffic: Some(moved),
        extras: Extras {
            pool: &pool,
            ..Extras::default()
        },
        carry: b"",
    };
    assert!(FromWorker::Report(report).header().as_bytes().len() <= MAX_HEADER);
    report.outcome = Outcome::ParkDrained;
    report.extras = Extras {
        note: Some(note),
        luggage: LuggageChange::Gone,
        resumable: true,
        body: true,
        pool: "",
    };
    assert!(FromWorker::Report(report).header().as_bytes().len() <= MAX_HEADER);
}

/// The lines of the traces in the document: who sends each, and the message without descriptors.
fn traced(document: &str) -> Vec<(char, Vec<u8>)> {
    let lines = document.lines().filter_map(|line| {
        let sender = line
            .chars()
            .next()
            .filter(|sender| "<>".contains(*sender))?;
        let message = line[1..].strip_prefix("  ")?;
        let message = message.split("  ").next().unwrap_or_default();
        let message = message.replace("\\n", "\n").replace("\\r", "\r");
        Some((sender, message.replace("\\0", "\0").into_bytes()))
    });
    lines.collect()
}

#[test]
fn the_traces_in_the_document_are_such_messages() {
    let traced = traced(include_str!("../../docs/worker-protocol.md"));
    assert!(traced.len() > 15, "{traced:?}");
    for (sender, message) in traced {
        let text = String::from_utf8_lossy(&message).into_owned();
        let refused = match sender {
            '<' => FromWorker::parse(&message).err(),
            _ => ToWorker::parse(&message).err(),
        };
        assert_eq!(refused, None, "{text}");
    }
}
