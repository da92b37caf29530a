//! A bound in time for a system call that may sleep for ever, and that the kernel has no flag for.
//!
//! A timer signals the calling thread at the bound, and again after each further bound, until the
//! call has returned. The handler does nothing; it is there because a call that a signal interrupts
//! fails with EINTR, or returns what it has done so far (signal(7)). One signal would not be
//! enough: it could come before the call has begun to sleep.

use std::io;
use std::mem;
use std::ptr;
use std::time::Duration;

use super::signals::do_nothing;

/// Runs `call`, and interrupts what it sleeps in after `limit`. `None` if that could not be
/// arranged; `call` has not been run then.
///
/// The last real-time signal is this function's for as long as it runs, so no two threads may be in
/// it at the same time.
pub fn interrupted_after<T>(limit: Duration, call: impl FnOnce() -> T) -> Option<T> {
    let signal = libc::SIGRTMAX();
    let _handler = Handler::install(signal).ok()?;
    let _mask = Unblocked::unblock(signal).ok()?;
    let _timer = Timer::start(signal, limit).ok()?;
    // The parts are dropped in the opposite order. When the timer is gone, this thread has had all
    // of its signals, because they are delivered before timer_delete(2) returns.
    Some(call())
}

struct Handler {
    signal: libc::c_int,
    before: libc::sigaction,
}

impl Handler {
    fn install(signal: libc::c_int) -> io::Result<Self> {
        // SAFETY: a zeroed `sigaction` is a valid one: no flags (so no SA_RESTART), an empty mask.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = do_nothing as *const () as libc::sighandler_t;
        // SAFETY: as above.
        let mut before: libc::sigaction = unsafe { mem::zeroed() };
        // SAFETY: the handler does nothing, so it is async-signal-safe; `before` is written to.
        checked(unsafe { libc::sigaction(signal, &raw const action, &raw mut before) })?;
        Ok(Self { signal, before })
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // SAFETY: it puts back what was there. It can't fail, for it did not fail before.
        unsafe { libc::sigaction(self.signal, &raw const self.before, ptr::null_mut()) };
    }
}

struct Unblocked {
    before: libc::sigset_t,
}

impl Unblocked {
    fn unblock(signal: libc::c_int) -> io::Result<Self> {
        // SAFETY: a zeroed set is one that sigemptyset(3) and pthread_sigmask(3) may write to.
        let (mut set, mut before): (libc::sigset_t, _) = unsafe { mem::zeroed() };
        // SAFETY: the sets live across the calls; the mask is this thread's.
        let error = unsafe {
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, &raw mut before)
        };
        match error {
            0 => Ok(Self { before }),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

impl Drop for Unblocked {
    fn drop(&mut self) {
        // SAFETY: it puts back the mask that this thread had.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }
}

struct Timer(libc::timer_t);

impl Timer {
    fn start(signal: libc::c_int, every: Duration) -> io::Result<Self> {
        // SAFETY: a zeroed `sigevent` is a valid one.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        // SAFETY: gettid(2) always succeeds.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both live across the call, which writes the number of the new timer to `timer`.
        checked(unsafe {
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        })?;
        let timer = Self(timer);
        let time = libc::timespec {
            tv_sec: every.as_secs() as libc::time_t,
            tv_nsec: every.subsec_nanos() as libc::c_long,
        };
        let times = libc::itimerspec {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: the timer is this value's, and `times` lives across the call.
        checked(unsafe { libc::timer_settime(timer.0, 0, &raw const times, ptr::null_mut()) })?;
        Ok(timer)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer is this value's. It can't fail, for the timer is there.
        unsafe { libc::timer_delete(self.0) };
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn a_call_that_would_sleep_for_ever_is_interrupted() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let limit = Duration::from_millis(2);
        for _ in 0..3 {
            let result = interrupted_after(limit, || rustix::io::read(&read, &mut [0; 1][..]));
            assert_eq!(result, Some(Err(Errno::INTR)));
        }
        assert_eq!(interrupted_after(limit, || 7), Some(7));
    }
}
