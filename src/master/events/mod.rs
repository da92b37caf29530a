//! What the master waits for: descriptors in an epoll set, and signals.

pub mod epoll;
pub mod signals;
pub mod token;
