//! What a worker process is given at its start, by the master that forks it.

use crate::channel::inbox::WorkerEnd;
use crate::channel::scoreboard::Publisher;

/// What a worker process is given at its start.
#[derive(Debug)]
pub struct WorkerHandles<'a> {
    /// Its place in the pool, from 0.
    pub slot: u32,
    /// Its end of the socketpair.
    pub inbox: WorkerEnd,
    /// Its half of its scoreboard.
    pub board: Publisher<'a>,
}
