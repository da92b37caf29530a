//! The descriptor that a service has put beside a connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::descriptors::{Counted, close_later, new_number};
use crate::sys;

/// See the module. The master keeps it, and neither reads it nor uses its offset.
#[derive(Debug)]
pub struct Luggage {
    /// It is there until this is dropped.
    descriptor: Option<(OwnedFd, Counted)>,
    number: u64,
}

impl From<OwnedFd> for Luggage {
    fn from(descriptor: OwnedFd) -> Self {
        Self {
            descriptor: Some((descriptor, Counted::new())),
            number: new_number(),
        }
    }
}

impl Luggage {
    /// The descriptor, to be lent.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        let descriptor = self.descriptor.as_ref();
        descriptor.map(|(descriptor, _)| descriptor.as_fd())
    }

    /// A number that no other luggage of this master has had.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Luggage {
    /// To close a file can take long: it may have no name any more, and many blocks.
    fn drop(&mut self) {
        if let Some((descriptor, counted)) = self.descriptor.take()
            && !sys::luggage::is_quick_to_close(&descriptor)
        {
            close_later(descriptor, counted);
        }
    }
}
