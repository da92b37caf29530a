//! Where the master that is in charge is found: a control socket, a pid file, and the service
//! manager that has started it.

pub mod control_socket;
pub mod pid_file;
pub mod service_manager;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::events::epoll::{Epoll, EventFlags};
use super::events::token::MasterEvent;
use crate::error::{Error, Result};
use control_socket::ControlSocket;
use pid_file::PidFile;
use service_manager::ServiceManager;

/// Where a master can be found, as long as it is the one in charge.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// The path of the socket over which a new master takes over.
    pub control: Option<PathBuf>,
    /// The path of the file that names the process.
    pub pid_file: Option<PathBuf>,
}

/// See the module.
#[derive(Debug)]
pub struct Office {
    endpoints: Endpoints,
    control: Option<ControlSocket>,
    pid_file: Option<PidFile>,
    manager: ServiceManager,
}

impl Office {
    /// An office at these places, where nobody is found yet.
    #[must_use]
    pub fn new(endpoints: Endpoints, manager: ServiceManager) -> Self {
        Self {
            endpoints,
            control: None,
            pid_file: None,
            manager,
        }
    }

    /// The service manager.
    pub fn manager(&mut self) -> &mut ServiceManager {
        &mut self.manager
    }

    /// When the service manager is to be told something.
    #[must_use]
    pub fn next_due(&self) -> Option<super::time::Time> {
        self.manager.next_due()
    }

    /// Makes the files beside their places, so that what may fail has failed before this master is
    /// in charge. With `replace`, another master may still be found there.
    ///
    /// # Errors
    /// When a file can't be made, or another program is found there.
    pub fn prepare(&mut self, replace: bool) -> Result<()> {
        if let Some(path) = &self.endpoints.control {
            self.control = Some(ControlSocket::prepare(path, replace)?);
        }
        if let Some(path) = &self.endpoints.pid_file {
            self.pid_file = Some(PidFile::prepare(path)?);
        }
        Ok(())
    }

    /// Moves the files to their places: from now on this master is found there.
    ///
    /// # Errors
    /// What rename(2) and epoll_ctl(2) fail with.
    pub fn open(&mut self, epoll: &Epoll) -> Result<()> {
        if let Some(control) = &mut self.control {
            control.publish()?;
            let watched = epoll.add(&*control, MasterEvent::Control, EventFlags::IN);
            watched.map_err(|error| Error::new(format!("watch {control}"), error))?;
        }
        self.pid_file.as_ref().map_or(Ok(()), PidFile::publish)
    }

    /// This master is the one in charge from now on. It does not give up because it can't be found.
    pub fn take_charge(&mut self, epoll: &Epoll) {
        if let Err(error) = self.open(epoll) {
            log::error!("{error}");
        }
        self.manager.take_charge();
    }

    /// This master is in charge again, after another one was.
    pub fn return_to(&mut self, epoll: &Epoll) {
        // What was there is the other master's, which was to be found at the same places.
        (self.control, self.pid_file) = (None, None);
        if let Err(error) = self.prepare(true) {
            log::error!("{error}");
        }
        self.take_charge(epoll);
    }

    /// The next who asks at the control socket, if he may.
    ///
    /// # Errors
    /// What accept(2) fails with.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        self.control
            .as_ref()
            .map_or(Ok(None), ControlSocket::accept)
    }
}
