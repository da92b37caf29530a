//! The messages to the service manager, and the descriptors that it is given to keep.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::config::is_descriptor_name;
use crate::error::{Error, Result};
use crate::fdpass::{self, MAX_DESCRIPTORS, Wait};
use crate::sys::environment;

const SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
const WATCHDOG_PID: &str = "WATCHDOG_PID";
const STORE: &str = "FDSTORE";

/// A status is cut to this many bytes, because the manager ignores messages of more than 4096
/// bytes.
const LONGEST_STATUS: usize = 1024;

/// Tells the service manager about the state of the service.
///
/// No call sleeps, and no failure ends the server. A message for which the manager's queue has no
/// room waits, and is sent before the next one or by [`retry`](Self::retry). A message that cannot
/// be sent at all is dropped. The first such failure in a row is logged.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
    /// The manager's address in the form of the variable.
    address: OsString,
    watchdog: Option<Duration>,
    store_limit: Option<usize>,
    /// The messages for which the manager had no room, in their order.
    waiting: VecDeque<String>,
    /// Whether the last message could not be sent. If so, that has been logged.
    failing: bool,
}

/// How long the manager keeps a descriptor that is stored with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Until it is removed, or the kernel reports that its other end has hung up. This is right for
    /// a connection.
    UntilHangup,
    /// Until it is removed (FDPOLL=0).
    UntilRemoved,
}

/// The environment variables that concern notifications.
#[derive(Debug, Default)]
struct Variables {
    socket: Option<OsString>,
    watchdog_usec: Option<OsString>,
    watchdog_pid: Option<OsString>,
    store: Option<OsString>,
}

impl Notifier {
    /// Creates the notifier for the manager that has started this process; `None` if no manager
    /// has, or it expects no messages (NOTIFY_SOCKET). A malformed variable is logged. Call it at
    /// the start of main, while the process has one thread. A second call finds nothing.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let notifier = match environment::take([SOCKET, WATCHDOG_USEC, WATCHDOG_PID, STORE]) {
            Ok([socket, watchdog_usec, watchdog_pid, store]) => {
                let variables = Variables {
                    socket,
                    watchdog_usec,
                    watchdog_pid,
                    store,
                };
                Self::new(variables, process::id())
            }
            Err(error) => Err(Error::new(
                format!("take {SOCKET} out of the environment"),
                error,
            )),
        };
        notifier.unwrap_or_else(|error| {
            log::error!("{error}");
            None
        })
    }

    fn new(variables: Variables, pid: u32) -> Result<Option<Self>> {
        let Some(address) = variables.socket else {
            return Ok(None);
        };
        let failed = |error| {
            Error::new(
                format!("notify the service manager at {}", address.display()),
                error,
            )
        };
        let manager = parse_address(&address).map_err(failed)?;
        let socket = UnixDatagram::unbound().map_err(failed)?;
        let watchdog = parse_watchdog(variables.watchdog_usec, variables.watchdog_pid, pid);
        let watchdog = watchdog.unwrap_or_else(|error| {
            log::error!("{error}");
            None
        });
        Ok(Some(Self {
            socket,
            manager,
            address,
            watchdog,
            store_limit: variables.store.as_deref().and_then(number),
            waiting: VecDeque::new(),
            failing: false,
        }))
    }

    /// The notifier for a manager that a test plays.
    #[cfg(test)]
    pub(crate) fn at(place: impl Into<OsString>) -> Self {
        let variables = Variables {
            socket: Some(place.into()),
            ..Variables::default()
        };
        let notifier = Self::new(variables, process::id());
        notifier.ok().flatten().expect("a manager is there")
    }

    /// Reports that the service has started, or has finished reloading.
    pub fn ready(&mut self) {
        self.send_in_order("READY=1".to_owned());
    }

    /// Reports that the service begins to reload. Call [`ready`](Self::ready) when it has finished.
    /// The message contains the time, by which the manager tells this reload from one that it asks
    /// for later (Type=notify-reload).
    pub fn reloading(&mut self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let now = now.as_micros();
        self.send_in_order(format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// Reports that the service begins to stop.
    pub fn stopping(&mut self) {
        self.send_in_order("STOPPING=1".to_owned());
    }

    /// Declares the process `pid` the main process of the service.
    pub fn main_pid(&mut self, pid: u32) {
        self.send_in_order(format!("MAINPID={pid}"));
    }

    /// Sets the line that `systemctl status` shows. Control characters become spaces, and a text of
    /// more than 1024 bytes is cut.
    pub fn status(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(LONGEST_STATUS)];
        let line = text.replace(|c: char| c.is_control(), " ");
        self.send_in_order(format!("STATUS={line}"));
    }

    /// Reports that the service is alive. Call it once in every
    /// [`watchdog_interval`](Self::watchdog_interval).
    pub fn watchdog(&mut self) {
        // This message never waits for room, because the next one follows soon.
        if self.retry() {
            let sent = self.send("WATCHDOG=1", &[]);
            self.log_failure(&sent);
        }
    }

    /// How often to call [`watchdog`](Self::watchdog): half of the time after which the manager
    /// takes the service for dead. `None` if it does not watch.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// How many descriptors the manager keeps for this service (systemd 254 and later); `None` if
    /// the manager does not say. It silently closes descriptors beyond that number.
    #[must_use]
    pub fn store_limit(&self) -> Option<usize> {
        self.store_limit
    }

    /// Gives the manager copies of descriptors to keep under a name. When it starts the service
    /// again, they are among those of [`listen_fds`](crate::systemd::listen_fds). Several
    /// descriptors may have the same name.
    ///
    /// Returns how many were sent. If these are not all, the manager's queue is full: call this
    /// again with the rest when the notifier's descriptor is writable.
    ///
    /// # Errors
    /// A name that is not permitted ([`is_descriptor_name`]), or any error of sendmsg(2) other than
    /// a full queue.
    pub fn store(
        &mut self,
        name: &str,
        descriptors: &[BorrowedFd<'_>],
        hold: Hold,
    ) -> Result<usize> {
        let attempt = || format!("store descriptors as {name:?}");
        check_name(name).map_err(|reason| Error::because(attempt(), reason))?;
        if !self.retry() {
            return Ok(0);
        }
        let mut text = format!("FDSTORE=1\nFDNAME={name}");
        if hold == Hold::UntilRemoved {
            text.push_str("\nFDPOLL=0");
        }
        let mut stored = 0;
        for part in descriptors.chunks(MAX_DESCRIPTORS) {
            match self.send(&text, part) {
                Ok(()) => stored += part.len(),
                Err(error) if error.is_back_pressure() => break,
                Err(error) => return Err(Error::new(attempt(), io::Error::from(error))),
            }
        }
        Ok(stored)
    }

    /// Asks the manager to close every descriptor that it keeps under a name.
    ///
    /// # Errors
    /// A name that is not permitted ([`is_descriptor_name`]).
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let attempt = || format!("remove the stored descriptors {name:?}");
        check_name(name).map_err(|reason| Error::because(attempt(), reason))?;
        self.send_in_order(format!("FDSTOREREMOVE=1\nFDNAME={name}"));
        Ok(())
    }

    /// Sends the messages that wait for room. Returns whether all of them are sent.
    pub fn retry(&mut self) -> bool {
        while let Some(message) = self.waiting.pop_front() {
            let sent = self.send(&message, &[]);
            self.log_failure(&sent);
            if sent.is_err_and(|error| error.is_back_pressure()) {
                self.waiting.push_front(message);
                return false;
            }
        }
        true
    }

    /// Whether messages wait for room. If so, call [`retry`](Self::retry) before long.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The variables that a process needs for a `Notifier` of its own, because it is to become the
    /// main process of the service with [`main_pid`](Self::main_pid).
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, OsString)> {
        // WATCHDOG_PID is left out, because the pid is not known yet. Without it the watchdog
        // applies to any process that reads the variable.
        let watchdog = self.watchdog.map(|limit| limit.as_micros().to_string());
        let store = self.store_limit.map(|limit| limit.to_string());
        let watchdog = watchdog.map(|limit| (WATCHDOG_USEC, limit.into()));
        let store = store.map(|limit| (STORE, limit.into()));
        let socket = (SOCKET, self.address.clone());
        [Some(socket), watchdog, store]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Sends a message after those that wait for room. It replaces a waiting one with the same
    /// subject, so that the queue cannot grow without bound.
    fn send_in_order(&mut self, message: String) {
        self.waiting.retain(|old| subject(old) != subject(&message));
        self.waiting.push_back(message);
        self.retry();
    }

    fn send(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), fdpass::Error> {
        // The socket is connected anew each time, because a manager that was restarted has another
        // socket at the same address.
        self.socket
            .connect_addr(&self.manager)
            .map_err(fdpass::Error::Os)?;
        let data = &[IoSlice::new(text.as_bytes())];
        fdpass::send(&self.socket, data, descriptors, Wait::Dont)?;
        Ok(())
    }

    /// Logs the first failure in a row.
    fn log_failure(&mut self, sent: &Result<(), fdpass::Error>) {
        match sent {
            Ok(()) => self.failing = false,
            // The message waits, so nothing is lost.
            Err(error) if error.is_back_pressure() => {}
            Err(error) if !self.failing => {
                let manager = self.address.display();
                log::warn!("cannot notify the service manager at {manager}: {error}");
                self.failing = true;
            }
            Err(_) => {}
        }
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The subject of a message. Of two messages with the same subject only the later one has to be
/// sent.
fn subject(message: &str) -> &str {
    match message.split_once('=') {
        // Removals of different names are different subjects.
        Some(("FDSTOREREMOVE", _)) | None => message,
        Some((key, _)) => key,
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match is_descriptor_name(name) {
        true => Ok(()),
        false => Err("a name is 1 to 255 printable ASCII characters without a colon"),
    }
}

/// Parses the manager's address: a path, or after an `@` the name of an abstract socket (unix(7)).
fn parse_address(text: &OsStr) -> io::Result<SocketAddr> {
    match text.as_bytes() {
        [b'@', name @ ..] if !name.is_empty() => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(text),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the address is neither an absolute path nor an abstract name",
        )),
    }
}

/// How long this process may be silent before the manager takes it for dead.
fn parse_watchdog(
    limit: Option<OsString>,
    watched: Option<OsString>,
    pid: u32,
) -> Result<Option<Duration>> {
    let Some(limit) = limit else {
        return Ok(None);
    };
    let wrong = |name, value: &OsStr| {
        let attempt = format!("use the watchdog of the service manager: {name}={value:?}");
        Err(Error::because(attempt, "it is not a positive number"))
    };
    if let Some(watched) = watched {
        match number::<u32>(&watched) {
            None => return wrong(WATCHDOG_PID, &watched),
            Some(watched) if watched != pid => return Ok(None),
            Some(_) => {}
        }
    }
    match number(&limit) {
        Some(limit) if limit > 0 => Ok(Some(Duration::from_micros(limit))),
        Some(_) | None => wrong(WATCHDOG_USEC, &limit),
    }
}

fn number<T: std::str::FromStr>(text: &OsStr) -> Option<T> {
    text.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests;
