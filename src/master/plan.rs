//! What a pool is to be: said at the start, and anew at each reload.

use std::os::fd::RawFd;
use std::rc::Rc;

use super::dispatch;
use super::events::token::MAX_CONNECTIONS;
use crate::channel::start::{Linger, WorkerHandles};
use crate::config::{Address, Settings};
use crate::error::Result;
use crate::service::ServiceProfile;
use crate::sys::processors;

/// The name of a pool that needs none, because it is the only one.
pub const MAIN: &str = "main";

/// How many pools a master may have, those included that are being drained.
pub const MAX_POOLS: usize = 256;

/// The main function of a worker process: what it runs, and the exit status.
pub type WorkerMain<'a> = dyn Fn(WorkerHandles<'_>) -> u8 + 'a;

/// Where the plans of all pools come from when they are to be made anew.
pub type PlanSource<'a> = dyn Fn() -> Result<Vec<Plan<'a>>> + 'a;

/// What a pool is to be.
#[derive(Clone)]
pub struct Plan<'a> {
    /// What the log calls the pool. There is one pool of a name.
    pub name: Rc<str>,
    /// Where the pool listens.
    pub listen: Vec<Address>,
    /// How the pool serves.
    pub settings: Settings,
    /// What the master must know of the service.
    pub profile: ServiceProfile,
    /// What the workers run.
    pub main: Rc<WorkerMain<'a>>,
    /// The descriptors that `main` holds and the workers need.
    pub keep: Vec<RawFd>,
}

impl Plan<'_> {
    /// What the pool's dispatcher must know, with descriptors for so many connections.
    #[must_use]
    pub fn limits(&self, room: usize) -> dispatch::Limits {
        let (settings, linger) = (&self.settings, self.linger());
        let descriptors = room.min(MAX_CONNECTIONS);
        dispatch::Limits {
            // More workers that stay awake than processors only get into each other's way.
            few: processors::available(),
            patience: settings.patience,
            connections: settings.max_connections.min(descriptors),
            lingering: (descriptors / 4).max(1),
            descriptors,
            queue: settings.queue,
            queue_wait: settings.queue_wait,
            idle: settings.idle_timeout,
            head: settings.head_timeout,
            rate: settings.min_rate,
            rate_grace: settings.min_rate_grace,
            linger: linger.silence,
            linger_total: linger.total,
            turn: settings.turn_timeout,
        }
    }

    /// For how long the pool's connections linger.
    #[must_use]
    pub fn linger(&self) -> Linger {
        let silence = self.settings.linger;
        Linger {
            silence,
            total: self.settings.linger_total.unwrap_or(6 * silence),
        }
    }
}
