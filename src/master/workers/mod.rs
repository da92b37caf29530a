//! The worker processes of a pool: which are wanted, which exist, and how the master speaks to
//! each.

pub mod autoscale;
pub mod channel;
pub mod crash_loop;
pub mod generation;
pub mod lifetime;
pub mod memory;
pub mod process;
pub mod replacement;
pub mod slots;
pub mod spawn;
pub mod table;
pub mod turnover;
pub mod upkeep;
