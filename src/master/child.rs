//! A process that the master has started, from its start to its end: the only kill(2) and
//! waitpid(2).
//!
//! Whatever is to end has a deadline: it is asked first (SIGTERM, or the signal that the caller
//! chooses), and killed when it has not ended a second later. A signal to a process that has just
//! ended by itself (ESRCH) is no error, because its end is reported by [`next_event`] anyway.

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use super::time::Time;

/// How long a process that was asked to end has for it before it is killed.
pub const LAST_CHANCE: Duration = Duration::from_secs(1);

/// The next signal that a process gets, unless it ends before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Escalation {
    signal: Signal,
    at: Time,
}

/// A child process that has not been reaped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    escalation: Option<Escalation>,
    stopped: bool,
}

/// How a process has ended, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The process has returned this exit status.
    Exited(i32),
    /// The process was killed by this signal.
    Killed(Signal),
}

/// What the kernel says of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildEvent {
    /// The child has ended, and is reaped.
    Ended(Exit),
    /// A signal has stopped the child (SIGSTOP).
    Stopped,
    /// The child goes on after a stop (SIGCONT).
    Continued,
}

impl Child {
    /// A child that was just started.
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        Self {
            pid,
            escalation: None,
            stopped: false,
        }
    }

    /// Its process id, which no other process has before the child is reaped.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    fn signal(&self, signal: Signal) {
        report(kill(self.pid, signal), signal, self.pid);
    }

    /// Asks the child to end with this signal. If it does not, it is killed, no later than was
    /// decided before.
    pub fn end(&mut self, signal: Signal, now: Time) {
        self.signal(signal);
        self.escalation
            .take_if(|next| next.signal != Signal::SIGKILL);
        self.kill_at(now.after(LAST_CHANCE));
    }

    /// Kills the child at once.
    pub fn kill(&mut self) {
        self.escalation = None;
        self.signal(Signal::SIGKILL);
    }

    /// Waits for the end of a child that does one thing, which is to take no longer than this; then
    /// it is killed, and `None` is returned.
    pub fn end_within(mut self, limit: Duration) -> Option<Exit> {
        let exit = wait_until(Instant::now() + limit, self.pid);
        if exit.is_none() {
            self.kill();
            reap(&[self]);
        }
        exit
    }

    /// Asks the child to end at this time, unless it is [given time](Self::give_time) before.
    pub fn end_at(&mut self, at: Time) {
        let signal = Signal::SIGTERM;
        self.escalation = Some(Escalation { signal, at });
    }

    /// Kills the child at this time, if it has not ended and nothing earlier was decided.
    pub fn kill_at(&mut self, at: Time) {
        let signal = Signal::SIGKILL;
        let earlier = self.escalation.filter(|other| other.at <= at);
        self.escalation = earlier.or(Some(Escalation { signal, at }));
    }

    /// Takes all deadlines back: the child is to live.
    pub fn give_time(&mut self) {
        self.escalation = None;
    }

    /// When the child gets its next signal.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        self.escalation.map(|escalation| escalation.at)
    }

    /// The signal that is due now, if one is.
    #[must_use]
    pub fn due_signal(&self, now: Time) -> Option<Signal> {
        let due = self.escalation.filter(|escalation| escalation.at <= now)?;
        Some(due.signal)
    }

    /// Sends the signal that is due.
    pub fn escalate(&mut self, now: Time) {
        match self.due_signal(now) {
            Some(Signal::SIGKILL) => self.kill(),
            Some(signal) => self.end(signal, now),
            None => {}
        }
    }

    /// A signal has stopped the child, or it goes on.
    pub fn set_stopped(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    /// Lets a stopped child go on, because it could not exit otherwise. True if it was stopped.
    pub fn continue_stopped(&mut self) -> bool {
        let stopped = std::mem::take(&mut self.stopped);
        if stopped {
            self.signal(Signal::SIGCONT);
        }
        stopped
    }
}

/// Says in the log why a process does not get a signal. That it has just ended is no reason to.
fn report(sent: nix::Result<()>, signal: Signal, pid: Pid) {
    if let Err(error) = sent
        && error != Errno::ESRCH
    {
        log::error!("cannot send {signal} to process {pid}: {}", error.desc());
    }
}

/// A process that is no child of this one, by a descriptor that means no other process, ever
/// (pidfd_open(2)).
#[derive(Debug)]
pub struct Descendant {
    pid: Pid,
    process: OwnedFd,
}

impl Descendant {
    /// The process which has this id now; `None` when there is none, or the kernel has no
    /// descriptor to give.
    #[must_use]
    pub fn by_pid(pid: Pid) -> Option<Self> {
        let number = rustix::process::Pid::from_raw(pid.as_raw())?;
        let process = pidfd_open(number, PidfdFlags::empty()).ok()?;
        Some(Self { pid, process })
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        if let Some(named) = rustix::process::Signal::from_named_raw(signal as i32) {
            let sent = pidfd_send_signal(&self.process, named);
            let sent = sent.map_err(|error| Errno::from_raw(error.raw_os_error()));
            report(sent, signal, self.pid);
        }
    }
}

/// Waits for the ends of children that were killed, but no longer than [`LAST_CHANCE`]: one that
/// sleeps in the kernel (state D) may take any time.
pub fn reap(killed: &[Child]) {
    let end = Instant::now() + LAST_CHANCE;
    for child in killed {
        let _ = wait_until(end, child.pid);
    }
}

/// Waits for the end of a child until this time; `None` if it has not come, or nothing is known.
fn wait_until(end: Instant, pid: Pid) -> Option<Exit> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, status)) => return Some(Exit::Exited(status)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Some(Exit::Killed(signal)),
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(_) | Err(_) => return None,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "killed by {signal}"),
        }
    }
}

/// The next child of which something has changed, and what.
#[must_use]
pub fn next_event() -> Option<(Pid, ChildEvent)> {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED;
    loop {
        match waitpid(None, Some(flags)) {
            Ok(WaitStatus::Exited(pid, status)) => {
                return Some((pid, ChildEvent::Ended(Exit::Exited(status))));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                return Some((pid, ChildEvent::Ended(Exit::Killed(signal))));
            }
            Ok(WaitStatus::Stopped(pid, _)) => return Some((pid, ChildEvent::Stopped)),
            Ok(WaitStatus::Continued(pid)) => return Some((pid, ChildEvent::Continued)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                log::error!("cannot wait for child processes: {}", error.desc());
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn who_is_asked_to_end_is_killed_no_later_than_was_decided_before() {
        let mut program = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut child = Child::new(Pid::from_raw(program.id().cast_signed()));
        let now = Time::default();
        // A signal that it survives.
        let signal = Signal::SIGCONT;
        let soon = now.after(LAST_CHANCE / 2);
        child.kill_at(soon);
        child.end(signal, now);
        assert_eq!(child.due(), Some(soon));
        // A later time is brought forward, and so is the kill if the next signal was another one.
        child.give_time();
        child.kill_at(now.after(2 * LAST_CHANCE));
        child.end(signal, now);
        assert_eq!(child.due(), Some(now.after(LAST_CHANCE)));
        child.end_at(soon);
        child.end(signal, now);
        assert_eq!(child.due(), Some(now.after(LAST_CHANCE)));
        assert_eq!(
            child.due_signal(now.after(LAST_CHANCE)),
            Some(Signal::SIGKILL)
        );
        child.kill();
        program.wait().unwrap();
    }
}
