//! Who the master is and what it may do, which its children begin with.

use std::io;

use nix::unistd::{Gid, Uid, getgroups, getresgid, getresuid};
use rustix::thread::{CapabilitySet, capabilities};

/// What decides on the privileges of a process.
#[derive(Debug, Clone)]
pub(super) struct Means {
    /// Real, effective, saved.
    pub(super) uids: [Uid; 3],
    pub(super) gids: [Gid; 3],
    /// The supplementary groups, in order.
    pub(super) groups: Vec<Gid>,
    pub(super) capabilities: CapabilitySet,
}

impl Means {
    /// Those of this process.
    ///
    /// # Errors
    /// What the calls fail with.
    pub(super) fn own() -> io::Result<Self> {
        let (uids, gids) = (getresuid()?, getresgid()?);
        Ok(Self {
            uids: [uids.real, uids.effective, uids.saved],
            gids: [gids.real, gids.effective, gids.saved],
            groups: ordered(getgroups()?),
            capabilities: capabilities(None)?.effective,
        })
    }

    pub(super) fn may(&self, capability: CapabilitySet) -> bool {
        self.capabilities.contains(capability)
    }
}

/// Groups are a set: in order, each once.
pub(super) fn ordered(mut groups: Vec<Gid>) -> Vec<Gid> {
    groups.sort_unstable_by_key(|group| group.as_raw());
    groups.dedup();
    groups
}
