//! Where the active master is found: its control socket, its pid file, and the service manager that
//! has started it.

pub mod control_socket;
pub mod pid_file;
pub mod service_manager;

use std::io;
use std::path::PathBuf;

use nix::unistd::Pid;

use super::events::epoll::{Epoll, EventFlags};
use super::events::token::MasterEvent;
use crate::error::{Error, Result};
use control_socket::{Asking, ControlSocket};
use pid_file::PidFile;
use service_manager::ServiceManager;

/// Where a master can be found while it is the active one.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// The path of the socket over which a new master takes over.
    pub control: Option<PathBuf>,
    /// The path of the file that names the process.
    pub pid_file: Option<PathBuf>,
}

/// Which files of a master are gone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lost {
    control: bool,
    pid_file: bool,
}

impl Lost {
    /// As one byte, to be sent to another process.
    #[must_use]
    pub fn encode(self) -> u8 {
        u8::from(self.control) | u8::from(self.pid_file) << 1
    }

    /// What [`encode`](Self::encode) made this byte of.
    #[must_use]
    pub fn decode(byte: u8) -> Self {
        Self {
            control: byte & 1 != 0,
            pid_file: byte & 2 != 0,
        }
    }
}

impl Endpoints {
    /// Checks whether a master could be found there, once nobody else is.
    ///
    /// # Errors
    /// When something else is at a path, or its directory can't be used.
    pub fn check(&self) -> Result<()> {
        self.control
            .as_deref()
            .map_or(Ok(()), ControlSocket::check)?;
        self.pid_file.as_deref().map_or(Ok(()), PidFile::check)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Office {
    endpoints: Endpoints,
    control: Option<ControlSocket>,
    pid_file: Option<PidFile>,
    manager: ServiceManager,
    /// The process of the master whose files this one may replace.
    other: Option<Pid>,
}

impl Office {
    /// An office at these paths, with nothing there yet.
    #[must_use]
    pub fn new(endpoints: Endpoints, manager: ServiceManager) -> Self {
        Self {
            endpoints,
            control: None,
            pid_file: None,
            manager,
            other: None,
        }
    }

    /// The service manager.
    pub fn manager(&mut self) -> &mut ServiceManager {
        &mut self.manager
    }

    /// The next time that the service manager is to be told something.
    #[must_use]
    pub fn next_due(&self) -> Option<super::time::Time> {
        self.manager.next_due()
    }

    /// Does all that may fail before this master is active. If it takes over from an `other` one,
    /// the files of that are there until [`open`](Self::open).
    ///
    /// # Errors
    /// When a file can't be made, or another program has one there.
    pub fn prepare(&mut self, other: Option<Pid>) -> Result<()> {
        self.other = other;
        match (&self.endpoints.control, other) {
            (Some(path), Some(other)) => ControlSocket::check_replace(path, other)?,
            (Some(path), None) => self.control = Some(ControlSocket::bind(path)?),
            (None, _) => {}
        }
        if let Some(path) = &self.endpoints.pid_file {
            self.pid_file = Some(PidFile::prepare(path, other)?);
        }
        Ok(())
    }

    /// Makes this master the one that is found.
    ///
    /// # Errors
    /// What bind(2), rename(2) and epoll_ctl(2) fail with.
    pub fn open(&mut self, epoll: &Epoll) -> Result<()> {
        let control = self.open_control(epoll);
        let pid_file = self.pid_file.as_mut().map_or(Ok(()), PidFile::publish);
        control.and(pid_file)
    }

    fn open_control(&mut self, epoll: &Epoll) -> Result<()> {
        let control = match (self.control.take(), &self.endpoints.control, self.other) {
            (Some(control), _, _) => control,
            (None, Some(path), Some(other)) => ControlSocket::replace(path, other)?,
            (None, _, _) => return Ok(()),
        };
        // Edge-triggered: one that can't be accepted, at the limit of open files say, stays in the
        // backlog, and would be an event in each round.
        let flags = EventFlags::IN | EventFlags::ET;
        let watched = epoll.add(&control, MasterEvent::Control, flags);
        watched.map_err(|error| Error::new(format!("watch {control}"), error))?;
        self.control = Some(control);
        Ok(())
    }

    /// Makes this master the active one. If it can't be found, it is active all the same.
    pub fn take_charge(&mut self, epoll: &Epoll) {
        let opened = self.open(epoll);
        report(opened);
        self.manager.take_charge();
    }

    /// Makes this master the active one again, after an `other` one was.
    pub fn return_to(&mut self, other: Pid, epoll: &Epoll) {
        // The other master has replaced both files by its own.
        (self.control, self.pid_file) = (None, None);
        let prepared = self.prepare(Some(other));
        report(prepared);
        self.take_charge(epoll);
    }

    /// Looks which files somebody has removed. That takes as long as their file system likes.
    #[must_use]
    pub fn look(&self) -> Lost {
        let Endpoints { control, pid_file } = &self.endpoints;
        let lost_control = || self.control.as_ref().is_none_or(ControlSocket::is_lost);
        let lost_pid_file = || self.pid_file.as_ref().is_none_or(PidFile::is_lost);
        Lost {
            control: control.is_some() && lost_control(),
            pid_file: pid_file.is_some() && lost_pid_file(),
        }
    }

    /// Makes the files anew that somebody has removed.
    pub fn mend(&mut self, lost: Lost, epoll: &Epoll) {
        if let Some(path) = &self.endpoints.control
            && lost.control
        {
            log::warn!(
                "the file of control socket {} is gone: making it anew",
                path.display()
            );
            self.control = None;
            let bound = ControlSocket::bind(path);
            self.control = bound.map_err(|error| log::error!("{error}")).ok();
            if self.control.is_some() {
                let opened = self.open_control(epoll);
                report(opened);
            }
        }
        if let Some(path) = &self.endpoints.pid_file
            && lost.pid_file
        {
            log::warn!("pid file {} is gone: making it anew", path.display());
            self.pid_file = None;
            let prepared = PidFile::prepare(path, None);
            report(prepared.and_then(|file| self.pid_file.insert(file).publish()));
        }
    }

    /// Accepts the next connection of the control socket. Who waits there makes one event only, so
    /// call it until there is nobody.
    ///
    /// # Errors
    /// What accept(2) fails with.
    pub fn accept(&self) -> io::Result<Asking> {
        let control = self.control.as_ref();
        control.map_or(Ok(Asking::Nobody), ControlSocket::accept)
    }
}

fn report(result: Result<()>) {
    if let Err(error) = result {
        log::error!("{error}");
    }
}
