//! What neither nix nor signal-hook offers safely: actions of our own in a handler, and
//! dispositions that a process was started with.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};

/// From now on, `signal` ends the receiving side of `socket`: what is queued there can still be
/// read, then comes the end of the stream. So a process that sleeps in a read on it learns of the
/// signal without a race.
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
        // SAFETY: shutdown(2) is async-signal-safe (signal-safety(7)); the action owns the
        // descriptor. Errors (it is shut already) mean that there is nothing to do; errno is put
        // back by signal-hook.
        unsafe { libc::shutdown(socket.as_raw_fd(), how) };
    };
    // SAFETY: the action makes one async-signal-safe call, allocates nothing and can't panic.
    unsafe { signal_hook::low_level::register(signal as i32, action) }?;
    Ok(())
}

/// Undoes what whoever started this process did to its signals, as far as a server cannot live with
/// it. To be called once, before there is a thread or a child; doing it again changes nothing.
///
/// - The mask: a program inherits the signals that its parent had blocked (execve(2)), and so do
///   threads and children of its own. A master that cannot hear SIGCHLD leaves its workers zombies,
///   and one that cannot hear SIGTERM cannot be stopped. All signals are unblocked.
/// - SIGCHLD: an ignored one is inherited too, and then children leave no exit status (wait(2)).
///   The default is set again.
/// - SIGPIPE and SIGXFSZ end a process by default. For a server they are a client that has gone and
///   a file that has reached its limit (RLIMIT_FSIZE), so the call is to fail with EPIPE or EFBIG
///   instead. They get a handler that does nothing, and are not ignored, because a handler ends
///   with execve(2): programs that a worker starts, and the next master, begin as this one did.
///
/// # Errors
/// What sigprocmask(2) and sigaction(2) fail with: nothing on a sane kernel, EPERM in a sandbox.
pub fn reset_inherited() -> io::Result<()> {
    if disposition(Signal::SIGCHLD)? == libc::SIG_IGN {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action runs no code of this process.
        unsafe { sigaction(Signal::SIGCHLD, &default) }?;
    }
    for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        if disposition(signal)? == libc::SIG_DFL {
            let nothing = SigHandler::Handler(do_nothing);
            let action = SigAction::new(nothing, SaFlags::SA_RESTART, SigSet::empty());
            // SAFETY: the handler does nothing, so it is async-signal-safe.
            unsafe { sigaction(signal, &action) }?;
        }
    }
    // Last, so that no signal comes before its disposition is right.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

pub(super) extern "C" fn do_nothing(_: libc::c_int) {}

/// What happens on a signal: SIG_DFL, SIG_IGN, or the address of a handler.
fn disposition(signal: Signal) -> io::Result<libc::sighandler_t> {
    // SAFETY: a zeroed `sigaction` is a valid one, with the default disposition.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call only writes the present one to `now`.
    match unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut now) } {
        0 => Ok(now.sa_sigaction),
        _ => Err(io::Error::last_os_error()),
    }
}
