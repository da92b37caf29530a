//! What the kernel gives out in limited number, and what an operator is told when it runs out.

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::harness::session::Session;
use crate::harness::skip::lacks_root;
use crate::harness::{BATOND, Setup, command, eventually, finish, run};
use crate::recycle::fragile_in;

#[test]
fn a_limit_of_open_files_that_serves_nobody_is_refused_with_the_numbers() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let with_limit = |count: usize, arguments: &[&str]| {
        let script = format!("ulimit -n {count}; exec \"$0\" \"$@\"");
        let mut command = command("sh");
        command.args(["-c", &script, BATOND]).args(arguments);
        command.current_dir(directory.path());
        finish(command)
    };
    let arguments = ["-w", "4", "-l", "127.0.0.1:0"];
    for name in ["serve", "check"] {
        let finished = with_limit(20, &[&[name], &arguments[..]].concat());
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        let expected = "batond: cannot serve with 4 workers and 20 open files: they need ";
        assert!(finished.stderr.starts_with(expected), "{finished:?}");
        assert!(finished.stderr.contains("RLIMIT_NOFILE"), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
    }
    let finished = with_limit(1000, &[&["check"], &arguments[..]].concat());
    assert!(finished.status.success(), "{finished:?}");
}

#[test]
fn a_reload_that_needs_too_many_open_files_is_refused() {
    let file = |workers| {
        format!("[[pool]]\nservice = 'demo'\nlisten = '127.0.0.1:0'\nworkers = {workers}\n")
    };
    let setup = Setup::new(&[]).file(&file(2), 1).descriptor_limit(60);
    let server = setup.expect("reload refused").start();
    server.workers(2);
    std::fs::write(server.directory().join("batond.toml"), file(40)).expect("it is ours");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reload refused: cannot serve with 40 workers and 60 open files");
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn descriptors_in_flight_of_a_neighbour_are_told_and_it_lends_again_afterwards() {
    // Who may do everything has no limit. (Without being root nobody has these capabilities
    // anyway.)
    let without = match Uid::effective().is_root() {
        true => "setpriv --bounding-set -sys_resource,-sys_admin ",
        false => "",
    };
    let script = format!("ulimit -n 256; {without}\"$@\"; exit $?");
    let setup = Setup::example(
        "fragile",
        &["--mood", "mood", "-w", "2", "--queue-wait", "500"],
    );
    let setup = setup.under(&["sh", "-c", &script, "sh"]).expect(" lend");
    let (server, _) = fragile_in(setup);
    let workers = server.workers(2);
    assert_eq!(server.get("/flood").status, 200);
    assert_eq!(server.get("/").status, 503);
    let line = server.wait_for_log("lending: cannot lend connections to workers");
    assert!(
        line.contains("Too many descriptors of this user are in flight"),
        "{line}"
    );
    assert_eq!(server.get("/").status, 503);
    for worker in workers {
        server.kill(worker);
    }
    eventually("it lends again", || server.get("/").status == 200);
    assert_eq!(server.log_lines("cannot lend").len(), 1);
}

#[test]
fn a_second_takeover_is_told_why_it_is_refused() {
    let setup = Setup::new(&["demo", "-w", "1", "--control", "control"]);
    let setup = setup.expect("takeover refused");
    let mut server = setup.expect("takeover failed").start();
    server.workers(1);
    // The first one: a program that has asked, and says nothing more for a while.
    let first = Session::connect(&server.directory().join("control"));
    first.say("TAKEOVER 3\n");
    let _offered = first.hear();
    let listen = server.endpoint().tcp().to_string();
    let arguments = ["serve", "-w", "1", "-l", &listen, "--takeover", "control"];
    for _ in 0..10 {
        let finished = run(server.directory(), &arguments);
        assert_eq!(
            finished.stderr,
            "batond: cannot take over at control: the old master refuses: another one is under way"
        );
    }
    drop(first);
    server.wait_for_log("takeover failed: the new master is gone");
    server.stop();
}

#[test]
fn a_limit_of_processes_is_named_and_told_once_for_all_workers() {
    // Only root may become a user that has no other process.
    if lacks_root() {
        return;
    }
    let script = "prlimit --nproc=3:10 setpriv --reuid 64123 --clear-groups \"$@\"; exit $?";
    let setup = Setup::new(&["demo", "-w", "5"]).under(&["sh", "-c", script, "sh"]);
    let server = setup.expect("cannot start a worker").start();
    server.workers(2);
    let line = server.wait_for_log("cannot start a worker for slot 2 and 2 others of pool main: ");
    for words in [
        "no more processes",
        "RLIMIT_NPROC",
        "pids.max",
        "; trying again",
    ] {
        assert!(line.contains(words), "{line}");
    }
    assert_eq!(server.get("/").status, 200);
    let mut raise = command("setpriv");
    raise.args(["--reuid", "64123", "--clear-groups", "prlimit"]);
    raise.args([&format!("--pid={}", server.master()), "--nproc=10:10"]);
    let raised = finish(raise);
    assert!(raised.status.success(), "{raised:?}");
    server.workers(5);
}

#[test]
fn an_accept_that_goes_on_failing_is_told_of_and_paused() {
    // The first is what who forbids it says; the other one is of a connection, once.
    for errno in [Errno::EPERM, Errno::ECONNABORTED] {
        let setup = Setup::new(&["demo", "-w", "1"]).expect("cannot accept on 127.0.0.1:");
        let mut server = setup.start_without(libc::SYS_accept4, errno);
        let _client = server.connect();
        let line = server.wait_for_log("cannot accept on 127.0.0.1:");
        let why = format!("{}; pausing", errno.desc());
        assert!(line.ends_with(&why), "{line}");
        assert!(server.stop().success());
    }
}
