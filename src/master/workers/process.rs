//! One worker process: what the master knows of it, and what the kernel says of it.

use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::channel::inbox::MasterEnd;
use crate::channel::scoreboard::Scoreboard;
use crate::master::dispatch::WorkerId;
use crate::master::time::Time;
use crate::master::workers::lifetime::{Life, Reason};

/// A worker that lives for less than this and dies of its first connection, or before it is ready, died early: its
/// replacement waits. One that has served others is no sign of a service that can't work, whatever killed it.
pub const YOUNG: Duration = Duration::from_secs(1);

/// The name of a pool that needs none, for it is the only one.
pub const MAIN: &str = "main";

/// One worker process.
#[derive(Debug)]
pub struct Process {
    /// The pool that it belongs to.
    pub(in crate::master) pool: Rc<str>,
    /// Its process id.
    pub pid: Pid,
    /// Its place in the pool, from 0. A replacement has the same.
    pub slot: u32,
    /// The generation of workers that it belongs to: each reload makes a new one.
    pub generation: u32,
    /// The master's end of its socketpair.
    pub end: MasterEnd,
    /// The memory that it shares with the master.
    pub board: Scoreboard,
    /// How many connections were sent into its inbox, less those that were taken back.
    pub(in crate::master) sent: u64,
    /// It has said that it can serve.
    pub ready: bool,
    /// How many turns it serves at the same time; other generations may differ.
    pub threads: usize,
    /// How long it is to live.
    pub life: Life,
    /// How many turns it has served, as far as it has said.
    pub(in crate::master) turns: u64,
    /// How much memory it had when that was last looked at.
    pub memory: u64,
    /// It was not ready in time and was asked to end; it is killed at this time.
    pub condemned: Option<Time>,
    /// A signal has stopped it.
    pub stopped: bool,
    /// It is to be asked to exit when it has nothing to do, and none of the workers that there should be any more.
    pub leaving: bool,
    /// It was asked to exit.
    pub retiring: bool,
    /// It has ended, or was killed because it broke the protocol.
    pub ended: bool,
    /// What the dispatcher calls it.
    pub worker: WorkerId,
    /// When it was started.
    pub born: Time,
    /// When it is killed, if it belongs to a generation that was replaced.
    pub until: Option<Time>,
}

/// How a process ended, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It returned this exit status.
    Exited(i32),
    /// It was killed by this signal.
    Killed(Signal),
}

impl Process {
    /// Counts a connection that was sent into its inbox.
    pub fn count_sent(&mut self) {
        self.sent += 1;
        self.board.sent(self.sent);
    }

    /// Counts turns that it has served, at least one. True when that ends its life.
    pub fn count_turns(&mut self, turns: u64) -> bool {
        self.turns = self.turns.saturating_add(turns.max(1));
        self.life.is_served_by(self.turns, turns.max(1))
    }

    /// Why another is to take its place, if that is so.
    #[must_use]
    pub fn is_spent(&self, now: Time) -> Option<Reason> {
        self.life.over(self.turns, self.memory, now)
    }

    /// Whether it is lent connections, unless a signal has stopped it.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.ready && !self.leaving && !self.retiring && !self.ended
    }

    /// Whether it has lived long enough to have died early no more.
    #[must_use]
    pub fn has_outlived_its_start(&self, now: Time) -> bool {
        self.ready && (now.since(self.born) >= YOUNG || self.board.taken() > 1)
    }

    /// Counts a connection that was taken back out of its inbox.
    pub fn count_taken_back(&mut self) {
        self.sent -= 1;
        self.board.sent(self.sent);
    }

    /// How many connections lie in its inbox: sent, and neither taken up nor taken back.
    #[must_use]
    pub fn inbox_length(&self) -> u64 {
        self.sent.saturating_sub(self.board.taken())
    }
}

/// As the log names it: by slot and pid; by pool too where there may be several, and by generation after a reload.
impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "slot={} pid={}", self.slot, self.pid)?;
        if &*self.pool != MAIN {
            write!(f, " pool={}", self.pool)?;
        }
        if self.generation > 0 {
            write!(f, " generation={}", self.generation)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "killed by {signal}"),
        }
    }
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It has ended, and is reaped.
    Ended(End),
    /// A signal has stopped it.
    Stopped,
    /// It goes on after a stop.
    Continued,
}

/// The next process of which something has changed, and what.
#[must_use]
pub fn next_change() -> Option<(Pid, Change)> {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED;
    loop {
        match waitpid(None, Some(flags)) {
            Ok(WaitStatus::Exited(pid, status)) => {
                return Some((pid, Change::Ended(End::Exited(status))));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                return Some((pid, Change::Ended(End::Killed(signal))));
            }
            Ok(WaitStatus::Stopped(pid, _)) => return Some((pid, Change::Stopped)),
            Ok(WaitStatus::Continued(pid)) => return Some((pid, Change::Continued)),
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return None,
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                log::error!("cannot wait for workers: {}", error.desc());
                return None;
            }
        }
    }
}
