//! What the master hands to a worker process when it forks it.

use std::time::Duration;

use crate::channel::inbox::WorkerEnd;
use crate::channel::scoreboard::Publisher;

/// For how long a connection lingers that is over.
#[derive(Debug, Clone, Copy)]
pub struct Linger {
    /// While its client is silent.
    pub silence: Duration,
    /// In all.
    pub total: Duration,
}

/// What connects one worker process with its master.
#[derive(Debug)]
pub struct WorkerHandles<'a> {
    /// The worker's place in the pool, from 0. A replacement gets the slot of its predecessor.
    pub slot: u32,
    /// The worker's end of the socketpair.
    pub inbox: WorkerEnd,
    /// The writing half of the worker's scoreboard.
    pub board: Publisher<'a>,
    /// How the worker takes leave of its clients if the master is gone.
    pub linger: Linger,
}
