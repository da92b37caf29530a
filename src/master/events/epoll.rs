//! The master's epoll set, with the only calls of epoll(7). Each entry has a [`Token`] that says
//! what it is for.
//!
//! Closing a descriptor does not end the watching while another process has the same open file
//! description (epoll(7)). The master shares every connection with a worker or with a service
//! manager, so whoever gives a watched descriptor up removes it here first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};

use super::token::{MasterEvent, PoolEvent, Token};
use crate::error::{Error, Result};

pub use rustix::event::epoll::EventFlags;

/// The most events that one wait returns.
const BATCH: usize = 256;

/// An epoll set. All clones refer to the same one.
#[derive(Debug, Clone)]
pub struct Epoll {
    set: Rc<OwnedFd>,
}

/// The epoll set as one pool sees it: its entries carry the pool's place.
#[derive(Debug, Clone)]
pub struct PoolEpoll {
    epoll: Epoll,
    pool: u8,
}

/// The events of one wait.
pub struct Events(Vec<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(Vec::with_capacity(BATCH))
    }
}

impl Events {
    /// Takes the events out, each with its token.
    pub fn drain(&mut self) -> impl Iterator<Item = (Token, EventFlags)> {
        let events = self.0.drain(..);
        events.map(|event| (Token::decode(event.data.u64()), event.flags))
    }
}

impl Epoll {
    /// An empty set, for which was tried out that it can be waited for: a kernel or a sandbox that
    /// does not know the call shows before anybody is served.
    ///
    /// # Errors
    /// What epoll_create1(2) fails with, and [`wait`](Self::wait).
    pub fn new() -> Result<Self> {
        let set = epoll::create(CreateFlags::CLOEXEC);
        let set = set.map_err(|error| Error::new("create an epoll set", error))?;
        let set = Self { set: Rc::new(set) };
        set.wait(&mut Events::default(), Some(Duration::ZERO))?;
        Ok(set)
    }

    /// The set as the pool at this place of the master's table sees it.
    #[must_use]
    pub fn of_pool(&self, pool: u8) -> PoolEpoll {
        let epoll = self.clone();
        PoolEpoll { epoll, pool }
    }

    /// Watches a descriptor of the master's own.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn add(&self, fd: impl AsFd, event: MasterEvent, flags: EventFlags) -> io::Result<()> {
        self.insert(fd, Token::Master(event), flags)
    }

    /// Stops watching a descriptor. Does nothing if the descriptor is not watched.
    pub fn remove(&self, fd: impl AsFd) {
        // ENOENT: the descriptor is not in the set. No other error is possible with an open one.
        let _ = epoll::delete(&*self.set, fd);
    }

    /// Waits for an event, for `timeout` at most; `None` waits for ever.
    ///
    /// # Errors
    /// What epoll_pwait2(2) fails with, and always will: ENOSYS from a kernel before Linux 5.11, or
    /// what a sandbox says. A signal that interrupts it is no error.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<()> {
        let timeout = timeout.and_then(|wait| Timespec::try_from(wait).ok());
        let room = rustix::buffer::spare_capacity(&mut events.0);
        match epoll::wait(&*self.set, room, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(Error::new("wait for events with epoll_pwait2(2)", error)),
        }
    }

    fn insert(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(token.encode());
        Ok(epoll::add(&*self.set, fd, data, flags)?)
    }
}

impl PoolEpoll {
    /// The pool's place in the master's table.
    #[must_use]
    pub fn pool(&self) -> u8 {
        self.pool
    }

    /// Watches a descriptor of the pool.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn add(&self, fd: impl AsFd, event: PoolEvent, flags: EventFlags) -> io::Result<()> {
        self.epoll.insert(fd, Token::Pool(self.pool, event), flags)
    }

    /// Watches a descriptor that is in the set already for something else.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn modify(&self, fd: impl AsFd, event: PoolEvent, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(Token::Pool(self.pool, event).encode());
        Ok(epoll::modify(&*self.epoll.set, fd, data, flags)?)
    }

    /// Stops watching a descriptor, as [`Epoll::remove`] does.
    pub fn remove(&self, fd: impl AsFd) {
        self.epoll.remove(fd);
    }
}
