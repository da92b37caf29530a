//! Commands: what they find in their environment, and running one to its end.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use super::output::Output;
use super::process::{self, DEADLINE, Watched};

/// The program under test.
pub const BATOND: &str = env!("CARGO_BIN_EXE_batond");

/// A command that finds nothing of the caller's environment that would change what the server does.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    process::prepare();
    let mut command = Command::new(program);
    for name in [
        "RUST_LOG",
        "RUST_LOG_STYLE",
        "RUST_BACKTRACE",
        "NO_COLOR",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "FDSTORE",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
    ] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Has this system call fail as if the kernel did not have it, or as if it were forbidden: for the
/// thread that calls this, and for the processes that it starts.
pub fn refuse_call(call: libc::c_long, errno: Errno) {
    let rules = BTreeMap::from([(call, Vec::new())]);
    let refused = SeccompAction::Errno(errno as u32);
    let architecture = std::env::consts::ARCH.try_into().expect("it is known");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture);
    let program: BpfProgram = filter.expect("a filter").try_into().expect("a program");
    apply_filter(&program).expect("the kernel takes it");
}

/// What a command that ends by itself has written, and how it ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `batond` with these arguments to its end, in `directory`.
#[track_caller]
pub fn run(directory: &Path, arguments: &[&str]) -> Finished {
    let mut command = command(BATOND);
    command.args(arguments).current_dir(directory);
    finish(command)
}

/// Runs a command to its end.
#[track_caller]
pub fn finish(mut command: Command) -> Finished {
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let process = Watched::new(Pid::from_raw(child.id().cast_signed()));
    let stdout = Output::collect(child.stdout.take().expect("stdout is piped"));
    let stderr = Output::collect(child.stderr.take().expect("stderr is piped"));
    let in_time = process.wait(DEADLINE);
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait().expect("it is our child");
    stdout.wait_for_end();
    stderr.wait_for_end();
    let (stdout, stderr) = (stdout.text(), stderr.text());
    assert!(
        in_time,
        "{command:?} has not ended after {DEADLINE:?}:\n{stdout}\n{stderr}"
    );
    Finished {
        status,
        stdout,
        stderr,
    }
}
