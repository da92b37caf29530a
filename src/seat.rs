//! What a worker process is given at its start, by the master that forks it.

use crate::inbox::WorkerEnd;
use crate::scoreboard::Publisher;

/// What a worker process is given at its start.
#[derive(Debug)]
pub struct Seat<'a> {
    /// Its place in the pool, from 0.
    pub slot: u32,
    /// Its end of the socketpair.
    pub inbox: WorkerEnd,
    /// Its half of its scoreboard.
    pub board: Publisher<'a>,
}
