//! The processors that this process may run on.

use std::thread::available_parallelism;

/// How many there are, as affinity and control groups have it; one if that can't be known.
pub fn available() -> usize {
    available_parallelism().map_or(1, usize::from)
}
