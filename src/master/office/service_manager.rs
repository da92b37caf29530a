//! What the service manager is told: when the server is ready, reloads, stops, and that it is alive.

use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::master::time::Time;
use crate::systemd::{Hold, Notifier};

/// How long a message waits that the manager's queue had no room for.
const RETRY: Duration = Duration::from_millis(100);

/// How long it waits for room for the last message.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The manager, if there is one that wants to know. It is told by the master in charge only.
#[derive(Debug, Default)]
pub struct ServiceManager {
    notifier: Option<Notifier>,
    in_charge: bool,
    /// It was told that the server is ready, and nothing else since.
    ready: bool,
    next_sign_of_life: Time,
    next_retry: Time,
}

impl ServiceManager {
    /// Reports through this, if this master is in charge already.
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

    /// The server serves. Said once, and again after a reload.
    pub fn ready(&mut self) {
        if !self.ready
            && let Some(notifier) = self.reached()
        {
            notifier.ready();
            self.ready = true;
        }
    }

    /// The configuration is read anew; [`ServiceManager::ready`] says when that is over.
    pub fn reloading(&mut self) {
        if let Some(notifier) = self.reached() {
            notifier.reloading();
            self.ready = false;
        }
    }

    /// The server stops.
    pub fn stopping(&mut self) {
        if let Some(notifier) = self.reached() {
            notifier.stopping();
        }
    }

    /// Another process is the server from now on, and this one says nothing more.
    pub fn hand_over_to(&mut self, pid: Option<u32>) {
        if let (Some(notifier), Some(pid)) = (self.reached(), pid) {
            notifier.main_pid(pid);
            // It can't be said later, and the manager listens to nobody before it knows.
            let end = Instant::now() + LAST_WORD;
            while !notifier.retry() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.in_charge = false;
    }

    /// This process is the server from now on, or again.
    pub fn take_charge(&mut self) {
        self.in_charge = true;
        if self.ready
            && let Some(notifier) = self.reached()
        {
            // It was the server before, and another one was since.
            notifier.main_pid(std::process::id());
        }
    }

    /// Lets a program that is started reach the manager too.
    pub fn introduce(&self, command: &mut Command) {
        if let Some(notifier) = &self.notifier {
            notifier.hand_over(command);
        }
    }

    /// How many descriptors it keeps, if it does.
    #[must_use]
    pub fn store_limit(&self) -> Option<usize> {
        self.notifier.as_ref()?.store_limit()
    }

    /// Gives it copies to keep under a name; false when it has no room for the message now.
    ///
    /// # Errors
    /// When it can't be told at all.
    pub fn keep(&mut self, name: &str, descriptors: &[BorrowedFd<'_>], hold: Hold) -> Result<bool> {
        match self.reached() {
            Some(notifier) => Ok(notifier.store(name, descriptors, hold)? == descriptors.len()),
            None => Ok(true),
        }
    }

    /// Has it close what it keeps under a name; false when it has no room for the message now.
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

    /// Whether something waits for room.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.notifier.as_ref().is_some_and(Notifier::is_waiting)
    }

    /// Sends what waits for room, if there is some.
    pub fn flush(&mut self) {
        if let Some(notifier) = &mut self.notifier {
            notifier.retry();
        }
    }

    /// Says what is due.
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

    /// When something is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let notifier = self.notifier.as_ref()?;
        let watchdog = notifier.watchdog_interval().filter(|_| self.in_charge);
        let watchdog = watchdog.map(|_| self.next_sign_of_life);
        let retry = notifier.is_waiting().then_some(self.next_retry);
        [watchdog, retry].into_iter().flatten().min()
    }
}
