//! Taking new connections, and pausing while there is no room for more.

use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::config::Address;
use crate::error::{Error, Plain, Result};
use crate::master::connection::held::Held;
use crate::master::events::token::Subject;
use crate::master::listen::listener::{Accepted, Listener};
use crate::master::pool::{Accepting, Pool};
use crate::master::time::Time;
use crate::master::workers::process::Process;

/// How many connections are accepted before others get their turn.
const ACCEPT_BATCH: usize = 64;

/// How long accepting pauses when no descriptor or no memory is left, unless a connection ends before.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

impl Pool<'_> {
    /// Takes connections out of a backlog; whether more may wait there.
    pub(in crate::master) fn on_listener(&mut self, index: usize, now: Time) -> bool {
        // To find nobody is the dearest way for accept(2) to end: it makes a socket first. So it is asked as often as
        // there are some; those who come meanwhile make another event.
        let waiting = self.listeners.get(index).and_then(Listener::backlog);
        for _ in 0..waiting.unwrap_or(ACCEPT_BATCH).clamp(1, ACCEPT_BATCH) {
            if self.accepting != Accepting::Yes || self.held_back {
                return false;
            }
            let Some(listener) = self.listeners.get(index) else {
                return false;
            };
            match listener.accept() {
                Ok(Accepted::Connection(socket, peer)) => {
                    let held = Held::new(socket, peer);
                    // With nobody to serve it, who has not said anything is not to wait in the queue, and be turned
                    // away from there.
                    let likely = listener.is_deferred()
                        && self.plan.profile.tolerates_empty_turns
                        && self.processes.members().any(Process::serves);
                    let ready = likely || self.plan.profile.speaks_first || held.has_input();
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
        self.warned &= self.accepting != Accepting::Yes;
        true
    }

    /// Carries out a pause as soon as the dispatcher wants it, in the middle of a batch.
    fn note_pause(&mut self) {
        if self.dispatcher.is_full() {
            self.pause(Accepting::Full);
            let count = self.dispatcher.connections();
            if count < self.plan.settings.max_connections
                && !std::mem::replace(&mut self.warned, true)
            {
                log::warn!(
                    "cannot accept more than {count} connections: the limit of open files; pausing"
                );
            }
        }
    }

    pub(in crate::master) fn pause(&mut self, why: Accepting) {
        self.accepting = why;
        self.listen_for(EventFlags::empty());
    }

    /// Accepts again after it ran out of descriptors, if there are some.
    pub(in crate::master) fn try_again(&mut self, now: Time) {
        if self.processes.hold_reserve() {
            self.resume();
        } else {
            let until = now.after(EXHAUSTED_PAUSE);
            self.accepting = Accepting::Exhausted { until };
        }
    }

    pub(in crate::master) fn resume(&mut self) {
        self.accepting = Accepting::Yes;
        self.listen_for(EventFlags::IN);
    }

    /// Leaves new connections to another master.
    pub(in crate::master) fn hold_accepting(&mut self) {
        self.held_back = true;
        self.listen_for(EventFlags::empty());
    }

    /// Accepts again, or for the first time.
    pub(in crate::master) fn begin_accepting(&mut self) {
        self.held_back = false;
        self.announce();
        self.listen_as_before();
    }

    fn listen_as_before(&self) {
        match self.accepting {
            Accepting::Yes => self.listen_for(EventFlags::IN),
            Accepting::Full | Accepting::Exhausted { .. } => self.listen_for(EventFlags::empty()),
        }
    }

    fn listen_for(&self, what: EventFlags) {
        let what = if self.held_back {
            EventFlags::empty()
        } else {
            what
        };
        for (index, listener) in self.listeners.iter().enumerate() {
            let data = EventData::new_u64(self.token(Subject::Listener(index)));
            if let Err(error) = epoll::modify(&self.epoll, listener, data, what) {
                log::error!("cannot watch {listener}: {error}");
            }
        }
    }

    // ---- listeners --------------------------------------------------------------------------------------------

    /// Takes listeners over, and accepts from them too.
    ///
    /// # Errors
    /// What setsockopt(2) and epoll_ctl(2) fail with.
    pub fn listen_on(&mut self, listeners: Vec<Listener>) -> Result<()> {
        for listener in listeners {
            let failed =
                |error| Error::new(format!("watch {listener}"), std::io::Error::from(error));
            let data = EventData::new_u64(self.token(Subject::Listener(self.listeners.len())));
            epoll::add(&*self.epoll, &listener, data, EventFlags::empty()).map_err(failed)?;
            self.listeners.push(listener);
        }
        self.configure_listeners()
    }

    /// Sets what connections inherit from their listeners, by the plan of now, and looks at all of them.
    fn configure_listeners(&mut self) -> Result<()> {
        let settings = &self.plan.settings;
        let defer = Some(settings.defer_accept).filter(|_| !self.plan.profile.speaks_first);
        for listener in &mut self.listeners {
            listener.configure(settings.client_timeout, defer)?;
        }
        self.announce();
        self.listen_as_before();
        Ok(())
    }

    /// Gives those listeners away whose addresses are no longer its own.
    pub fn give_away(&mut self, unwanted: impl Fn(&Address) -> bool) -> Vec<Listener> {
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.listeners)
            .into_iter()
            .partition(|listener| unwanted(listener.asked()));
        self.listeners = kept;
        for listener in &gone {
            if let Err(error) = epoll::delete(&*self.epoll, listener) {
                log::error!("cannot stop watching {listener}: {error}");
            }
        }
        gone
    }

    /// Closes listeners, after it has taken what waits in their backlogs: whoever is through to one would be reset
    /// with it, and has perhaps sent its request.
    pub fn close_listeners(&mut self, unwanted: impl Fn(&Address) -> bool, now: Time) {
        let rounds = self.plan.settings.backlog.unsigned_abs() as usize / ACCEPT_BATCH + 1;
        for index in 0..self.listeners.len() {
            if unwanted(self.listeners[index].asked()) {
                // Others may come as fast as these are taken.
                let mut rounds = 0..rounds;
                while rounds.next().is_some() && self.on_listener(index, now) {}
            }
        }
        for listener in self.give_away(unwanted) {
            log::debug!("no longer listening on {listener}");
        }
    }
}
