//! The master: accepts connections, holds them, and lends them to workers.
//!
//! One thread, one epoll set, one loop: events go to the [`dispatch`]er, its actions are carried out here. The master
//! never runs service code and parses no protocol.

pub mod chains;
pub mod connections;
pub mod dispatch;
mod held;
pub mod listener;
pub mod pool;
mod signals;
pub mod time;
pub mod wheel;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::config::Settings;
use crate::error::{Error, Plain, Result};
use crate::inbox::{Lent, MessageBuffer};
use crate::service::Conduct;
use crate::sys;
use crate::wire::{FromWorker, Lend, Report};
use connections::ConnectionId;
use dispatch::{Action, Canned, Dispatcher, TurnEnd, Verdict, WorkerId};
use held::Held;
use listener::{Accepted, Listener};
use pool::{Pool, WorkerMain};
use signals::{Request, Signals};
use time::Time;

/// How many connections are accepted before others get their turn.
const ACCEPT_BATCH: usize = 64;

/// How many events are taken out of the epoll set at a time.
const EVENTS: usize = 256;

/// How long accepting pauses when no descriptor or no memory is left, unless a connection ends before.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// What an event in the epoll set is about: four bits of its 64, next to an index or a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Connection(ConnectionId),
    Worker(WorkerId),
    Listener(usize),
    Signals,
}

const KIND_SHIFT: u32 = 60;
const KIND_CONNECTION: u64 = 0;
const KIND_WORKER: u64 = 1;
const KIND_LISTENER: u64 = 2;
const KIND_SIGNALS: u64 = 3;

impl Token {
    fn encode(self) -> u64 {
        match self {
            Self::Connection(id) => KIND_CONNECTION << KIND_SHIFT | u64::from(id),
            Self::Worker(id) => KIND_WORKER << KIND_SHIFT | u64::from(id),
            Self::Listener(index) => KIND_LISTENER << KIND_SHIFT | index as u64,
            Self::Signals => KIND_SIGNALS << KIND_SHIFT,
        }
    }

    fn decode(data: u64) -> Self {
        let rest = data & ((1 << KIND_SHIFT) - 1);
        match data >> KIND_SHIFT {
            KIND_CONNECTION => Self::Connection(rest.into()),
            KIND_WORKER => Self::Worker(rest.into()),
            KIND_LISTENER => Self::Listener(rest as usize),
            _ => Self::Signals,
        }
    }
}

/// How far the master has come on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It serves.
    Serving,
    /// It finishes what it has, until then at the latest.
    Stopping { until: Time, interrupts: u32 },
    /// Everything is served; the workers are exiting.
    Retiring { until: Time, interrupts: u32 },
    /// Over.
    Over,
}

/// Whether new connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// The dispatcher has enough.
    Full,
    /// No descriptor or memory is left; tried again then.
    Exhausted {
        until: Time,
    },
}

/// See the module.
pub struct Master<'a> {
    settings: &'a Settings,
    conduct: Conduct,
    main: &'a WorkerMain<'a>,
    dispatcher: Dispatcher<Held>,
    pool: Pool,
    listeners: Vec<Listener>,
    accepting: Accepting,
    epoll: OwnedFd,
    /// `None` in a worker process, which has detached itself from the master's signals.
    signals: Option<Signals>,
    /// Descriptors that were open before this master made its own; workers keep them.
    inherited: Vec<RawFd>,
    messages: MessageBuffer,
    scratch: Vec<u8>,
    begin: Instant,
    phase: Phase,
    announced: bool,
}

/// Runs a server until it is told to stop.
///
/// # Errors
/// When the master can't be set up. Once it serves, it reports trouble in the log and goes on.
pub fn run(
    settings: &Settings,
    conduct: Conduct,
    limits: dispatch::Limits,
    listeners: Vec<Listener>,
    main: &WorkerMain<'_>,
) -> Result<()> {
    let mut inherited = sys::process::open_descriptors();
    inherited.retain(|fd| {
        listeners
            .iter()
            .all(|listener| listener.as_fd().as_raw_fd() != *fd)
    });
    let failed = |what: &'static str| move |error: io::Error| Error::new(what, error);
    let epoll =
        epoll::create(CreateFlags::CLOEXEC).map_err(|e| failed("create an epoll set")(e.into()))?;
    let signals = Signals::catch().map_err(failed("catch signals"))?;
    let mut master = Master {
        settings,
        conduct,
        main,
        dispatcher: Dispatcher::new(limits),
        pool: Pool::new(settings.workers),
        listeners,
        accepting: Accepting::Yes,
        epoll,
        signals: Some(signals),
        inherited,
        messages: MessageBuffer::default(),
        scratch: vec![0; 64 * 1024],
        begin: Instant::now(),
        phase: Phase::Serving,
        announced: false,
    };
    master.set_up()?;
    master.serve();
    Ok(())
}

impl Master<'_> {
    fn now(&self) -> Time {
        // From one hour on, so that nothing that was never set seems to lie in the future.
        Time::default().after(self.begin.elapsed() + Duration::from_secs(3600))
    }

    fn set_up(&mut self) -> Result<()> {
        let defer = Some(self.settings.defer_accept).filter(|_| !self.conduct.speaks_first);
        for listener in &mut self.listeners {
            listener.configure(self.settings.client_timeout, defer)?;
        }
        let watch_all = || -> io::Result<()> {
            for (index, listener) in self.listeners.iter().enumerate() {
                self.watch(listener, Token::Listener(index))?;
            }
            self.signals
                .as_ref()
                .map_or(Ok(()), |signals| self.watch(signals, Token::Signals))
        };
        watch_all().map_err(|error| Error::new("watch the listeners", error))
    }

    fn watch(&self, what: impl AsFd, token: Token) -> io::Result<()> {
        let data = EventData::new_u64(token.encode());
        Ok(epoll::add(&self.epoll, what, data, EventFlags::IN)?)
    }

    // ---- the loop ---------------------------------------------------------------------------------------------

    fn serve(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        while self.phase != Phase::Over {
            let now = self.now();
            self.start_missing(now);
            self.carry_out(now);
            self.advance(now);
            if self.phase == Phase::Over {
                break;
            }
            self.wait(&mut events, now);
            let now = self.now();
            for event in events.drain(..) {
                self.on_event(event, now);
            }
            self.dispatcher.tick(now);
        }
    }

    fn wait(&self, events: &mut Vec<Event>, now: Time) {
        let exhausted = match self.accepting {
            Accepting::Exhausted { until } => Some(until),
            Accepting::Yes | Accepting::Full => None,
        };
        let phase = match self.phase {
            Phase::Stopping { until, .. } | Phase::Retiring { until, .. } => Some(until),
            Phase::Serving | Phase::Over => None,
        };
        let next = [
            self.dispatcher.next_tick(),
            exhausted,
            phase,
            self.pool.next_due(),
        ]
        .into_iter()
        .flatten()
        .min();
        let timeout = next.map(|time| {
            let wait = time.since(now);
            Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: wait.subsec_nanos().into(),
            }
        });
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => log::error!("cannot wait for events: {error}"),
        }
    }

    fn on_event(&mut self, event: Event, now: Time) {
        match Token::decode(event.data.u64()) {
            Token::Connection(id) => self.on_connection(id, event.flags, now),
            Token::Worker(worker) => self.on_worker(worker, now),
            Token::Listener(index) => self.on_listener(index, now),
            Token::Signals => self.on_signals(now),
        }
    }

    // ---- connections ------------------------------------------------------------------------------------------

    fn on_connection(&mut self, id: ConnectionId, flags: EventFlags, now: Time) {
        let Some(held) = self.dispatcher.payload(id) else {
            return;
        };
        let reset = flags.contains(EventFlags::ERR) || flags.contains(EventFlags::HUP);
        let ended = flags.contains(EventFlags::RDHUP);
        // A client that has only gone needs no worker to say good-bye to it.
        if reset && !held.has_input() || ended && !held.has_input() {
            self.dispatcher.hung_up(id);
        } else {
            self.dispatcher.readable(id, now);
        }
    }

    fn on_listener(&mut self, index: usize, now: Time) {
        for _ in 0..ACCEPT_BATCH {
            if self.accepting != Accepting::Yes {
                return;
            }
            let Some(listener) = self.listeners.get(index) else {
                return;
            };
            match listener.accept() {
                Ok(Accepted::Connection(socket, peer)) => {
                    let held = Held::new(socket, peer);
                    let ready = self.conduct.speaks_first || held.has_input();
                    self.dispatcher.accepted(held, ready, now);
                    self.note_pause();
                }
                Ok(Accepted::Lost) => {}
                Ok(Accepted::Nobody) => return,
                Ok(Accepted::Exhausted(error)) => {
                    log::warn!("cannot accept on {listener}: {}; pausing", Plain(&error));
                    self.pause(Accepting::Exhausted {
                        until: now.after(EXHAUSTED_PAUSE),
                    });
                }
                Err(error) => {
                    log::error!("cannot accept on {listener}: {}; pausing", Plain(&error));
                    self.pause(Accepting::Exhausted {
                        until: now.after(EXHAUSTED_PAUSE),
                    });
                }
            }
        }
    }

    /// Carries out a pause as soon as the dispatcher wants it, in the middle of a batch.
    fn note_pause(&mut self) {
        if self.dispatcher.is_full() {
            self.pause(Accepting::Full);
        }
    }

    fn pause(&mut self, why: Accepting) {
        self.accepting = why;
        self.listen_for(EventFlags::empty());
    }

    fn resume(&mut self) {
        self.accepting = Accepting::Yes;
        self.listen_for(EventFlags::IN);
    }

    fn listen_for(&self, what: EventFlags) {
        for (index, listener) in self.listeners.iter().enumerate() {
            let data = EventData::new_u64(Token::Listener(index).encode());
            if let Err(error) = epoll::modify(&self.epoll, listener, data, what) {
                log::error!("cannot watch {listener}: {error}");
            }
        }
    }

    // ---- workers ----------------------------------------------------------------------------------------------

    fn start_missing(&mut self, now: Time) {
        while matches!(self.phase, Phase::Serving | Phase::Stopping { .. })
            && let Some(slot) = self.pool.due(now)
        {
            let worker = self.dispatcher.worker_started(1);
            let (signals, main) = (&mut self.signals, self.main);
            let detach = || drop(signals.take());
            match self
                .pool
                .start(slot, worker, &self.inherited, detach, main, now)
            {
                Ok(process) => {
                    let data = EventData::new_u64(Token::Worker(worker).encode());
                    if let Err(error) = epoll::add(&self.epoll, &process.end, data, EventFlags::IN)
                    {
                        log::error!("cannot watch worker slot={slot}: {error}");
                    }
                }
                Err(error) => {
                    self.dispatcher.worker_gone(worker, now);
                    log::error!("{error}; trying again");
                }
            }
        }
    }

    /// Takes everything that a worker has said.
    fn on_worker(&mut self, worker: WorkerId, now: Time) {
        while let Some(process) = self.pool.get_mut(worker) {
            match process.end.receive(&mut self.messages) {
                Ok(Some(FromWorker::Report(report))) => {
                    if note_report(&mut self.dispatcher, worker, &report, now).is_err() {
                        log::warn!(
                            "worker slot={} pid={} reports connection {}, which it does not have",
                            process.slot,
                            process.pid,
                            report.id
                        );
                    }
                }
                Ok(Some(FromWorker::Ready)) => {
                    process.ready = true;
                    log::info!("worker ready slot={} pid={}", process.slot, process.pid);
                    self.dispatcher.worker_ready(worker, now);
                    self.announce();
                }
                Ok(None) => return,
                Err(error) => {
                    log::error!(
                        "bad message from worker slot={} pid={}: {}",
                        process.slot,
                        process.pid,
                        Plain(&error)
                    );
                    return;
                }
            }
        }
    }

    fn announce(&mut self) {
        if !self.announced {
            self.announced = true;
            for listener in &self.listeners {
                log::info!("listening on {listener}");
            }
        }
    }

    fn take_back(&mut self, worker: WorkerId, now: Time) {
        while let Some(process) = self.pool.get(worker) {
            match process.end.take_back(&mut self.messages) {
                Ok(Some(id)) => self.dispatcher.taken_back(worker, id.into()),
                Ok(None) => break,
                Err(error) => {
                    log::error!(
                        "cannot take back from worker slot={}: {}",
                        process.slot,
                        Plain(&error)
                    );
                    break;
                }
            }
        }
        self.dispatcher.inbox_empty(worker, now);
    }

    fn reap(&mut self, now: Time) {
        while let Some((pid, end)) = pool::reap() {
            let Some(worker) = self.pool.worker(pid) else {
                continue;
            };
            // What it said before it died counts, and what it never took up was never lent.
            self.dispatcher.worker_died(worker);
            self.carry_out(now);
            self.on_worker(worker, now);
            self.take_back(worker, now);
            self.dispatcher.worker_gone(worker, now);
            if let Some(process) = self.pool.get(worker) {
                let (slot, expected) = (
                    process.slot,
                    process.retiring || self.phase != Phase::Serving,
                );
                if end == pool::End::Exited(0)
                    || expected && end == pool::End::Killed(Signal::SIGKILL)
                {
                    log::info!("worker retired slot={slot} pid={pid}");
                } else {
                    log::warn!("worker died slot={slot} pid={pid}: {end}");
                }
            }
            // Its connections are examined while its process is still known by slot and pid.
            self.carry_out(now);
            self.pool.bury(worker, now);
        }
    }

    // ---- actions ----------------------------------------------------------------------------------------------

    fn carry_out(&mut self, now: Time) {
        loop {
            let mut actions = self.dispatcher.take_actions();
            if actions.is_empty() {
                self.dispatcher.reuse(actions);
                return;
            }
            for action in actions.drain(..) {
                self.act(action, now);
            }
            self.dispatcher.reuse(actions);
        }
    }

    fn act(&mut self, action: Action<Held>, now: Time) {
        match action {
            Action::Lend(worker, id) => self.lend(worker, id, now),
            Action::TakeBack(worker) => self.take_back(worker, now),
            Action::Arm(id, interest) => {
                let epoll = self.epoll.as_fd();
                let Some(held) = self.dispatcher.payload(id) else {
                    return;
                };
                if let Err(error) = held.watch(epoll, interest, Token::Connection(id).encode()) {
                    log::error!("cannot watch {}: {}", held.peer(), Plain(&error));
                    self.dispatcher.broken(id);
                }
            }
            Action::Linger(id, reply) => self.linger(id, reply),
            Action::Drain(id) => {
                let Some(held) = self.dispatcher.payload(id) else {
                    return;
                };
                let ended = held.drain(&mut self.scratch).unwrap_or(true);
                self.dispatcher.drained(id, ended);
            }
            Action::Examine(id, worker) => self.examine(id, worker, now),
            Action::Retire(worker) => self.retire(worker),
            Action::Close(_, held) => {
                drop(held);
                if matches!(self.accepting, Accepting::Exhausted { .. }) {
                    self.resume();
                }
            }
            Action::PauseAccepting => self.pause(Accepting::Full),
            Action::ResumeAccepting => self.resume(),
        }
    }

    fn lend(&mut self, worker: WorkerId, id: ConnectionId, now: Time) {
        let turn = self.dispatcher.turn_number(id);
        let (Some(process), Some(held)) = (self.pool.get(worker), self.dispatcher.payload(id))
        else {
            return self.dispatcher.lend_refused(worker, id, now);
        };
        let lend = Lend {
            id: id.into(),
            turn,
            peer: held.peer(),
            carry: held.carry(),
        };
        match process.end.lend(lend, held.descriptor()) {
            Ok(Lent::Sent) => {}
            Ok(Lent::Refused) => self.dispatcher.lend_refused(worker, id, now),
            Ok(Lent::Gone) => {
                self.dispatcher.lend_refused(worker, id, now);
                self.retire(worker);
            }
            Err(error) => {
                log::error!(
                    "cannot lend {} to worker slot={}: {}",
                    held.peer(),
                    process.slot,
                    Plain(&error)
                );
                self.dispatcher.lend_refused(worker, id, now);
            }
        }
    }

    fn linger(&mut self, id: ConnectionId, reply: Option<Canned>) {
        let last_words = match reply {
            None => &[][..],
            Some(Canned::Crashed) => &self.conduct.crashed,
            Some(Canned::Overloaded) => &self.conduct.overloaded,
            Some(Canned::RequestTimeout) => &self.conduct.request_timeout,
        };
        let Some(held) = self.dispatcher.payload(id) else {
            return;
        };
        let wordless = reply.is_some() && last_words.is_empty();
        let token = Token::Connection(id).encode();
        let ended = held
            .finish(last_words)
            .and_then(|()| held.watch(self.epoll.as_fd(), dispatch::Interest::Read, token));
        if wordless || ended.is_err() {
            self.dispatcher.broken(id);
        }
    }

    fn examine(&mut self, id: ConnectionId, worker: WorkerId, now: Time) {
        let turn = self.dispatcher.turn_number(id);
        let Some(held) = self.dispatcher.payload(id) else {
            return;
        };
        let verdict = held.examine();
        if let Some(process) = self.pool.get(worker) {
            let consequence = match verdict {
                Verdict::Untouched => "nothing was read, so another worker gets it",
                Verdict::Consumed => "nothing was sent, so the client gets an error reply",
                Verdict::Sent => "something was sent, so it is closed",
            };
            log::warn!(
                "worker slot={} pid={} died in turn {turn} of {}: {consequence}",
                process.slot,
                process.pid,
                held.peer()
            );
        }
        self.dispatcher.examined(id, verdict, now);
    }

    fn retire(&mut self, worker: WorkerId) {
        self.dispatcher.retire(worker);
        let Some(process) = self.pool.get_mut(worker) else {
            return;
        };
        if !process.retiring {
            process.retiring = true;
            if let Err(error) = process.end.retire()
                && error.raw_os_error() != Some(libc::EPIPE)
            {
                log::error!(
                    "cannot retire worker slot={}: {}",
                    process.slot,
                    Plain(&error)
                );
            }
        }
    }

    // ---- signals, and the end ---------------------------------------------------------------------------------

    fn on_signals(&mut self, now: Time) {
        let requests = self
            .signals
            .as_mut()
            .map(Signals::requests)
            .unwrap_or_default();
        for request in requests {
            match request {
                Request::Reap => self.reap(now),
                Request::Stop { interrupt } => self.stop(interrupt, now),
                Request::Quit => self.quit("SIGQUIT"),
                Request::Grow => self.resize(self.pool.size() + 1, now),
                Request::Shrink => self.resize(self.pool.size().saturating_sub(1), now),
            }
        }
    }

    fn resize(&mut self, size: usize, now: Time) {
        if size == 0 {
            log::warn!("the last worker stays");
            return;
        }
        log::info!("pool size {}", size);
        for worker in self.pool.resize(size) {
            self.dispatcher.retire(worker);
        }
        self.start_missing(now);
    }

    fn stop(&mut self, interrupt: bool, now: Time) {
        match &mut self.phase {
            Phase::Stopping { interrupts, .. } | Phase::Retiring { interrupts, .. } => {
                *interrupts += u32::from(interrupt);
                if *interrupts >= 2 {
                    self.quit("a second SIGINT");
                }
            }
            Phase::Over => {}
            Phase::Serving => {
                log::info!(
                    "stopping: at most {} s for what is in hand",
                    self.settings.grace.as_secs()
                );
                let until = now.after(self.settings.grace);
                self.phase = Phase::Stopping {
                    until,
                    interrupts: u32::from(interrupt),
                };
                self.close_listeners();
                self.keep_what_has_input(now);
                self.dispatcher.stop();
            }
        }
    }

    /// A parked client whose request has come but was not noticed yet is answered all the same.
    fn keep_what_has_input(&mut self, now: Time) {
        let parked: Vec<_> = self.dispatcher.parked().collect();
        for id in parked {
            if self
                .dispatcher
                .payload(id)
                .is_some_and(|held| held.has_input())
            {
                self.dispatcher.readable(id, now);
            }
        }
    }

    fn close_listeners(&mut self) {
        for listener in self.listeners.drain(..) {
            listener.close();
        }
    }

    fn quit(&mut self, why: &str) {
        log::info!("stopping at once: {why}");
        self.phase = Phase::Over;
        self.end_workers();
    }

    /// Goes on to the next phase when this one is done or has lasted for too long.
    fn advance(&mut self, now: Time) {
        if let Accepting::Exhausted { until } = self.accepting
            && until <= now
        {
            self.resume();
        }
        match self.phase {
            Phase::Stopping { until, interrupts } if self.dispatcher.is_empty() || until <= now => {
                let unserved = self.dispatcher.connections();
                if unserved > 0 {
                    log::warn!("the grace period is over: closing {unserved} connections");
                }
                let workers: Vec<_> = self.pool.resize(0);
                for worker in workers {
                    self.retire(worker);
                }
                self.phase = Phase::Retiring { until, interrupts };
                self.advance(now);
            }
            Phase::Retiring { until, .. }
                if self.pool.processes().next().is_none() || until <= now =>
            {
                self.phase = Phase::Over;
                self.end_workers();
                log::info!("stopped");
            }
            _ => {}
        }
    }

    /// Kills and reaps what workers there are.
    fn end_workers(&mut self) {
        self.close_listeners();
        for process in self.pool.processes() {
            log::debug!("killing worker slot={} pid={}", process.slot, process.pid);
        }
        self.pool.end_all();
    }
}

/// Takes a report into the books, and tells the dispatcher.
fn note_report(
    dispatcher: &mut Dispatcher<Held>,
    worker: WorkerId,
    report: &Report<'_>,
    now: Time,
) -> Result<(), dispatch::Stray> {
    let id = report.id.into();
    let end = TurnEnd {
        outcome: report.outcome,
        carries: !report.carry.is_empty(),
        answered: report.traffic.is_some_and(|traffic| traffic.written > 0),
    };
    if !dispatcher.is_lent(worker, id) {
        return Err(dispatch::Stray);
    }
    if let Some(held) = dispatcher.payload(id) {
        held.note(report);
    }
    dispatcher.report(worker, id, end, now)
}
