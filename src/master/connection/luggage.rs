//! The descriptor that a service has put beside a connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::Plain;
use crate::sys;

/// See the module. The master keeps it, and neither reads it nor uses its offset.
#[derive(Debug)]
pub struct Luggage(Option<OwnedFd>);

impl From<OwnedFd> for Luggage {
    fn from(descriptor: OwnedFd) -> Self {
        Self(Some(descriptor))
    }
}

impl Luggage {
    /// The descriptor, to be lent.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for Luggage {
    /// A memory file is gone at once. To close a file can take long: it may have no name any more,
    /// and many blocks.
    fn drop(&mut self) {
        if let Some(descriptor) = self
            .0
            .take_if(|file| !sys::luggage::is_quick_to_close(file))
            && let Err(error) = sys::dispose::close_elsewhere(vec![descriptor])
        {
            log::error!("cannot close a connection's luggage: {}", Plain(&error));
        }
    }
}
