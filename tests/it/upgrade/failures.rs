//! Upgrades that fail: the old master serves on, says why, and the next upgrade works.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::client::Served;
use crate::harness::skip::lacks;
use crate::harness::upgrade::{STARTED, TOOK_OVER, install, install_script, master_in};
use crate::harness::{
    Client, DEADLINE, Server, Setup, Watched, Worker, begin_sleep, eventually, field, process,
};

/// A server with a client that must not notice anything.
pub struct Undisturbed {
    pub server: Server,
    workers: Vec<Worker>,
    client: Client,
    turns: u64,
    failures: usize,
}

impl Undisturbed {
    /// Serves with two workers.
    #[track_caller]
    pub fn start(setup: Setup) -> Self {
        let server = setup.start();
        let workers = server.workers(2);
        let client = server.connect();
        let mut undisturbed = Self {
            server,
            workers,
            client,
            turns: 0,
            failures: 0,
        };
        undisturbed.check();
        undisturbed
    }

    /// The same workers serve the same client, and others.
    #[track_caller]
    pub fn check(&mut self) {
        assert_eq!(self.server.workers(2), self.workers);
        self.turns += 1;
        let pids = self.workers.iter().map(|worker| worker.pid.as_raw());
        let pids: Vec<_> = pids.collect();
        let served = Served::of(&self.client.get("/"));
        assert_eq!(served.turn, self.turns);
        assert!(pids.contains(&served.worker), "{served:?}");
        let served = Served::of(&self.server.get("/"));
        assert!(pids.contains(&served.worker), "{served:?}");
    }

    /// The server says once that a takeover has failed, and why; nothing else has come of it.
    #[track_caller]
    pub fn failed(&mut self, why: &str) {
        self.failures += 1;
        let count = self.failures;
        let line = self.server.wait_for_lines("takeover failed: ", count);
        assert!(line[count - 1].contains(why), "{line:?}");
        assert!(line[count - 1].ends_with("; this master serves on"));
        self.check();
        assert_eq!(self.server.log_lines("takeover failed").len(), count);
    }

    /// And now it works.
    #[track_caller]
    pub fn upgrade(mut self) {
        self.server.upgrade();
        // A worker of the old one may still have stayed with the client.
        self.server.wait_for_former();
        self.turns += 1;
        let served = Served::of(&self.client.get("/"));
        assert_eq!(served.turn, self.turns);
        assert!(
            self.workers
                .iter()
                .all(|old| old.pid.as_raw() != served.worker)
        );
    }
}

/// A server that runs a copy of the program, which can be replaced.
fn replaceable(arguments: &[&str]) -> (Setup, PathBuf) {
    let setup = Setup::new(arguments);
    let program = setup.directory().join("program");
    install(&program);
    (setup.program(&program).expect("takeover failed"), program)
}

/// An upgrade to what `replace` puts in place of the program fails for this reason, and one to the
/// program works.
#[track_caller]
fn fails(arguments: &[&str], replace: impl FnOnce(&Path), expected: &str, why: &str) {
    let (setup, program) = replaceable(&[&["demo", "-w", "2"], arguments].concat());
    let mut undisturbed = Undisturbed::start(setup.expect(expected));
    replace(&program);
    undisturbed.server.signal(Signal::SIGUSR2);
    undisturbed.failed(why);
    assert!(undisturbed.server.log_contains(expected));
    undisturbed.server.wait_for_failed_master(1);
    install(&program);
    undisturbed.upgrade();
}

#[test]
fn a_program_that_exits_at_once() {
    let replace = |program: &Path| install_script(program, "exit 3");
    fails(&[], replace, "takeover failed", "exited with status 3");
}

#[test]
fn a_program_that_is_killed() {
    let replace = |program: &Path| install_script(program, "kill -9 $$");
    fails(&[], replace, "takeover failed", "killed by SIGKILL");
}

#[test]
fn a_program_that_is_gone() {
    let replace = |program: &Path| fs::remove_file(program).expect("it is there");
    let expected = "/program: No such file or directory";
    fails(&[], replace, expected, "exited with status 127");
}

#[test]
fn a_program_that_is_none() {
    let replace = |program: &Path| {
        fs::remove_file(program).expect("it is there");
        fs::write(program, "text").expect("a file");
    };
    let expected = "/program: Permission denied";
    fails(&[], replace, expected, "exited with status 127");
}

#[test]
fn a_program_that_says_nothing() {
    let replace = |program: &Path| install_script(program, "exec sleep 1000");
    let arguments = ["--start-timeout", "1"];
    fails(
        &arguments,
        replace,
        "takeover failed",
        "the new master is not ready in time",
    );
}

#[test]
fn a_program_that_closes_its_descriptors_and_stays() {
    if lacks("python3") {
        return;
    }
    let script = "exec python3 -c 'import os,time; os.closerange(3, 1000); time.sleep(1000)'";
    let replace = |program: &Path| install_script(program, script);
    fails(&[], replace, "takeover failed", "the new master is gone");
}

#[test]
fn a_file_that_is_wrong() {
    let good = "[[pool]]\nname = 'main'\nservice = 'demo'\nlisten = '127.0.0.1:0'\nworkers = 2\n";
    let setup = Setup::new(&[]).file(good, 1);
    let path = setup.directory().join("batond.toml");
    let setup = setup
        .expect("takeover failed")
        .expect("batond: cannot read batond.toml:1: ");
    let mut undisturbed = Undisturbed::start(setup);
    fs::write(&path, "worker = 2\n").expect("a file");
    undisturbed.server.signal(Signal::SIGUSR2);
    undisturbed.failed("exited with status 1");
    assert!(
        undisturbed
            .server
            .log_contains("batond: cannot read batond.toml:1: ")
    );
    fs::write(&path, good).expect("a file");
    undisturbed.upgrade();
}

#[test]
fn an_address_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").port();
    let good = "[[pool]]\nname = 'main'\nservice = 'demo'\nworkers = 2\nlisten = ['127.0.0.1:0', 'unix:s.sock'";
    let setup = Setup::new(&[]).file(&format!("{good}]\n"), 2);
    let path = setup.directory().join("batond.toml");
    let socket = setup.directory().join("s.sock");
    let foreign = setup.directory().join("t.sock");
    let other = std::os::unix::net::UnixListener::bind(&foreign).expect("a socket");
    let setup = setup
        .expect("takeover failed")
        .expect("Address already in use");
    let mut undisturbed = Undisturbed::start(setup);
    // What it could bind before is no longer there afterwards.
    let wrong = format!("{good}, '127.0.0.1:{taken}', 'unix:new.sock', 'unix:t.sock']\n");
    fs::write(&path, wrong).expect("a file");
    undisturbed.server.signal(Signal::SIGUSR2);
    undisturbed.failed("exited with status 1");
    drop(other);
    assert!(socket.exists() && !socket.with_file_name("new.sock").exists());
    fs::write(&path, format!("{good}]\n")).expect("a file");
    undisturbed.upgrade();
}

/// A server of the fragile example, and the file that says how its new workers are.
fn fragile(arguments: &[&str]) -> (Server, PathBuf) {
    let arguments = [&["--mood", "mood", "-w", "2"], arguments].concat();
    let setup = Setup::example("fragile", &arguments).expect("takeover");
    let setup = setup.expect(" died ").expect("upgrade refused");
    let mood = setup.directory().join("mood");
    (
        setup
            .expect("Error: ")
            .expect("die at their start")
            .expect("is not ready after 1 s")
            .start(),
        mood,
    )
}

#[test]
fn workers_that_do_not_start() {
    for mood_of_new in ["exit", "hang"] {
        let (mut server, mood) = fragile(&["--start-timeout", "1000"]);
        let workers = server.workers(2);
        fs::write(&mood, mood_of_new).expect("a file");
        server.signal(Signal::SIGUSR2);
        let line = server.wait_for_log("takeover failed: ");
        assert!(line.contains("exited with status 1"), "{line}");
        assert!(server.log_contains("not ready within 1 s"));
        assert_eq!(server.workers(2), workers);
        assert_eq!(server.get("/").status, 200);
        fs::write(&mood, "well").expect("a file");
        server.upgrade();
        assert_eq!(server.get("/").status, 200);
    }
}

/// The new master that was started, before its workers are ready, which they never are.
#[track_caller]
fn hold_up_an_upgrade(server: &Server, mood: &Path) -> Watched {
    server.workers(2);
    fs::write(mood, "hang").expect("a file");
    server.signal(Signal::SIGUSR2);
    let line = server.wait_for_log(STARTED);
    let new = Pid::from_raw(field(&line, "pid"));
    eventually("the new master has workers", || {
        process::children(new).0.len() == 2
    });
    Watched::new(new)
}

#[test]
fn a_new_master_that_is_told_to_stop() {
    let (mut server, mood) = fragile(&[]);
    let new = hold_up_an_upgrade(&server, &mood);
    let hanging = process::children(new.pid()).0;
    process::signal(new.pid(), Signal::SIGTERM);
    server.wait_for_log("takeover failed: the new master is gone");
    // It is not waited for any longer, and takes its workers along.
    assert!(new.wait(DEADLINE));
    assert!(hanging.iter().all(|worker| !process::is_alive(*worker)));
    assert_eq!(server.get("/").status, 200);
    fs::write(&mood, "well").expect("a file");
    server.upgrade();
}

#[test]
fn a_new_master_that_is_killed() {
    let (mut server, mood) = fragile(&[]);
    let new = hold_up_an_upgrade(&server, &mood);
    let workers = process::children(new.pid()).0;
    process::signal(new.pid(), Signal::SIGKILL);
    server.wait_for_log("takeover failed: the new master (pid ");
    for worker in workers {
        // They hang, and nobody is left to end them.
        process::signal(worker, Signal::SIGKILL);
        Watched::new(worker).destroy();
    }
    assert_eq!(server.get("/").status, 200);
    fs::write(&mood, "well").expect("a file");
    server.upgrade();
}

#[test]
fn an_old_master_that_is_told_to_stop_takes_the_new_one_along() {
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let (mut server, mood) = fragile(&[]);
        let new = hold_up_an_upgrade(&server, &mood);
        let hanging = process::children(new.pid()).0;
        server.signal(signal);
        server.wait_for_log("takeover given up: the server stops");
        assert!(new.wait(DEADLINE));
        assert!(hanging.iter().all(|worker| !process::is_alive(*worker)));
        assert!(server.wait().success());
        new.destroy();
    }
}

#[test]
fn only_one_change_at_a_time() {
    let (server, mood) = fragile(&[]);
    let new = hold_up_an_upgrade(&server, &mood);
    server.signal(Signal::SIGUSR2);
    server.wait_for_log("upgrade refused: another one is under way");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reload refused: a takeover is under way");
    process::signal(new.pid(), Signal::SIGHUP);
    process::signal(new.pid(), Signal::SIGUSR2);
    server.wait_for_lines("reload refused: a takeover is under way", 2);
    server.wait_for_log("upgrade refused: this master is still taking over itself");
    process::signal(new.pid(), Signal::SIGQUIT);
    server.wait_for_log("takeover failed: ");
    // Its workers hang still.
    server.signal(Signal::SIGHUP);
    server.wait_for_lines("reloading", 1);
    server.signal(Signal::SIGUSR2);
    server.wait_for_log("upgrade refused: a reload is under way");
    assert_eq!(server.get("/").status, 200);
    assert!(new.wait(DEADLINE));
}

/// An upgrade of a server with this limit of its last turn; the new master, and a client that is
/// still served by the old one.
#[track_caller]
fn upgrade_with_a_sleeper(server: &mut Server, milliseconds: u32) -> (Client, Watched) {
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    begin_sleep(&mut sleeper, milliseconds, &workers);
    let count = server.begin_upgrade();
    server.wait_for_lines(TOOK_OVER, count);
    let line = server.wait_for_log(STARTED);
    server.wait_for_log("handed over");
    (sleeper, Watched::new(Pid::from_raw(field(&line, "pid"))))
}

#[test]
fn a_new_master_that_is_killed_while_the_old_one_is_still_there() {
    let setup = Setup::new(&[
        "demo",
        "-w",
        "2",
        "--pid-file",
        "pid",
        "--control",
        "control",
    ])
    .listen("127.0.0.1:0")
    .listen("unix:s.sock")
    .expect("takes charge again");
    let mut server = setup.start();
    let (mut sleeper, new) = upgrade_with_a_sleeper(&mut server, 1500);
    let mut lost = server.connect();
    assert_eq!(Served::of(&lost.get("/")).master, new.pid().as_raw());
    process::signal(new.pid(), Signal::SIGKILL);
    server.wait_for_log("; this one takes charge again");
    // That one's connections are gone with it.
    assert!(lost.is_closed());
    for endpoint in server.endpoints() {
        let served = Served::of(&endpoint.connect().get("/"));
        assert_eq!(served.master, server.master().as_raw());
    }
    assert_eq!(sleeper.reply().status, 200);
    assert_eq!(Served::of(&sleeper.get("/")).turn, 2);
    let pid = fs::read_to_string(server.directory().join("pid")).expect("it is there");
    assert_eq!(pid, format!("{}\n", server.master()));
    assert!(new.wait(DEADLINE));
    server.signal(Signal::SIGUSR2);
    let line = server.wait_for_lines(TOOK_OVER, 2).remove(1);
    server.follow(master_in(&line));
    assert_eq!(Served::of(&sleeper.get("/")).turn, 3);
    let directory = server.directory().to_owned();
    assert!(server.stop().success());
    for name in ["pid", "control", "s.sock"] {
        assert!(!directory.join(name).exists(), "{name}");
    }
}

/// Both masters have come to their ends, in whichever order.
#[track_caller]
fn both_end(server: &mut Server, new: &Watched) {
    assert!(server.wait_for_master().success());
    assert!(new.wait(DEADLINE));
    // It is an orphan if it was the last one.
    new.destroy();
    assert!(server.wait().success());
    assert!(!server.log_contains("takes charge again"));
}

#[test]
fn a_new_master_that_is_told_to_stop_while_the_old_one_is_still_there() {
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let mut server = Server::start(&["demo", "-w", "2"]);
        let (mut sleeper, new) = upgrade_with_a_sleeper(&mut server, 700);
        let mut idle = server.connect();
        assert_eq!(idle.get("/").status, 200);
        process::signal(new.pid(), signal);
        assert!(idle.is_closed());
        assert!(new.wait(DEADLINE));
        assert_eq!(sleeper.reply().status, 200);
        assert!(sleeper.is_closed());
        both_end(&mut server, &new);
    }
}

#[test]
fn both_masters_that_are_told_to_stop_stop() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    let (mut sleeper, new) = upgrade_with_a_sleeper(&mut server, 700);
    server.signal(Signal::SIGTERM);
    process::signal(new.pid(), Signal::SIGTERM);
    assert_eq!(sleeper.reply().status, 200);
    assert!(sleeper.is_closed());
    both_end(&mut server, &new);
}

#[test]
fn an_old_master_that_is_told_to_stop_after_it_has_handed_over_leaves_the_new_one_alone() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    let (mut sleeper, new) = upgrade_with_a_sleeper(&mut server, 700);
    server.signal(Signal::SIGTERM);
    server.follow(new.pid());
    assert_eq!(sleeper.reply().status, 200);
    server.wait_for_former();
    let served = Served::of(&sleeper.get("/"));
    assert_eq!((served.turn, served.master), (2, new.pid().as_raw()));
}

#[test]
fn an_old_master_ends_with_its_last_client_when_all_its_workers_have_been_killed() {
    let mut server = Setup::new(&["demo", "-w", "2"])
        .expect(" died in turn")
        .start();
    let workers = server.workers(2);
    let (mut sleeper, new) = upgrade_with_a_sleeper(&mut server, 60_000);
    server.follow(new.pid());
    for worker in &workers {
        process::signal(worker.pid, Signal::SIGKILL);
    }
    // After this reply it lingers, and the old master waits for nothing else.
    assert_eq!(sleeper.reply().status, 502);
    server.wait_for_lines("worker retired", 2);
    drop(sleeper);
    server.wait_for_former();
    assert_eq!(server.get("/").status, 200);
}
