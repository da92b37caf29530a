//! A server whose master changes: who is in charge, and who is still there.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{BATOND, DEADLINE, Server, Setup, Watched, field};

/// What a master says that has started its successor.
pub const STARTED: &str = "upgrading: started";

/// What the successor says when it is in charge.
pub const TOOK_OVER: &str = "took over with";

/// … and when nothing more comes from the other one.
pub const COMPLETE: &str = "the takeover is complete";

/// A master that has handed over.
pub struct Former {
    process: Watched,
    /// If it is the process that was started by the test.
    child: Option<Child>,
}

impl Former {
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    #[track_caller]
    fn wait(&mut self) {
        let pid = self.pid();
        assert!(
            self.process.wait(DEADLINE),
            "the old master {pid} has not ended after {DEADLINE:?}"
        );
        let status = match &mut self.child {
            Some(child) => child.wait().expect("it is our child"),
            None => reap(&self.process),
        };
        assert!(status.success(), "the old master {pid} ended with {status}");
    }

    pub fn destroy(&mut self) {
        self.process.destroy();
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// The exit status of a process that has ended. One that has ended before its parent was reaped
/// there, and not even that parent said anything of it: that counts as success.
pub fn reap(process: &Watched) -> ExitStatus {
    ExitStatus::from_raw(match waitpid(process.pid(), None) {
        Ok(WaitStatus::Exited(_, code)) => code << 8,
        Ok(WaitStatus::Signaled(_, signal, _)) => signal as i32,
        Ok(_) | Err(_) => 0,
    })
}

impl Server {
    /// Has the master start its program anew, once it has nothing more to do with the master
    /// before; returns how many will have taken over then.
    #[track_caller]
    pub fn begin_upgrade(&mut self) -> usize {
        let before = self.log_lines(TOOK_OVER).len();
        self.wait_for_lines(COMPLETE, before);
        self.signal(Signal::SIGUSR2);
        before + 1
    }

    /// Waits until that many have taken over, and goes on with the last one. The old one may still
    /// have turns to finish.
    #[track_caller]
    pub fn finish_upgrade(&mut self, count: usize) {
        self.wait_for_lines(TOOK_OVER, count);
        let started = self.log_lines(STARTED);
        let line = started.last().expect("one was started");
        self.follow(Pid::from_raw(field(line, "pid")));
    }

    /// SIGUSR2, and waits until the new master is in charge.
    #[track_caller]
    pub fn upgrade(&mut self) {
        let count = self.begin_upgrade();
        self.finish_upgrade(count);
    }

    /// From now on this is the master.
    pub fn follow(&mut self, master: Pid) {
        self.follow_child(Watched::new(master), None);
    }

    /// From now on this is the master, which the test itself has started.
    pub fn follow_child(&mut self, process: Watched, child: Option<Child>) {
        self.master = process.pid();
        self.former.push(Former {
            process: std::mem::replace(&mut self.process, process),
            child: std::mem::replace(&mut self.child, child),
        });
    }

    /// Starts a process that writes to the same log as the server.
    #[track_caller]
    pub fn spawn_beside(&mut self, command: &mut Command) -> Child {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let also = writer.try_clone().expect("a descriptor");
        command.stdout(also).stderr(writer);
        let child = command.spawn().expect("it starts");
        self.stderr.follow(reader);
        child
    }

    /// Waits until all masters before this one have ended, and reaps them. They must have ended in
    /// order.
    #[track_caller]
    pub fn wait_for_former(&mut self) {
        for mut former in self.former.drain(..) {
            former.wait();
        }
    }

    /// Waits for the end of a new master that has failed; the one that had started it has reaped
    /// it.
    #[track_caller]
    pub fn wait_for_failed_master(&self, count: usize) {
        for line in self.wait_for_lines(STARTED, count) {
            let process = Watched::new(Pid::from_raw(field(&line, "pid")));
            assert!(process.wait(DEADLINE), "the new master has not ended");
        }
    }
}

/// The process that has logged this line as a master: `master[123]`.
#[track_caller]
pub fn master_in(line: &str) -> Pid {
    let (_, rest) = line.split_once("master[").expect("a master's line");
    let number = rest.split(']').next().unwrap_or_default();
    Pid::from_raw(number.parse().expect("a pid"))
}

impl Setup {
    /// Runs this program instead: another path to the one under test.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = path.into();
        self
    }
}

/// Moves a copy of the program under test to this path. (By another process: while one has a file
/// open to write it, nobody can execute it, and forks of this one may have it for a moment.)
#[track_caller]
pub fn install(path: &Path) {
    shell(
        "cp \"$0\" \"$1.new\" && mv \"$1.new\" \"$1\"",
        &[BATOND.as_ref(), path.as_ref()],
    );
}

/// Moves a shell script to this path.
#[track_caller]
pub fn install_script(path: &Path, text: &str) {
    let script = "printf '#!/bin/sh\\n%s\\n' \"$0\" >\"$1.new\" && chmod +x \"$1.new\" && mv \"$1.new\" \"$1\"";
    shell(script, &[text.as_ref(), path.as_ref()]);
}

#[track_caller]
fn shell(script: &str, arguments: &[&OsStr]) {
    let status = Command::new("sh")
        .arg("-c")
        .arg(script)
        .args(arguments)
        .status();
    assert!(status.expect("sh runs").success(), "{script}");
}
