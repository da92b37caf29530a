//! The worker processes of one pool: which are wanted, and which exist.
//!
//! This reconciles: it compares the workers that are wanted with those that exist, and starts what
//! is missing. It never decides from an event alone, so that a lost or doubled event
//! does no harm. What is due when nothing happens is in `upkeep`, and how workers and generations
//! give way to others is in `turnover`.

use std::io;
use std::rc::Rc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::autoscale::{Autoscale, Bounds};
use super::channel::Channel;
use super::crash_loop::CrashLoop;
use super::generation::Incoming;
use super::process::{Departure, Process, Stage};
use super::replacement::{Replacement, Step};
use super::slots::{SlotId, Slots};
use super::spawn;
use crate::config::Settings;
use crate::error::Plain;
use crate::master::child::Child;
use crate::master::dispatch::{Dispatcher, WorkerId};
use crate::master::events::epoll::PoolEpoll;
use crate::master::master_only::MasterOnly;
use crate::master::plan::Plan;
use crate::master::time::Time;

// All that a worker can have at a time fits into the ring of its scoreboard.
#[cfg(not(loom))]
const _: () = {
    let most = crate::config::MAX_THREADS + crate::master::dispatch::MAX_DEPTH;
    assert!(most <= crate::channel::scoreboard::RING);
};

/// See the module.
pub struct Workers<'a> {
    pub(super) pool: Rc<str>,
    pub(super) epoll: PoolEpoll,
    /// By the worker's place in the dispatcher's table.
    pub(super) processes: Vec<Option<Process>>,
    /// The slots of the generation that serves.
    pub(super) current: Slots,
    /// The generation that takes over when all of its workers are ready.
    pub(super) incoming: Option<Incoming<'a>>,
    pub(super) last_generation: u32,
    pub(super) replacement: Option<Replacement>,
    /// Descriptors that refer to nothing of use, given up when a worker is started.
    reserve: Vec<EventFd>,
    /// The time of the next look at all workers; `None` when nothing can become due.
    pub(super) check_at: Option<Time>,
    /// Missing workers were started at the last round of the loop, if there were any.
    pub(super) starts: bool,
    /// A slot may be vacant for only as long as nobody needs its next worker.
    pub(super) patient: bool,
    /// The time at which the workers' memory was last looked up.
    pub(super) measured: Time,
    /// How many workers are wanted without any demand.
    pub(super) base: usize,
    pub(super) scaling: Scaling,
    pub(super) crash_loop: CrashLoop,
}

/// What the size of the pool depends on, as of the last look at all workers.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    pub bounds: Option<Bounds>,
    /// How many workers are wanted.
    pub size: usize,
    /// How many of the wanted workers do not serve yet.
    pub starting: usize,
    pub autoscale: Autoscale,
}

impl<'a> Workers<'a> {
    /// No workers yet, of a pool that wants `size` of them.
    #[must_use]
    pub fn new(pool: &Rc<str>, epoll: PoolEpoll, size: usize) -> Self {
        Self {
            pool: Rc::clone(pool),
            epoll,
            processes: Vec::new(),
            current: Slots::new(0, size),
            incoming: None,
            last_generation: 0,
            replacement: None,
            reserve: Vec::new(),
            check_at: Some(Time::default()),
            starts: false,
            patient: false,
            measured: Time::default(),
            base: size,
            scaling: Scaling {
                size,
                starting: size,
                ..Scaling::default()
            },
            crash_loop: CrashLoop::default(),
        }
    }

    // ---- which exist ----------------------------------------------------------------------------

    /// The process of a worker.
    #[must_use]
    pub fn get(&self, worker: WorkerId) -> Option<&Process> {
        let process = self.processes.get(worker.index() as usize)?.as_ref()?;
        (process.worker() == worker).then_some(process)
    }

    /// The process of a worker.
    pub fn get_mut(&mut self, worker: WorkerId) -> Option<&mut Process> {
        let process = self.processes.get_mut(worker.index() as usize)?.as_mut()?;
        (process.worker() == worker).then_some(process)
    }

    /// All processes.
    pub fn all(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().flatten()
    }

    /// All processes.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        self.processes.iter_mut().flatten()
    }

    /// The worker which has this process id.
    #[must_use]
    pub fn by_pid(&self, pid: Pid) -> Option<WorkerId> {
        let process = self.all().find(|process| process.child.pid() == pid)?;
        Some(process.worker())
    }

    /// The workers of the generation that serves.
    pub fn members(&self) -> impl Iterator<Item = &Process> {
        self.all().filter(|process| self.is_member(process))
    }

    /// Whether the worker belongs to the generation that serves.
    #[must_use]
    pub fn is_member(&self, process: &Process) -> bool {
        process.slot().generation == self.current.generation
    }

    /// Whether the worker belongs to the generation that is getting ready.
    #[must_use]
    pub fn is_incoming(&self, process: &Process) -> bool {
        let slots = self.incoming.as_ref().map(|incoming| &incoming.slots);
        slots.is_some_and(|slots| slots.generation == process.slot().generation)
    }

    /// Whether some worker of the generation that serves can serve.
    #[must_use]
    pub fn any_serving(&self) -> bool {
        self.members().any(Process::is_serving)
    }

    /// Whether each worker that is wanted can serve.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.members().filter(|one| one.is_serving()).count() >= self.size()
    }

    /// How many workers are wanted.
    #[must_use]
    pub fn size(&self) -> usize {
        self.current.size()
    }

    /// Has all workers looked at before the master sleeps, because something about them has
    /// changed.
    pub fn schedule_check(&mut self) {
        self.check_at = Some(Time::default());
    }

    // ---- how many are wanted --------------------------------------------------------------------

    /// Wants `size` workers from now on. Those beyond that finish their turns, and are killed at
    /// `until`.
    pub fn resize<C>(
        &mut self,
        size: usize,
        dispatcher: &mut Dispatcher<C>,
        until: Time,
        now: Time,
    ) {
        self.current.resize(size);
        self.let_unwanted_go(dispatcher, until, now);
    }

    /// Wants one worker less: this one goes, and no other one follows in its slot.
    pub(super) fn close_slot_of<C>(
        &mut self,
        worker: WorkerId,
        dispatcher: &mut Dispatcher<C>,
        until: Time,
        now: Time,
    ) {
        if let Some(slot) = self.get(worker).map(Process::slot) {
            self.current.close(slot.slot);
        }
        self.let_unwanted_go(dispatcher, until, now);
    }

    fn let_unwanted_go<C>(&mut self, dispatcher: &mut Dispatcher<C>, until: Time, now: Time) {
        let unwanted = self.members().filter(|process| {
            !self.current.wants(process.slot().slot) && process.stage() <= Stage::Serving
        });
        let unwanted: Vec<_> = unwanted.map(Process::worker).collect();
        for worker in unwanted {
            self.let_go(worker, dispatcher, until, now);
        }
    }

    /// Lets a worker go: it finishes its turns and exits, and is killed at `until`.
    pub fn let_go<C>(
        &mut self,
        worker: WorkerId,
        dispatcher: &mut Dispatcher<C>,
        until: Time,
        now: Time,
    ) {
        if let Some(process) = self.get_mut(worker) {
            process.drain(until, now);
        }
        dispatcher.retire(worker);
        self.schedule_check();
    }

    // ---- starting -------------------------------------------------------------------------------

    /// A slot for which a worker should be started now, if there is one.
    fn due(&self, now: Time) -> Option<SlotId> {
        let incoming = || self.incoming.as_ref()?.slots.due(now);
        let second = || Some(self.second_due().filter(|(_, from)| *from <= now)?.0);
        self.current.due(now).or_else(second).or_else(incoming)
    }

    /// The time at which the next worker should be started.
    pub(super) fn next_start(&self) -> Option<Time> {
        let incoming = self.incoming.as_ref();
        let incoming = incoming.and_then(|incoming| incoming.slots.next_due());
        let second = self.second_due().map(|(_, from)| from);
        let times = [self.current.next_due(), second, incoming];
        times.into_iter().flatten().min()
    }

    /// Starts the workers that are wanted and missing.
    pub(super) fn start_missing<C>(
        &mut self,
        plan: &Plan<'a>,
        dispatcher: &mut Dispatcher<C>,
        only: &mut MasterOnly,
        now: Time,
    ) {
        let mut failed: Option<(SlotId, io::Error)> = None;
        let mut failures = 0;
        while let Some(slot) = self.due(now) {
            let next = self.incoming.as_ref();
            let next = next.filter(|incoming| incoming.slots.generation == slot.generation);
            let plan = next.map_or(plan, Incoming::plan).clone();
            let worker = dispatcher.worker_started(plan.settings.threads);
            if let Err(error) = self.start(slot, worker, &plan, only, now) {
                dispatcher.worker_gone(worker, now);
                failed.get_or_insert((slot, error));
                failures += 1;
            }
        }
        // One line for all of them, because they fail for the same reason most of the time.
        if let Some((SlotId { slot, .. }, error)) = failed {
            let (pool, why) = (&self.pool, spawn::explain(&error));
            let others = match failures {
                1 => String::new(),
                count => format!(" and {} others", count - 1),
            };
            log::error!(
                "cannot start a worker for slot {slot}{others} of pool {pool}: {why}; trying again"
            );
        }
    }

    fn start(
        &mut self,
        slot: SlotId,
        worker: WorkerId,
        plan: &Plan<'_>,
        only: &mut MasterOnly,
        now: Time,
    ) -> io::Result<()> {
        self.reserve.clear();
        let started = spawn::fork_worker(slot.slot, plan, only);
        self.hold_reserve();
        match started {
            Ok(parts) => {
                self.filled(slot);
                self.admit(slot, worker, parts, &plan.settings, now);
                Ok(())
            }
            Err(error) => {
                self.vacated(slot, true, now);
                Err(error)
            }
        }
    }

    /// Adds a worker that was started for a slot, and listens to it.
    pub fn admit(
        &mut self,
        slot: SlotId,
        worker: WorkerId,
        parts: (Child, Channel),
        settings: &Settings,
        now: Time,
    ) {
        let mut process = Process::new(&self.pool, slot, worker, parts, settings, now);
        if self.is_member(&process) {
            // A generation that does not serve yet has its own limit.
            process.child.end_at(now.after(settings.start_timeout));
        }
        if let Err(error) = process.channel.watch(&self.epoll, worker) {
            log::error!("cannot watch worker {process}: {}", Plain(&error));
        }
        let place = worker.index() as usize;
        if self.processes.len() <= place {
            self.processes.resize_with(place + 1, || None);
        }
        self.processes[place] = Some(process);
    }

    /// Keeps descriptors back, so that a worker can be started when clients have taken all others.
    /// False when there are too few left for that.
    pub fn hold_reserve(&mut self) -> bool {
        while self.reserve.len() < spawn::DESCRIPTORS {
            match EventFd::from_flags(EfdFlags::EFD_CLOEXEC) {
                Ok(descriptor) => self.reserve.push(descriptor),
                Err(_) => return false,
            }
        }
        true
    }

    fn filled(&mut self, slot: SlotId) {
        let second = self.second_due().is_some_and(|(due, _)| due == slot);
        if second && let Some(replacement) = &mut self.replacement {
            replacement.step = Step::Started;
        } else if let Some(slots) = self.slots_of(slot.generation) {
            slots.fill(slot.slot);
        }
    }

    // ---- the end of a process -------------------------------------------------------------------

    /// Forgets a process that has ended, and wants another one in its slot if the slot is still
    /// wanted and now vacant. True when a worker of the generation that serves has died early.
    pub fn remove(&mut self, worker: WorkerId, now: Time) -> bool {
        if self.get(worker).is_none() {
            return false;
        }
        let Some(process) = self.processes[worker.index() as usize].take() else {
            return false;
        };
        self.schedule_check();
        let (slot, departure) = (process.slot(), process.departure());
        if departure == Departure::Unwanted {
            return false;
        }
        let early = departure == Departure::Early;
        let first_turn = departure == Departure::FirstTurn;
        self.vacated(slot, early || first_turn, now);
        if first_turn && let Some(slots) = self.slots_of(slot.generation) {
            slots.be_patient(slot.slot);
            self.patient = true;
        }
        early && slot.generation == self.current.generation
    }

    /// A process of the slot has ended, or could not be started.
    fn vacated(&mut self, slot: SlotId, early: bool, now: Time) {
        let serves = |other: &Process| other.slot() == slot && other.stage() <= Stage::Serving;
        let another = self.all().any(serves);
        let second = self.second_slot() == Some(slot);
        let Some(slots) = self.slots_of(slot.generation) else {
            return;
        };
        if !another {
            slots.vacate(slot.slot, early, now);
        } else if second
            && let Some(from) = slots.put_off(slot.slot, early, now)
            && let Some(replacement) = &mut self.replacement
        {
            replacement.step = Step::Wanted { from };
        }
    }

    fn slots_of(&mut self, generation: u32) -> Option<&mut Slots> {
        let incoming = self.incoming.as_mut().map(|incoming| &mut incoming.slots);
        let mut all = [Some(&mut self.current), incoming].into_iter().flatten();
        all.find(|slots| slots.generation == generation)
    }

    /// The slot whose worker is being replaced, and the earliest time for a second worker in it.
    fn second_due(&self) -> Option<(SlotId, Time)> {
        let from = self.replacement?.start_due()?;
        self.second_slot().map(|slot| (slot, from))
    }

    /// The slot of the worker that is being replaced, if that worker still serves.
    fn second_slot(&self) -> Option<SlotId> {
        let old = self.get(self.replacement?.worker)?;
        (self.is_member(old) && old.is_serving()).then(|| old.slot())
    }

    /// Kills every process, and returns them to be reaped.
    pub fn kill_all(&mut self) -> Vec<Child> {
        let mut killed = Vec::new();
        for mut process in self.processes.iter_mut().filter_map(Option::take) {
            log::debug!("killing worker {process}");
            process.child.kill();
            killed.push(process.child);
        }
        killed
    }
}
