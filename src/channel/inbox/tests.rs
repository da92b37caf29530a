//! Both ends of a socketpair in one process.

use super::*;
use crate::wire::{Extras, Outcome, Peer, Report, Traffic};

fn lend(id: u64, carry: &[u8]) -> Lend<'_> {
    Lend {
        carry,
        ..Lend::first(id, Peer::Unix)
    }
}

#[track_caller]
fn message<'a>(
    master: &MasterEnd,
    buffer: &'a mut MessageBuffer,
) -> (FromWorker<'a>, Option<OwnedFd>) {
    match master.receive(buffer, true).unwrap() {
        Received::Message(message, luggage) => (message, luggage),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connection_goes_to_the_worker_and_the_report_comes_back() {
    let (master, worker) = pair().unwrap();
    let mut buffer = MessageBuffer::default();
    assert_eq!(
        master
            .lend(lend(7, b"carry"), master.as_fd(), None)
            .unwrap(),
        Lent::Sent
    );
    let Assignment::Serve(lend, _) = worker.receive(&mut buffer).unwrap() else {
        panic!("no lend")
    };
    assert_eq!((lend.id, lend.carry), (7, &b"carry"[..]));
    let report = FromWorker::Report(Report {
        id: 7,
        outcome: Outcome::Park,
        traffic: Some(Traffic {
            read: 1,
            written: 2,
        }),
        extras: Extras::default(),
        carry: b"rest",
    });
    worker.send(&report, None).unwrap();
    let (received, luggage) = message(&master, &mut buffer);
    assert_eq!((received, luggage.is_none()), (report, true));
    assert!(matches!(
        master.receive(&mut buffer, true),
        Ok(Received::Nothing)
    ));
}

#[test]
fn what_is_in_an_inbox_can_be_taken_back_in_order() {
    let (master, worker) = pair().unwrap();
    let mut buffer = MessageBuffer::default();
    for id in 1..=3 {
        master.lend(lend(id, b""), master.as_fd(), None).unwrap();
    }
    assert!(matches!(
        worker.receive(&mut buffer),
        Ok(Assignment::Serve(..))
    ));
    assert_eq!(master.take_back(&mut buffer).unwrap(), Some(2));
    assert_eq!(master.take_back(&mut buffer).unwrap(), Some(3));
    assert_eq!(master.take_back(&mut buffer).unwrap(), None);
}

#[test]
fn a_descriptor_that_comes_back_with_its_connection_is_closed() {
    let (master, _worker) = pair().unwrap();
    let (kept, lent) = std::os::unix::net::UnixStream::pair().unwrap();
    kept.set_nonblocking(true).unwrap();
    assert_eq!(
        master.lend(lend(7, b""), lent.as_fd(), None).unwrap(),
        Lent::Sent
    );
    drop(lent);
    let read = || io::Read::read(&mut &kept, &mut [0]);
    let in_flight = read().map_err(|error| error.kind());
    assert_eq!(in_flight, Err(io::ErrorKind::WouldBlock));
    let taken_back = master.take_back(&mut MessageBuffer::default());
    assert_eq!(taken_back.unwrap(), Some(7));
    assert_eq!(read().unwrap(), 0);
}

#[test]
fn a_full_inbox_refuses_and_loses_nothing() {
    let (master, worker) = pair().unwrap();
    let mut buffer = MessageBuffer::default();
    let carry = vec![b'x'; crate::wire::MAX_CARRY];
    let mut sent = 0;
    while master
        .lend(lend(sent, &carry), master.as_fd(), None)
        .unwrap()
        == Lent::Sent
    {
        sent += 1;
    }
    assert!(sent > 0);
    for id in 0..sent {
        match worker.receive(&mut buffer).unwrap() {
            Assignment::Serve(lend, _) => assert_eq!(lend.id, id),
            Assignment::Retire => panic!("a connection is missing"),
        }
    }
}

#[test]
fn a_worker_that_sends_a_descriptor_is_no_honest_one() {
    let (mut master, worker) = pair().unwrap();
    let send = || {
        fdpass::send(
            &worker,
            &[IoSlice::new(b"x")],
            &[worker.as_fd()],
            Wait::Dont,
        )
    };
    if master.refuses {
        assert!(send().is_err());
        // As on a kernel that can't refuse it.
        sys::rights::accept_descriptors(&master.ours).unwrap();
        master.refuses = false;
    }
    send().unwrap();
    let mut buffer = MessageBuffer::default();
    let received = master.receive(&mut buffer, true);
    assert_eq!(received.unwrap_err().kind(), io::ErrorKind::InvalidData);
    send().unwrap();
    drop(master);
}

#[test]
fn a_worker_is_told_of_the_masters_end() {
    let (master, worker) = pair().unwrap();
    drop(master);
    assert!(matches!(
        worker.receive(&mut MessageBuffer::default()),
        Ok(Assignment::Retire)
    ));
}

#[test]
fn a_full_carry_fits_even_where_the_default_is_small() {
    let (master, _worker) = pair().unwrap();
    setsockopt(&master.ours, sockopt::SndBuf, &4096).unwrap();
    ensure_send_buffer(&master.ours).unwrap();
    let lend = Lend {
        turn: u64::MAX,
        watched: true,
        note: &[b'x'; crate::wire::MAX_NOTE],
        carry: &[b'x'; crate::wire::MAX_CARRY],
        ..Lend::first(u64::MAX >> 4, Peer::Unix)
    };
    let some = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(master.lend(lend, some.as_fd(), None).unwrap(), Lent::Sent);
}

#[test]
fn luggage_and_note_travel_both_ways() {
    let (mut master, worker) = pair().unwrap();
    master.accept_luggage().unwrap();
    let mut buffer = MessageBuffer::default();
    let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let extras = Extras {
        note: Some(b"who"),
        luggage: LuggageChange::New,
        ..Extras::default()
    };
    let report = FromWorker::Report(Report {
        id: 7,
        outcome: Outcome::ParkWrite,
        traffic: None,
        extras,
        carry: b"rest",
    });
    worker.send(&report, Some(memory.as_fd())).unwrap();
    let (received, luggage) = message(&master, &mut buffer);
    assert_eq!(received, report);
    let lend = Lend {
        luggage: true,
        note: b"who",
        ..lend(8, b"rest")
    };
    let luggage = luggage.unwrap();
    let lent = master.lend(lend, master.as_fd(), Some(luggage.as_fd()));
    assert_eq!(lent.unwrap(), Lent::Sent);
    let Ok(Assignment::Serve(received, borrowed)) = worker.receive(&mut buffer) else {
        panic!("no lend")
    };
    assert_eq!((received, borrowed.luggage.is_some()), (lend, true));
}

#[test]
fn luggage_waits_for_room_and_nothing_else_does() {
    let (mut master, worker) = pair().unwrap();
    master.accept_luggage().unwrap();
    let mut buffer = MessageBuffer::default();
    let memory = rustix::fs::memfd_create("luggage", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let report = |id, luggage| {
        let luggage = match luggage {
            true => LuggageChange::New,
            false => LuggageChange::None,
        };
        let extras = Extras {
            luggage,
            ..Extras::default()
        };
        FromWorker::Report(Report {
            id,
            outcome: Outcome::Park,
            traffic: None,
            extras,
            carry: b" luggage",
        })
    };
    worker.send(&report(1, false), None).unwrap();
    worker.send(&report(2, true), Some(memory.as_fd())).unwrap();
    let first = master.receive(&mut buffer, false).unwrap();
    assert!(matches!(first, Received::Message(_, None)), "{first:?}");
    for _ in 0..2 {
        let second = master.receive(&mut buffer, false).unwrap();
        assert!(matches!(second, Received::Laden), "{second:?}");
    }
    let (second, luggage) = message(&master, &mut buffer);
    assert_eq!((second, luggage.is_some()), (report(2, true), true));
    let none = master.receive(&mut buffer, false).unwrap();
    assert!(matches!(none, Received::Nothing), "{none:?}");
}

#[test]
fn what_is_no_luggage_is_refused() {
    let (mut master, worker) = pair().unwrap();
    master.accept_luggage().unwrap();
    let mut buffer = MessageBuffer::default();
    let extras = Extras {
        luggage: LuggageChange::New,
        ..Extras::default()
    };
    let report = FromWorker::Report(Report {
        id: 7,
        outcome: Outcome::Park,
        traffic: None,
        extras,
        carry: b"",
    });
    for luggage in [Some(worker.as_fd()), None] {
        worker.send(&report, luggage).unwrap();
        let received = master.receive(&mut buffer, true);
        assert_eq!(received.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
