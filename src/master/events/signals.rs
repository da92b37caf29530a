//! The signals that the master obeys, as events in its epoll set.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::signal::{
    SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2,
};
use signal_hook::flag;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::epoll::{Epoll, EventFlags};
use super::token::MasterEvent;
use crate::error::{Error, Result};

/// What a signal asks of the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM, SIGINT: finish the turns, answer what is ready, then exit. A second SIGINT means at
    /// once.
    Stop { interrupt: bool },
    /// SIGQUIT: exit at once.
    Quit,
    /// SIGCHLD: a child has ended, was stopped or was continued.
    Reap,
    /// SIGHUP: read the configuration again, and let new workers take over.
    Reload,
    /// SIGUSR1: open the log file again.
    Reopen,
    /// SIGUSR2: start the program again, which takes over from this master.
    Upgrade,
    /// SIGTTIN: add one worker to each pool.
    Grow,
    /// SIGTTOU: remove one worker from each pool.
    Shrink,
}

/// The signals that have arrived, and a descriptor that is readable when there are any.
#[derive(Debug)]
pub struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    told_to_stop: Arc<AtomicBool>,
}

impl Signals {
    /// Begins to catch signals, and to watch for them.
    ///
    /// # Errors
    /// What socketpair(2), sigaction(2) and epoll_ctl(2) fail with.
    pub fn watched(epoll: &Epoll) -> Result<Self> {
        let signals = Self::catch().map_err(|error| Error::new("catch signals", error))?;
        let watched = epoll.add(&signals, MasterEvent::Signals, EventFlags::IN);
        watched.map_err(|error| Error::new("watch the signals", error))?;
        Ok(signals)
    }

    fn catch() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let signals = [
            SIGTERM, SIGINT, SIGQUIT, SIGCHLD, SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU,
        ];
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, signals)?;
        let told_to_stop = Arc::default();
        for signal in [SIGTERM, SIGINT, SIGQUIT] {
            flag::register(signal, Arc::clone(&told_to_stop))?;
        }
        Ok(Self {
            delivery,
            told_to_stop,
        })
    }

    /// Whether a [`Stop`](Request::Stop) or [`Quit`](Request::Quit) has come, for those who do
    /// something else meanwhile. It stays among the requests.
    #[must_use]
    pub fn told_to_stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.told_to_stop)
    }

    /// The requests since the last call, each kind once.
    pub fn requests(&mut self) -> Vec<Request> {
        let request = |signal| match signal {
            SIGTERM => Some(Request::Stop { interrupt: false }),
            SIGINT => Some(Request::Stop { interrupt: true }),
            SIGQUIT => Some(Request::Quit),
            SIGCHLD => Some(Request::Reap),
            SIGHUP => Some(Request::Reload),
            SIGUSR1 => Some(Request::Reopen),
            SIGUSR2 => Some(Request::Upgrade),
            SIGTTIN => Some(Request::Grow),
            SIGTTOU => Some(Request::Shrink),
            _ => None,
        };
        self.delivery.pending().filter_map(request).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}
