//! What the master has to itself: a child that is forked gives it up first.

use std::os::fd::RawFd;

use super::events::signals::Signals;

/// See the module.
#[derive(Debug)]
pub struct MasterOnly {
    /// The signals that the master obeys. `None` in a child, which has detached itself from them.
    pub signals: Option<Signals>,
    /// The descriptors that were open before the master made its own; its children keep them.
    pub inherited: Vec<RawFd>,
}
