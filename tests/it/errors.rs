//! Bad input gets one clear line and an exit code: 2 for a command line that means nothing, 1 for
//! what turns out when it is carried out. Never a panic.

use std::net::TcpListener;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use tempfile::TempDir;

use crate::harness::{Finished, Setup, refuse_call, run};

fn scratch() -> TempDir {
    TempDir::new().expect("a temporary directory")
}

/// Runs a command that must fail with `code`, and say all of `words` in its first line.
#[track_caller]
fn fails(directory: &Path, arguments: &[&str], code: i32, words: &[&str]) -> Finished {
    let finished = run(directory, arguments);
    assert_eq!(
        finished.status.code(),
        Some(code),
        "{arguments:?}: {finished:?}"
    );
    assert_eq!(finished.stdout, "", "{arguments:?}");
    let first = finished.stderr.lines().next().unwrap_or_default();
    for word in words {
        assert!(
            first.contains(word),
            "{arguments:?}: no {word:?} in {first:?}"
        );
    }
    let lines = finished
        .stderr
        .lines()
        .filter(|line| !line.is_empty())
        .count();
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
    // After a usage error there may be a hint; an error of the system is one line.
    assert!(
        lines == 1 || code == 2 && lines <= 6,
        "{arguments:?}: {finished:?}"
    );
    finished
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let directory = scratch();
    let arguments = ["serve", "demo", "-w", "1", "-l", &address];
    fails(
        directory.path(),
        &arguments,
        1,
        &["listen", &address, "Address already in use"],
    );
    // Nor does it keep what it had bound before it failed.
    let arguments = [
        "serve",
        "demo",
        "-w",
        "1",
        "-l",
        "unix:first.sock",
        "-l",
        &address,
    ];
    fails(
        directory.path(),
        &arguments,
        1,
        &["listen", &address, "Address already in use"],
    );
    assert!(!directory.path().join("first.sock").exists());
}

#[test]
fn a_command_line_that_makes_no_sense_as_a_whole_gets_the_usage_of_its_command() {
    let directory = scratch();
    for command in ["serve", "check"] {
        for (words, reason) in [
            (&["http"][..], "http needs the directory"),
            (&["demo", "x"], "unexpected argument 'x': only http has one"),
            (&["-w", "3", "--max-workers", "2"], "2 is less than workers"),
        ] {
            let arguments = [&[command], words].concat();
            let finished = fails(directory.path(), &arguments, 2, &[reason]);
            let usage = format!("Usage: batond {command} [OPTIONS]");
            assert!(finished.stderr.contains(&usage), "{finished:?}");
        }
        let meant = format!("did you mean 'batond {command} http ./www'?");
        fails(directory.path(), &[command, "./www"], 2, &[&meant]);
    }
}

#[test]
fn a_port_that_another_server_has() {
    let server = Setup::new(&["demo", "-w", "1"]).start();
    let address = server.endpoint().tcp().to_string();
    let arguments = ["serve", "demo", "-w", "1", "-l", &address];
    fails(
        server.directory(),
        &arguments,
        1,
        &["listen", &address, "Address already in use"],
    );
    assert_eq!(server.get("/").status, 200);
}

/// Else it would try again without end.
#[test]
fn a_kernel_or_a_sandbox_that_does_not_let_wait_for_events() {
    let directory = scratch();
    for (errno, why) in [
        (Errno::ENOSYS, "Function not implemented"),
        (Errno::EPERM, "Operation not permitted"),
    ] {
        thread::scope(|scope| {
            scope.spawn(|| {
                refuse_call(libc::SYS_epoll_pwait2, errno);
                let arguments = ["serve", "demo", "-w", "1", "-l", "unix:socket"];
                let words = ["cannot wait for events with epoll_pwait2(2): ", why];
                fails(directory.path(), &arguments, 1, &words);
            });
        });
        assert!(!directory.path().join("socket").exists());
    }
}

#[test]
fn a_kernel_or_a_sandbox_without_memory_that_is_empty_after_a_fork() {
    let directory = scratch();
    thread::scope(|scope| {
        scope.spawn(|| {
            refuse_call(libc::SYS_madvise, Errno::EINVAL);
            for name in ["check", "serve"] {
                let arguments = [name, "demo", "-w", "1", "-l", "127.0.0.1:0"];
                let words = ["(madvise(2), MADV_WIPEONFORK): Invalid argument"];
                fails(directory.path(), &arguments, 1, &words);
            }
        });
    });
}

#[test]
fn a_socket_path_that_is_taken() {
    let server = Setup::new(&["demo", "-w", "1"])
        .listen("unix:taken.sock")
        .start();
    let arguments = ["serve", "demo", "-w", "1", "-l", "unix:taken.sock"];
    fails(server.directory(), &arguments, 1, &["taken.sock"]);
    assert_eq!(server.get("/").status, 200);
    // What is no socket is not replaced by one.
    std::fs::write(server.directory().join("precious"), "text").expect("a file");
    let arguments = ["serve", "demo", "-w", "1", "-l", "unix:precious"];
    fails(server.directory(), &arguments, 1, &["precious"]);
    let kept = std::fs::read_to_string(server.directory().join("precious"));
    assert_eq!(kept.expect("it is still there"), "text");
}

#[test]
fn an_address_of_another_machine() {
    // TEST-NET-1 of RFC 5737: no machine has it.
    let arguments = ["serve", "demo", "-w", "1", "-l", "192.0.2.1:0"];
    fails(scratch().path(), &arguments, 1, &["listen", "192.0.2.1"]);
}

#[test]
fn a_missing_directory() {
    let directory = scratch();
    let listen = ["-w", "1", "-l", "127.0.0.1:0"];
    let arguments = [&["serve", "http", "no-such-directory"], &listen[..]].concat();
    fails(
        directory.path(),
        &arguments,
        1,
        &["no-such-directory", "No such file or directory"],
    );
    std::fs::write(directory.path().join("file"), "").expect("a file");
    let arguments = [&["serve", "http", "file"], &listen[..]].concat();
    fails(
        directory.path(),
        &arguments,
        1,
        &["file", "Not a directory"],
    );
}

#[test]
fn a_command_line_that_means_nothing() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["serve", "nonsense"], &["nonsense"]),
        (&["nonsense"], &["nonsense"]),
        (&["serve", "demo", "-w", "0"], &["0"]),
        (&["serve", "demo", "-w", "-1"], &["-1"]),
        (&["serve", "demo", "-w", "many"], &["many"]),
        (&["serve", "demo", "-l", "nowhere"], &["nowhere"]),
        (&["serve", "demo", "-l", "127.0.0.1:99999"], &["99999"]),
        (&["serve", "demo", "-l", "127.0.0.1"], &["127.0.0.1"]),
        (&["serve", "demo", "-l", "unix:"], &["unix:"]),
        (&["serve", "demo", "-l", ""], &["''"]),
        (&["serve", "demo", "--grace", "soon"], &["soon"]),
        (
            &["serve", "demo", "--no-such-option"],
            &["--no-such-option"],
        ),
        (&["serve", "http"], &["http", "DIR"]),
        (&["serve", "--port", "80"], &["--port", "-l 127.0.0.1:80"]),
        (
            &["serve", "./www"],
            &["did you mean 'batond serve http ./www'?"],
        ),
    ];
    let directory = scratch();
    for (arguments, words) in cases {
        fails(directory.path(), arguments, 2, words);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let directory = scratch();
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["help"],
        &["help", "serve"],
        &["--version"],
    ] {
        let finished = run(directory.path(), arguments);
        assert!(finished.status.success(), "{finished:?}");
        assert_eq!(finished.stderr, "");
    }
    let version = run(directory.path(), &["--version"]).stdout;
    let rest = version.strip_prefix(concat!("batond ", env!("CARGO_PKG_VERSION")));
    let rest = rest.unwrap_or_else(|| panic!("{version}"));
    // Where git can tell, the commit follows.
    let commit = rest
        .strip_prefix(" (")
        .and_then(|rest| rest.strip_suffix(')'));
    let hex = |commit: &str| {
        commit
            .trim_end_matches('+')
            .bytes()
            .all(|c| c.is_ascii_hexdigit())
    };
    assert!(rest.is_empty() || commit.is_some_and(hex), "{version}");
    let help = run(directory.path(), &["serve", "--help"]).stdout;
    for name in ["echo", "demo", "http", "--listen", "--workers", "--grace"] {
        assert!(help.contains(name), "no {name} in\n{help}");
    }
}
