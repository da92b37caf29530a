//! What whoever started this process left for it alone: variables, and open descriptors.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::process::has_threads;

/// Descriptors that are passed to a process begin here, after the standard streams
/// (sd_listen_fds(3), SD_LISTEN_FDS_START).
const FIRST_PASSED: RawFd = 3;

/// Takes variables out of the environment, so that no child process finds them.
///
/// # Errors
/// `Unsupported` if one of them is set and this process has more than one thread: another one may
/// be reading the environment. Nothing is removed then.
pub fn take<const N: usize>(names: [&str; N]) -> io::Result<[Option<OsString>; N]> {
    let values = names.map(env::var_os);
    if values.iter().all(Option::is_none) {
        return Ok(values);
    }
    if has_threads() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this process has other threads, which may be reading it",
        ));
    }
    for name in names {
        // SAFETY: this is the only thread, so nothing else reads or writes the environment.
        unsafe { env::remove_var(name) };
    }
    Ok(values)
}

/// Takes over the first `count` descriptors after the standard streams, which whoever started this
/// process said to have passed to it. From now on they are closed on exec.
///
/// # Errors
/// When one of them is not open; those before it are closed then. And when it is called again:
/// what was passed has an owner already.
pub fn passed_descriptors(count: usize) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "they were taken before",
        ));
    }
    (FIRST_PASSED..=RawFd::MAX).take(count).map(own).collect()
}

/// Makes a passed descriptor this process's own.
fn own(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it sets a flag, or fails with EBADF when the number is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::other(format!("descriptor {number} is not open")));
    }
    // SAFETY: it is open. Whoever started this process says that it has been since then, so nothing
    // here has got it from a call, and each number comes here once in the life of the process.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_keeps_its_variables() {
        let error = take(["BATOND_NEVER_SET", "PATH"]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(env::var_os("PATH").is_some());
        assert_eq!(take(["BATOND_NEVER_SET"]).unwrap(), [None]);
    }
}
