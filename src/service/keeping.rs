//! What a worker keeps for clients that are slow: how much of it, and where.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use rustix::fs::MemfdFlags;

use crate::sys::unlinked::{self, Directory};

/// The longest body of a request, in bytes, where nobody has said it.
const MAX_BODY: u64 = 1 << 20;

/// The longest content of a file in memory, in bytes. What is longer goes to the disk.
pub(crate) const MAX_IN_MEMORY: u64 = 1 << 20;

/// What all connections of a worker have in common: how much is kept of what a client sends slowly,
/// or does not take, and in which files.
#[derive(Debug)]
pub(crate) struct Keeping {
    /// Where the files are made that are too much for memory. Without it they are in memory, too.
    pub(crate) directory: Option<Directory>,
    /// The longest body of a request, in bytes.
    pub(crate) max_body: u64,
    /// How much of a response is kept, in bytes. A write beyond that sleeps.
    pub(crate) max_spool: u64,
}

impl Keeping {
    /// What holds for a connection outside of any server.
    pub(super) fn of_no_server() -> &'static Self {
        static KEEPING: LazyLock<Keeping> = LazyLock::new(|| Keeping {
            directory: Directory::open(&std::env::temp_dir()).ok(),
            max_body: MAX_BODY,
            // Nobody would send it on.
            max_spool: 0,
        });
        &KEEPING
    }

    /// A new file in memory, for what is short. It has no name, and no offset of it is ever used.
    ///
    /// # Errors
    /// Any error of memfd_create(2).
    pub(crate) fn memory_file() -> io::Result<OwnedFd> {
        unlinked::memory_file("batond-kept", MemfdFlags::empty())
    }

    /// A new file on disk, for what is long. It has no name. Where there is no directory for it, it
    /// is in memory.
    ///
    /// # Errors
    /// What making the file fails with.
    pub(crate) fn unlinked_file(&self) -> io::Result<OwnedFd> {
        match &self.directory {
            Some(directory) => directory.file(),
            None => Self::memory_file(),
        }
    }
}
