//! What recv-fd knows of one sender, and of the receiver that works for it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the descriptors of one message may take in all. Each waits for data for a second at
/// most, so what takes longer is a call that does not return.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// A connected sender, or all that send datagrams.
pub(super) struct Sender {
    /// Which process it is, for the log: ` from process 123`.
    pub(super) from: String,
    /// The process that receives from it; nothing once it was reaped.
    pub(super) receiver: Option<Pid>,
    pub(super) reports: OwnedFd,
    /// The text of the current message, as far as it has come.
    pub(super) text: Vec<u8>,
    /// Since when the receiver has been at work on a message.
    pub(super) busy_since: Option<Instant>,
    pub(super) silent_since: Instant,
    /// Whether it has ever sent a message.
    pub(super) spoke: bool,
}

impl Sender {
    pub(super) fn new(receiver: Pid, reports: OwnedFd, from: String) -> Self {
        Self {
            from,
            receiver: Some(receiver),
            reports,
            text: Vec::new(),
            busy_since: None,
            silent_since: Instant::now(),
            spoke: false,
        }
    }

    /// When its receiver has been at work for too long.
    pub(super) fn limit(&self) -> Option<Instant> {
        self.busy_since.map(|since| since + LIMIT)
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.limit().is_some_and(|limit| limit <= Instant::now())
    }

    pub(super) fn kill(&self) {
        if let Some(receiver) = self.receiver {
            // It fails only for a process that is gone.
            let _ = kill(receiver, Signal::SIGKILL);
        }
    }
}
