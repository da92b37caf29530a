//! Which program is started, and with what: arguments, directory, streams, log file, variables,
//! descriptors.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::harness::upgrade::{TOOK_OVER, install, install_script, master_in};
use crate::harness::{
    BATOND, Server, Setup, Watched, command, eventually, open_descriptors, process,
};

/// What /proc says of a process under this name.
fn link(pid: Pid, name: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/{name}"));
    link.expect("the process is there").display().to_string()
}

fn arguments(pid: Pid) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).expect("the process is there")
}

fn variables(pid: Pid) -> BTreeSet<String> {
    let text = fs::read(format!("/proc/{pid}/environ")).expect("the process is there");
    let text = String::from_utf8_lossy(&text).into_owned();
    let names = text.split('\0').filter_map(|one| one.split_once('='));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// What the processes of a server have open, by kind; the numbers in it mean nothing.
fn kinds(pid: Pid) -> Vec<String> {
    let open = open_descriptors(pid).into_values();
    let mut kinds: Vec<_> = open
        .map(|what| what.trim_end_matches(|c: char| c != '[').to_owned())
        .collect();
    kinds.sort();
    kinds
}

#[test]
fn it_is_started_as_the_old_one_was() {
    let mut server = Setup::new(&["demo", "-w", "2"])
        .environment("MARK", "1")
        .start();
    let first = server.master();
    let before = (arguments(first), link(first, "cwd"), link(first, "exe"));
    let streams = [0, 1, 2].map(|number| link(first, &format!("fd/{number}")));
    let kept = variables(first);
    for _ in 0..2 {
        server.upgrade();
        server.wait_for_former();
        let now = server.master();
        assert_eq!((arguments(now), link(now, "cwd"), link(now, "exe")), before);
        assert_eq!(
            [0, 1, 2].map(|number| link(now, &format!("fd/{number}"))),
            streams
        );
        let mut new = variables(now);
        // They are there, because /proc shows what it was started with, and are taken out before
        // the first worker starts.
        assert!(new.remove("BATOND_TAKEOVER"));
        assert!(new.remove("BATOND_TAKEOVER_VERSION"));
        assert_eq!(new, kept);
    }
}

#[test]
fn nothing_leaks_from_one_to_the_next() {
    let arguments = [
        "demo",
        "-w",
        "2",
        "--control",
        "control",
        "--log-file",
        "log",
    ];
    let setup = Setup::new(&arguments)
        .listen("127.0.0.1:0")
        .listen("unix:s.sock");
    // The harness learns from the log where it listens.
    let log = setup.directory().join("log");
    std::os::unix::fs::symlink("/dev/stderr", &log).expect("a link");
    let mut server = setup.start();
    let all = |server: &Server| {
        let mut all = vec![kinds(server.master())];
        all.extend(server.workers(2).iter().map(|worker| kinds(worker.pid)));
        all
    };
    let before = all(&server);
    for _ in 0..3 {
        server.upgrade();
        server.wait_for_former();
        eventually("the descriptors are those of before", || {
            all(&server) == before
        });
    }
    // Workers have neither listeners nor the session, nor anything of another worker.
    let [first, second] = server.workers(2)[..] else {
        unreachable!("there are two")
    };
    let open = |pid| open_descriptors(pid).into_values().collect::<BTreeSet<_>>();
    let sockets = |pid| {
        open(pid)
            .into_iter()
            .filter(|what| what.starts_with("socket:"))
    };
    assert_eq!(sockets(first.pid).count(), 1);
    let shared = sockets(first.pid).filter(|what| open(second.pid).contains(what));
    assert_eq!(shared.count(), 0);
}

/// A process that is not left behind.
struct Ended(Watched);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.destroy();
    }
}

#[test]
fn a_log_file_is_gone_on_with() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let mut command = command(BATOND);
    command.args(["serve", "-w", "1", "-l", "127.0.0.1:0", "--log-file", "log"]);
    let mut child = command
        .current_dir(directory.path())
        .spawn()
        .expect("it starts");
    let old = Ended(Watched::new(Pid::from_raw(child.id().cast_signed())));
    let line_with = |words: &str| {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines()
            .find(|line| line.contains(words))
            .map(str::to_owned)
    };
    eventually("it serves", || line_with("listening on").is_some());
    process::signal(old.0.pid(), Signal::SIGUSR2);
    eventually("the new one serves", || {
        line_with("the takeover is complete").is_some()
    });
    let line = line_with(TOOK_OVER).expect("it has taken over");
    let new = Ended(Watched::new(master_in(&line)));
    assert!(child.wait().expect("it is our child").success());
    process::signal(new.0.pid(), Signal::SIGTERM);
    assert_eq!(new.0.reap_orphan(), WaitStatus::Exited(new.0.pid(), 0));
}

/// A server whose workers can be told apart by what runs it.
#[track_caller]
fn upgrade_to_another_copy(setup: Setup, program: &Path) {
    let mut server = setup.start();
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    for _ in 0..2 {
        let old = link(server.master(), "exe");
        assert_eq!(Path::new(&old), program);
        install(program);
        assert_eq!(link(server.master(), "exe"), format!("{old} (deleted)"));
        server.upgrade();
        server.wait_for_former();
        assert_eq!(link(server.master(), "exe"), old);
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn a_program_that_was_replaced_is_the_one_that_runs() {
    let setup = Setup::new(&["demo", "-w", "1"]);
    let program = setup.directory().join("program");
    install(&program);
    upgrade_to_another_copy(setup.program(&program), &program);
}

#[test]
fn a_relative_path_is_where_it_was() {
    let setup = Setup::new(&["demo", "-w", "1"]);
    let program = setup.directory().join("program");
    install(&program);
    upgrade_to_another_copy(setup.program("./program"), &program);
}

#[test]
fn a_name_is_found_where_it_was() {
    let setup = Setup::new(&["demo", "-w", "1"]);
    let program = setup.directory().join("program");
    install(&program);
    let path = format!("{}:/usr/bin:/bin", setup.directory().display());
    let setup = setup.program("program").environment("PATH", &path);
    upgrade_to_another_copy(setup, &program);
}

#[test]
fn a_link_is_followed_anew() {
    let setup = Setup::new(&["demo", "-w", "1"]);
    let place = setup.directory().to_owned();
    for version in ["one", "two"] {
        install(&place.join(version));
    }
    std::os::unix::fs::symlink("one", place.join("current")).expect("a link");
    let mut server = setup.program(place.join("current")).start();
    assert_eq!(Path::new(&link(server.master(), "exe")), place.join("one"));
    std::os::unix::fs::symlink("two", place.join("next")).expect("a link");
    fs::rename(place.join("next"), place.join("current")).expect("a rename");
    server.upgrade();
    assert_eq!(Path::new(&link(server.master(), "exe")), place.join("two"));
}

#[test]
fn a_script_may_stand_before_the_program() {
    let setup = Setup::new(&["demo", "-w", "1"]);
    let program = setup.directory().join("program");
    install_script(&program, &format!("exec {} \"$@\"", BATOND));
    let mut server = setup.program(&program).start();
    // It is the program that runs, which knows nothing of the script.
    server.upgrade();
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn the_variable_means_nothing_to_others() {
    for value in ["", "9", "x y", "3 1", "0 1", "5 99999999999", "-1 -1"] {
        let server = Setup::new(&["demo", "-w", "1"])
            .environment("BATOND_TAKEOVER", value)
            .start();
        assert_eq!(server.get("/").status, 200);
    }
}
