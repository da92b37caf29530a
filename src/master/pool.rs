//! The worker processes of a pool: start, ready, reap, and start again with a growing delay.
//!
//! The pool reconciles: it compares the workers that there should be with those that there are, and starts what is
//! missing. It never decides from an event alone, so a lost or doubled event does no harm.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::dispatch::{MAX_DEPTH, WorkerId};
use super::time::Time;
use crate::config::MAX_THREADS;
use crate::error::{Error, Result};
use crate::inbox::{self, MasterEnd, WorkerEnd};
use crate::scoreboard::Scoreboard;
use crate::seat::Seat;
use crate::sys;

/// A worker that lives for less than this and dies of its first connection, or before, died young: its replacement
/// waits. One that has served others is no sign of a service that can't work, whatever killed it.
const YOUNG: Duration = Duration::from_secs(1);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);

// All that a worker can have at a time fits into the ring of its scoreboard.
#[cfg(not(loom))]
const _: () = assert!(MAX_THREADS + MAX_DEPTH <= crate::scoreboard::RING);

/// How many descriptors it takes to start a worker: the socketpair and a copy, the doorbell.
const RESERVE: usize = 4;

/// The main function of a worker process: what it runs, and the exit status.
pub type WorkerMain<'a> = dyn Fn(Seat<'_>) -> u8 + 'a;

/// One worker process.
#[derive(Debug)]
pub struct Process {
    /// Its process id.
    pub pid: Pid,
    /// Its place in the pool, from 0. A replacement has the same.
    pub slot: u32,
    /// The master's end of its socketpair.
    pub end: MasterEnd,
    /// The memory that it shares with the master.
    pub board: Scoreboard,
    /// How many connections were sent into its inbox, less those that were taken back.
    sent: u64,
    /// It has said that it can serve.
    pub ready: bool,
    /// It was asked to exit.
    pub retiring: bool,
    /// It has ended, or was killed because it broke the protocol.
    pub ended: bool,
    worker: WorkerId,
    born: Time,
}

/// Where a worker belongs.
#[derive(Debug, Clone, Copy)]
enum Slot {
    /// A process is there.
    Taken,
    /// A process is to be started, no earlier than then.
    Vacant { from: Time },
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

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "killed by {signal}"),
        }
    }
}

/// The processes of one pool.
#[derive(Debug, Default)]
pub struct Pool {
    /// By the worker's place in the dispatcher's table.
    processes: Vec<Option<Process>>,
    slots: Vec<Slot>,
    /// By slot: how long the successor of a worker that dies young waits.
    delays: Vec<Duration>,
    /// Descriptors that stand for nothing, given up for a worker that is to be started.
    reserve: Vec<EventFd>,
}

impl Pool {
    /// A pool that wants `size` workers.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let mut pool = Self::default();
        pool.resize(size);
        pool
    }

    /// How many workers the pool wants.
    #[must_use]
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// Wants `size` workers from now on. Those beyond it are returned, to be retired.
    pub fn resize(&mut self, size: usize) -> Vec<WorkerId> {
        self.slots.resize(
            size,
            Slot::Vacant {
                from: Time::default(),
            },
        );
        self.delays.resize(size, Duration::ZERO);
        let beyond = self
            .processes()
            .filter(|process| process.slot as usize >= size && !process.retiring);
        beyond.map(|process| process.worker).collect()
    }

    /// The process of a worker.
    #[must_use]
    pub fn get(&self, worker: WorkerId) -> Option<&Process> {
        self.processes
            .get(worker.index() as usize)?
            .as_ref()
            .filter(|process| process.worker == worker)
    }

    /// The process of a worker.
    pub fn get_mut(&mut self, worker: WorkerId) -> Option<&mut Process> {
        self.processes
            .get_mut(worker.index() as usize)?
            .as_mut()
            .filter(|process| process.worker == worker)
    }

    /// All processes.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().flatten()
    }

    /// The worker whose process this is.
    #[must_use]
    pub fn worker(&self, pid: Pid) -> Option<WorkerId> {
        self.processes()
            .find(|process| process.pid == pid)
            .map(|process| process.worker)
    }

    /// The slot of a worker that is to be started now, if there is one.
    #[must_use]
    pub fn due(&self, now: Time) -> Option<u32> {
        let vacant = |slot: &Slot| matches!(slot, Slot::Vacant { from } if *from <= now);
        self.slots.iter().position(vacant).map(|slot| slot as u32)
    }

    /// When the next worker is to be started.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let times = self.slots.iter().filter_map(|slot| match slot {
            Slot::Vacant { from } => Some(*from),
            Slot::Taken => None,
        });
        times.min()
    }

    /// Keeps descriptors back, so that a worker can be started when clients have taken all others.
    /// False when there are too few left for that.
    pub fn hold_reserve(&mut self) -> bool {
        while self.reserve.len() < RESERVE {
            match EventFd::from_flags(EfdFlags::EFD_CLOEXEC) {
                Ok(descriptor) => self.reserve.push(descriptor),
                Err(_) => return false,
            }
        }
        true
    }

    /// Starts a process for `slot`. `keep` are the descriptors that it keeps besides its inbox; `detach` is run first
    /// in it, to drop what of the master's must not live on.
    ///
    /// # Errors
    /// What socketpair(2) and fork(2) fail with. The slot is tried again after a delay.
    pub fn start(
        &mut self,
        slot: u32,
        worker: WorkerId,
        keep: &[RawFd],
        detach: impl FnOnce(),
        main: &WorkerMain<'_>,
        now: Time,
    ) -> Result<&Process> {
        self.reserve.clear();
        let started = fork_worker(slot, keep, detach, main);
        self.hold_reserve();
        let (pid, end, board) = started.map_err(|error| {
            let from = now.after(self.grow_delay(slot));
            self.slots[slot as usize] = Slot::Vacant { from };
            Error::new(format!("start a worker for slot {slot}"), error)
        })?;
        self.slots[slot as usize] = Slot::Taken;
        let place = worker.index() as usize;
        if self.processes.len() <= place {
            self.processes.resize_with(place + 1, || None);
        }
        let process = Process {
            pid,
            slot,
            end,
            board,
            sent: 0,
            ready: false,
            retiring: false,
            ended: false,
            worker,
            born: now,
        };
        Ok(self.processes[place].insert(process))
    }

    /// Forgets a process that has ended, and wants another in its place unless it was asked to exit.
    pub fn bury(&mut self, worker: WorkerId, now: Time) -> Option<Process> {
        self.get(worker)?;
        let process = self.processes[worker.index() as usize].take()?;
        let successor = self.processes().any(|other| other.slot == process.slot);
        let Some(slot) = self.slots.get(process.slot as usize).filter(|_| !successor) else {
            return Some(process);
        };
        if matches!(slot, Slot::Taken) {
            let served = process.board.taken() > 1;
            let young = now.since(process.born) < YOUNG && !process.retiring && !served;
            let from = if young {
                now.after(self.grow_delay(process.slot))
            } else {
                self.delays[process.slot as usize] = Duration::ZERO;
                now
            };
            self.slots[process.slot as usize] = Slot::Vacant { from };
        }
        Some(process)
    }

    fn grow_delay(&mut self, slot: u32) -> Duration {
        let delay = &mut self.delays[slot as usize];
        *delay = (*delay * 2).clamp(FIRST_DELAY, LAST_DELAY);
        *delay
    }

    /// Kills every process at once, and reaps it.
    pub fn end_all(&mut self) {
        for process in self.processes() {
            // ESRCH: it has just ended, and is reaped below.
            let _ = kill(process.pid, Signal::SIGKILL);
        }
        for process in self.processes.iter_mut().filter_map(Option::take) {
            while waitpid(process.pid, None) == Err(nix::errno::Errno::EINTR) {}
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

fn fork_worker(
    slot: u32,
    keep: &[RawFd],
    detach: impl FnOnce(),
    main: &WorkerMain<'_>,
) -> io::Result<(Pid, MasterEnd, Scoreboard)> {
    let (ours, theirs) = inbox::pair()?;
    let board = Scoreboard::new()?;
    let keep: Vec<_> = keep
        .iter()
        .copied()
        .chain([theirs.as_fd(), board.doorbell()].map(|fd| fd.as_raw_fd()))
        .collect();
    // No signal may reach the child while it still has the master's handlers: they write into the master's pipe.
    let mut before = SigSet::empty();
    sigprocmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )?;
    let pid = sys::process::spawn(&keep, detach, || match prepare(&theirs, &before) {
        Ok(()) => main(Seat {
            slot,
            inbox: theirs,
            board: board.publisher(),
        }),
        Err(error) => {
            log::error!("cannot set up the worker's signals: {error}");
            1
        }
    });
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    let pid = pid?;
    board.keep_from_children()?;
    Ok((pid, ours, board))
}

/// In the child: SIGTERM retires the worker. All other signals that the master handles are ignored, for a terminal
/// sends them to every process of the group, and what a worker does is the master's decision.
fn prepare(inbox: &WorkerEnd, mask: &SigSet) -> io::Result<()> {
    let inbox = inbox.as_fd().try_clone_to_owned()?;
    sys::signals::shut_on(Signal::SIGTERM, inbox, Shutdown::Read)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?;
    Ok(())
}
