//! The lines that could not be written: how many, and why.
//!
//! All processes of a server count together, in memory that they share since before the first fork.
//! So the count outlives a worker, and whichever process can write again says it, once.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use crate::error::Plain;
use crate::sys::shared::Shared;

/// What is not said yet.
#[derive(Debug, Default)]
pub(super) struct Losses {
    lines: AtomicU64,
    /// The system's number of the last error; 0 if it was none of the system's.
    cause: AtomicI32,
    /// The last thing that was written is part of a line.
    torn: AtomicBool,
}

impl Losses {
    /// Those of this process and of all that share them.
    pub(super) fn shared() -> &'static Self {
        static SHARED: OnceLock<Option<Shared<Losses>>> = OnceLock::new();
        static OWN: Losses = Losses::new();
        // Without memory to share, each process counts for itself.
        let shared = SHARED.get_or_init(|| Shared::new(Self::new()).ok());
        shared.as_ref().map_or(&OWN, |shared| shared)
    }

    pub(super) const fn new() -> Self {
        Self {
            lines: AtomicU64::new(0),
            cause: AtomicI32::new(0),
            torn: AtomicBool::new(false),
        }
    }

    /// Whether there is something to say.
    pub(super) fn any(&self) -> bool {
        self.lines.load(Ordering::Relaxed) > 0
    }

    /// Counts lines that could not be written.
    pub(super) fn add(&self, lines: u64, error: &io::Error) {
        let cause = error.raw_os_error().unwrap_or(0);
        self.cause.store(cause, Ordering::Relaxed);
        self.lines.fetch_add(lines, Ordering::Relaxed);
    }

    /// Takes the count, for whoever tries to say it: how many, and what is to be said.
    pub(super) fn take(&self) -> Option<(u64, String)> {
        let lines = self.lines.swap(0, Ordering::Relaxed);
        let cause = io::Error::from_raw_os_error(self.cause.load(Ordering::Relaxed));
        let cause = match cause.raw_os_error() {
            Some(libc::EAGAIN) | Some(0) | None => "they were not read".to_owned(),
            Some(_) => Plain(&cause).to_string(),
        };
        match lines {
            0 => None,
            1 => Some((1, format!("1 line was lost: {cause}"))),
            _ => Some((lines, format!("{lines} lines were lost: {cause}"))),
        }
    }

    /// The last line was written in part only.
    pub(super) fn tear(&self) {
        self.torn.store(true, Ordering::Relaxed);
    }

    /// Whether a line has to be ended before the next one; it is up to the caller now.
    pub(super) fn take_torn(&self) -> bool {
        self.torn.load(Ordering::Relaxed) && self.torn.swap(false, Ordering::Relaxed)
    }
}
