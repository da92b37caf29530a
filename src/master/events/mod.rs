//! What the master waits for.

pub mod signals;
pub mod token;
