//! Takeovers with a test in the place of one master, which is slow, silent, or talks without end:
//! the other one waits for a bounded time, and no two masters serve.

use std::io::IoSlice;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use batond::fdpass::{self, Wait};
use nix::sys::signal::Signal;
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use tempfile::TempDir;

use super::old_side::{Asked, Step};
use crate::harness::process::{self, sleeping_threads};
use crate::harness::session::{Desk, Session};
use crate::harness::{BATOND, Client, Setup, command, eventually, finish, open_descriptors};

// ---- the old master, and processes that ask it --------------------------------------------------

/// Serves nothing new and changes nothing, and is yet in nobody's way.
#[test]
fn callers_that_say_nothing_are_in_nobodys_way() {
    let mut asked = Asked::start(&[]);
    let silent: Vec<_> = (0..300).map(|_| asked.ask()).collect();
    let server = &asked.undisturbed.server;
    server.wait_for_lines("too many others are waiting", 200);
    let (session, _) = asked.play(Step::Offered);
    drop(session);
    asked.failed("the new master is gone");
    let server = &asked.undisturbed.server;
    server.wait_for_log("it has said nothing for 5 s");
    let (words, _) = silent[0].hear().expect("an answer");
    assert_eq!(words, "REFUSED too%20many%20others%20are%20waiting");
    asked.undisturbed.upgrade();
}

#[test]
fn a_reload_does_not_wait_for_a_caller_that_says_nothing() {
    let asked = Asked::start(&[]);
    let server = &asked.undisturbed.server;
    let open = || open_descriptors(server.master()).len();
    let before = open();
    let silent = asked.ask();
    eventually("it is listened to", || open() > before);
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    let (words, _) = silent.hear().expect("an answer");
    assert_eq!(words, "REFUSED it%20has%20said%20nothing%20for%205%20s");
    assert!(silent.hear().is_none());
}

#[test]
fn a_caller_that_says_something_else() {
    let asked = Asked::start(&[]);
    for (words, why) in [
        ("no such words", "REFUSED malformed%20message"),
        ("DONE\n", "REFUSED unexpected%20message"),
    ] {
        let session = asked.ask();
        session.say(words);
        assert_eq!(session.hear().expect("an answer").0, why);
        assert!(session.hear().is_none());
    }
    asked.undisturbed.upgrade();
}

/// What it said beyond the first word is no reason to keep the answer from it.
#[test]
fn a_caller_that_talks_on_hears_why_it_is_dismissed() {
    let asked = Asked::start(&[]);
    let server = &asked.undisturbed.server;
    server.signal(Signal::SIGSTOP);
    eventually("the master is stopped", || {
        process::stat(server.master()).is_some_and(|stat| stat.state == 'T')
    });
    let session = asked.ask();
    for _ in 0..5 {
        session.say("no such words");
    }
    server.signal(Signal::SIGCONT);
    let (words, _) = session.hear().expect("an answer");
    assert_eq!(words, "REFUSED malformed%20message");
    asked.undisturbed.upgrade();
}

/// It stays in the backlog, and costs neither time nor lines of the log meanwhile.
#[test]
fn a_caller_that_cannot_be_accepted_waits() {
    let setup = Setup::new(&["demo", "-w", "1", "--control", "control"]);
    let setup = setup.expect("control socket: ").expect("takeover failed");
    let server = setup.start();
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    let pid = rustix::process::Pid::from_raw(server.master().as_raw());
    let limit = |limit| prlimit(pid, Resource::Nofile, limit).expect("it is our child");
    let before = limit(Rlimit {
        current: Some(3),
        ..getrlimit(Resource::Nofile)
    });
    let session = Session::connect(&server.directory().join("control"));
    server.wait_for_log("control socket: Too many open files");
    let busy = process::cpu_time(server.master());
    session.hear_nothing(Duration::from_secs(1));
    let busy = process::cpu_time(server.master()) - busy;
    assert!(busy < Duration::from_millis(300), "{busy:?}");
    assert_eq!(client.get("/").status, 200);
    limit(before);
    session.say("TAKEOVER 3\n");
    session.hear_until("OFFER");
    assert_eq!(server.log_lines("control socket: Too many").len(), 1);
}

/// The old master would have to close what it is sent, which could take any time.
#[test]
fn a_caller_that_sends_a_descriptor() {
    let mut asked = Asked::start(&[]);
    let connection = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let session = asked.ask();
    let data = &[IoSlice::new(b"TAKEOVER 3\n")];
    let sent = fdpass::send(&session, data, &[connection.as_fd()], Wait::Block);
    match sent {
        // Linux 6.16 and later: the kernel refuses it.
        Err(error) => assert_eq!(error.to_string(), "Operation not permitted"),
        Ok(_) => {
            let (words, _) = session.hear().expect("an answer");
            assert!(words.starts_with("REFUSED"), "{words}");
        }
    }
    drop(session);
    asked.undisturbed.check();
    asked.undisturbed.upgrade();
}

/// It may have listeners of its own, and say so more than once: that is no reason to fail.
#[test]
fn a_new_master_that_keeps_more_than_it_was_offered() {
    let mut asked = Asked::start(&[]);
    let (session, _) = asked.play(Step::Offered);
    let server = &asked.undisturbed.server;
    let before = process::status_number(server.master(), "VmRSS");
    let long = "x".repeat(8000);
    for number in 0..2000 {
        session.say("KEEP 127.0.0.1:0\n");
        session.say(&format!("KEEP unix:{number}{long}\n"));
    }
    session.say("READY main\n");
    session.hear_until("ALL");
    let grown = process::status_number(server.master(), "VmRSS").saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more");
    drop(session);
    asked.failed("the new master is gone");
    asked.undisturbed.upgrade();
}

/// Each of its words is allowed, and none of them is the last.
#[test]
fn a_new_master_that_keeps_without_end() {
    let mut asked = Asked::start(&["--start-timeout", "1"]);
    let (session, _) = asked.play(Step::Offered);
    let begin = Instant::now();
    while session.try_say("KEEP 127.0.0.1:0\n") {
        assert!(begin.elapsed() < Duration::from_secs(12), "it is heard on");
    }
    asked.failed("the new master is not ready in time");
    asked.undisturbed.upgrade();
}

#[test]
fn a_new_master_that_has_too_many_pools() {
    let mut asked = Asked::start(&[]);
    let (session, _) = asked.play(Step::Offered);
    session.say(&format!("READY{}\n", " x".repeat(257)));
    asked.failed("the new master sent an unexpected message");
    asked.undisturbed.upgrade();
}

/// Each of its words comes in less than the patience, and all of them together do not.
#[test]
fn a_new_master_that_is_slow_with_every_word() {
    let mut asked = Asked::start(&[]);
    let (session, count) = asked.play(Step::All);
    let begin = Instant::now();
    session.hear_nothing(Duration::from_secs(1));
    session.say(&format!("CONFIRM {count}\n"));
    assert_eq!(session.hear().expect("it goes on").0, "GO");
    asked.failed("the new master is silent for 2 s");
    let held_up = begin.elapsed();
    assert!(held_up < Duration::from_secs(3), "{held_up:?}");
    asked.undisturbed.upgrade();
}

/// While it is waited for such a one, nobody is served: that is not to be had again and again.
#[test]
fn after_a_new_master_that_was_silent_nobody_who_asks_gets_the_next_takeover_at_once() {
    let mut asked = Asked::start(&[]);
    let (session, _) = asked.play(Step::All);
    asked.failed("the new master is silent for 2 s");
    drop(session);
    let again = asked.ask();
    again.say("TAKEOVER 3\n");
    let (words, _) = again.hear().expect("an answer");
    assert!(
        words.starts_with("REFUSED another%20one%20has%20just"),
        "{words}"
    );
    asked
        .undisturbed
        .server
        .wait_for_log("takeover refused: another one has just kept");
    // This one does not ask.
    asked.undisturbed.upgrade();
}

/// A server with so many turns under way, each with a long carry, that what follows a takeover does
/// not fit into the session; and the clients of those turns.
fn with_many_turns() -> (Asked, Vec<Client>) {
    let asked = Asked::start(&["--threads", "64", "--grace", "60"]);
    let server = &asked.undisturbed.server;
    let workers = server.workers(2);
    let mut sleepers = server.connect_all(2 * 64);
    let rest = "x".repeat(4000);
    for client in &mut sleepers {
        let request = "GET /sleep/4000 HTTP/1.1\r\nHost: test\r\n\r\n";
        client.send(format!(
            "{request}GET / HTTP/1.1\r\nHost: test\r\nX: {rest}"
        ));
    }
    eventually("all turns have begun", || {
        let asleep = workers.iter().map(|worker| sleeping_threads(worker.pid));
        asleep.sum::<usize>() == sleepers.len()
    });
    (asked, sleepers)
}

#[test]
fn a_new_master_that_is_silent_after_done_is_in_charge() {
    let (mut asked, mut sleepers) = with_many_turns();
    let (session, _) = asked.play(Step::Go);
    session.say("DONE\n");
    for client in &mut sleepers {
        assert_eq!(client.reply().status, 200);
    }
    // It does not read what has become of them, for longer than anybody has patience.
    let server = &asked.undisturbed.server;
    server.never_says("takes charge again", Duration::from_secs(6));
    session.say("SETTLED\n");
    let rest = session.hear_until("END");
    let followed = rest
        .iter()
        .filter(|(text, descriptors)| text.starts_with("CONNECTION ") && descriptors.len() == 1);
    assert_eq!(followed.count(), sleepers.len());
    assert!(asked.undisturbed.server.wait().success());
}

#[test]
fn a_new_master_that_talks_nonsense_after_done_is_in_charge() {
    let mut asked = Asked::start(&[]);
    let server = &asked.undisturbed.server;
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    crate::harness::begin_sleep(&mut sleeper, 500, &workers);
    let (session, _) = asked.play(Step::Go);
    session.say("DONE\n");
    for words in ["no such words", "CONFIRM 3\n", "DONE\n"] {
        session.say(words);
    }
    session.say("SETTLED\n");
    session.hear_until("END");
    assert_eq!(sleeper.reply().status, 200);
    let server = &mut asked.undisturbed.server;
    assert_eq!(server.log_lines("it is in charge nevertheless").len(), 1);
    assert!(!server.log_contains("takes charge again"));
    assert!(server.wait().success());
}

#[test]
fn a_new_master_that_dies_after_done_is_followed_by_the_old_one() {
    let asked = Asked::start(&["--grace", "60"]);
    let server = &asked.undisturbed.server;
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    crate::harness::begin_sleep(&mut sleeper, 1000, &workers);
    let (session, _) = asked.play(Step::Go);
    session.say("DONE\n");
    asked.undisturbed.server.wait_for_log("handed over");
    drop(session);
    let server = &asked.undisturbed.server;
    server.wait_for_log("the new master is gone; this one takes charge again");
    assert_eq!(sleeper.reply().status, 200);
    assert_eq!(server.get("/").status, 200);
}

// ---- the new master -----------------------------------------------------------------------------

/// It is in charge, so that nothing which the old one says may make it close the session: the old
/// one would take it for dead.
#[test]
fn an_old_master_that_talks_nonsense_after_done_is_heard_to_the_end() {
    let directory = TempDir::with_prefix("batond-test-").expect("a directory");
    let desk = Desk::open(&directory.path().join("old"));
    let listener = UnixListener::bind(directory.path().join("s.sock")).expect("a socket");
    let connection = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let mut new = command(BATOND);
    new.args(["serve", "demo", "-w", "1", "-l", "unix:s.sock"])
        .args(["--takeover", "old", "--pid-file", "pid"])
        .current_dir(directory.path());
    let finished = thread::scope(|scope| {
        let new = scope.spawn(|| finish(new));
        let session = desk.accept();
        session.hear_until("TAKEOVER");
        session.pass("LISTENER unix:s.sock file\n", &[listener.as_fd()]);
        session.say("OFFER\n");
        session.hear_until("READY");
        session.say("ALL 0\n");
        session.hear_until("CONFIRM");
        session.say("GO\n");
        session.hear_until("SETTLED");
        session.say("no such words");
        session.say("ALL 7\n");
        session.say("CONNECTION pool=main\n");
        let two = [connection.as_fd(), connection.as_fd()];
        session.pass("CONNECTION pool=main peer=unix\n", &two);
        session.say("END\n");
        // The end, and no earlier one.
        assert!(session.hear().is_none());
        let pid = std::fs::read_to_string(directory.path().join("pid")).expect("it serves");
        let pid = pid.trim().parse().expect("a number");
        process::signal(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
        new.join().expect("it ends")
    });
    assert!(finished.status.success(), "{finished:?}");
    let log = finished.stderr;
    assert!(
        log.contains("the takeover is complete: the old master has ended"),
        "{log}"
    );
}
