//! What the master holds for a connection.

pub mod held;
