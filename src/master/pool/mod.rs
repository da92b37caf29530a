//! One pool: workers that run one service, the listeners where its clients come from, and their connections.
//!
//! A pool does what its [`Dispatcher`] says and tells it what happens. Pools know nothing of each other; what they share
//! is the master's loop and its epoll set.

mod accepting;
mod generation;
mod lending;
mod recycling;
mod shutdown;
mod upkeep;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::rc::Rc;

use nix::sys::signal::Signal;
use rustix::event::epoll::EventFlags;

use crate::channel::inbox::MessageBuffer;
use crate::config::{Address, Settings};
use crate::error::Plain;
use crate::master::connection::held::Held;
use crate::master::dispatch::table::{ConnectionId, State};
use crate::master::dispatch::{self, Action, Canned, Dispatcher, Interest, WorkerId};
use crate::master::events::token::{MAX_INDEX, Subject, Token};
use crate::master::listen::clients::Clients;
use crate::master::listen::listener::Listener;
use crate::master::pool::generation::Incoming;
use crate::master::pool::upkeep::Upkeep;
use crate::master::store::Store;
use crate::master::store::ledger::Stage;
use crate::master::time::Time;
use crate::master::workers::table::{Processes, WorkerMain};
use crate::service::ServiceProfile;

/// What a pool is to be.
#[derive(Clone)]
pub struct Plan<'a> {
    /// What the log calls it. There is one pool of a name.
    pub name: Rc<str>,
    /// Where it listens.
    pub listen: Vec<Address>,
    /// How it serves.
    pub settings: Settings,
    /// What the master must know of its service.
    pub profile: ServiceProfile,
    /// What its workers run.
    pub main: Rc<WorkerMain<'a>>,
    /// The descriptors that `main` holds and its workers need.
    pub keep: Vec<RawFd>,
}

/// How far a pool has come on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It was made for a reload that is not through yet, and is nothing without it.
    Coming,
    /// It serves.
    Serving,
    /// It finishes what it has, until then at the latest.
    Stopping {
        /// When the grace period is over.
        until: Time,
    },
    /// Another master has taken over; what is still lent is finished, until then at the latest.
    Leaving {
        /// When the grace period is over.
        until: Time,
    },
    /// Everything is served; the workers are exiting.
    Retiring {
        /// When the grace period is over.
        until: Time,
    },
    /// Over.
    Over,
}

/// Whether new connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepting {
    /// They are.
    Yes,
    /// The dispatcher has enough.
    Full,
    /// No descriptor or memory is left; tried again then.
    Exhausted {
        /// When it is tried again.
        until: Time,
    },
}

/// See the module.
pub struct Pool<'a> {
    /// Its place in the master's table.
    pub index: u8,
    pub(in crate::master) plan: Plan<'a>,
    /// The generation that is to follow, while it is not ready yet.
    pub(in crate::master) incoming: Option<Incoming<'a>>,
    pub(in crate::master) dispatcher: Dispatcher<Held>,
    pub(in crate::master) processes: Processes,
    pub(in crate::master) clients: Clients,
    pub(in crate::master) listeners: Vec<Listener>,
    pub(in crate::master) accepting: Accepting,
    /// Another master accepts.
    pub(in crate::master) held_back: bool,
    /// It was said that no descriptor is left, and that is still so.
    pub(in crate::master) warned: bool,
    pub(in crate::master) epoll: Rc<OwnedFd>,
    /// Where connections are kept beside this process, if there is a manager for that.
    pub(in crate::master) store: Option<Store>,
    /// Some worker was told that it may stay with its connection.
    pub(in crate::master) may_stay_told: bool,
    /// The workers at whose boards the master looks by itself.
    pub(in crate::master) moving: Vec<WorkerId>,
    /// Lent connections whose clients have sent more: the master must not sleep through the end of
    /// their turns.
    pub(in crate::master) awaited: Vec<ConnectionId>,
    pub(in crate::master) messages: MessageBuffer,
    scratch: Vec<u8>,
    pub(in crate::master) phase: Phase,
    pub(in crate::master) upkeep: Upkeep,
    /// There may be workers of former generations.
    pub(in crate::master) outgoing: bool,
}

impl<'a> Pool<'a> {
    /// A pool with room for so many connections, without listeners, and with no worker yet.
    #[must_use]
    pub fn new(index: u8, plan: Plan<'a>, size: usize, room: usize, epoll: Rc<OwnedFd>) -> Self {
        let settings = &plan.settings;
        Self {
            index,
            incoming: None,
            dispatcher: Dispatcher::new(limits_of(settings, room)),
            processes: Processes::new(&plan.name, size),
            clients: Clients::new(settings.per_client),
            listeners: Vec::new(),
            accepting: Accepting::Yes,
            held_back: false,
            epoll,
            store: None,
            may_stay_told: false,
            warned: false,
            moving: Vec::new(),
            awaited: Vec::new(),
            messages: MessageBuffer::default(),
            scratch: vec![0; 64 * 1024],
            phase: Phase::Serving,
            upkeep: Upkeep::new(size),
            outgoing: false,
            plan,
        }
    }

    pub(in crate::master) fn token(&self, subject: Subject) -> u64 {
        let pool = self.index;
        Token { pool, subject }.encode()
    }

    // ---- what the master's loop calls -------------------------------------------------------------------------

    /// When something is to be done if nothing happens.
    pub fn next_due(&self) -> Option<Time> {
        let exhausted = match self.accepting {
            Accepting::Exhausted { until } => Some(until),
            Accepting::Yes | Accepting::Full => None,
        };
        let phase = match self.phase {
            Phase::Stopping { until } | Phase::Leaving { until } | Phase::Retiring { until } => {
                Some(until)
            }
            Phase::Coming | Phase::Serving | Phase::Over => None,
        };
        let due = [
            self.dispatcher.next_tick(),
            exhausted,
            phase,
            self.processes.next_due(),
            self.next_upkeep(),
            self.next_generation_due(),
        ];
        due.into_iter().flatten().min()
    }

    /// Something has happened to one of its descriptors.
    pub fn on_event(&mut self, subject: Subject, flags: EventFlags, now: Time) {
        match subject {
            Subject::Connection(id) => self.on_connection(id, flags, now),
            Subject::Doorbell(worker) => self.on_doorbell(worker, now),
            Subject::Listener(index) => {
                self.on_listener(index, now);
            }
            Subject::Signals
            | Subject::Control
            | Subject::Takeover
            | Subject::Succession
            | Subject::Orphans => {}
        }
    }

    /// Whether it serves, or would if somebody came.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.processes.members().any(|process| process.ready)
    }

    /// Time has passed, and all events were told.
    pub fn tick(&mut self, now: Time) {
        // After the events: what they say of a connection that was just reported is older than the report.
        self.collect_all(now);
        self.dispatcher.tick(now);
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
        let certain = self.plan.profile.tolerates_empty_turns || flags.contains(EventFlags::OUT);
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

    // ---- actions ----------------------------------------------------------------------------------------------

    /// Does what the dispatcher wants done.
    pub fn carry_out(&mut self, now: Time) {
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
            Action::Close(_, mut held) => {
                if held.is_copied() {
                    held.unwatch(self.epoll.as_fd());
                }
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
        let token = self.token(Subject::Connection(id));
        let uncontended = self.dispatcher.is_uncontended();
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
        let watched = held.watch(epoll, interest, uncontended, token);
        if self.store.is_some() && state == Some(State::Parked) {
            self.keep(id, now);
        }
        match watched {
            Ok(noticed) if noticed.is_empty() => {}
            Ok(noticed) => self.on_connection(id, noticed, now),
            Err(error) => {
                if let Some(held) = self.dispatcher.payload(id) {
                    log::error!("cannot watch {}: {}", held.peer(), Plain(&error));
                }
                self.dispatcher.broken(id);
            }
        }
    }

    /// Has a parked connection kept that has had a turn, and notes how it stands.
    fn keep(&mut self, id: ConnectionId, now: Time) {
        let standing = self.dispatcher.standing(id, now);
        let (Some(standing), Some(held)) = (standing, self.dispatcher.payload(id)) else {
            return;
        };
        if held.kept().is_none()
            && standing.turns > 0
            && let Some(store) = &self.store
            && let Ok(cookie) = held.cookie()
            && let Some(kept) = store.keep(cookie, self.index, &self.plan.name, id)
        {
            held.copied(Some(kept));
        }
        held.note_standing(Stage::Parked, &standing, now);
    }

    fn linger(&mut self, id: ConnectionId, reply: Option<Canned>) {
        let last_words = match reply {
            None => &[][..],
            Some(Canned::Crashed) => &self.plan.profile.crashed,
            Some(Canned::TimedOut) => &self.plan.profile.timed_out,
            Some(Canned::Overloaded) => &self.plan.profile.overloaded,
            Some(Canned::RequestTimeout) => &self.plan.profile.request_timeout,
        };
        let token = self.token(Subject::Connection(id));
        let Some(held) = self.dispatcher.payload(id) else {
            return;
        };
        held.enter(Stage::Ending);
        let wordless = reply.is_some() && last_words.is_empty();
        let ended = held
            .finish(last_words)
            .and_then(|()| held.watch(self.epoll.as_fd(), Interest::Input, true, token));
        if wordless || ended.is_err() {
            self.dispatcher.broken(id);
        }
    }
}

/// What a dispatcher must know of the settings.
pub(in crate::master) fn limits_of(settings: &Settings, room: usize) -> dispatch::Limits {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    dispatch::Limits {
        // More workers that stay awake than processors only get into each other's way.
        few: processors,
        patience: settings.patience,
        connections: settings.max_connections.min(room).min(MAX_INDEX),
        queue: settings.queue,
        queue_wait: settings.queue_wait,
        idle: settings.idle_timeout,
        head: settings.head_timeout,
        linger: settings.linger,
        turn: settings.turn_timeout,
    }
}
