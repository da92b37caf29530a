//! What the master has to itself: a child that is forked gives it up first.

use std::os::fd::RawFd;

use super::events::signals::Signals;
use crate::sys;

/// See the module.
#[derive(Debug)]
pub struct MasterOnly {
    /// The signals that the master obeys. `None` in a child, which has detached itself from them.
    pub signals: Option<Signals>,
    /// The descriptors that were open before the master made its own; its children keep them.
    pub inherited: Vec<RawFd>,
}

impl MasterOnly {
    /// What a master has that has made no descriptor yet but those of `own`, which are its alone.
    #[must_use]
    pub fn with_inherited(own: &[RawFd]) -> Self {
        let mut inherited = sys::process::open_descriptors();
        inherited.retain(|fd| !own.contains(fd));
        Self {
            signals: None,
            inherited,
        }
    }
}
