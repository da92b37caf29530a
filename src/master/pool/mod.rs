//! One pool: workers that run one service, the listeners where its clients come from, and their
//! connections.
//!
//! A pool does what its [`Dispatcher`] says, and tells it what happens. Pools know nothing of each
//! other; what they share is the master's loop and its epoll set. What leaves one for another is
//! taken there by [`Pools`](super::pools::Pools).

mod actions;
mod aside;
mod deaths;
mod handover;
mod laden;
mod lending;
mod newcomers;
mod overload;
mod phases;
mod reports;
#[cfg(test)]
mod tests;
mod unawaited;
mod visits;

use super::connection::held::{DRAIN_SIZE, Held};
use super::connection::visit::PoolId;
use super::dispatch::table::ConnectionId;
use super::dispatch::{Dispatcher, WorkerId};
use super::events::epoll::{Epoll, EventFlags, PoolEpoll};
use super::events::token::PoolEvent;
use super::listen::listeners::Listeners;
use super::master_only::MasterOnly;
use super::plan::Plan;
use super::snapshot::PoolKey;
use super::store::Store;
use super::time::Time;
use super::workers::table::Workers;
use super::workers::upkeep::Wants;
use crate::channel::inbox::MessageBuffer;
use crate::config::Address;
use crate::service::Peer;
use crate::sys::unforked::Unforked;
use aside::Aside;
use overload::Overload;

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

/// See the module.
pub struct Pool<'a> {
    epoll: PoolEpoll,
    id: PoolId,
    plan: Plan<'a>,
    phase: Phase,
    dispatcher: Dispatcher<Held>,
    workers: Workers<'a>,
    listeners: Listeners,
    /// Where connections are kept beside this process, if there is a manager for that.
    store: Option<Store>,
    attention: Attention,
    aside: Vec<Aside>,
    /// Connections of other pools that have ended here, which those do not know yet.
    ended_visits: Vec<(PoolId, Peer)>,
    /// Another pool that stops may yet pass something to this one.
    may_be_needed: bool,
    overload: Overload,
    buffers: Buffers,
    /// When it was looked for waiting connections whose clients have gone.
    looked_for_gone: Time,
}

/// Of whom the master wants to hear before it sleeps.
#[derive(Debug, Default)]
struct Attention {
    /// The workers at whose boards the master looks by itself.
    moving: Vec<WorkerId>,
    /// Lent connections whose clients have sent more: the master must not sleep through the end of
    /// their turns.
    awaited: Vec<ConnectionId>,
    /// Some worker was told that it may stay with its connection.
    may_stay: bool,
    /// Workers that have sent luggage, for which there is no descriptor at the moment.
    laden: Vec<WorkerId>,
}

/// Memory that is used again and again.
#[derive(Debug)]
struct Buffers {
    message: MessageBuffer,
    drained: Unforked,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            message: MessageBuffer::default(),
            drained: Unforked::zeroed(DRAIN_SIZE),
        }
    }
}

impl<'a> Pool<'a> {
    /// A pool at this place of the master's table, with a serial number, that wants `size` workers,
    /// with descriptors for so many connections; without listeners, and with no worker yet. With
    /// `held_back`, it accepts nothing before it is told to.
    #[must_use]
    pub fn new(
        (place, serial, epoll): (u8, u64, &Epoll),
        plan: Plan<'a>,
        size: usize,
        room: usize,
        store: Option<Store>,
        held_back: bool,
    ) -> Self {
        let epoll = epoll.of_pool(place);
        Self {
            id: PoolId {
                serial,
                key: PoolKey::of(&plan.name),
            },
            phase: Phase::Serving,
            dispatcher: Dispatcher::new(plan.limits(room)),
            workers: Workers::new(&plan.name, epoll.clone(), size),
            listeners: Listeners::new(epoll.clone(), plan.settings.per_client, held_back),
            store,
            attention: Attention::default(),
            aside: Vec::new(),
            ended_visits: Vec::new(),
            may_be_needed: false,
            overload: Overload::new(&plan.name),
            buffers: Buffers::default(),
            looked_for_gone: Time::default(),
            epoll,
            plan,
        }
    }

    /// What the pool is.
    #[must_use]
    pub fn plan(&self) -> &Plan<'a> {
        &self.plan
    }

    /// The pool's name, as another master or a ledger says it.
    #[must_use]
    pub fn key(&self) -> PoolKey {
        self.id.key
    }

    /// Its workers.
    #[must_use]
    pub fn workers(&self) -> &Workers<'a> {
        &self.workers
    }

    /// Its listeners.
    #[must_use]
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Its listeners.
    pub fn listeners_mut(&mut self) -> &mut Listeners {
        &mut self.listeners
    }

    /// What the master holds for a connection.
    #[must_use]
    pub fn held(&self, id: ConnectionId) -> Option<&Held> {
        self.dispatcher.payload_of(id)
    }

    /// The addresses where the pool is to listen from now on.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.workers.incoming_plan().unwrap_or(&self.plan).listen
    }

    /// Takes listeners over, and accepts from them too.
    ///
    /// # Errors
    /// What setsockopt(2) and epoll_ctl(2) fail with.
    pub fn listen_on(
        &mut self,
        listeners: Vec<super::listen::listener::Listener>,
    ) -> crate::error::Result<()> {
        let added = self.listeners.add(listeners, &self.plan);
        self.announce();
        added
    }

    // ---- what the master's loop calls -----------------------------------------------------------

    /// Something has happened to one of the pool's descriptors.
    pub fn on_event(&mut self, event: PoolEvent, flags: EventFlags, now: Time) {
        match event {
            PoolEvent::Connection(id) => self.on_connection(id, flags, now),
            PoolEvent::Worker(worker) => self.on_worker(worker, now),
            // Newcomers come last in each round: what else has happened may make room for them.
            PoolEvent::Listener(index) => self.listeners.knock(index),
        }
    }

    /// All events of a round were told, and time has passed.
    pub fn tick(&mut self, now: Time) {
        // After the events: what they say of a connection that was just reported is older than the
        // report.
        self.collect_all(now);
        self.dispatcher.tick(now);
        // What is over for a client must not count when it comes again.
        self.carry_out(now);
        self.receive_luggage(now);
        self.welcome_newcomers(now);
    }

    /// Does whatever is due.
    pub fn advance(&mut self, only: &mut MasterOnly, now: Time) {
        for worker in self.workers.late(now) {
            // If the master was suspended itself, they may have become ready in the meantime.
            self.receive(worker, now);
        }
        let wants = self.wants();
        let dispatcher = &mut self.dispatcher;
        self.workers
            .maintain(wants, &self.plan, dispatcher, only, now);
        self.carry_out(now);
        if self.listeners.next_due().is_some_and(|due| due <= now) {
            self.accept_again(now);
        }
        self.tell_what_is_over(now);
        self.drop_the_gone_if_full(now);
        self.advance_phase(now);
    }

    /// When something is to be done if nothing happens.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let due = [
            self.dispatcher.next_tick(),
            self.listeners.next_due(),
            self.next_aside(),
            self.next_look_for_gone(),
            self.overload.next_due(),
            self.phase_due(),
            // Its end may come after it was looked at, and then nothing else wakes the master.
            (self.phase == Phase::Over).then(Time::default),
            self.workers.next_due(self.wants(), &self.dispatcher),
        ];
        due.into_iter().flatten().min()
    }

    fn wants(&self) -> Wants {
        let (start, serve) = match self.phase {
            Phase::Serving => (true, true),
            Phase::Coming => (true, false),
            // A worker that exits now needs a successor only if a connection waits for one: a
            // signal to the whole process group retires them all.
            Phase::Stopping { .. } => (self.dispatcher.waiting() > 0, false),
            Phase::Leaving { .. } | Phase::Retiring { .. } | Phase::Over => (false, false),
        };
        Wants { start, serve }
    }
}
