//! Starting a process that shares nothing with its parent but what it is given.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Pid, fork};

use crate::error::Plain;

use super::descriptors::{close_all_but, is_surely_open};

pub use super::descriptors::open_descriptors;

/// The exit status of a process whose main function panicked; the one that Rust gives a panicking
/// program.
pub const PANICKED: u8 = 101;

/// The exit status of a process that could not give up what it was not to have.
const UNCONFINED: u8 = 1;

/// Forks a process that runs `main` and exits with what it returns, or with 101 if it panics.
///
/// The child runs `detach` first, with all that it inherited still open, to undo what must not live
/// on in it. Then it closes every descriptor but those in `keep`. No destructor of the parent runs
/// in it: the frames below `main` are never returned to, so that a connection which the parent
/// holds is closed in the child, but not shut down, unlinked or otherwise ended.
///
/// # Errors
/// What fork(2) fails with, and `Unsupported` if this process has more than one thread: after a
/// fork, a lock that another thread held would stay locked forever (fork(2), NOTES).
pub fn spawn(keep: &[RawFd], detach: impl FnOnce(), main: impl FnOnce() -> u8) -> io::Result<Pid> {
    if has_threads() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this process has other threads, and a fork with threads is not safe",
        ));
    }
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    // SAFETY: this is the only thread, so the child may do whatever the parent might (fork(2)); it
    // never returns from this function.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let main = || {
                detach();
                // A process that keeps what it must not have is worse than none.
                if let Err(error) = close_all_but(&keep) {
                    log::error!(
                        "cannot start a process: close the descriptors that it must not have: \
                         {}",
                        Plain(&error)
                    );
                    return UNCONFINED;
                }
                main()
            };
            let status = catch_unwind(AssertUnwindSafe(main)).unwrap_or(PANICKED);
            exit_now(status)
        }
    }
}

/// Runs `start`, which starts a process, with all signals blocked. No signal may reach the child
/// while it still has the handlers of this process, because they write into this process's pipe.
/// `start` gets the mask that was there before, for a child that has got rid of them.
///
/// # Errors
/// Those of `start`, and what sigprocmask(2) fails with.
pub fn with_signals_blocked<T>(start: impl FnOnce(&SigSet) -> io::Result<T>) -> io::Result<T> {
    let mut before = SigSet::empty();
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), Some(&mut before))?;
    let started = start(&before);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    started
}

/// Ends this process without running destructors or flushing the buffers that it shares with its
/// parent.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: _exit(2) is always safe to call.
    unsafe { libc::_exit(i32::from(status)) }
}

/// Whether another thread runs in this process.
pub(super) fn has_threads() -> bool {
    // A directory's link count is 2 plus one per subdirectory, and each thread has one.
    match std::fs::metadata("/proc/self/task") {
        Ok(tasks) => tasks.nlink() > 3,
        // Without /proc: only a process without threads may leave the group of its threads
        // (unshare(2), CLONE_THREAD), and then it changes nothing.
        Err(_) => unshare(CloneFlags::CLONE_THREAD) == Err(Errno::EINVAL),
    }
}

/// Takes a descriptor over that this process was started with, by its number; `None` when it is not
/// open.
///
/// Only for a descriptor that nothing else in this process owns: it is closed when the result is
/// dropped.
#[must_use]
pub fn claim(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: it is open, and whoever started this process gave it away by naming it.
    is_surely_open(fd).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}
