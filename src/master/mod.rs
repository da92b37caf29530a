//! The master: accepts connections, holds them, and lends them to workers.
//!
//! One thread, one epoll set, one loop: events go to the [`dispatch`]er, its actions are carried out here. The master
//! never runs service code and parses no protocol.

pub mod chains;
mod clients;
pub mod connections;
pub mod dispatch;
mod ending;
mod held;
mod lending;
pub mod listener;
pub mod pool;
mod signals;
pub mod time;
mod token;
pub mod wheel;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::config::Settings;
use crate::error::{Error, Plain, Result};
use crate::inbox::MessageBuffer;
use crate::service::Conduct;
use crate::sys;
use clients::Clients;
use connections::{ConnectionId, State};
use dispatch::{Action, Canned, Dispatcher, Interest, WorkerId};
use held::Held;
use listener::{Accepted, Listener};
use pool::{Pool, WorkerMain};
use signals::Signals;
use time::Time;
use token::Token;

/// How many connections are accepted before others get their turn.
const ACCEPT_BATCH: usize = 64;

/// How many events are taken out of the epoll set at a time.
const EVENTS: usize = 256;

/// Descriptors that are kept back for the master itself.
const SPARE_DESCRIPTORS: usize = 8;

/// How long accepting pauses when no descriptor or no memory is left, unless a connection ends before.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

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
    clients: Clients,
    listeners: Vec<Listener>,
    accepting: Accepting,
    /// It was said that no descriptor is left, and that is still so.
    warned: bool,
    epoll: OwnedFd,
    /// `None` in a worker process, which has detached itself from the master's signals.
    signals: Option<Signals>,
    /// Descriptors that were open before this master made its own; workers keep them.
    inherited: Vec<RawFd>,
    /// Some worker was told that it may stay with its connection.
    spared: bool,
    /// The workers at whose boards the master looks by itself.
    moving: Vec<WorkerId>,
    /// Lent connections whose clients have sent more: the master must not sleep through the end of
    /// their turns.
    awaited: Vec<ConnectionId>,
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
    listeners: Vec<Listener>,
    main: &WorkerMain<'_>,
) -> Result<()> {
    let mut inherited = sys::process::open_descriptors();
    let room = room_for_connections(inherited.len(), settings.workers);
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
        dispatcher: Dispatcher::new(limits_of(settings, room)),
        pool: Pool::new(settings.workers),
        clients: Clients::new(settings.per_client),
        listeners,
        accepting: Accepting::Yes,
        epoll,
        signals: Some(signals),
        inherited,
        spared: false,
        warned: false,
        moving: Vec::new(),
        awaited: Vec::new(),
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
            let may_sleep = self.fall_asleep();
            self.wait(&mut events, may_sleep.then_some(now));
            self.wake_up();
            let now = self.now();
            for event in events.drain(..) {
                self.on_event(event, now);
            }
            // After the events: what they say of a connection that was just reported is older than the report.
            self.collect_all(now);
            self.dispatcher.tick(now);
        }
    }

    /// Waits for events: until the next thing is due, or not at all without `now`.
    fn wait(&self, events: &mut Vec<Event>, now: Option<Time>) {
        let timeout = match now {
            None => Some(Duration::ZERO),
            Some(now) => self.next_due().map(|due| due.since(now)),
        };
        let timeout = timeout.map(|wait| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
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

    /// When something is to be done if nothing happens.
    fn next_due(&self) -> Option<Time> {
        let exhausted = match self.accepting {
            Accepting::Exhausted { until } => Some(until),
            Accepting::Yes | Accepting::Full => None,
        };
        let phase = match self.phase {
            Phase::Stopping { until, .. } | Phase::Retiring { until, .. } => Some(until),
            Phase::Serving | Phase::Over => None,
        };
        let due = [
            self.dispatcher.next_tick(),
            exhausted,
            phase,
            self.pool.next_due(),
        ];
        due.into_iter().flatten().min()
    }

    fn on_event(&mut self, event: Event, now: Time) {
        match Token::decode(event.data.u64()) {
            Token::Connection(id) => self.on_connection(id, event.flags, now),
            Token::Worker(worker) => self.on_worker(worker, now),
            Token::Doorbell(worker) => self.on_doorbell(worker, now),
            Token::Listener(index) => {
                self.on_listener(index, now);
            }
            Token::Signals => self.on_signals(now),
        }
    }

    // ---- connections ------------------------------------------------------------------------------------------

    fn on_connection(&mut self, id: ConnectionId, flags: EventFlags, now: Time) {
        let state = self.dispatcher.state(id);
        let (Some(state), Some(held)) = (state, self.dispatcher.payload(id)) else {
            return;
        };
        if !matches!(state, State::Parked | State::Lingering) {
            // The worker may be reading just that: it is looked at again when the turn is over. But
            // if the worker has had its last look, the end of the turn is what the client waits for.
            if held.notice(flags) && matches!(state, State::Lent(_)) {
                self.awaited.push(id);
            }
            return;
        }
        let gone = flags.intersects(EventFlags::ERR | EventFlags::HUP | EventFlags::RDHUP);
        // A client that has only gone needs no worker to say good-bye to it; and the event may be about bytes that
        // were read in the turn before.
        let certain = self.conduct.tolerates_empty_turns || flags.contains(EventFlags::OUT);
        if state == State::Parked && (gone || !certain) && !held.has_input() {
            if gone {
                self.dispatcher.hung_up(id);
            }
        } else {
            // That the client has ended its side is said once, and must be known when the turn is over.
            let _ = held.notice(flags & EventFlags::RDHUP);
            self.dispatcher.readable(id, now);
        }
    }

    /// Takes connections out of a backlog; whether more may wait there.
    fn on_listener(&mut self, index: usize, now: Time) -> bool {
        for _ in 0..ACCEPT_BATCH {
            if self.accepting != Accepting::Yes {
                return false;
            }
            let Some(listener) = self.listeners.get(index) else {
                return false;
            };
            match listener.accept() {
                Ok(Accepted::Connection(socket, peer)) => {
                    let held = Held::new(socket, peer);
                    let likely = listener.is_deferred() && self.conduct.tolerates_empty_turns;
                    let ready = likely || self.conduct.speaks_first || held.has_input();
                    if self.clients.enter(peer) {
                        self.dispatcher.accepted(held, ready, now);
                    } else {
                        log::debug!("{peer} has too many connections");
                        self.dispatcher.turned_away(held, now);
                    }
                    self.note_pause();
                }
                Ok(Accepted::Lost) => {}
                Ok(Accepted::Nobody) => {
                    self.warned = false;
                    return false;
                }
                Ok(Accepted::Exhausted(error)) => {
                    if !std::mem::replace(&mut self.warned, true) {
                        log::warn!("cannot accept on {listener}: {}; pausing", Plain(&error));
                    }
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
        true
    }

    /// Carries out a pause as soon as the dispatcher wants it, in the middle of a batch.
    fn note_pause(&mut self) {
        if self.dispatcher.is_full() {
            self.pause(Accepting::Full);
            let count = self.dispatcher.connections();
            if count < self.settings.max_connections && !std::mem::replace(&mut self.warned, true) {
                log::warn!(
                    "cannot accept more than {count} connections: the limit of open files; pausing"
                );
            }
        }
    }

    fn pause(&mut self, why: Accepting) {
        self.accepting = why;
        self.listen_for(EventFlags::empty());
    }

    /// Accepts again after it ran out of descriptors, if there are some.
    fn try_again(&mut self, now: Time) {
        if self.pool.hold_reserve() {
            self.resume();
        } else {
            let until = now.after(EXHAUSTED_PAUSE);
            self.accepting = Accepting::Exhausted { until };
        }
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
            Action::TakeBack(worker) => self.relieve(worker, now),
            Action::Arm(id, interest) => self.arm(id, interest, now),
            Action::Linger(id, reply) => self.linger(id, reply),
            Action::Expire(id) => {
                let held = self.dispatcher.payload(id);
                // What the client has sent may lie behind other events that have not been looked at yet.
                if held.is_some_and(|held| held.has_unread()) {
                    self.dispatcher.readable(id, now);
                } else {
                    self.dispatcher.expired(id, now);
                }
            }
            Action::Drain(id) => {
                let Some(held) = self.dispatcher.payload(id) else {
                    return;
                };
                let ended = held.drain(&mut self.scratch).unwrap_or(true);
                self.dispatcher.drained(id, ended);
            }
            Action::Examine(id, worker) => self.examine(id, worker, now),
            Action::Retire(worker) => self.retire(worker),
            Action::Terminate(worker) => self.end_worker(worker, Signal::SIGTERM),
            Action::Kill(worker) => self.end_worker(worker, Signal::SIGKILL),
            Action::Close(_, held) => {
                self.clients.leave(held.peer());
                drop(held);
                if matches!(self.accepting, Accepting::Exhausted { .. }) {
                    self.try_again(now);
                }
            }
            Action::PauseAccepting => self.pause(Accepting::Full),
            Action::ResumeAccepting => self.resume(),
        }
    }

    fn arm(&mut self, id: ConnectionId, interest: Interest, now: Time) {
        let (epoll, state) = (self.epoll.as_fd(), self.dispatcher.state(id));
        let calm = self.dispatcher.is_calm();
        let Some(held) = self.dispatcher.payload(id) else {
            return;
        };
        let stopping = matches!(self.phase, Phase::Stopping { .. });
        if stopping && interest != Interest::Output && state == Some(State::Parked) {
            // The server goes, and takes only what had come before it said so.
            if held.has_unread() {
                self.dispatcher.readable(id, now);
            } else {
                self.dispatcher.hung_up(id);
            }
            return;
        }
        match held.watch(epoll, interest, calm, Token::Connection(id).encode()) {
            Ok(noticed) if noticed.is_empty() => {}
            Ok(noticed) => self.on_connection(id, noticed, now),
            Err(error) => {
                log::error!("cannot watch {}: {}", held.peer(), Plain(&error));
                self.dispatcher.broken(id);
            }
        }
    }

    fn linger(&mut self, id: ConnectionId, reply: Option<Canned>) {
        let last_words = match reply {
            None => &[][..],
            Some(Canned::Crashed) => &self.conduct.crashed,
            Some(Canned::TimedOut) => &self.conduct.timed_out,
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
            .and_then(|()| held.watch(self.epoll.as_fd(), Interest::Input, true, token));
        if wordless || ended.is_err() {
            self.dispatcher.broken(id);
        }
    }
}

/// How many connections leave enough descriptors for the workers and their replacements.
fn room_for_connections(open: usize, workers: usize) -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| soft as usize);
    // Both ends of a socketpair, the worker's copy of its own, and a doorbell.
    let kept_back = 4 * (workers + 2) + SPARE_DESCRIPTORS;
    limit.saturating_sub(open + kept_back).max(1)
}

fn limits_of(settings: &Settings, room: usize) -> dispatch::Limits {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    dispatch::Limits {
        // More workers that stay awake than processors only get into each other's way.
        few: processors,
        patience: settings.patience,
        connections: settings.max_connections.min(room),
        queue: settings.queue,
        queue_wait: settings.queue_wait,
        idle: settings.idle_timeout,
        head: settings.head_timeout,
        linger: settings.linger,
        turn: settings.turn_timeout,
    }
}
