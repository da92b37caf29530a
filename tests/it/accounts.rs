//! Users and groups that are not there: in a user namespace that has few, and where there is no
//! user database.

use std::process::Command;

use nix::unistd::{getegid, geteuid};

use crate::harness::process::status;
use crate::harness::skip::{lacks, lacks_root, skip};
use crate::harness::{BATOND, Setup, command, finish};

/// A user namespace that has one user and one group: this one, as root.
const ALONE: [&str; 2] = ["-U", "-r"];

fn lacks_namespace(arguments: &[&str]) -> bool {
    if lacks("unshare") {
        return true;
    }
    let mut possible = Command::new("unshare");
    let possible = possible.args(arguments).args(["sh", "-c", ":"]).output();
    let lacks = !possible.is_ok_and(|output| output.status.success());
    if lacks {
        skip("this user can't have such a namespace");
    }
    lacks
}

#[test]
fn who_is_not_in_the_user_namespace_is_refused_by_check_and_by_serve() {
    if lacks_namespace(&ALONE) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let workers = "cannot run workers as user 54321: this user namespace has no such user";
    for (flags, why) in [
        (&["--user", "54321", "--group", "0"][..], workers),
        (
            &["--group", "54321"],
            "cannot give workers the groups 54321: this user namespace has no group 54321",
        ),
        (
            &["--unix-owner", "54321"],
            "unix-owner: this user namespace has no user 54321",
        ),
        (
            &["--unix-group", "54321"],
            "unix-group: this user namespace has no group 54321",
        ),
    ] {
        for name in ["check", "serve"] {
            let mut command = command("unshare");
            command.args(ALONE).args([BATOND, name, "-l", "unix:s"]);
            command.args(flags).current_dir(directory.path());
            let finished = finish(command);
            assert_eq!(finished.status.code(), Some(1), "{finished:?}");
            assert!(finished.stderr.ends_with(why), "{finished:?}");
            assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        }
    }
    // Who is there serves.
    let own = ["--unix-owner", "0", "--unix-group", "0"];
    let setup = Setup::new(&[&["demo", "-w", "1"], &own[..]].concat());
    let setup =
        setup
            .listen("unix:s")
            .under(&["unshare", "-U", "-r", "sh", "-c", "\"$@\"; exit $?", "sh"]);
    assert_eq!(setup.start().get("/").status, 200);
}

#[test]
fn to_give_the_file_of_a_socket_away_takes_privileges() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let without = [
        "setpriv",
        "--bounding-set",
        "-chown",
        "--inh-caps",
        "-chown",
    ];
    if lacks("setpriv") {
        return;
    }
    let (user, group) = (geteuid().as_raw() + 1, getegid().as_raw() + 54321);
    for (key, id) in [("owner", user), ("group", group)] {
        for name in ["check", "serve"] {
            let mut command = match geteuid().is_root() {
                true => command(without[0]),
                false => command(BATOND),
            };
            if geteuid().is_root() {
                command.args(&without[1..]).arg(BATOND);
            }
            command.args([name, "-l", "unix:s", &format!("--unix-{key}")]);
            command.arg(id.to_string()).current_dir(directory.path());
            let finished = finish(command);
            assert_eq!(finished.status.code(), Some(1), "{finished:?}");
            let why = format!("unix-{key}: ");
            assert!(finished.stderr.contains(&why), "{finished:?}");
            assert!(finished.stderr.contains("takes root, "), "{finished:?}");
        }
    }
}

#[test]
fn numbers_need_no_user_database() {
    if lacks("mount") || lacks_root() || lacks_namespace(&["-m"]) {
        return;
    }
    let script = "mount -t tmpfs none /etc && \"$@\"; exit $?";
    let numbers = ["--user", "65534", "--group", "65533", "--unix-group", "5"];
    let setup = Setup::new(&[&["demo", "-w", "1"], &numbers[..]].concat());
    let setup = setup.under(&["unshare", "-m", "sh", "-c", script, "sh"]);
    // Whoever runs the tests may have left descriptors open.
    let server = setup.expect("workers have descriptors").start();
    let worker = server.workers(1)[0];
    assert!(status(worker.pid, "Uid").starts_with("65534"));
    assert_eq!(status(worker.pid, "Groups").trim(), "65533");
    assert_eq!(server.get("/").status, 200);
}
