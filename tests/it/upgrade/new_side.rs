//! The new master in a takeover, with a test in the place of the old one: it gives up, says why,
//! and touches nothing.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::session::{Desk, Session};
use crate::harness::{BATOND, Finished, command, finish};

/// What becomes of a new master that is told this.
struct Told {
    directory: TempDir,
    desk: Desk,
}

impl Told {
    fn new() -> Self {
        let directory = TempDir::with_prefix("batond-test-").expect("a directory");
        let desk = Desk::open(&directory.path().join("old"));
        Self { directory, desk }
    }

    fn command(&self) -> Command {
        let mut command = command(BATOND);
        let arguments = [
            "serve",
            "demo",
            "-w",
            "2",
            "-l",
            "unix:s.sock",
            "--control",
            "c",
        ];
        command
            .args(arguments)
            .args(["--pid-file", "p", "--takeover", "old"]);
        command.current_dir(self.directory.path());
        command
    }

    /// Starts a new master, and tells it what `tell` does. It must end without having served.
    #[track_caller]
    fn fails(&self, why: &str, tell: impl FnOnce(Session)) {
        let command = self.command();
        let finished: Finished = thread::scope(|scope| {
            let new = scope.spawn(|| finish(command));
            tell(self.desk.accept());
            new.join().expect("it ends")
        });
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        let last = finished.stderr.lines().last().unwrap_or_default();
        assert_eq!(last, format!("batond: cannot take over{why}"));
        assert!(!finished.stderr.contains("listening on"));
        for name in ["c", "p"] {
            assert!(!self.directory.path().join(name).exists(), "{name}");
        }
        let left = std::fs::read_dir(self.directory.path()).expect("a directory");
        let left = left.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let strange: Vec<_> = left
            .filter(|name| name.contains('.') && name != "s.sock")
            .collect();
        assert!(strange.is_empty(), "{strange:?}");
    }
}

/// Offers a listener of its own, whose path must stay.
#[track_caller]
fn offer(session: &Session, listener: &UnixListener) {
    assert_eq!(session.hear().expect("it asks").0, "TAKEOVER 3");
    session.pass("LISTENER unix:s.sock file\n", &[listener.as_fd()]);
    session.say("OFFER\n");
}

#[track_caller]
fn offer_until_ready(session: &Session, listener: &UnixListener) {
    offer(session, listener);
    let said = session.hear_until("READY");
    let said: Vec<_> = said.into_iter().map(|(text, _)| text).collect();
    assert_eq!(said, ["KEEP unix:s.sock", "READY main"]);
}

#[test]
fn an_old_master_that_refuses() {
    let told = Told::new();
    told.fails(" at old: the old master refuses: it is busy", |session| {
        assert_eq!(session.hear().expect("it asks").0, "TAKEOVER 3");
        session.say("REFUSED it%20is%20busy\n");
    });
}

/// It says which version it speaks, and is asked again in that one.
#[test]
fn an_old_master_of_the_version_before() {
    let told = Told::new();
    let path = told.directory.path().join("s.sock");
    let listener = UnixListener::bind(path).expect("a socket");
    let command = told.command();
    let finished: Finished = thread::scope(|scope| {
        let new = scope.spawn(|| finish(command));
        let session = told.desk.accept();
        assert_eq!(session.hear().expect("it asks").0, "TAKEOVER 3");
        session.say("REFUSED this%20master%20speaks%20version%201,%20not%203\n");
        drop(session);
        let session = told.desk.accept();
        assert_eq!(session.hear().expect("it asks again").0, "TAKEOVER 1");
        session.pass("LISTENER unix:s.sock file\n", &[listener.as_fd()]);
        session.say("OFFER\n");
        session.hear_until("READY");
        let connection = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let connect = "CONNECTION main 127.0.0.1:1 1 input 1000 - 5 5 -\n";
        session.pass(connect, &[connection.as_fd()]);
        session.say("ALL 1\n");
        assert_eq!(session.hear().expect("it has it").0, "CONFIRM 1");
        drop(session);
        new.join().expect("it ends")
    });
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert_eq!(last, "batond: cannot take over: the old master is gone");
}

#[test]
fn an_old_master_that_fails_at_any_step() {
    let told = Told::new();
    let path = told.directory.path().join("s.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let connection = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let connect = "CONNECTION pool=main peer=127.0.0.1:1 turns=1 read=5 written=5\n";
    let gone = "the old master is gone";
    let unexpected = "the old master: unexpected message";
    told.fails(&format!(" at old: {gone}"), drop);
    told.fails(&format!(" at old: {gone}"), |session| {
        session.hear();
        session.pass("LISTENER unix:s.sock file\n", &[listener.as_fd()]);
    });
    told.fails(
        " at old: the old master sent an unexpected message",
        |session| {
            session.hear();
            session.say("GO\n");
        },
    );
    told.fails(&format!(": {gone}"), |session| offer(&session, &listener));
    told.fails(&format!(": {gone}"), |session| {
        offer_until_ready(&session, &listener);
        session.pass(connect, &[connection.as_fd()]);
    });
    for words in ["ALL 2\n", "END\n", connect] {
        told.fails(&format!(": {unexpected}"), |session| {
            offer_until_ready(&session, &listener);
            session.pass(connect, &[connection.as_fd()]);
            session.say(words);
        });
    }
    told.fails(&format!(": {gone}"), |session| {
        offer_until_ready(&session, &listener);
        session.pass(connect, &[connection.as_fd()]);
        session.say("ALL 1\n");
        assert_eq!(session.hear().expect("it has it").0, "CONFIRM 1");
    });
    assert!(path.exists(), "it is the old master's");
}

#[test]
fn an_old_master_that_hangs() {
    let told = Told::new();
    let listener = UnixListener::bind(told.directory.path().join("s.sock")).expect("a socket");
    let begin = Instant::now();
    told.fails(": the old master is silent for 5 s", |session| {
        offer_until_ready(&session, &listener);
        session.say("ALL 0\n");
        assert_eq!(session.hear().expect("it has all").0, "CONFIRM 0");
        assert!(session.hear().is_none());
    });
    assert!(begin.elapsed() >= Duration::from_secs(5));
}

#[test]
fn a_path_where_nobody_listens() {
    let told = Told::new();
    let run = |path: &str| {
        let mut command = command(BATOND);
        command.args(["serve", "-l", "127.0.0.1:0", "--takeover", path]);
        command.current_dir(told.directory.path());
        finish(command)
    };
    drop(UnixListener::bind(told.directory.path().join("stale")).expect("a socket"));
    for (path, why) in [
        ("nothing", "No such file or directory"),
        ("stale", "Connection refused"),
    ] {
        let finished = run(path);
        assert_eq!(finished.status.code(), Some(1));
        assert_eq!(
            finished.stderr,
            format!("batond: cannot take over at {path}: {why}")
        );
    }
}

#[test]
fn offices_that_cannot_be_had_are_known_before_the_takeover() {
    let told = Told::new();
    let place: &Path = told.directory.path();
    let listener = UnixListener::bind(place.join("s.sock")).expect("a socket");
    for (flag, path, why) in [
        (
            "--pid-file",
            "none/p",
            "write pid file none/p: No such file or directory",
        ),
        ("--pid-file", ".", "write pid file .: is a directory"),
        (
            "--control",
            "none/c",
            "listen on control socket none/c: No such file or directory",
        ),
        (
            "--control",
            ".",
            "listen on control socket .: the path exists and is not a socket",
        ),
    ] {
        let mut command = command(BATOND);
        command.args([
            "serve",
            "demo",
            "-w",
            "1",
            "-l",
            "unix:s.sock",
            "--takeover",
            "old",
        ]);
        command.args([flag, path]).current_dir(place);
        let finished = thread::scope(|scope| {
            let new = scope.spawn(|| finish(command));
            let session = told.desk.accept();
            offer(&session, &listener);
            assert!(session.hear().is_none());
            new.join().expect("it ends")
        });
        assert_eq!(finished.stderr, format!("batond: cannot {why}"));
        assert_eq!(finished.status.code(), Some(1));
    }
}
