//! The descriptor that a service has put beside a connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::descriptors::{Counted, close_later};
use crate::sys;

/// See the module. The master keeps it, and neither reads it nor uses its offset.
#[derive(Debug)]
pub struct Luggage(Option<(OwnedFd, Counted)>);

impl From<OwnedFd> for Luggage {
    fn from(descriptor: OwnedFd) -> Self {
        Self(Some((descriptor, Counted::new())))
    }
}

impl Luggage {
    /// The descriptor, to be lent.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(|(descriptor, _)| descriptor.as_fd())
    }
}

impl Drop for Luggage {
    /// To close a file can take long: it may have no name any more, and many blocks.
    fn drop(&mut self) {
        if let Some((descriptor, counted)) = self.0.take()
            && !sys::luggage::is_quick_to_close(&descriptor)
        {
            close_later(descriptor, counted);
        }
    }
}
