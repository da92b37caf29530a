//! The old master in a takeover, with a test in the place of the new one, that does everything
//! wrong: the old one serves on.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::failures::Undisturbed;
use crate::harness::session::Session;
use crate::harness::{Client, Setup};

/// Up to where the new master does everything right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It has said what it wants.
    Asked,
    /// It was offered the listeners.
    Offered,
    /// It has said that it is ready.
    Ready,
    /// … and received one connection of several.
    First,
    /// … all of them.
    All,
    /// It was told to go.
    Go,
}

const STEPS: [Step; 6] = [
    Step::Asked,
    Step::Offered,
    Step::Ready,
    Step::First,
    Step::All,
    Step::Go,
];

/// A server that is asked, with idle clients.
pub struct Asked {
    pub undisturbed: Undisturbed,
    idle: Vec<Client>,
}

impl Asked {
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        let setup = Setup::new(&[&["demo", "-w", "2", "--control", "control"], arguments].concat());
        let setup = setup.expect("takeover ").expect("charge");
        let undisturbed = Undisturbed::start(setup);
        let mut idle = undisturbed.server.connect_all(20);
        for client in &mut idle {
            assert_eq!(client.get("/").status, 200);
        }
        Self { undisturbed, idle }
    }

    #[track_caller]
    pub fn ask(&self) -> Session {
        Session::connect(&self.undisturbed.server.directory().join("control"))
    }

    /// Does everything right up to there. Returns how many connections there are.
    #[track_caller]
    pub fn play(&self, step: Step) -> (Session, usize) {
        let session = self.ask();
        let mut count = 0;
        session.say("TAKEOVER 3\n");
        if step >= Step::Offered {
            let offered = session.hear_until("OFFER");
            assert!(
                offered[0].0.starts_with("LISTENER 127.0.0.1:0 -"),
                "{offered:?}"
            );
            assert_eq!(offered[0].1.len(), 1);
            assert_eq!(offered.len(), 2);
        }
        if step >= Step::Ready {
            session.say("KEEP 127.0.0.1:0\n");
            session.say("READY main\n");
        }
        if step >= Step::First {
            let (text, descriptors) = session.hear().expect("there are connections");
            assert!(
                text.starts_with("CONNECTION pool=main peer=127.0.0.1:"),
                "{text}"
            );
            assert_eq!(descriptors.len(), 1);
        }
        if step >= Step::All {
            count = session.hear_until("ALL").len();
            // One whose last turn is not reported yet comes later.
            assert!(count > 1);
        }
        if step >= Step::Go {
            session.say(&format!("CONFIRM {count}\n"));
            assert_eq!(session.hear().expect("it goes on").0, "GO");
        }
        (session, count)
    }

    /// It serves on, and says why.
    #[track_caller]
    pub fn failed(&mut self, why: &str) {
        self.undisturbed.failed(why);
        for client in &mut self.idle {
            assert_eq!(client.get("/").status, 200);
        }
    }
}

#[test]
fn a_new_master_that_dies_at_any_step() {
    let mut asked = Asked::start(&[]);
    for step in STEPS {
        println!("{step:?}");
        drop(asked.play(step));
        asked.failed("the new master is gone");
    }
    asked.undisturbed.upgrade();
}

#[test]
fn a_new_master_that_says_what_it_should_not_at_any_step() {
    let mut asked = Asked::start(&[]);
    for step in STEPS {
        for words in ["no such words", "CONFIRM 3\n", "STOP\n", "TAKEOVER 3 2\n"] {
            println!("{step:?} {words:?}");
            let (session, _) = asked.play(step);
            session.say(words);
            asked.failed("the new master");
        }
    }
    asked.undisturbed.upgrade();
}

#[test]
fn a_new_master_that_has_another_count() {
    let mut asked = Asked::start(&[]);
    for wrong in [-1, 1] {
        let (session, count) = asked.play(Step::All);
        session.say(&format!("CONFIRM {}\n", count as i64 + wrong));
        asked.failed("the new master sent an unexpected message");
    }
    asked.undisturbed.upgrade();
}

#[test]
fn a_new_master_of_another_version() {
    let mut asked = Asked::start(&[]);
    let session = asked.ask();
    session.say("TAKEOVER 99\n");
    let (refusal, _) = session.hear().expect("an answer");
    assert_eq!(
        refusal,
        "REFUSED this%20master%20speaks%20version%203,%20not%2099"
    );
    assert!(session.hear().is_none());
    asked.failed("this master speaks version 3, not 99");
    asked.undisturbed.upgrade();
}

/// It gets the values alone, in the order of that version.
#[test]
fn a_new_master_of_the_version_before() {
    let mut asked = Asked::start(&[]);
    let session = asked.ask();
    session.say("TAKEOVER 1\n");
    session.hear_until("OFFER");
    session.say("READY main\n");
    let (text, descriptors) = session.hear().expect("there are connections");
    assert_eq!(descriptors.len(), 1);
    let words: Vec<_> = text.split(' ').collect();
    assert_eq!(words.len(), 10, "{text}");
    assert_eq!(words[..2], ["CONNECTION", "main"]);
    assert!(words[2].starts_with("127.0.0.1:"), "{text}");
    assert_eq!(
        (words[3], words[4], words[9]),
        ("1", "input", "-"),
        "{text}"
    );
    drop(session);
    asked.failed("the new master is gone");
    asked.undisturbed.upgrade();
}

#[test]
fn two_new_masters() {
    let mut asked = Asked::start(&[]);
    let (first, _) = asked.play(Step::Offered);
    let second = asked.ask();
    second.say("TAKEOVER 3\n");
    let (refusal, _) = second.hear().expect("an answer");
    assert_eq!(refusal, "REFUSED another%20one%20is%20under%20way");
    assert!(second.hear().is_none());
    let server = &asked.undisturbed.server;
    server.wait_for_log("takeover refused: another one is under way");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reload refused: a takeover is under way");
    drop(first);
    asked.failed("the new master is gone");
    asked.undisturbed.upgrade();
}

/// Also while both masters hold still: who has asked meanwhile is answered, and nobody waits for
/// the new one.
#[test]
fn a_server_that_stops_meanwhile() {
    for step in [Step::Offered, Step::All, Step::Go] {
        println!("{step:?}");
        let mut asked = Asked::start(&[]);
        let (session, _) = asked.play(step);
        let server = &mut asked.undisturbed.server;
        let mut client = server.connect();
        client.send_get("/");
        assert!(server.stop().success());
        assert_eq!(client.reply().status, 200);
        assert_eq!(
            server
                .log_lines("takeover given up: the server stops")
                .len(),
            1
        );
        assert!(!server.log_contains("takeover failed"));
        assert!(session.hear().is_none());
    }
}

/// A new master that says nothing more at this step is given up, after some time and not before.
#[track_caller]
fn hangs(step: Step, why: &str) {
    let mut asked = Asked::start(&["--start-timeout", "1"]);
    let (session, _) = asked.play(step);
    let begin = Instant::now();
    let mut client = asked.undisturbed.server.connect();
    client.send_get("/");
    assert_eq!(client.reply().status, 200);
    asked.failed(why);
    assert!(begin.elapsed() < Duration::from_secs(12));
    drop(session);
    asked.undisturbed.upgrade();
}

#[test]
fn a_new_master_that_never_gets_ready() {
    hangs(Step::Offered, "the new master is not ready in time");
}

#[test]
fn a_new_master_that_reads_nothing() {
    hangs(Step::Ready, "the new master is silent for 2 s");
}

#[test]
fn a_new_master_that_confirms_nothing() {
    hangs(Step::All, "the new master is silent for 2 s");
}

#[test]
fn a_new_master_that_does_not_go() {
    hangs(Step::Go, "the new master is silent for 2 s");
}

#[test]
fn what_is_lent_follows() {
    let mut asked = Asked::start(&[]);
    let server = &asked.undisturbed.server;
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    crate::harness::begin_sleep(&mut sleeper, 300, &workers);
    let (session, _) = asked.play(Step::Go);
    session.say("DONE\n");
    session.say("SETTLED\n");
    let rest = session.hear_until("END");
    let followed = rest
        .iter()
        .filter(|(text, _)| text.starts_with("CONNECTION pool=main peer=127.0.0.1:"));
    assert!(followed.count() >= 1, "{rest:?}");
    assert_eq!(sleeper.reply().status, 200);
    assert!(session.hear().is_none());
    assert!(asked.undisturbed.server.wait().success());
}

/// What it was told before the new one said that it stops counts.
#[test]
fn a_master_that_stops_twice_over() {
    let mut asked = Asked::start(&["--grace", "60"]);
    let server = &asked.undisturbed.server;
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    crate::harness::begin_sleep(&mut sleeper, 30_000, &workers);
    let (session, _) = asked.play(Step::Go);
    session.say("DONE\n");
    session.say("SETTLED\n");
    let server = &mut asked.undisturbed.server;
    server.wait_for_log("handed over");
    server.signal(Signal::SIGINT);
    server.wait_for_log("stopping: at most 60 s");
    session.say("STOP\n");
    server.wait_for_log("the new master stops");
    server.signal(Signal::SIGINT);
    server.wait_for_log("stopping at once: a second SIGINT");
    assert!(server.wait().success());
    assert_eq!(server.log_lines("stopping: at most").len(), 1);
}
