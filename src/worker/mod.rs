//! The worker process: what it gives up at its start, and the loop in which it serves.

pub mod confine;
mod orphans;
mod report;
mod single;
mod threads;

pub use single::serve;
pub use threads::serve as serve_in_threads;
