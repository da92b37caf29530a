//! SIGUSR2: the new program is started by the old master, with its arguments, its directory and its standard streams.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Pid, getppid};
use rustix::io::FdFlags;

use crate::error::Plain;
use crate::sys;

/// How the new program learns where the old master is: `DESCRIPTOR PARENT`.
const VARIABLE: &str = "BATOND_TAKEOVER";

/// The exit status of a process that could not execute a program, as shells have it.
const NOT_EXECUTED: u8 = 127;

/// How this program was started.
#[derive(Debug)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Launch {
    /// Remembers it. To be called at the start: the name of a program that is replaced later must still mean the
    /// place, not the old file.
    #[must_use]
    pub fn of_this_program() -> Self {
        let mut arguments = std::env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        let program = locate(&name).or_else(|| std::env::current_exe().ok());
        Self {
            program: program.unwrap_or(name),
            arguments: arguments.collect(),
        }
    }

    /// Starts the program again; `theirs` is its end of the session. `keep` are the descriptors that it has besides,
    /// `introduce` adds to its environment, and `detach` drops what of the master's must not live on.
    ///
    /// # Errors
    /// What fork(2) fails with.
    pub fn start(
        &self,
        theirs: &OwnedFd,
        keep: &[RawFd],
        introduce: impl FnOnce(&mut Command),
        detach: impl FnOnce(),
    ) -> io::Result<Pid> {
        let descriptor = theirs.as_raw_fd();
        let keep: Vec<_> = keep.iter().copied().chain([descriptor]).collect();
        let parent = std::process::id();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env(VARIABLE, format!("{descriptor} {parent}"));
        introduce(&mut command);
        // As for a worker: no signal may reach the child while it still has the master's handlers. Executing the
        // program unblocks them.
        let mut before = SigSet::empty();
        let all = SigSet::all();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), Some(&mut before))?;
        let pid = sys::process::spawn(&keep, detach, || {
            let inherited = rustix::io::fcntl_setfd(theirs.as_fd(), FdFlags::empty());
            let error = inherited.map_or_else(io::Error::from, |()| command.exec());
            log::error!(
                "cannot execute {}: {}",
                self.program.display(),
                Plain(&error)
            );
            NOT_EXECUTED
        });
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        pid
    }
}

impl std::fmt::Display for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.program.display().fmt(f)
    }
}

/// Where a program of this name is, as execvp(3) would find it.
fn locate(name: &Path) -> Option<PathBuf> {
    if name.as_os_str().is_empty() {
        return None;
    }
    if name.components().count() > 1 {
        return std::path::absolute(name).ok();
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// The socket to the master that has started this program to take over from it, if one has.
#[must_use]
pub fn inherited_session() -> Option<OwnedFd> {
    let value = std::env::var(VARIABLE).ok()?;
    let (descriptor, parent) = value.split_once(' ')?;
    // The variable may have come down from a grandparent, and mean nothing here.
    let parent: i32 = parent.parse().ok()?;
    let descriptor: RawFd = descriptor.parse().ok()?;
    if getppid().as_raw() != parent || descriptor <= 2 {
        return None;
    }
    let session = sys::process::claim(descriptor)?;
    let kind = rustix::net::sockopt::socket_type(&session).ok();
    if kind != Some(rustix::net::SocketType::SEQPACKET) {
        // It is something else, and somebody else's.
        std::mem::forget(session);
        return None;
    }
    let _ = rustix::io::fcntl_setfd(&session, FdFlags::CLOEXEC);
    Some(session)
}
