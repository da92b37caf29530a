//! Forking a worker, with its end of a socketpair and a scoreboard.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

use super::channel::Channel;
use crate::channel::inbox::{self, WorkerEnd};
use crate::channel::scoreboard::Scoreboard;
use crate::channel::start::WorkerHandles;
use crate::error::Plain;
use crate::master::child::Child;
use crate::master::master_only::MasterOnly;
use crate::master::plan::Plan;
use crate::sys;

/// The descriptors that the start of a worker takes: both ends of the socketpair, a copy of one
/// end, and the doorbell.
pub const DESCRIPTORS: usize = 4;

/// Forks a worker that runs the plan's main function.
///
/// # Errors
/// What socketpair(2), mmap(2), eventfd(2) and fork(2) fail with.
pub fn fork_worker(
    slot: u32,
    plan: &Plan<'_>,
    only: &mut MasterOnly,
) -> io::Result<(Child, Channel)> {
    let (ours, theirs) = inbox::pair()?;
    let board = Scoreboard::new()?;
    let own = [theirs.as_fd(), board.doorbell()].map(|fd| fd.as_raw_fd());
    let keep = [&only.inherited[..], &plan.keep, &own].concat();
    let detach = || drop(only.signals.take());
    let pid = sys::process::with_signals_blocked(|before| {
        sys::process::spawn(&keep, detach, || match prepare(&theirs, before) {
            Ok(()) => (plan.main)(WorkerHandles {
                slot,
                inbox: theirs,
                board: board.publisher(),
                linger: plan.linger(),
            }),
            Err(error) => {
                log::error!("cannot set up the worker's signals: {}", Plain(&error));
                1
            }
        })
    })?;
    let child = Child::new(pid);
    board.keep_from_children()?;
    Ok((child, Channel::new(ours, Some(board))))
}

/// Why a worker could not be started, in words that say what to do: the kernel's own are about the
/// call, and mislead here.
#[must_use]
pub fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        // fork(2), because no other call here fails with this.
        Some(libc::EAGAIN) => {
            "no more processes are allowed (the user's RLIMIT_NPROC, pids.max of \
             the cgroup, or kernel.pid_max)"
                .to_owned()
        }
        Some(libc::ENOMEM) => {
            "the kernel has no memory for another process (or vm.overcommit_memory forbids it)"
                .to_owned()
        }
        _ => Plain(error).to_string(),
    }
}

/// In the child: SIGTERM retires the worker. All other signals that the master handles are ignored,
/// because a terminal sends them to every process of the group, and what a worker does is the
/// master's decision.
fn prepare(inbox: &WorkerEnd, mask: &SigSet) -> io::Result<()> {
    let inbox = inbox.as_fd().try_clone_to_owned()?;
    sys::signals::shut_on(Signal::SIGTERM, inbox, Shutdown::Read)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_cannot_be_started_names_the_limit() {
        let why = |code| explain(&io::Error::from_raw_os_error(code));
        for limit in ["RLIMIT_NPROC", "pids.max"] {
            assert!(why(libc::EAGAIN).contains(limit), "{}", why(libc::EAGAIN));
        }
        assert!(why(libc::ENOMEM).contains("overcommit"));
        assert!(why(libc::EMFILE).contains("RLIMIT_NOFILE"));
        assert_eq!(why(libc::EACCES), "Permission denied");
    }
}
