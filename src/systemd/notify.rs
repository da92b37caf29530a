//! What the service manager is told, and what it is given to keep.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{self, Command};
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

/// A longer status is cut: the manager ignores a message of more than 4096 bytes altogether.
const LONGEST_STATUS: usize = 1024;

/// Tells the service manager how the service is.
///
/// Nothing here sleeps, and nothing ends the server. A message for which the manager's queue has no
/// room waits, and goes before the next one, or with [`retry`](Self::retry). One that cannot be
/// sent at all is dropped. Trouble is logged when it begins, not with each message.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
    /// The manager's address as the variable had it.
    place: OsString,
    watchdog: Option<Duration>,
    store_limit: Option<usize>,
    /// What the manager had no room for, in order.
    waiting: VecDeque<String>,
    /// The last message could not be sent, and that was said.
    failing: bool,
}

/// For how long the manager keeps a descriptor that was stored with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Until it is removed, or the kernel says that its other end is gone: for a connection.
    UntilHangup,
    /// Until it is removed (FDPOLL=0).
    UntilRemoved,
}

/// The variables that concern notifications.
#[derive(Debug, Default)]
struct Variables {
    socket: Option<OsString>,
    watchdog_usec: Option<OsString>,
    watchdog_pid: Option<OsString>,
    store: Option<OsString>,
}

impl Notifier {
    /// The notifier for the manager that started this process, if one did and wants to be told
    /// (NOTIFY_SOCKET). What makes no sense is logged. Call it at the start of main, while the
    /// process has one thread; a second call finds nothing.
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
        let Some(place) = variables.socket else {
            return Ok(None);
        };
        let failed = |error| Error::new(format!("notify {}", place.display()), error);
        let manager = address(&place).map_err(failed)?;
        let socket = UnixDatagram::unbound().map_err(failed)?;
        let watchdog = watchdog(variables.watchdog_usec, variables.watchdog_pid, pid);
        let watchdog = watchdog.unwrap_or_else(|error| {
            log::error!("{error}");
            None
        });
        Ok(Some(Self {
            socket,
            manager,
            place,
            watchdog,
            store_limit: variables.store.as_deref().and_then(number),
            waiting: VecDeque::new(),
            failing: false,
        }))
    }

    /// The service has started, or has finished reloading.
    pub fn ready(&mut self) {
        self.say("READY=1".to_owned());
    }

    /// The service begins to reload; say [`ready`](Self::ready) when it has. By the time in the
    /// message the manager knows this reload from one that it asked for later (Type=notify-reload).
    pub fn reloading(&mut self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let now = now.as_micros();
        self.say(format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// The service begins to stop.
    pub fn stopping(&mut self) {
        self.say("STOPPING=1".to_owned());
    }

    /// From now on, this process is the main one of the service.
    pub fn main_pid(&mut self, pid: u32) {
        self.say(format!("MAINPID={pid}"));
    }

    /// A line for whoever asks the manager how the service is. Line ends become spaces, and more
    /// than 1024 bytes are cut.
    pub fn status(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(LONGEST_STATUS)];
        let line = text.replace(|c: char| c.is_control(), " ");
        self.say(format!("STATUS={line}"));
    }

    /// The service is alive. Say it every [`watchdog_interval`](Self::watchdog_interval).
    pub fn watchdog(&mut self) {
        // It does not wait for room: by then it would be old, and the next one comes anyhow.
        if self.retry() {
            let sent = self.send("WATCHDOG=1", &[]);
            self.note(&sent);
        }
    }

    /// How often the manager is to be told that the service is alive: twice in the time after which
    /// it takes it for dead. `None` when it does not watch.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// How many descriptors the manager keeps for this service, if it says so (systemd 254 and
    /// later). It drops what is beyond, and nobody is told.
    #[must_use]
    pub fn store_limit(&self) -> Option<usize> {
        self.store_limit
    }

    /// Gives the manager copies of descriptors to keep under a name. When it starts the service
    /// again, they are among [`listen_fds`](super::listen_fds). Several may have the same name.
    ///
    /// Returns how many were sent. When that is fewer than all, the manager's queue is full:
    /// call it again with the rest, later. This descriptor is writable when there is room.
    ///
    /// # Errors
    /// When the name is none ([`is_descriptor_name`]), or nothing can be sent at all.
    pub fn store(
        &mut self,
        name: &str,
        descriptors: &[BorrowedFd<'_>],
        hold: Hold,
    ) -> Result<usize> {
        let attempt = || format!("store descriptors as {name:?}");
        checked(name).map_err(|reason| Error::because(attempt(), reason))?;
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

    /// Has the manager close all that it keeps under a name.
    ///
    /// # Errors
    /// When the name is none ([`is_descriptor_name`]).
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let attempt = || format!("remove the stored descriptors {name:?}");
        checked(name).map_err(|reason| Error::because(attempt(), reason))?;
        self.say(format!("FDSTOREREMOVE=1\nFDNAME={name}"));
        Ok(())
    }

    /// Sends what waits for room. True when nothing waits any more.
    pub fn retry(&mut self) -> bool {
        while let Some(message) = self.waiting.pop_front() {
            let sent = self.send(&message, &[]);
            self.note(&sent);
            if sent.is_err_and(|error| error.is_back_pressure()) {
                self.waiting.push_front(message);
                return false;
            }
        }
        true
    }

    /// Whether messages wait for room, so that [`retry`](Self::retry) is to be called before long.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives a program that is to be the main process next, from [`main_pid`](Self::main_pid) on,
    /// the variables that its own `Notifier` needs.
    pub fn hand_over(&self, command: &mut Command) {
        command.env(SOCKET, &self.place);
        if let Some(limit) = self.watchdog {
            // Without a pid, which is not known yet, it is meant for whoever reads it.
            command.env(WATCHDOG_USEC, limit.as_micros().to_string());
        }
        if let Some(limit) = self.store_limit {
            command.env(STORE, limit.to_string());
        }
    }

    /// Sends a message as soon as there is room. One about the same thing that still waits is
    /// overtaken by it; so no more can wait than there are things to say.
    fn say(&mut self, message: String) {
        self.waiting.retain(|old| subject(old) != subject(&message));
        self.waiting.push_back(message);
        self.retry();
    }

    fn send(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), fdpass::Error> {
        // A manager that was replaced has another socket at the same address.
        self.socket
            .connect_addr(&self.manager)
            .map_err(fdpass::Error::Os)?;
        let data = &[IoSlice::new(text.as_bytes())];
        fdpass::send(&self.socket, data, descriptors, Wait::Dont)?;
        Ok(())
    }

    /// Logs trouble when it begins.
    fn note(&mut self, sent: &Result<(), fdpass::Error>) {
        match sent {
            Ok(()) => self.failing = false,
            // It waits.
            Err(error) if error.is_back_pressure() => {}
            Err(error) if !self.failing => {
                log::warn!("cannot notify {}: {error}", self.place.display());
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

/// What a message is about: two about the same thing need not both be sent.
fn subject(message: &str) -> &str {
    match message.split_once('=') {
        // The name is part of it.
        Some(("FDSTOREREMOVE", _)) | None => message,
        Some((key, _)) => key,
    }
}

fn checked(name: &str) -> Result<(), &'static str> {
    match is_descriptor_name(name) {
        true => Ok(()),
        false => Err("a name is 1 to 255 printable ASCII characters without a colon"),
    }
}

/// The manager's address: a path, or after an `@` the name of an abstract socket (unix(7)).
fn address(place: &OsStr) -> io::Result<SocketAddr> {
    match place.as_bytes() {
        [b'@', name @ ..] if !name.is_empty() => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(place),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the address is neither a full path nor an abstract name",
        )),
    }
}

/// How long this process may be silent.
fn watchdog(
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
