//! Closing descriptors of which nothing is known: close(2) of what somebody else has opened can
//! take any time (socket(7), SO_LINGER; a file of a file system that does not answer).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use super::process::{spawn, with_signals_blocked};

/// Has a child process close these descriptors for the last time, while this one goes on.
///
/// # Errors
/// What pipe2(2) and fork(2) fail with, and `Unsupported` if this process has other threads. The
/// descriptors come back then: without a child, they are to stay open.
pub fn close_elsewhere(descriptors: Vec<OwnedFd>) -> Result<(), (io::Error, Vec<OwnedFd>)> {
    match fork_closer(&descriptors) {
        Ok(release) => {
            // The child has them still, so that this is not the last time.
            drop(descriptors);
            drop(release);
            Ok(())
        }
        Err(error) => Err((error, descriptors)),
    }
}

/// A child that has copies of these until the descriptor which is returned is closed.
fn fork_closer(descriptors: &[OwnedFd]) -> io::Result<OwnedFd> {
    let (until, release) = pipe_with(PipeFlags::CLOEXEC)?;
    let keep = descriptors.iter().chain([&until]);
    let keep: Vec<_> = keep.map(AsRawFd::as_raw_fd).collect();
    let wait = || {
        while rustix::io::read(&until, &mut [0; 1]) == Err(rustix::io::Errno::INTR) {}
        0
    };
    with_signals_blocked(|_| spawn(&keep, || {}, wait))?;
    Ok(release)
}
