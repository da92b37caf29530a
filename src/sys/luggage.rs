//! Which descriptors a process takes from one that it does not trust, to keep them and to close
//! them some day.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, StatxFlags, fcntl_get_seals, statx};

/// Whether this is a memory file or a plain file. To ask never sleeps, whatever it is.
#[must_use]
pub fn is_acceptable(descriptor: impl AsFd) -> bool {
    is_memory(&descriptor) || is_plain_file(&descriptor)
}

/// Whether this is a memory file (memfd_create(2)): to close one takes no time.
#[must_use]
pub fn is_memory(descriptor: impl AsFd) -> bool {
    fcntl_get_seals(descriptor).is_ok()
}

fn is_plain_file(descriptor: impl AsFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(descriptor, "", flags, StatxFlags::TYPE);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile)
}
