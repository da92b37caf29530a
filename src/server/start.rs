//! The seam between the builders and the master: the only file here that calls the master.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::{Address, Settings};
use crate::error::{Error, Result};
use crate::master::office::Endpoints;
use crate::master::plan::PlanSource;
use crate::master::succession::inherited::Inherited;
use crate::master::{self, Start};
use crate::sys::{signals, unforked};

pub(super) use crate::master::plan::{MAIN, MAX_POOLS, Plan};

/// A server process that is prepared to serve: it has what its environment and a former master left
/// for it, its listeners are bound, and it has no worker yet.
#[derive(Debug)]
pub(super) struct Prepared {
    inherited: Inherited,
    endpoints: Endpoints,
    /// The addresses that listeners were bound for, in order, one as often as it was asked for.
    addresses: Vec<Address>,
}

impl Prepared {
    /// Claims what was left for this process: sockets that systemd passes, its notification socket,
    /// and the session with the master that has started this program. Without such a session it
    /// connects to the master that listens on the control socket `takeover`, if there is one. To be
    /// called once in a process, before it has threads.
    ///
    /// # Errors
    /// When the kernel lacks what every server takes, what systemd says makes no sense, or the old
    /// master refuses or is gone.
    pub(super) fn new(
        control: Option<PathBuf>,
        pid_file: Option<PathBuf>,
        takeover: Option<&Path>,
    ) -> Result<Self> {
        unforked::prepare()?;
        Ok(Self {
            inherited: Inherited::claim(takeover)?,
            endpoints: Endpoints { control, pid_file },
            addresses: Vec::new(),
        })
    }

    /// The path of its control socket.
    pub(super) fn control(&self) -> Option<&Path> {
        self.endpoints.control.as_deref()
    }

    /// Fails if the addresses of the plans overlap, so that one of them could not be bound.
    ///
    /// # Errors
    /// Which ones do.
    pub(super) fn refuse_overlaps(&self, plans: &[Plan<'_>]) -> Result<()> {
        let addresses = plans.iter().flat_map(|plan| &plan.listen);
        self.inherited.refuse_overlaps(addresses)
    }

    /// Binds an address, unless a listener for it was inherited.
    ///
    /// # Errors
    /// When it can't be bound, or what was passed for it is no listener.
    pub(super) fn listen_on(&mut self, address: Address, settings: &Settings) -> Result<()> {
        let before = self.addresses.iter().filter(|other| **other == address);
        self.inherited
            .listen_on(&address, before.count(), settings)?;
        self.addresses.push(address);
        Ok(())
    }

    /// The TCP addresses that are bound, with the port that the kernel chose for port 0.
    pub(super) fn local_addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.inherited.listeners.iter();
        listeners
            .filter(|listener| self.addresses.contains(listener.asked()))
            .filter_map(|listener| listener.local_address())
            .collect()
    }

    /// Serves these pools until it is told to stop. A reload goes over to the pools that
    /// `plan_again` returns, and changes nothing when that fails.
    ///
    /// # Errors
    /// When the master can't be set up.
    pub(super) fn serve<'a>(
        self,
        plans: Vec<Plan<'a>>,
        plan_again: &'a PlanSource<'a>,
    ) -> Result<()> {
        signals::reset_inherited().map_err(|error| Error::new("set up signals", error))?;
        raise_descriptor_limit();
        let start = Start {
            plans,
            inherited: self.inherited,
            endpoints: self.endpoints,
        };
        master::run(start, plan_again)
    }
}

/// Whether a server with these plans, found at these paths, could start in this process.
///
/// # Errors
/// Why it could not.
pub(super) fn check(
    plans: &[Plan<'_>],
    control: Option<PathBuf>,
    pid_file: Option<PathBuf>,
) -> Result<()> {
    unforked::prepare()?;
    raise_descriptor_limit();
    master::check(plans)?;
    Endpoints { control, pid_file }.check()
}

/// Raises the limit of open descriptors as far as it goes, because the master holds one for each
/// connection.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => log::debug!("up to {limit} descriptors"),
        Err(error) => log::warn!(
            "cannot raise the limit of open descriptors: {}",
            error.desc()
        ),
    }
}
