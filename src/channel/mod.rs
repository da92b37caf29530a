//! What runs between the master and one worker: messages with descriptors, the memory that both
//! share, and what a worker process is given at its start.

pub mod inbox;
pub mod scoreboard;
pub mod start;
