//! The listeners of one pool: taking new connections, and pausing while there is no room for more.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

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
pub const BATCH: usize = 64;

/// How long accepting pauses when no descriptor or no memory is left, unless a connection ends
/// before.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// Whether new connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// The pool has as many connections as it may have.
    Full,
    /// No descriptor or memory was left. The next attempt is at `until`.
    Exhausted {
        until: Time,
    },
}

/// A connection that was just accepted.
#[derive(Debug)]
pub struct Newcomer {
    pub socket: OwnedFd,
    pub peer: Peer,
    /// The client has most likely sent something (`TCP_DEFER_ACCEPT`).
    pub deferred: bool,
    /// The client does not exceed the limit of connections for each client.
    pub admitted: bool,
}

/// Whether there is room for another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
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
    /// Another master accepts from the same sockets, so this one does not.
    held_back: bool,
    /// Where newcomers wait, by what was heard in this round.
    knocking: VecDeque<usize>,
    /// How many connections in a row had ended when they were accepted.
    lost: usize,
    /// The log has said that no descriptor is left, and none has been since.
    warned: bool,
    /// The log has said that clients of Unix sockets are not counted.
    warned_of_uncounted: bool,
}

impl Listeners {
    /// No listeners yet, for a pool in which each client may have `per_client` connections. With
    /// `held_back`, nothing is accepted before [`begin`](Self::begin).
    #[must_use]
    pub fn new(epoll: PoolEpoll, per_client: Option<u32>, held_back: bool) -> Self {
        Self {
            all: Vec::new(),
            epoll,
            clients: Clients::new(per_client),
            accepting: Accepting::Yes,
            held_back,
            knocking: VecDeque::new(),
            lost: 0,
            warned: false,
            warned_of_uncounted: false,
        }
    }

    /// All listeners, each at the place that its events name.
    #[must_use]
    pub fn all(&self) -> &[Listener] {
        &self.all
    }

    /// The numbers of connections, by client.
    pub fn clients(&mut self) -> &mut Clients {
        &mut self.clients
    }

    /// Whether this pool has room for new connections.
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.accepting == Accepting::Yes
    }

    /// Whether new connections are taken now: there is room, and no other master takes them.
    #[must_use]
    pub fn takes(&self) -> bool {
        self.accepts() && !self.held_back
    }

    // ---- accepting ------------------------------------------------------------------------------

    /// Newcomers wait at a listener, which says so again as long as they do.
    pub fn knock(&mut self, index: usize) {
        self.knocking.push_back(index);
    }

    /// Whether there was an event at a listener that was not looked at yet.
    #[must_use]
    pub fn is_knocked_at(&self) -> bool {
        !self.knocking.is_empty()
    }

    /// The next listener where newcomers wait.
    pub fn next_knocking(&mut self) -> Option<usize> {
        self.knocking.pop_front()
    }

    /// Takes connections out of a backlog, and gives each to `welcome`, which says whether there is
    /// room for more. True when more may wait in the backlog.
    pub fn accept(
        &mut self,
        index: usize,
        now: Time,
        mut welcome: impl FnMut(Newcomer) -> Room,
    ) -> bool {
        // An accept(2) that finds nobody is the most expensive one, because it has made a socket
        // first. So it is called once for each connection that waits; one that comes meanwhile
        // makes another event.
        for _ in 0..self.batch(index).unwrap_or(BATCH) {
            let Some(listener) = self.all.get(index) else {
                return false;
            };
            if !self.takes() {
                return false;
            }
            match listener.accept() {
                Ok(Accepted::Connection(socket, peer)) => {
                    self.lost = 0;
                    let room = welcome(Newcomer {
                        socket,
                        peer,
                        deferred: listener.is_deferred(),
                        admitted: self.clients.enter(peer),
                    });
                    // In the middle of a batch: the next one would be one too many.
                    if room == Room::Taken {
                        return true;
                    }
                }
                // After so many of them, the error is hardly one of these connections.
                Ok(Accepted::Lost(_)) if self.lost < BATCH => self.lost += 1,
                Ok(Accepted::Nobody) => {
                    self.lost = 0;
                    self.warned = false;
                    return false;
                }
                Ok(Accepted::Exhausted(error)) => {
                    if !std::mem::replace(&mut self.warned, true) {
                        log::warn!("cannot accept on {listener}: {}; pausing", Plain(&error));
                    }
                    self.postpone(now);
                }
                Ok(Accepted::Lost(error)) | Err(error) => {
                    self.lost = 0;
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

    /// Whether somebody waits in a backlog, also where the kernel does not say how many.
    #[must_use]
    pub fn somebody_waits(&self, index: usize) -> bool {
        self.all.get(index).is_some_and(|listener| {
            let mut wait = [PollFd::new(listener, PollFlags::IN)];
            poll(&mut wait, Some(&Timespec::default())).is_ok_and(|count| count > 0)
        })
    }

    /// The same for all backlogs.
    #[must_use]
    pub fn anybody_waits(&self) -> bool {
        (0..self.all.len()).any(|index| self.somebody_waits(index))
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

    /// Stops accepting, because another master is to accept from the same sockets.
    pub fn hold_back(&mut self) {
        self.held_back = true;
        self.watch();
    }

    /// Begins to accept, or does so again after another master did.
    pub fn begin(&mut self) {
        self.held_back = false;
        self.watch();
    }

    /// Logs once where the pool listens. Call it as soon as a worker can serve.
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

    // ---- which listeners there are --------------------------------------------------------------

    /// Adds listeners, and sets on all listeners the options that the plan gives to connections.
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
            // A reload or an upgrade may have brought another owner or mode.
            if let Err(error) = listener.grant(&settings.unix) {
                log::error!(
                    "cannot set who may connect to {listener}: {}",
                    Plain(&error)
                );
            }
        }
        self.warn_of_uncounted_clients(settings.per_client);
        self.watch();
        Ok(())
    }

    /// Says once that a limit for each client does not hold where clients have no addresses.
    fn warn_of_uncounted_clients(&mut self, per_client: Option<u32>) {
        let Some(listener) = self.all.iter().find(|one| !one.knows_clients()) else {
            return;
        };
        if per_client.is_some() && !std::mem::replace(&mut self.warned_of_uncounted, true) {
            log::warn!("per-client has no effect on {listener}: its clients have no addresses");
        }
    }

    /// Removes the listeners whose addresses are `unwanted`, and returns them.
    pub fn give_away(&mut self, unwanted: impl Fn(&Address) -> bool) -> Vec<Listener> {
        let gone = |listener: &mut Listener| unwanted(listener.asked());
        let gone: Vec<_> = self.all.extract_if(.., gone).collect();
        for listener in &gone {
            self.epoll.remove(listener);
        }
        // The others may have moved to other places, which their tokens name.
        self.knocking.clear();
        self.watch();
        gone
    }

    /// Closes all listeners, and with them what waits in their backlogs.
    pub fn drop_all(&mut self) {
        self.all.clear();
    }

    /// Sets for the Unix sockets for which `is_meant` holds whether their files are removed with
    /// their listeners. They must stay while another master has the same sockets.
    pub fn set_unlink_on_drop(&mut self, unlink: bool, is_meant: impl Fn(&Address) -> bool) {
        for listener in self.all.iter_mut().filter(|one| is_meant(one.asked())) {
            listener.set_unlink_on_drop(unlink);
        }
    }
}
