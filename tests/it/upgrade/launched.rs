//! How the new program is started: as whose child, which file, and when not at all.

use std::fs;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::client::Served;
use crate::harness::skip::lacks_root;
use crate::harness::systemd::Manager;
use crate::harness::upgrade::{STARTED, install};
use crate::harness::{
    BATOND, DEADLINE, Setup, Watched, begin_sleep, command, eventually, field, finish, process,
};

fn parent(pid: Pid) -> Pid {
    process::stat(pid).expect("it is there").parent
}

#[test]
fn the_new_master_is_the_manager_s_own_child_when_that_hears_of_it() {
    let manager = Manager::new(0);
    let mut server = manager.manage(Setup::new(&["demo", "-w", "2"])).start();
    let old = server.master();
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 1000, &workers);
    server.signal(Signal::SIGUSR2);
    let line = server.wait_for_log(STARTED);
    let new = Pid::from_raw(field(&line, "pid"));
    manager.wait_for(&format!("MAINPID={new}"));
    // The process of the test reaps for the manager that it plays. The old master is still there.
    assert_eq!(parent(new), Pid::this());
    assert!(process::is_alive(old));
    let others = process::children(old);
    assert_eq!(
        (others.0.len(), others.1.len()),
        (2, 0),
        "the workers alone"
    );
    server.follow(new);
    assert_eq!(sleeper.reply().status, 200);
    server.wait_for_former();
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_main_process_that_stops_ends_after_the_old_master() {
    let manager = Manager::new(0);
    let mut server = manager.manage(Setup::new(&["demo", "-w", "2"])).start();
    let workers = server.workers(2);
    let former: Vec<_> = workers
        .iter()
        .map(|worker| Watched::new(worker.pid))
        .collect();
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, 1500, &workers);
    server.signal(Signal::SIGUSR2);
    let line = server.wait_for_log(STARTED);
    let new = Watched::new(Pid::from_raw(field(&line, "pid")));
    server.wait_for_log("handed over");
    // As a manager does that stops the service: a signal to the main process, and SIGKILL to the
    // others as soon as that has ended. (The old master itself may be about to exit.)
    process::signal(new.pid(), Signal::SIGTERM);
    assert!(new.wait(DEADLINE));
    former.iter().for_each(Watched::destroy);
    assert_eq!(sleeper.reply().status, 200);
    assert!(server.wait().success());
}

#[test]
fn a_launcher_that_is_killed_ends_the_takeover_and_leaves_nobody_behind() {
    let setup = Setup::example("fragile", &["--mood", "mood", "-w", "2"]);
    let setup = setup.expect("takeover failed").expect(" died ");
    let mood = setup.directory().join("mood");
    let server = setup.start();
    let workers = server.workers(2);
    fs::write(&mood, "hang").expect("a file");
    server.signal(Signal::SIGUSR2);
    let line = server.wait_for_log(STARTED);
    let new = Pid::from_raw(field(&line, "pid"));
    eventually("the new master has workers", || {
        process::children(new).0.len() == 2
    });
    let launcher = parent(new);
    assert_eq!(parent(launcher), server.master());
    process::signal(launcher, Signal::SIGKILL);
    let line = server.wait_for_log("takeover failed: ");
    assert!(line.contains("its launcher killed by SIGKILL"), "{line}");
    eventually("the new master has ended", || !process::is_alive(new));
    assert_eq!(server.workers(2), workers);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_launcher_that_cannot_start_the_program_is_reaped() {
    if lacks_root() {
        return;
    }
    // There is room for the launcher, and for nothing else.
    let script = "prlimit --nproc=4:10 setpriv --reuid 64124 --clear-groups \"$@\"; exit $?";
    let setup = Setup::new(&["demo", "-w", "2"]).under(&["sh", "-c", script, "sh"]);
    let server = setup.expect("upgrade refused: cannot start").start();
    let workers = server.workers(2);
    server.signal(Signal::SIGUSR2);
    server.wait_for_log("upgrade refused: cannot start");
    let pids = workers.iter().map(|worker| worker.pid).collect();
    let left = (pids, Vec::new());
    eventually("nothing else is left", || {
        process::children(server.master()) == left
    });
}

#[test]
fn a_name_among_the_arguments_is_not_the_program() {
    let script = "import subprocess, sys
sys.exit(subprocess.call(['sh'] + sys.argv[2:], executable=sys.argv[1]))";
    let setup = Setup::new(&["demo", "-w", "1"]).under(&["python3", "-c", script]);
    let mut server = setup.start();
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    server.upgrade();
    let exe = fs::read_link(format!("/proc/{}/exe", server.master()));
    let ours = fs::canonicalize(BATOND).expect("it is there");
    assert_eq!(exe.expect("it is there"), ours);
    server.wait_for_former();
    assert_eq!(Served::of(&client.get("/")).turn, 2);
}

#[test]
fn a_text_without_a_header_is_not_given_to_a_shell() {
    let setup = Setup::new(&["demo", "-w", "1"]);
    let program = setup.directory().join("program");
    install(&program);
    let setup = setup.program(&program);
    let setup = setup.expect("takeover failed").expect("cannot execute");
    let mut server = setup.start();
    let text = server.directory().join("text");
    fs::write(&text, "touch ran\nexec sleep 1000\n").expect("a file");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&text, executable).expect("it is ours");
    fs::rename(&text, &program).expect("a rename");
    server.signal(Signal::SIGUSR2);
    let line = server.wait_for_log("cannot execute ");
    assert!(line.ends_with("/program: Exec format error"), "{line}");
    let line = server.wait_for_log("takeover failed: ");
    assert!(line.contains("exited with status 127"), "{line}");
    assert!(!server.directory().join("ran").exists());
    install(&program);
    server.upgrade();
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn process_1_of_a_container_is_not_replaced_by_a_process_in_it() {
    if lacks_root() {
        return;
    }
    let setup = Setup::new(&["demo", "-w", "1", "--control", "control"]);
    let setup = setup.under(&["unshare", "--pid", "--fork", "--kill-child"]);
    let setup = setup.expect("upgrade refused").expect("takeover refused");
    let mut server = setup.start();
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    for count in 1..3 {
        server.signal(Signal::SIGUSR2);
        let lines = server.wait_for_lines("upgrade refused: this master is process 1", count);
        assert!(lines[0].contains(" WARN "), "{lines:?}");
    }
    assert_eq!(Served::of(&client.get("/")).turn, 2);
    assert!(server.log_lines(STARTED).is_empty());
    // Nor by one that somebody starts in it.
    let mut inside = command("nsenter");
    let target = server.master().to_string();
    inside.args(["--target", &target, "--pid", "--", BATOND, "serve", "demo"]);
    inside.args(["-l", "127.0.0.1:0", "--takeover", "control"]);
    inside.current_dir(server.directory());
    let finished = finish(inside);
    assert_eq!(finished.status.code(), Some(1));
    server.wait_for_log("takeover refused: this master is process 1");
    assert_eq!(Served::of(&client.get("/")).turn, 3);
    assert!(server.stop().success());
}

#[test]
fn the_program_is_found_without_proc() {
    if lacks_root() {
        return;
    }
    let script = "mount -t tmpfs none /proc && \"$@\"; exit $?";
    let setup = Setup::new(&["demo", "-w", "1"]);
    let setup = setup.under(&["unshare", "--mount", "sh", "-c", script, "sh"]);
    // Without it, nobody knows what a directory is on.
    let mut server = setup.expect("keeping in memory").start();
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    server.upgrade();
    server.wait_for_former();
    assert_eq!(Served::of(&client.get("/")).turn, 2);
}
