//! The listeners of one pool: taking new connections, and pausing while there is no room for more.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::clients::Clients;
use super::listener::{Accepted, Listener};
use crate::config::Address;
use crate::error::{Error, Plain, Result};
use crate::master::events::epoll::{EventFlags, PoolEpoll};
use crate::master::events::token::PoolEvent;
use crate::master::plan::Plan;
use crate::master::time::Time;
use crate::service::Peer;

/// How many connections are accepted before other events get their turn.
const BATCH: usize = 64;

/// How long accepting pauses when no descriptor or no memory is left, unless a connection ends before.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// Whether new connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// The dispatcher has enough.
    Full,
    /// No descriptor or memory was left; tried again then.
    Exhausted {
        until: Time,
    },
}

/// A connection that was just accepted.
#[derive(Debug)]
pub struct Newcomer {
    /// The descriptor.
    pub socket: OwnedFd,
    /// The client.
    pub peer: Peer,
    /// The client has most likely sent something (`TCP_DEFER_ACCEPT`).
    pub deferred: bool,
    /// The client has no more connections than one may have.
    pub admitted: bool,
}

/// Whether there is room for another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Left,
    /// There is none, unless others give way.
    Taken,
}

/// See the module.
#[derive(Debug)]
pub struct Listeners {
    all: Vec<Listener>,
    epoll: PoolEpoll,
    clients: Clients,
    accepting: Accepting,
    /// Another master accepts.
    held_back: bool,
    /// The log has said that no descriptor is left, and that is still so.
    warned: bool,
}

impl Listeners {
    /// No listeners, of a pool in which each client may have so many connections. With `held_back`,
    /// nothing is accepted before [`begin`](Self::begin).
    #[must_use]
    pub fn new(epoll: PoolEpoll, per_client: Option<u32>, held_back: bool) -> Self {
        Self {
            all: Vec::new(),
            epoll,
            clients: Clients::new(per_client),
            accepting: Accepting::Yes,
            held_back,
            warned: false,
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Listener] {
        &self.all
    }

    /// How many connections each client has.
    pub fn clients(&mut self) -> &mut Clients {
        &mut self.clients
    }

    /// Whether new connections are taken, as far as this pool is concerned.
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.accepting == Accepting::Yes
    }

    // ---- accepting --------------------------------------------------------------------------------

    /// Takes connections out of a backlog, and gives each to `welcome`, which says whether there is
    /// room for more. True when more may wait in the backlog.
    pub fn accept(
        &mut self,
        index: usize,
        now: Time,
        mut welcome: impl FnMut(Newcomer) -> Room,
    ) -> bool {
        // To find nobody is the dearest way for accept(2) to end, because it makes a socket first.
        // So it is called as often as somebody waits; who comes meanwhile makes another event.
        for _ in 0..self.batch(index).unwrap_or(BATCH) {
            let Some(listener) = self.all.get(index) else {
                return false;
            };
            if !self.accepts() || self.held_back {
                return false;
            }
            match listener.accept() {
                Ok(Accepted::Connection(socket, peer)) => {
                    let room = welcome(Newcomer {
                        socket,
                        peer,
                        deferred: listener.is_deferred(),
                        admitted: self.clients.enter(peer),
                    });
                    // In the middle of a batch: the next one would be one too many.
                    if room == Room::Taken {
                        return false;
                    }
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
                    self.postpone(now);
                }
                Err(error) => {
                    log::error!("cannot accept on {listener}: {}; pausing", Plain(&error));
                    self.postpone(now);
                }
            }
        }
        self.warned &= !self.accepts();
        true
    }

    /// How many connections wait in a backlog, as far as that is known: one at least, and no more
    /// than are accepted at a time.
    #[must_use]
    pub fn waiting(&self, index: usize) -> usize {
        self.batch(index).unwrap_or(1)
    }

    fn batch(&self, index: usize) -> Option<usize> {
        let waiting = self.all.get(index).and_then(Listener::backlog)?;
        Some(waiting.clamp(1, BATCH))
    }

    /// Takes no more connections, until there is room.
    pub fn pause(&mut self) {
        self.accepting = Accepting::Full;
        self.watch();
    }

    /// Takes no more connections for a while, because a descriptor or memory is missing.
    pub fn postpone(&mut self, now: Time) {
        let until = now.after(EXHAUSTED_PAUSE);
        self.accepting = Accepting::Exhausted { until };
        self.watch();
    }

    /// Takes connections again.
    pub fn resume(&mut self) {
        self.accepting = Accepting::Yes;
        self.watch();
    }

    /// Whether a descriptor or memory was missing when accepting was last tried.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        matches!(self.accepting, Accepting::Exhausted { .. })
    }

    /// When accepting is to be tried again after a descriptor or memory was missing.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        match self.accepting {
            Accepting::Exhausted { until } => Some(until),
            Accepting::Yes | Accepting::Full => None,
        }
    }

    /// Leaves new connections to another master.
    pub fn hold_back(&mut self) {
        self.held_back = true;
        self.watch();
    }

    /// Accepts again after another master did, or for the first time.
    pub fn begin(&mut self) {
        self.held_back = false;
        self.watch();
    }

    /// Says in the log where the pool listens, once. To be called as soon as a worker can serve.
    pub fn announce(&mut self) {
        if !self.held_back {
            self.all.iter_mut().for_each(Listener::announce);
        }
    }

    fn watch(&self) {
        let flags = match self.accepting {
            Accepting::Yes if !self.held_back => EventFlags::IN,
            _ => EventFlags::empty(),
        };
        for (index, listener) in self.all.iter().enumerate() {
            let event = PoolEvent::Listener(index);
            if let Err(error) = self.epoll.modify(listener, event, flags) {
                log::error!("cannot watch {listener}: {}", Plain(&error));
            }
        }
    }

    // ---- which listeners there are ----------------------------------------------------------------

    /// Takes listeners over, and sets what connections inherit from all of them as the plan says.
    ///
    /// # Errors
    /// What setsockopt(2) and epoll_ctl(2) fail with.
    pub fn add(&mut self, listeners: Vec<Listener>, plan: &Plan<'_>) -> Result<()> {
        for listener in listeners {
            let event = PoolEvent::Listener(self.all.len());
            let added = self.epoll.add(&listener, event, EventFlags::empty());
            added.map_err(|error| Error::new(format!("watch {listener}"), error))?;
            self.all.push(listener);
        }
        let settings = &plan.settings;
        let defer = Some(settings.defer_accept).filter(|_| !plan.profile.speaks_first);
        for listener in &mut self.all {
            listener.configure(settings.client_timeout, defer)?;
        }
        self.watch();
        Ok(())
    }

    /// Gives those listeners away whose addresses are no longer the pool's.
    pub fn give_away(&mut self, unwanted: impl Fn(&Address) -> bool) -> Vec<Listener> {
        let gone = |listener: &mut Listener| unwanted(listener.asked());
        let gone: Vec<_> = self.all.extract_if(.., gone).collect();
        for listener in &gone {
            self.epoll.remove(listener);
        }
        // The others may have another place now, which is in their tokens.
        self.watch();
        gone
    }

    /// Closes listeners, after taking what waits in their backlogs: a client that is through to one
    /// would be reset with it, and has perhaps sent its request.
    pub fn close(
        &mut self,
        unwanted: impl Fn(&Address) -> bool,
        plan: &Plan<'_>,
        now: Time,
        mut welcome: impl FnMut(Newcomer) -> Room,
    ) {
        let rounds = plan.settings.backlog.unsigned_abs() as usize / BATCH + 1;
        for index in 0..self.all.len() {
            if unwanted(self.all[index].asked()) {
                // Others may come as fast as these are taken.
                let mut rounds = 0..rounds;
                while rounds.next().is_some() && self.accept(index, now, &mut welcome) {}
            }
        }
        for listener in self.give_away(unwanted) {
            log::debug!("no longer listening on {listener}");
        }
    }

    /// Closes all of them, whatever waits there.
    pub fn drop_all(&mut self) {
        self.all.clear();
    }

    /// Whether the files of the Unix sockets for which `is_meant` holds are removed with their
    /// listeners; not while another master listens there too.
    pub fn set_unlink_on_drop(&mut self, unlink: bool, is_meant: impl Fn(&Address) -> bool) {
        for listener in self.all.iter_mut().filter(|one| is_meant(one.asked())) {
            listener.set_unlink_on_drop(unlink);
        }
    }
}
