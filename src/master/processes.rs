//! The worker processes of a pool: start, ready, reap, and start again with a growing delay.
//!
//! This reconciles: it compares the workers that there should be with those that there are, and starts what is
//! missing. It never decides from an event alone, so a lost or doubled event does no harm.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
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

/// The name of a pool that needs none, for it is the only one.
pub const MAIN: &str = "main";

/// The main function of a worker process: what it runs, and the exit status.
pub type WorkerMain<'a> = dyn Fn(Seat<'_>) -> u8 + 'a;

/// One worker process.
#[derive(Debug)]
pub struct Process {
    /// The pool that it belongs to.
    pool: Rc<str>,
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
    sent: u64,
    /// It has said that it can serve.
    pub ready: bool,
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

/// Where a worker belongs.
#[derive(Debug, Clone, Copy)]
enum Slot {
    /// A process is there.
    Taken,
    /// A process is to be started, no earlier than then.
    Vacant { from: Time },
}

/// A place that a process is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Post {
    /// The generation that it belongs to.
    pub generation: u32,
    /// The place in the pool, from 0.
    pub slot: u32,
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

/// The workers that there should be, of one generation.
#[derive(Debug, Default)]
struct Crew {
    generation: u32,
    slots: Vec<Slot>,
    /// By slot: how long the successor of a worker that dies young waits.
    delays: Vec<Duration>,
}

/// The processes of one pool.
#[derive(Debug)]
pub struct Processes {
    pool: Rc<str>,
    /// By the worker's place in the dispatcher's table.
    processes: Vec<Option<Process>>,
    /// The generation that serves.
    current: Crew,
    /// The one that is to follow it, when all of its workers are ready.
    incoming: Option<Crew>,
    last_generation: u32,
    /// Descriptors that stand for nothing, given up for a worker that is to be started.
    reserve: Vec<EventFd>,
}

impl Crew {
    fn resize(&mut self, size: usize) {
        self.slots.resize(
            size,
            Slot::Vacant {
                from: Time::default(),
            },
        );
        self.delays.resize(size, Duration::ZERO);
    }

    fn due(&self, now: Time) -> Option<Post> {
        let vacant = |slot: &Slot| matches!(slot, Slot::Vacant { from } if *from <= now);
        let slot = self.slots.iter().position(vacant)?;
        Some(Post {
            generation: self.generation,
            slot: slot as u32,
        })
    }

    fn next_due(&self) -> Option<Time> {
        let times = self.slots.iter().filter_map(|slot| match slot {
            Slot::Vacant { from } => Some(*from),
            Slot::Taken => None,
        });
        times.min()
    }

    fn grow_delay(&mut self, slot: u32) -> Duration {
        let delay = &mut self.delays[slot as usize];
        *delay = (*delay * 2).clamp(FIRST_DELAY, LAST_DELAY);
        *delay
    }
}

impl Processes {
    /// The processes of a pool, of which `size` are wanted.
    #[must_use]
    pub fn new(pool: &Rc<str>, size: usize) -> Self {
        let mut processes = Self {
            pool: Rc::clone(pool),
            processes: Vec::new(),
            current: Crew::default(),
            incoming: None,
            last_generation: 0,
            reserve: Vec::new(),
        };
        processes.current.resize(size);
        processes
    }

    /// How many workers are wanted.
    #[must_use]
    pub fn size(&self) -> usize {
        self.current.slots.len()
    }

    /// Wants `size` workers from now on. Those beyond it are returned, to be retired.
    pub fn resize(&mut self, size: usize) -> Vec<WorkerId> {
        self.current.resize(size);
        let generation = self.current.generation;
        let beyond = self.processes().filter(|process| {
            process.generation == generation && process.slot as usize >= size && !process.retiring
        });
        beyond.map(|process| process.worker).collect()
    }

    // ---- generations ------------------------------------------------------------------------------------------

    /// Wants a whole new generation of `size` workers besides the one that serves.
    pub fn prepare_next(&mut self, size: usize) {
        self.last_generation += 1;
        let mut crew = Crew {
            generation: self.last_generation,
            ..Crew::default()
        };
        crew.resize(size);
        self.incoming = Some(crew);
    }

    /// Whether each worker of the coming generation is ready.
    #[must_use]
    pub fn next_is_ready(&self) -> bool {
        self.incoming.as_ref().is_none_or(|crew| {
            let ready = self
                .processes()
                .filter(|process| process.generation == crew.generation && process.ready);
            ready.count() >= crew.slots.len()
        })
    }

    /// Whether the worker belongs to the coming generation.
    #[must_use]
    pub fn is_next(&self, process: &Process) -> bool {
        let next = self.incoming.as_ref().map(|crew| crew.generation);
        next == Some(process.generation)
    }

    /// Whether the post is one of the coming generation.
    #[must_use]
    pub fn is_of_next(&self, post: Post) -> bool {
        let next = self.incoming.as_ref().map(|crew| crew.generation);
        next == Some(post.generation)
    }

    /// The coming generation is the one that serves from now on. The one that served has until then to finish; those
    /// that were replaced before it keep the time that they have.
    pub fn promote_next(&mut self, until: Time) {
        let Some(crew) = self.incoming.take() else {
            return;
        };
        self.current = crew;
        let generation = self.current.generation;
        for process in self.processes.iter_mut().flatten() {
            if process.generation != generation {
                process.until.get_or_insert(until);
            }
        }
    }

    /// Gives the coming generation up; its workers are returned, to be ended.
    pub fn abandon_next(&mut self) -> Vec<WorkerId> {
        let Some(crew) = self.incoming.take() else {
            return Vec::new();
        };
        let members = self
            .processes()
            .filter(|process| process.generation == crew.generation);
        members.map(|process| process.worker).collect()
    }

    /// The workers of the generation that serves.
    pub fn members(&self) -> impl Iterator<Item = &Process> {
        self.processes().filter(|process| self.is_member(process))
    }

    /// Whether the worker belongs to the generation that serves.
    #[must_use]
    pub fn is_member(&self, process: &Process) -> bool {
        process.generation == self.current.generation
    }

    /// Whether each worker that is wanted is ready.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.members().filter(|process| process.ready).count() >= self.size()
    }

    /// The workers of generations before the one that serves.
    pub fn former(&self) -> impl Iterator<Item = &Process> {
        self.processes()
            .filter(|process| !self.is_member(process))
            .filter(|process| !self.is_next(process))
    }

    // ---- processes --------------------------------------------------------------------------------------------

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

    /// The place of a worker that is to be started now, if there is one.
    #[must_use]
    pub fn due(&self, now: Time) -> Option<Post> {
        let next = self.incoming.as_ref().and_then(|crew| crew.due(now));
        self.current.due(now).or(next)
    }

    /// When the next worker is to be started.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let next = self.incoming.as_ref().and_then(Crew::next_due);
        [self.current.next_due(), next].into_iter().flatten().min()
    }

    fn crew(&mut self, generation: u32) -> Option<&mut Crew> {
        let crews = [Some(&mut self.current), self.incoming.as_mut()];
        crews
            .into_iter()
            .flatten()
            .find(|crew| crew.generation == generation)
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

    /// Starts a process for a post. `keep` are the descriptors that it keeps besides its inbox; `detach` is run first
    /// in it, to drop what of the master's must not live on.
    ///
    /// # Errors
    /// What socketpair(2) and fork(2) fail with. The post is tried again after a delay.
    pub fn start(
        &mut self,
        post: Post,
        worker: WorkerId,
        keep: &[RawFd],
        detach: impl FnOnce(),
        main: &WorkerMain<'_>,
        now: Time,
    ) -> Result<&Process> {
        let Post { generation, slot } = post;
        self.reserve.clear();
        let started = fork_worker(slot, keep, detach, main);
        self.hold_reserve();
        let crew = self.crew(generation);
        let (pid, end, board) = match started {
            Ok(parts) => {
                if let Some(crew) = crew {
                    crew.slots[slot as usize] = Slot::Taken;
                }
                parts
            }
            Err(error) => {
                if let Some(crew) = crew {
                    let from = now.after(crew.grow_delay(slot));
                    crew.slots[slot as usize] = Slot::Vacant { from };
                }
                return Err(Error::new(format!("start a worker for slot {slot}"), error));
            }
        };
        let place = worker.index() as usize;
        if self.processes.len() <= place {
            self.processes.resize_with(place + 1, || None);
        }
        let process = Process {
            pool: Rc::clone(&self.pool),
            pid,
            slot,
            generation,
            end,
            board,
            sent: 0,
            ready: false,
            retiring: false,
            ended: false,
            worker,
            born: now,
            until: None,
        };
        Ok(self.processes[place].insert(process))
    }

    /// Forgets a process that has ended, and wants another in its place unless it was asked to exit.
    pub fn bury(&mut self, worker: WorkerId, now: Time) -> Option<Process> {
        self.get(worker)?;
        let process = self.processes[worker.index() as usize].take()?;
        let (generation, slot) = (process.generation, process.slot);
        let successor = self
            .processes()
            .any(|other| other.generation == generation && other.slot == slot);
        let Some(crew) = self.crew(generation).filter(|_| !successor) else {
            return Some(process);
        };
        if let Some(Slot::Taken) = crew.slots.get(slot as usize) {
            let served = process.board.taken() > 1;
            let young = now.since(process.born) < YOUNG && !process.retiring && !served;
            let from = if young {
                now.after(crew.grow_delay(slot))
            } else {
                crew.delays[slot as usize] = Duration::ZERO;
                now
            };
            crew.slots[slot as usize] = Slot::Vacant { from };
        }
        Some(process)
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
