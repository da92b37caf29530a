//! The worker processes of a pool: start, ready, reap, and start again with a growing delay.
//!
//! This reconciles: it compares the workers that there should be with those that there are, and starts what is
//! missing. It never decides from an event alone, so a lost or doubled event does no harm. Which places are to be filled,
//! and when, is the [`Crew`]'s.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::channel::inbox::{self, MasterEnd, WorkerEnd};
use crate::channel::scoreboard::Scoreboard;
use crate::channel::start::WorkerHandles;
use crate::config::{MAX_THREADS, Settings};
use crate::error::{Error, Result};
use crate::master::dispatch::{MAX_DEPTH, WorkerId};
use crate::master::time::Time;
use crate::master::workers::lifetime::Life;
use crate::master::workers::process::Process;
use crate::master::workers::replace::Relief;
use crate::master::workers::slots::{Crew, Post};
use crate::sys;

// All that a worker can have at a time fits into the ring of its scoreboard.
#[cfg(not(loom))]
const _: () = assert!(MAX_THREADS + MAX_DEPTH <= crate::channel::scoreboard::RING);

/// How many descriptors it takes to start a worker: the socketpair and a copy, the doorbell.
const RESERVE: usize = 4;

/// The main function of a worker process: what it runs, and the exit status.
pub type WorkerMain<'a> = dyn Fn(WorkerHandles<'_>) -> u8 + 'a;

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
    pub(in crate::master) relief: Option<Relief>,
    /// Descriptors that stand for nothing, given up for a worker that is to be started.
    reserve: Vec<EventFd>,
}

impl Processes {
    /// The processes of a pool, of which `size` are wanted.
    #[must_use]
    pub fn new(pool: &Rc<str>, size: usize) -> Self {
        Self {
            pool: Rc::clone(pool),
            processes: Vec::new(),
            current: Crew::new(0, size),
            incoming: None,
            last_generation: 0,
            relief: None,
            reserve: Vec::new(),
        }
    }

    /// How many workers are wanted.
    #[must_use]
    pub fn size(&self) -> usize {
        self.current.size()
    }

    /// Wants `size` workers from now on. Those beyond it are returned, to be retired.
    pub fn resize(&mut self, size: usize) -> Vec<WorkerId> {
        self.current.resize(size);
        self.unwanted()
    }

    /// Wants one worker less, and not this one nor another in its slot. Who is there is returned, to be retired.
    pub fn close_slot_of(&mut self, worker: WorkerId) -> Vec<WorkerId> {
        let slot = self.get(worker).map(|process| process.slot);
        if let Some(slot) = slot {
            self.current.close(slot);
        }
        self.unwanted()
    }

    fn unwanted(&self) -> Vec<WorkerId> {
        let unwanted = self.members().filter(|process| {
            !self.current.wants(process.slot) && !process.leaving && !process.retiring
        });
        unwanted.map(|process| process.worker).collect()
    }

    // ---- generations ------------------------------------------------------------------------------------------

    /// Wants a whole new generation of `size` workers besides the one that serves.
    pub fn prepare_next(&mut self, size: usize) {
        self.last_generation += 1;
        self.incoming = Some(Crew::new(self.last_generation, size));
    }

    /// Whether each worker of the coming generation is ready.
    #[must_use]
    pub fn next_is_ready(&self) -> bool {
        self.incoming.as_ref().is_none_or(|crew| {
            let ready = self
                .processes()
                .filter(|process| process.generation == crew.generation && process.ready);
            ready.count() >= crew.size()
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

    /// All processes.
    pub fn processes_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        self.processes.iter_mut().flatten()
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
        let next = || self.incoming.as_ref()?.due(now);
        let relief = || Some(self.relief_due().filter(|(_, from)| *from <= now)?.0);
        self.current.due(now).or_else(relief).or_else(next)
    }

    /// When the next worker is to be started.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let next = self.incoming.as_ref().and_then(Crew::next_due);
        let relief = self.relief_due().map(|(_, from)| from);
        let times = [self.current.next_due(), relief, next];
        times.into_iter().flatten().min()
    }

    pub(in crate::master) fn crew(&mut self, generation: u32) -> Option<&mut Crew> {
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
        (main, settings): (&WorkerMain<'_>, &Settings),
        now: Time,
    ) -> Result<&mut Process> {
        let Post { generation, slot } = post;
        self.reserve.clear();
        let started = fork_worker(slot, keep, detach, main);
        self.hold_reserve();
        let (pid, end, board) = match started {
            Ok(parts) => {
                self.filled(post);
                parts
            }
            Err(error) => {
                self.vacated(post, true, now);
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
            threads: settings.threads,
            life: Life::new(settings, pid.as_raw().unsigned_abs().into(), now),
            turns: 0,
            memory: 0,
            condemned: None,
            stopped: false,
            leaving: false,
            retiring: false,
            ended: false,
            worker,
            born: now,
            until: None,
        };
        Ok(self.processes[place].insert(process))
    }

    /// Forgets a process that has ended, and wants another in its place if that is still wanted and nobody is there.
    /// True when one of the generation that serves has died early.
    pub fn bury(&mut self, worker: WorkerId, now: Time) -> bool {
        if self.get(worker).is_none() {
            return false;
        }
        let Some(process) = self.processes[worker.index() as usize].take() else {
            return false;
        };
        let Process {
            generation, slot, ..
        } = process;
        if process.leaving {
            // Nobody is wanted in its slot, or somebody else is there already.
            return false;
        }
        let early = !process.retiring && !process.has_outlived_its_start(now);
        self.vacated(Post { generation, slot }, early, now);
        early && generation == self.current.generation
    }

    fn filled(&mut self, post: Post) {
        if !self.filled_by_relief(post)
            && let Some(crew) = self.crew(post.generation)
        {
            crew.fill(post.slot);
        }
    }

    /// There is one process less for a post than there was, or than there was to be.
    fn vacated(&mut self, post: Post, early: bool, now: Time) {
        let serves = |other: &Process| {
            other.generation == post.generation && other.slot == post.slot && !other.leaving
        };
        if self.processes().any(serves) {
            self.relief_vacated(post, early, now);
        } else if let Some(crew) = self.crew(post.generation) {
            crew.vacate(post.slot, early, now);
        }
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
        Ok(()) => main(WorkerHandles {
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
