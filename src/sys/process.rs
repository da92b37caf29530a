//! Starting a process that shares nothing with its parent but what it is given.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::unistd::{ForkResult, Pid, fork};

/// The exit status of a process whose main function panicked; the one that Rust gives a panicking program.
pub const PANICKED: u8 = 101;

/// Forks a process that runs `main` and exits with what it returns, or with 101 if it panics.
///
/// The child runs `detach` first, with all that it inherited still open, to undo what must not live on in it. Then it
/// closes every descriptor but those in `keep`. No destructor of the parent runs in it: the
/// frames below `main` are never returned to, so that a connection which the parent holds is closed in the child, but
/// not shut down, unlinked or otherwise ended.
///
/// # Errors
/// What fork(2) fails with, and `Unsupported` if this process has more than one thread: after a fork, a lock that
/// another thread held would stay locked forever (fork(2), NOTES).
pub fn spawn(keep: &[RawFd], detach: impl FnOnce(), main: impl FnOnce() -> u8) -> io::Result<Pid> {
    if threads() > 1 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this process has other threads, and a fork with threads is not safe",
        ));
    }
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    // SAFETY: this is the only thread, so the child may do whatever the parent might (fork(2)); it never returns from
    // this function.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let main = || {
                detach();
                close_all_but(&keep);
                main()
            };
            let status = catch_unwind(AssertUnwindSafe(main)).unwrap_or(PANICKED);
            exit_now(status)
        }
    }
}

/// Ends this process without running destructors or flushing the buffers that it shares with its parent.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: _exit(2) is always safe to call.
    unsafe { libc::_exit(i32::from(status)) }
}

/// How many threads this process has; 1 where /proc is not there to ask.
pub(super) fn threads() -> u64 {
    // A directory's link count is 2 plus one per subdirectory, and each thread has one.
    std::fs::metadata("/proc/self/task").map_or(1, |tasks| tasks.nlink().saturating_sub(2))
}

/// Closes every descriptor but those in `keep`, which is sorted.
pub(super) fn close_all_but(keep: &[RawFd]) {
    let mut next: libc::c_uint = 0;
    for fd in keep {
        let fd = fd.cast_unsigned();
        if fd > next {
            close_range(next, fd - 1);
        }
        next = next.max(fd + 1);
    }
    close_range(next, libc::c_uint::MAX);
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: only called in a fresh child, which owns all its descriptors and uses none but those it was given.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// The numbers of all descriptors that are open in this process; just the standard ones where /proc is not there.
#[must_use]
pub fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return vec![0, 1, 2];
    };
    let numbers: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // The one that the directory itself was read through is closed by now.
    numbers.into_iter().filter(|fd| is_open(*fd)).collect()
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only asks; a number that is not open gives EBADF.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Takes a descriptor over that this process was started with, by its number; `None` when it is not open.
///
/// Only for a descriptor that nothing else in this process owns: it is closed when the result is dropped.
#[must_use]
pub fn claim(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: it is open, and whoever started this process gave it away by naming it.
    is_open(fd).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}
