//! The ends of the channel that the master hands to a worker process when it forks it.

use crate::channel::inbox::WorkerEnd;
use crate::channel::scoreboard::Publisher;

/// What connects one worker process with its master.
#[derive(Debug)]
pub struct WorkerHandles<'a> {
    /// The worker's place in the pool, from 0. A replacement gets the slot of its predecessor.
    pub slot: u32,
    /// The worker's end of the socketpair.
    pub inbox: WorkerEnd,
    /// The writing half of the worker's scoreboard.
    pub board: Publisher<'a>,
}
