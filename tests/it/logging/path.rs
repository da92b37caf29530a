//! What is at the path of a log: at the start, and when it is to be opened anew.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::{Bare, lost};
use crate::harness::{eventually, run};

/// Waits until the file at this path has a line with these words, and returns it.
#[track_caller]
fn wait_for_line(path: &Path, words: &str) -> String {
    let mut found = None;
    eventually(&format!("{} says {words:?}", path.display()), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        found = text
            .lines()
            .find(|line| line.contains(words))
            .map(str::to_owned);
        found.is_some()
    });
    found.expect("it was found")
}

/// Makes something that is no place for a log, and says why.
type Obstacle = (fn(&Path), &'static str);

const OBSTACLES: &[Obstacle] = &[
    (
        |path| mkfifo(path, Mode::S_IRWXU).expect("a FIFO"),
        "it is a FIFO that nobody reads",
    ),
    (
        |path| fs::create_dir(path).expect("a directory"),
        "Is a directory",
    ),
    (
        |path| drop(UnixListener::bind(path).expect("a socket")),
        "it is a socket",
    ),
    (
        |path| std::os::unix::fs::symlink(path, path).expect("a link"),
        "Too many symbolic links encountered",
    ),
    (
        |path| std::os::unix::fs::symlink("no/such", path).expect("a link"),
        "No such file or directory",
    ),
];

#[test]
fn a_server_does_not_start_with_a_log_that_cannot_be_one() {
    for (make, reason) in OBSTACLES {
        let place = TempDir::new().expect("a temporary directory");
        make(&place.path().join("log"));
        let arguments = ["serve", "demo", "-l", "127.0.0.1:0", "--log-file", "log"];
        let finished = run(place.path(), &arguments);
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert_eq!(
            finished.stderr,
            format!("batond: cannot log to log: {reason}")
        );
    }
}

#[test]
fn a_server_keeps_its_log_when_there_can_be_no_new_one() {
    let server = Bare::start(
        &[],
        &["demo", "-w", "2", "--log-file", "log"],
        Stdio::null(),
    );
    let path = server.directory.path().join("log");
    let old = server.directory.path().join("old");
    server.wait_for_workers(2);
    fs::rename(&path, &old).expect("it is there");
    for (make, reason) in OBSTACLES {
        make(&path);
        server.signal(Signal::SIGUSR1);
        let reason = format!("log: {reason}; lines go on to what was open before");
        wait_for_line(&old, &reason);
        assert_eq!(server.connect().get("/").status, 200);
        fs::remove_file(&path)
            .or_else(|_| fs::remove_dir(&path))
            .expect("it is ours");
    }
    server.signal(Signal::SIGUSR1);
    wait_for_line(&path, "log file opened anew");
    assert!(server.stop().success());
}

#[test]
fn a_log_may_be_a_device_or_a_fifo_that_is_read() {
    let place = TempDir::new().expect("a temporary directory");
    let mut sink = super::Sink::fifo(place.path());
    let fifo = place.path().join("fifo");
    let fifo = fifo.to_str().expect("it is plain");
    let server = Bare::start(&[], &["demo", "-w", "2", "--log-file", fifo], Stdio::null());
    server.wait_for_workers(2);
    sink.read_until("listening on ");
    sink.fill();
    server.make_it_talk(5);
    while sink.read_within(std::time::Duration::ZERO) {}
    server.signal(Signal::SIGUSR1);
    lost(&sink.read_until(" lines were lost"));
    assert!(server.stop().success());
    for device in ["/dev/null", "/dev/full"] {
        let server = Bare::start(
            &[],
            &["demo", "-w", "2", "--log-file", device],
            Stdio::null(),
        );
        server.wait_for_workers(2);
        server.make_it_talk(2);
        assert!(server.stop().success());
    }
}

#[test]
fn a_log_at_its_limit_loses_lines_and_nothing_else() {
    // Blocks of 512 bytes.
    let wrapper = ["sh", "-c", "ulimit -f 2; exec \"$@\"", "sh"];
    let server = Bare::start(
        &wrapper,
        &["demo", "-w", "2", "--log-file", "log"],
        Stdio::null(),
    );
    let path = server.directory.path().join("log");
    server.wait_for_workers(2);
    server.make_it_talk(10);
    let size = fs::metadata(&path).expect("it is there").len();
    assert!(size <= 1024, "{size}");
    fs::rename(&path, server.directory.path().join("old")).expect("it is there");
    server.signal(Signal::SIGUSR1);
    let line = wait_for_line(&path, " lines were lost: File too large");
    assert!(lost(&line) > 25, "{line}");
    wait_for_line(&path, "log file opened anew");
    assert!(server.stop().success());
}
