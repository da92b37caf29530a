//! What the service manager is told: when the server is ready, reloads, stops, and that it is
//! alive.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::error::Result;
use crate::master::time::Time;
use crate::systemd::{Hold, Notifier};

/// How long to wait before a message is sent again for which the manager's queue had no room.
const RETRY: Duration = Duration::from_millis(100);

/// The manager, if there is one that expects messages. Only the active master sends them.
#[derive(Debug, Default)]
pub struct ServiceManager {
    notifier: Option<Notifier>,
    in_charge: bool,
    /// The last state that the manager was told is that the server is ready.
    ready: bool,
    next_sign_of_life: Time,
    next_retry: Time,
}

impl ServiceManager {
    /// The manager that `notifier` reaches, if there is one. Nothing is sent while this master is
    /// not the active one.
    #[must_use]
    pub fn new(notifier: Option<Notifier>, in_charge: bool) -> Self {
        Self {
            notifier,
            in_charge,
            ..Self::default()
        }
    }

    fn reached(&mut self) -> Option<&mut Notifier> {
        self.notifier.as_mut().filter(|_| self.in_charge)
    }

    /// Reports that the server serves: once, and again after a reload.
    pub fn ready(&mut self) {
        if !self.ready
            && let Some(notifier) = self.reached()
        {
            notifier.ready();
            self.ready = true;
        }
    }

    /// Reports that the server begins to reload. [`ready`](Self::ready) ends the reload.
    pub fn reloading(&mut self) {
        if let Some(notifier) = self.reached() {
            notifier.reloading();
            self.ready = false;
        }
    }

    /// Reports that the server begins to stop.
    pub fn stopping(&mut self) {
        if let Some(notifier) = self.reached() {
            notifier.stopping();
        }
    }

    /// Reports that another process is the server from now on. This one sends nothing more, but for
    /// what [waits for room](Self::is_waiting): until then, the manager ignores the new one.
    pub fn hand_over_to(&mut self, pid: Option<u32>) {
        if let (Some(notifier), Some(pid)) = (self.reached(), pid) {
            notifier.main_pid(pid);
        }
        self.in_charge = false;
    }

    /// Makes this process the one that reports, at a takeover or again after one that failed.
    pub fn take_charge(&mut self) {
        self.in_charge = true;
        if self.ready
            && let Some(notifier) = self.reached()
        {
            // The manager was told that another process is the server.
            notifier.main_pid(std::process::id());
        }
    }

    /// The environment variables that a new master needs to reach the manager.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, OsString)> {
        self.notifier
            .as_ref()
            .map_or_else(Vec::new, Notifier::variables)
    }

    /// How many descriptors the manager stores; `None` if it does not.
    #[must_use]
    pub fn store_limit(&self) -> Option<usize> {
        self.notifier.as_ref()?.store_limit()
    }

    /// Stores copies of descriptors with the manager under a name. False if its queue has no room
    /// for the message now.
    ///
    /// # Errors
    /// When the message can't be sent at all.
    pub fn keep(&mut self, name: &str, descriptors: &[BorrowedFd<'_>], hold: Hold) -> Result<bool> {
        match self.reached() {
            Some(notifier) => Ok(notifier.store(name, descriptors, hold)? == descriptors.len()),
            None => Ok(true),
        }
    }

    /// Has the manager close what it stores under a name. False if its queue has no room for the
    /// message now.
    pub fn drop_kept(&mut self, name: &str) -> bool {
        let Some(notifier) = self.reached() else {
            return true;
        };
        let room = notifier.retry();
        if room && let Err(error) = notifier.remove(name) {
            log::error!("{error}");
        }
        room
    }

    /// Whether messages wait for room in the manager's queue.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.notifier.as_ref().is_some_and(Notifier::is_waiting)
    }

    /// Sends the messages that wait for room, as far as there is some now.
    pub fn flush(&mut self) {
        if let Some(notifier) = &mut self.notifier {
            notifier.retry();
        }
    }

    /// Sends what is due: a sign of life, or what waits for room.
    pub fn tick(&mut self, now: Time) {
        let Some(notifier) = &mut self.notifier else {
            return;
        };
        if self.in_charge
            && let Some(interval) = notifier.watchdog_interval()
            && self.next_sign_of_life <= now
        {
            self.next_sign_of_life = now.after(interval);
            notifier.watchdog();
        }
        if notifier.is_waiting() && self.next_retry <= now {
            self.next_retry = now.after(RETRY);
            notifier.retry();
        }
    }

    /// The next time that [`tick`](Self::tick) has something to send.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let notifier = self.notifier.as_ref()?;
        let watchdog = notifier.watchdog_interval().filter(|_| self.in_charge);
        let watchdog = watchdog.map(|_| self.next_sign_of_life);
        let retry = notifier.is_waiting().then_some(self.next_retry);
        [watchdog, retry].into_iter().flatten().min()
    }
}
