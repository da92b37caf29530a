//! What a reload has to look up is looked up by another process: whatever does not answer there
//! (a name server, a FIFO) holds up neither clients nor signals.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::harness::process::{self, eventually};
use crate::harness::skip::{lacks, skip};
use crate::harness::{Server, Setup, Worker};

const FILE: &str = "batond.toml";

fn pool(listen: &str) -> String {
    format!("[[pool]]\nname = 'web'\nservice = 'demo'\nworkers = 2\nlisten = [{listen}]\n")
}

/// Puts a FIFO that nobody writes in the place of a file.
#[track_caller]
fn replace_by_fifo(path: &Path) {
    fs::remove_file(path).expect("it is there");
    mkfifo(path, Mode::S_IRWXU).expect("a FIFO");
}

/// A network of its own, in which a name server takes questions and answers none.
const SILENT_RESOLVER: [&str; 7] = [
    "unshare",
    "-n",
    "-m",
    "sh",
    "-c",
    "ip link set lo up && mount --bind resolv.conf /etc/resolv.conf && exec python3 -c '
import socket, subprocess, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((\"127.0.0.1\", 53))
sys.exit(subprocess.call(sys.argv[1:]))' \"$@\"",
    "sh",
];

/// A server whose resolver waits for so many seconds; nothing where this user can't have one.
fn with_silent_resolver(seconds: u32) -> Option<Server> {
    if lacks("unshare") || lacks("ip") {
        return None;
    }
    let mut possible = Command::new("unshare");
    possible.args(["-n", "-m", "ip", "link", "set", "lo", "up"]);
    let possible = possible.stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        skip("this user can't have a network of its own");
        return None;
    }
    let setup = Setup::new(&[]).file(&pool("'unix:s.sock'"), 1);
    let resolver = format!("nameserver 127.0.0.1\noptions timeout:{seconds} attempts:1\n");
    fs::write(setup.directory().join("resolv.conf"), resolver).expect("a file");
    let setup = setup.under(&SILENT_RESOLVER).expect("reload refused");
    let server = setup.start();
    let listen = "'unix:s.sock', 'silent.example:8080'";
    fs::write(server.directory().join(FILE), pool(listen)).expect("a file");
    Some(server)
}

/// The child that asks the resolver, which comes after a SIGHUP.
#[track_caller]
fn planner(server: &Server, workers: &[Worker]) -> Pid {
    let mut planner = None;
    eventually("somebody asks the resolver", || {
        let children = process::children(server.master()).0;
        let is_worker = |pid: &Pid| workers.iter().any(|worker| worker.pid == *pid);
        planner = children.into_iter().find(|child| !is_worker(child));
        planner.is_some()
    });
    planner.expect("it was found")
}

#[test]
fn clients_do_not_wait_for_a_resolver() {
    let Some(server) = with_silent_resolver(2) else {
        return;
    };
    let workers = server.workers(2);
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    server.signal(Signal::SIGHUP);
    let (mut longest, mut count) = (Duration::ZERO, 0);
    let begin = Instant::now();
    while !server.log_contains("reload refused") && begin.elapsed() < Duration::from_secs(20) {
        let begin = Instant::now();
        assert_eq!(client.get("/").status, 200);
        longest = longest.max(begin.elapsed());
        count += 1;
    }
    let line = server.wait_for_log("reload refused");
    assert!(line.contains("listen on silent.example:8080: "), "{line}");
    assert!(begin.elapsed() > Duration::from_secs(1), "it was asked");
    assert!(count > 20, "{count} requests");
    assert!(longest < Duration::from_millis(1500), "{longest:?}");
    assert_eq!(server.workers(2), workers);
}

#[test]
fn a_stop_does_not_wait_for_a_resolver() {
    let Some(mut server) = with_silent_resolver(30) else {
        return;
    };
    server.workers(2);
    let children = || process::children(server.master()).0.len();
    server.signal(Signal::SIGHUP);
    eventually("somebody asks the resolver", || children() == 3);
    let begin = Instant::now();
    assert!(server.stop().success());
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_quit_reaps_who_waits_for_a_resolver() {
    let Some(mut server) = with_silent_resolver(30) else {
        return;
    };
    let workers = server.workers(2);
    server.signal(Signal::SIGHUP);
    let planner = planner(&server, &workers);
    assert!(server.stop_by(Signal::SIGQUIT).success());
    assert!(server.log_contains("giving up the reload under way: the server stops"));
    assert_eq!(process::stat(planner), None);
}

#[test]
fn the_next_reload_does_not_wait_for_the_one_before() {
    let Some(server) = with_silent_resolver(30) else {
        return;
    };
    server.signal(Signal::SIGHUP);
    let children = || process::children(server.master()).0.len();
    eventually("somebody asks the resolver", || children() == 3);
    fs::write(server.directory().join(FILE), pool("'unix:s.sock'")).expect("a file");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("giving up the reload under way: another one begins");
    server.wait_for_log("reloaded");
    eventually("nobody asks any more", || children() == 2);
}

#[test]
fn a_configuration_that_has_become_a_fifo_is_not_waited_for() {
    let setup = Setup::new(&[]).file(&pool("'127.0.0.1:0'"), 1);
    let server = setup.expect("reload refused").start();
    replace_by_fifo(&server.directory().join(FILE));
    server.signal(Signal::SIGHUP);
    let line = server.wait_for_log("reload refused");
    assert!(
        line.ends_with(
            "cannot read batond.toml: it is not a regular file, and can be read at the start \
             only; nothing has changed"
        ),
        "{line}"
    );
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_configuration_from_a_pipe_is_read_once() {
    let script = "cat text | \"$@\" -c /dev/stdin; exit $?";
    let setup = Setup::new(&[]).under(&["bash", "-c", script, "bash"]);
    let setup = setup.expect("reload refused");
    fs::write(setup.directory().join("text"), pool("'127.0.0.1:0'")).expect("a file");
    let server = setup.start();
    server.workers(2);
    assert_eq!(server.get("/").status, 200);
    server.signal(Signal::SIGHUP);
    let line = server.wait_for_log("reload refused");
    assert!(
        line.contains("cannot read /dev/stdin: it is not a regular file"),
        "{line}"
    );
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn what_cannot_be_passed_on_to_the_master_refuses_the_reload_and_says_why() {
    let setup = Setup::new(&[]).file(&pool("'127.0.0.1:0'"), 1);
    let setup = setup.expect("reload refused");
    // The record of the look-ups is in such a file.
    let server = setup.start_without(libc::SYS_memfd_create, Errno::EPERM);
    server.signal(Signal::SIGHUP);
    let line = server.wait_for_log("reload refused");
    let why = "cannot pass on what the configuration says: Operation not permitted";
    assert!(line.contains(why), "{line}");
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_planner_that_dies_refuses_the_reload() {
    let Some(server) = with_silent_resolver(30) else {
        return;
    };
    let workers = server.workers(2);
    server.signal(Signal::SIGHUP);
    let planner = planner(&server, &workers);
    process::signal(planner, Signal::SIGKILL);
    let line = server.wait_for_log("reload refused");
    let why = "the process that reads the configuration killed by SIGKILL; nothing has changed";
    assert!(line.ends_with(why), "{line}");
    assert_eq!(server.get("/").status, 200);
}
