//! What a server finds when it starts: sockets that systemd passes, a manager to report to, and another master from
//! which it is to take over.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use crate::config::Address;
use crate::error::Result;
use crate::master::listen::listener::{self, Listener};
use crate::master::succession::Legacy;
use crate::master::succession::{Successor, inherited_session};
use crate::systemd::{Inherited, Notifier, listen_fds};

/// See the module.
#[derive(Debug, Default)]
pub struct Heritage {
    /// Listeners that are ready to be used.
    pub listeners: Vec<Listener>,
    /// Descriptors that were passed by name, and have no use yet.
    pub passed: Vec<Inherited>,
    /// The manager that wants to know how it goes.
    pub notifier: Option<Notifier>,
    /// What a master that was killed has left with it.
    pub legacy: Legacy,
    /// This master's part in a takeover.
    pub successor: Option<Successor>,
}

impl Heritage {
    /// Takes it out of the environment. The master from which to take over is the one that has started this program
    /// (SIGUSR2), or else the one behind the control socket. To be called once, before there are threads.
    ///
    /// # Errors
    /// When what systemd says makes no sense, or the old master refuses or is gone.
    pub fn claim(control: Option<&Path>) -> Result<Self> {
        let notifier = Notifier::from_env();
        let mut passed = listen_fds()?;
        let (successor, mut listeners) = match (inherited_session()?, control) {
            (Some(session), _) => Successor::ask(session, "take over").map(to_some)?,
            (None, Some(path)) => Successor::connect(path).map(to_some)?,
            (None, None) => (None, Vec::new()),
        };
        let stores = notifier.as_ref().and_then(Notifier::store_limit).is_some();
        let mut legacy = Legacy::of_predecessor(&listeners);
        if stores && successor.is_none() {
            let (left, stored) = Legacy::claim(&mut passed);
            (legacy, listeners) = (left, stored);
        }
        Ok(Self {
            listeners,
            passed,
            notifier,
            legacy,
            successor,
        })
    }

    /// Makes sure that there are listeners for an address: the old master's, or what systemd has passed for it, or new
    /// ones. Port 0 may have been wanted so many times `before`.
    ///
    /// # Errors
    /// When it can't be bound, or what was passed is no listener.
    pub fn listen_on(&mut self, address: &Address, before: usize, backlog: i32) -> Result<()> {
        if listener::is_bound(&self.listeners, address, before) {
            return Ok(());
        }
        let meant = |one: &Inherited| match address {
            Address::Inherited(name) => one.name == *name,
            _ => is_bound_to(one, address),
        };
        let passed: Vec<_> = self.passed.extract_if(.., |one| meant(one)).collect();
        if passed.is_empty() {
            let fresh = listener::bind_all(address, backlog)?;
            self.listeners.extend(fresh);
        }
        for one in passed {
            let listener = Listener::inherit(one.fd, address.clone())?;
            self.listeners.push(listener);
        }
        Ok(())
    }

    /// The numbers of its descriptors, which are the master's alone.
    #[must_use]
    pub fn descriptors(&self) -> Vec<RawFd> {
        let listeners = self.listeners.iter().map(AsFd::as_fd);
        let passed = self.passed.iter().map(|one| one.fd.as_fd());
        let others = self.successor.iter().map(AsFd::as_fd);
        let notifier = self.notifier.iter().map(AsFd::as_fd);
        let legacy = self.legacy.descriptors();
        let all = listeners.chain(passed).chain(others).chain(notifier);
        let all = all.chain(legacy);
        all.map(|fd| fd.as_raw_fd()).collect()
    }

    /// Closes what was passed and is for nothing.
    pub fn close_unused(&mut self) {
        for one in self.passed.drain(..) {
            log::warn!("descriptor {:?} was passed, and has no use", one.name);
        }
    }
}

/// Whether what was passed is the very socket that would be bound.
fn is_bound_to(one: &Inherited, address: &Address) -> bool {
    let Ok(copy) = one.fd.try_clone() else {
        return false;
    };
    Listener::inherit(copy, address.clone()).is_ok_and(|listener| listener.matches(address))
}

fn to_some(
    (successor, listeners): (Successor, Vec<Listener>),
) -> (Option<Successor>, Vec<Listener>) {
    (Some(successor), listeners)
}
