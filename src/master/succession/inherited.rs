//! What a server finds when it starts: sockets that systemd passes, a manager to report to, and
//! another master from which it is to take over.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use super::launch::inherited_session;
use super::new_side::TakeoverClient;
use super::recover::Recovered;
use crate::config::{Address, Settings};
use crate::error::Result;
use crate::master::listen::bind::{bind_all, refuse_overlaps};
use crate::master::listen::listener::Listener;
use crate::master::listen::matching::{drop_lost, is_bound};
use crate::systemd::{Inherited as Passed, Notifier, listen_fds};

/// See the module.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listeners that are ready to be used.
    pub listeners: Vec<Listener>,
    /// Descriptors that were passed by name, and have no use yet.
    pub passed: Vec<Passed>,
    /// The manager that wants to know how it goes.
    pub notifier: Option<Notifier>,
    /// What a master that was killed has left with it.
    pub recovered: Recovered,
    /// This master's side of a takeover.
    pub takeover: Option<TakeoverClient>,
}

impl Inherited {
    /// Takes what was left for this process out of its environment. The master from which to take
    /// over is the one that has started this program (SIGUSR2), or else the one behind the control
    /// socket. To be called once, before there are threads.
    ///
    /// # Errors
    /// When what systemd says makes no sense, or the old master refuses or is gone.
    pub fn claim(control: Option<&Path>) -> Result<Self> {
        let notifier = Notifier::from_env();
        let mut passed = listen_fds()?;
        let offer = match (inherited_session()?, control) {
            (Some(session), _) => Some(TakeoverClient::answer(session)?),
            (None, Some(path)) => Some(TakeoverClient::connect(path)?),
            (None, None) => None,
        };
        let stores = notifier.as_ref().and_then(Notifier::store_limit).is_some();
        let (takeover, recovered, listeners) = match offer {
            Some((takeover, listeners)) => {
                (Some(takeover), Recovered::offered(&listeners), listeners)
            }
            None if stores => {
                let (recovered, listeners) = Recovered::claim(&mut passed);
                (None, recovered, listeners)
            }
            None => (None, Recovered::default(), Vec::new()),
        };
        Ok(Self {
            listeners,
            passed,
            notifier,
            recovered,
            takeover,
        })
    }

    /// Refuses addresses that overlap, except for those that need not be bound any more.
    ///
    /// # Errors
    /// As for [`refuse_overlaps`].
    pub fn refuse_overlaps<'a>(
        &self,
        addresses: impl IntoIterator<Item = &'a Address>,
    ) -> Result<()> {
        let is_there = |address: &Address| {
            let mut passed = self.passed.iter();
            is_bound(&self.listeners, address, 0) || passed.any(|one| is_bound_to(one, address))
        };
        let addresses = addresses.into_iter();
        refuse_overlaps(addresses.filter(|address| !is_there(address)))
    }

    /// Makes sure that there are listeners for an address: the old master's, or what systemd has
    /// passed for it, or new ones. Port 0 may have been wanted so many times `before`.
    ///
    /// # Errors
    /// When it can't be bound, or what was passed is no listener.
    pub fn listen_on(
        &mut self,
        address: &Address,
        before: usize,
        settings: &Settings,
    ) -> Result<()> {
        drop_lost(&mut self.listeners, address);
        if is_bound(&self.listeners, address, before) {
            return Ok(());
        }
        let meant = |one: &Passed| match address {
            Address::Inherited(name) => one.name == *name,
            _ => is_bound_to(one, address),
        };
        let passed: Vec<_> = self.passed.extract_if(.., |one| meant(one)).collect();
        if passed.is_empty() {
            let fresh = bind_all(address, settings)?;
            self.listeners.extend(fresh);
        }
        for one in passed {
            let listener = Listener::inherit(one.fd, address.clone())?;
            self.listeners.push(listener);
        }
        Ok(())
    }

    /// The numbers of all these descriptors, which no worker may have.
    #[must_use]
    pub fn descriptors(&self) -> Vec<RawFd> {
        let listeners = self.listeners.iter().map(AsFd::as_fd);
        let passed = self.passed.iter().map(|one| one.fd.as_fd());
        let others = self.takeover.iter().map(AsFd::as_fd);
        let notifier = self.notifier.iter().map(AsFd::as_fd);
        let recovered = self.recovered.descriptors();
        let all = listeners.chain(passed).chain(others).chain(notifier);
        let all = all.chain(recovered);
        all.map(|fd| fd.as_raw_fd()).collect()
    }

    /// Closes the passed descriptors that nothing uses.
    pub fn close_unused(&mut self) {
        for one in self.passed.drain(..) {
            let name = one.name;
            log::warn!("ignoring inherited descriptor {name:?}: nothing uses it");
        }
    }
}

/// Whether the passed descriptor is a socket that is bound to this very address.
fn is_bound_to(one: &Passed, address: &Address) -> bool {
    let Ok(copy) = one.fd.try_clone() else {
        return false;
    };
    Listener::inherit(copy, address.clone()).is_ok_and(|listener| listener.matches(address))
}
