//! What the master holds for a connection, and what it can find out about a turn.

pub mod baggage;
pub mod descriptors;
pub mod evidence;
pub mod held;
pub mod luggage;
pub mod visit;
