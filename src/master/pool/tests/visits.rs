//! Two pools, and connections that go from one to the other. The test plays the workers of both.

use std::os::fd::AsFd;

use super::*;
use crate::master::pools::Pools;

use crate::wire::LuggageChange;

const SITE: u8 = 0;
const APP: u8 = 1;

/// What a client gets when its worker has done something wrong.
const CRASHED: &[u8] = b"the worker is gone";

/// What a worker has been lent.
struct Turn {
    id: u64,
    number: u64,
    away: bool,
    note: Vec<u8>,
    carry: Vec<u8>,
    socket: TcpStream,
}

struct Two {
    pools: Pools<'static>,
    address: SocketAddr,
    begin: Instant,
}

impl Two {
    fn new() -> Self {
        let mut pools = Pools::new(Epoll::new().unwrap(), None);
        let site = pools.add(plan("site"), 0, 100, false).unwrap();
        let settings = &site.plan().settings;
        let listeners = bind_all(&"127.0.0.1:0".parse().unwrap(), settings).unwrap();
        let address = listeners[0].local_address().unwrap();
        site.listen_on(listeners).unwrap();
        pools.add(plan("app"), 0, 100, false).unwrap();
        Self {
            pools,
            address,
            begin: Instant::now(),
        }
    }

    fn now(&self) -> Time {
        Time::default().after(Duration::from_secs(3600) + self.begin.elapsed())
    }

    fn pool(&mut self, place: u8) -> &mut Pool<'static> {
        self.pools.get_mut(place).unwrap()
    }

    /// How many connections count, how many are away, and how many are not over.
    fn counts(&mut self, place: u8) -> (usize, usize, usize) {
        let d = &self.pool(place).dispatcher;
        (d.connections(), d.away(), d.unserved())
    }

    fn hire(&mut self, place: u8) -> Played {
        let now = self.now();
        let (worker, played) = start(self.pool(place), 0, now);
        let ready = FromWorker::Ready { luggage: true };
        played.end.send(&ready, None).unwrap();
        let pool = |two: &mut Self| two.pool(place).workers.get(worker).unwrap().is_serving();
        self.until("the worker is ready", pool);
        played
    }

    fn round(&mut self) {
        let now = self.now();
        self.pools.carry_out(now);
        let wait = match self.pools.fall_asleep() {
            true => Duration::from_millis(2),
            false => Duration::ZERO,
        };
        let mut events = Events::default();
        self.pools.epoll().wait(&mut events, Some(wait)).unwrap();
        self.pools.wake_up();
        let now = self.now();
        for (token, flags) in events.drain() {
            match token {
                Token::Pool(place, event) => self.pool(place).on_event(event, flags, now),
                other => panic!("{other:?}"),
            }
        }
        self.pools.tick(now);
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(Instant::now() < end, "{what}");
            self.round();
        }
    }

    #[track_caller]
    fn lent(&mut self, worker: &mut Played) -> Turn {
        self.until("something is lent", |_| worker.has_mail());
        match worker.end.receive(&mut worker.messages).unwrap() {
            Assignment::Serve(lend, borrowed) => Turn {
                id: lend.id,
                number: lend.turn,
                away: lend.away,
                note: lend.note.to_vec(),
                carry: lend.carry.to_vec(),
                socket: TcpStream::from(borrowed.connection),
            },
            Assignment::Retire => panic!("it is to exit"),
        }
    }

    /// Reads to the end of the connection while the master works.
    #[track_caller]
    fn read_all(&mut self, client: &mut TcpStream) -> Vec<u8> {
        client.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        self.until("the connection ends", |_| {
            client.read_to_end(&mut bytes).is_ok()
        });
        bytes
    }

    /// A client whose request a worker of the site has read.
    fn begin(&mut self, site: &mut Played) -> (TcpStream, Turn) {
        let mut client = TcpStream::connect(self.address).unwrap();
        client.write_all(b"request").unwrap();
        let mut turn = self.lent(site);
        assert_eq!(read(&mut turn.socket, 7), b"request");
        (client, turn)
    }
}

impl Played {
    /// Passes a connection on, of which the turn has written so much.
    fn pass(&self, id: u64, pool: &str, written: u64) {
        let extras = Extras {
            pool,
            ..Extras::default()
        };
        self.say(id, (Outcome::Pass, written), extras, b"request", None);
    }

    fn say(
        &self,
        id: u64,
        (outcome, written): (Outcome, u64),
        extras: Extras<'_>,
        carry: &[u8],
        luggage: Option<&dyn AsFd>,
    ) {
        let traffic = Some(Traffic { read: 7, written });
        let report = Report {
            id,
            outcome,
            traffic,
            extras,
            carry,
        };
        let luggage = luggage.map(AsFd::as_fd);
        let report = FromWorker::Report(report);
        self.end.send(&report, luggage).unwrap();
    }
}

#[test]
fn a_request_goes_to_the_other_pool_and_the_next_one_begins_at_home() {
    let mut two = Two::new();
    let (mut site, mut app) = (two.hire(SITE), two.hire(APP));
    let (mut client, turn) = two.begin(&mut site);
    // The note is noted in a turn of its own.
    drop(turn.socket);
    let noted = Extras {
        note: Some(b"home's note"),
        ..Extras::default()
    };
    site.say(turn.id, (Outcome::Again, 0), noted, b"request", None);
    let turn = two.lent(&mut site);
    assert_eq!((turn.away, &*turn.note), (false, &b"home's note"[..]));
    drop(turn.socket);
    site.pass(turn.id, "app", 0);

    let turn = two.lent(&mut app);
    assert!(turn.away && turn.note.is_empty());
    assert_eq!((turn.number, &*turn.carry), (3, &b"request"[..]));
    assert_eq!((two.counts(SITE), two.counts(APP)), ((1, 1, 1), (0, 0, 1)));
    // It stays there while it is parked, and what it leaves there is dropped in the end.
    let other = Extras {
        note: Some(b"the other's note"),
        luggage: LuggageChange::New,
        ..Extras::default()
    };
    let file = rustix::fs::memfd_create("luggage", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    drop(turn.socket);
    app.say(turn.id, (Outcome::Park, 0), other, b"", Some(&file));
    client.write_all(b"more").unwrap();
    let mut turn = two.lent(&mut app);
    assert_eq!((turn.away, &*turn.note), (true, &b"the other's note"[..]));
    assert_eq!(read(&mut turn.socket, 4), b"more");
    turn.socket.write_all(b"answer").unwrap();
    drop(turn.socket);
    app.report(turn.id, Outcome::Home, (4, 6), b"next");
    let turn = two.lent(&mut site);
    assert_eq!(read(&mut client, 6), b"answer");
    assert_eq!((turn.away, &*turn.note), (false, &b"home's note"[..]));
    assert_eq!((turn.number, &*turn.carry), (5, &b"next"[..]));
    assert_eq!((two.counts(SITE), two.counts(APP)), ((1, 0, 1), (0, 0, 0)));
    let held = two.pool(SITE).held(turn.id.into()).unwrap();
    assert!(held.luggage().is_none());
    drop(turn.socket);
    site.report(turn.id, Outcome::Close, (0, 0), b"");
    assert_eq!(two.read_all(&mut client), b"");
    two.until("it is over", |two| two.counts(SITE) == (0, 0, 0));
}

#[test]
fn what_may_not_be_passed_on_gets_the_reply_of_a_crash() {
    for (pool, reason) in [
        ("none", "no such pool"),
        ("site", "its own pool"),
        ("a%20b", "no such pool"),
    ] {
        let mut two = Two::new();
        let mut site = two.hire(SITE);
        let (mut client, turn) = two.begin(&mut site);
        drop(turn.socket);
        site.pass(turn.id, pool, 0);
        assert_eq!(two.read_all(&mut client), CRASHED, "{reason}");
        assert_eq!(two.counts(SITE), (0, 0, 0));
    }
    // A part of a response is followed by nothing.
    let mut two = Two::new();
    let (mut site, mut app) = (two.hire(SITE), two.hire(APP));
    let (mut client, mut turn) = two.begin(&mut site);
    turn.socket.write_all(b"answ").unwrap();
    drop(turn.socket);
    site.pass(turn.id, "app", 4);
    assert_eq!(two.read_all(&mut client), b"answ");
    let (mut client, mut turn) = two.begin(&mut site);
    turn.socket.write_all(b"answ").unwrap();
    drop(turn.socket);
    site.report(turn.id, Outcome::Again, (7, 4), b"request");
    let turn = two.lent(&mut site);
    drop(turn.socket);
    site.pass(turn.id, "app", 0);
    assert_eq!(two.read_all(&mut client), b"answ");
    assert!(!app.has_mail());
    // One that is away already ends where it is.
    let (mut client, turn) = two.begin(&mut site);
    drop(turn.socket);
    site.pass(turn.id, "app", 0);
    let turn = two.lent(&mut app);
    drop(turn.socket);
    app.pass(turn.id, "site", 0);
    assert_eq!(two.read_all(&mut client), CRASHED);
    two.until("it is over", |two| two.counts(SITE) == (0, 0, 0));
    assert_eq!(two.counts(APP), (0, 0, 0));
    assert!(!site.has_mail());
}

#[test]
fn luggage_is_not_passed_on() {
    let mut two = Two::new();
    let mut site = two.hire(SITE);
    let (mut client, turn) = two.begin(&mut site);
    let file = rustix::fs::memfd_create("luggage", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    let with = Extras {
        luggage: LuggageChange::New,
        ..Extras::default()
    };
    drop(turn.socket);
    site.say(turn.id, (Outcome::Again, 0), with, b"request", Some(&file));
    let turn = two.lent(&mut site);
    drop(turn.socket);
    site.pass(turn.id, "app", 0);
    assert_eq!(two.read_all(&mut client), CRASHED);
}

#[test]
fn what_has_no_home_any_more_is_closed_after_its_request() {
    let mut two = Two::new();
    let (mut site, mut app) = (two.hire(SITE), two.hire(APP));
    let (mut client, turn) = two.begin(&mut site);
    drop(turn.socket);
    site.pass(turn.id, "app", 0);
    let mut turn = two.lent(&mut app);
    let until = two.now();
    two.pool(SITE).phase = Phase::Retiring { until };
    turn.socket.write_all(b"answer").unwrap();
    drop(turn.socket);
    app.report(turn.id, Outcome::Home, (0, 6), b"");
    assert_eq!(two.read_all(&mut client), b"answer");
    drop(client);
    two.until("it is over", |two| two.pool(APP).dispatcher.is_empty());
    assert_eq!(two.counts(SITE), (0, 0, 0));
}

#[test]
fn a_pool_whose_time_is_over_gives_back_what_it_counts_for_others() {
    let mut two = Two::new();
    let (mut site, mut app) = (two.hire(SITE), two.hire(APP));
    let (_client, turn) = two.begin(&mut site);
    drop(turn.socket);
    site.pass(turn.id, "app", 0);
    let _turn = two.lent(&mut app);
    assert_eq!(two.counts(SITE), (1, 1, 1));
    assert_eq!(
        two.pools
            .away_from(two.pools.iter().next().unwrap().id())
            .len(),
        1
    );
    let now = two.now();
    two.pool(APP).phase = Phase::Over;
    two.pools.advance(&mut MasterOnly::with_inherited(&[]), now);
    assert!(two.pools.get_mut(APP).is_none());
    assert_eq!(two.counts(SITE), (0, 0, 0));
}

#[test]
fn a_served_request_without_another_pool_is_parked_or_goes_on() {
    let mut two = Two::new();
    let mut site = two.hire(SITE);
    let (mut client, mut turn) = two.begin(&mut site);
    turn.socket.write_all(b"answer").unwrap();
    drop(turn.socket);
    // What is left of an answered request is the next one.
    site.report(turn.id, Outcome::Home, (7, 6), b"next");
    let turn = two.lent(&mut site);
    assert_eq!(&*turn.carry, b"next");
    drop(turn.socket);
    // It is not complete: nobody looks at it again before there is more.
    site.report(turn.id, Outcome::Home, (0, 0), b"next");
    two.until("it is parked", |two| {
        two.pool(SITE).dispatcher.parked().count() == 1
    });
    client.write_all(b"!").unwrap();
    let turn = two.lent(&mut site);
    assert_eq!((&*turn.carry, turn.away), (&b"next"[..], false));
}

#[test]
fn when_all_stop_what_is_yet_to_be_passed_on_is_served() {
    let mut two = Two::new();
    let (mut site, mut app) = (two.hire(SITE), two.hire(APP));
    let (mut client, turn) = two.begin(&mut site);
    let mut only = MasterOnly::with_inherited(&[]);
    let now = two.now();
    two.pools.iter_mut().for_each(|pool| pool.stop(now));
    for _ in 0..5 {
        two.pools.advance(&mut only, now);
        two.round();
    }
    assert!(!app.has_mail(), "it is to exit");
    drop(turn.socket);
    site.pass(turn.id, "app", 0);
    let mut turn = two.lent(&mut app);
    // It is in the middle of its request, and stays for that.
    drop(turn.socket);
    app.report(turn.id, Outcome::Park, (0, 0), b"request");
    two.until("it is parked", |two| {
        two.pool(APP).dispatcher.parked().count() == 1
    });
    client.write_all(b"more").unwrap();
    turn = two.lent(&mut app);
    assert_eq!(read(&mut turn.socket, 4), b"more");
    turn.socket.write_all(b"answer").unwrap();
    drop(turn.socket);
    app.report(turn.id, Outcome::Home, (4, 6), b"");
    assert_eq!(two.read_all(&mut client), b"answer");
    let is_told = |worker: &mut Played| {
        worker.has_mail()
            && matches!(
                worker.end.receive(&mut worker.messages),
                Ok(Assignment::Retire)
            )
    };
    for worker in [&mut site, &mut app] {
        two.until("the worker is to exit", |two| {
            let now = two.now();
            two.pools.advance(&mut only, now);
            is_told(worker)
        });
    }
}

#[test]
fn a_guest_that_is_idle_does_not_hold_a_stop_up() {
    let mut two = Two::new();
    let (mut site, mut app) = (two.hire(SITE), two.hire(APP));
    let (mut client, turn) = two.begin(&mut site);
    drop(turn.socket);
    site.pass(turn.id, "app", 0);
    let turn = two.lent(&mut app);
    drop(turn.socket);
    app.report(turn.id, Outcome::Park, (0, 0), b"");
    two.until("it is parked", |two| {
        two.pool(APP).dispatcher.parked().count() == 1
    });
    let now = two.now();
    two.pools.iter_mut().for_each(|pool| pool.stop(now));
    assert_eq!(two.read_all(&mut client), b"");
    assert_eq!((two.counts(SITE), two.counts(APP)), ((0, 0, 0), (0, 0, 0)));
}
