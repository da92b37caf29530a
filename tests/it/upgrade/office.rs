//! Where a master is found: the control socket and the pid file, before, through and after a change
//! of masters.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::failures::Undisturbed;
use crate::config::TOO_LONG;
use crate::harness::client::Served;
use crate::harness::skip::{lacks, lacks_root};
use crate::harness::upgrade::TOOK_OVER;
use crate::harness::{BATOND, DEADLINE, Server, Setup, Watched, command, finish};

const PLACES: [&str; 4] = ["--control", "control", "--pid-file", "pid"];

fn start(arguments: &[&str]) -> Server {
    Setup::new(&[&["demo", "-w", "2"], &PLACES[..], arguments].concat()).start()
}

#[track_caller]
fn named_in_pid_file(directory: &Path) -> Pid {
    let text = fs::read_to_string(directory.join("pid")).expect("it is there");
    let number = text.strip_suffix('\n').expect("a whole line");
    Pid::from_raw(number.parse().expect("a pid"))
}

/// `batond serve` with these arguments in the directory of a server, to be waited for.
fn serve(server: &Server, arguments: &[&str]) -> Command {
    let mut command = command(BATOND);
    command.arg("serve").args(arguments);
    command.current_dir(server.directory());
    command
}

/// Takes over by hand: another program, with other arguments.
#[track_caller]
fn take_over(server: &mut Server, arguments: &[&str]) {
    let count = server.log_lines(TOOK_OVER).len() + 1;
    let arguments = [&["demo", "-w", "2", "--takeover", "control"], arguments].concat();
    let mut command = serve(server, &arguments);
    let child: Child = server.spawn_beside(&mut command);
    server.wait_for_lines(TOOK_OVER, count);
    let process = Watched::new(Pid::from_raw(child.id().cast_signed()));
    server.follow_child(process, Some(child));
}

#[test]
fn the_files_are_the_last_master_s_and_go_with_it() {
    let mut server = start(&[]);
    let directory = server.directory().to_owned();
    let control = directory.join("control");
    for _ in 0..2 {
        let metadata = control.metadata().expect("it is there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(named_in_pid_file(&directory), server.master());
        server.upgrade();
        server.wait_for_former();
        let inode = |path: &Path| path.metadata().expect("it is there").ino();
        assert_ne!(inode(&control), metadata.ino());
        assert_eq!(named_in_pid_file(&directory), server.master());
    }
    let names = fs::read_dir(&directory).expect("a directory");
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["control", "pid"]);
    assert!(server.stop().success());
    assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 0);
}

#[test]
fn whoever_asks_takes_over() {
    let mut server = start(&[]);
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    for turn in 2..4 {
        take_over(&mut server, &[&["-l", "127.0.0.1:0"], &PLACES[..]].concat());
        server.wait_for_former();
        let served = Served::of(&client.get("/"));
        assert_eq!(
            (served.turn, served.master),
            (turn, server.master().as_raw())
        );
        assert_eq!(named_in_pid_file(server.directory()), server.master());
    }
    // One that was started like that can start its successor itself, with the same arguments.
    server.upgrade();
    assert_eq!(Served::of(&client.get("/")).turn, 4);
}

#[test]
fn a_stale_control_socket_is_replaced_and_a_live_one_is_not() {
    let server = start(&[]);
    let arguments = ["-l", "127.0.0.1:0", "--control", "control"];
    let finished = finish(serve(&server, &arguments));
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(
        finished.stderr,
        "batond: cannot listen on control socket control: another master listens there; take over from it with \
         --takeover"
    );
    // That was no attempt to take over.
    let mut undisturbed = server.connect();
    assert_eq!(
        Served::of(&undisturbed.get("/")).master,
        server.master().as_raw()
    );

    let setup = Setup::new(&["demo", "-w", "1", "--control", "control"]);
    let stale = setup.directory().join("control");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("a socket"));
    let mut other = setup.start();
    other.upgrade();
}

#[test]
fn what_another_server_has_is_an_error_before_the_takeover() {
    let mut other = start(&[]);
    let place = other.directory().join("control");
    let place = place.to_str().expect("it is text");
    let setup = Setup::new(&["demo", "-w", "2", "--control", "control"]);
    let mut undisturbed = Undisturbed::start(setup.expect("takeover failed"));
    let long = "n".repeat(120);
    for (place, why) in [
        (place, "another process has a socket there"),
        (&long, TOO_LONG),
    ] {
        let arguments = ["demo", "-l", "127.0.0.1:0", "--takeover", "control"];
        let arguments = [&arguments[..], &["--control", place]].concat();
        let finished = finish(serve(&undisturbed.server, &arguments));
        assert_eq!(finished.status.code(), Some(1));
        let line = format!("batond: cannot listen on control socket {place}: {why}");
        assert_eq!(finished.stderr.lines().last(), Some(&*line));
        undisturbed.failed("the new master is gone");
    }
    let pid_file = other.directory().join("pid");
    let pid_file = pid_file.to_str().expect("it is text");
    let arguments = ["demo", "-l", "127.0.0.1:0", "--takeover", "control"];
    let arguments = [&arguments[..], &["--pid-file", pid_file]].concat();
    let finished = finish(serve(&undisturbed.server, &arguments));
    assert_eq!(finished.status.code(), Some(1));
    let master = other.master();
    let line =
        format!("batond: cannot write pid file {pid_file}: the server with pid {master} has it");
    assert_eq!(finished.stderr.lines().last(), Some(&*line));
    undisturbed.failed("the new master is gone");
    undisturbed.upgrade();
    take_over(&mut other, &[&["-l", "127.0.0.1:0"], &PLACES[..]].concat());
}

#[test]
fn nobody_else_may_ask() {
    if lacks_root() || lacks("python3") {
        return;
    }
    let setup = Setup::new(&["demo", "-w", "1", "--control", "control"]);
    let server = setup.expect("control socket: refused process").start();
    let script = "import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    s.connect(sys.argv[1])
    print('heard', s.recv(100))
except OSError as error:
    print(type(error).__name__)";
    let path = server.directory().join("control");
    let ask = || {
        let mut command = command("python3");
        command.args(["-c", script]).arg(&path).current_dir("/");
        command.uid(65534).gid(65534);
        finish(command).stdout
    };
    let open = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode));
    open(server.directory(), 0o755).expect("it is ours");
    assert_eq!(ask(), "PermissionError");
    // Even if somebody opens it to all.
    open(&path, 0o666).expect("it is ours");
    assert_eq!(ask(), "heard b''");
    server.wait_for_log("of user 65534");
    assert!(!server.log_contains("takeover"));
    let watched = Watched::new(server.master());
    assert!(!watched.wait(DEADLINE / 100));
}

#[test]
fn a_reload_makes_files_anew_that_were_removed_also_if_it_is_refused() {
    let file = "[[pool]]\nservice = 'demo'\nworkers = 2\nlisten = '127.0.0.1:0'\n";
    let setup = Setup::new(&PLACES).file(file, 1).expect("making it anew");
    let mut server = setup.expect("reload refused").start();
    let directory = server.directory().to_owned();
    for (text, outcome) in [(file, "reloaded"), ("[[poll]]", "reload refused")] {
        fs::remove_file(directory.join("pid")).expect("it is there");
        fs::remove_file(directory.join("control")).expect("it is there");
        fs::write(directory.join("batond.toml"), text).expect("a file");
        server.signal(Signal::SIGHUP);
        server.wait_for_log(outcome);
        assert_eq!(named_in_pid_file(&directory), server.master());
    }
    take_over(&mut server, &[&["-l", "127.0.0.1:0"], &PLACES[..]].concat());
}

#[test]
fn whatever_the_umask_is_others_may_read_the_pid_file() {
    let setup = Setup::new(&[&["demo", "-w", "1"], &PLACES[..]].concat());
    let server = setup
        .under(&["sh", "-c", "umask 077; \"$@\"; exit $?", "sh"])
        .start();
    let mode = |name| {
        let metadata = server.directory().join(name).metadata();
        metadata.expect("it is there").permissions().mode() & 0o777
    };
    assert_eq!((mode("pid"), mode("control")), (0o644, 0o600));
}
