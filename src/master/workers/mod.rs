//! The worker processes of a pool.

pub mod autoscale;
pub mod crash_loop;
pub mod lifetime;
pub mod memory;
pub mod process;
pub mod replace;
pub mod slots;
pub mod table;
