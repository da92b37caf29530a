//! What signal-hook does not offer safely: an action of our own in a handler.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::signal::Signal;

/// From now on, `signal` ends the receiving side of `socket`: what is queued there can still be read, then comes the
/// end of the stream. So a process that sleeps in a read on it learns of the signal without a race.
///
/// # Errors
/// What sigaction(2) fails with.
pub fn shut_on(signal: Signal, socket: OwnedFd, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    let action = move || {
        // SAFETY: shutdown(2) is async-signal-safe (signal-safety(7)); the action owns the descriptor. Errors (it is
        // shut already) mean that there is nothing to do; errno is put back by signal-hook.
        unsafe { libc::shutdown(socket.as_raw_fd(), how) };
    };
    // SAFETY: the action makes one async-signal-safe call, allocates nothing and can't panic.
    unsafe { signal_hook::low_level::register(signal as i32, action) }?;
    Ok(())
}
