//! The new master's side of a takeover.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::launch::OfferedSession;
use super::messages::{FromNew, FromOld, OLDEST_VERSION, VERSION};
use super::session::{BATCH, Buffer, PATIENCE, Session, is_gone, longer_for, reason};
use crate::error::{Error, Plain, Result};
use crate::master::events::epoll::EventFlags;
use crate::master::events::token::MasterEvent;
use crate::master::listen::listener::Listener;
use crate::master::office::Office;
use crate::master::pools::Pools;
use crate::master::snapshot::Snapshot;
use crate::master::time::Time;
use crate::sys::socket_path;

/// What the log calls the other master.
const OLD: &str = "the old master";

/// A master to be: it has been offered the listeners of the old one.
#[derive(Debug)]
pub struct TakeoverClient {
    session: Session,
    buffer: Buffer,
    /// Since when it waits for its workers.
    since: Option<Time>,
    /// It is in charge.
    active: bool,
    /// Until when a stop waits for the old master.
    awaited_until: Option<Time>,
}

/// Why the old master has offered nothing.
enum NoOffer {
    /// It speaks an older version of the protocol.
    Version(u32),
    /// Anything else.
    Failed(String),
}

/// A connection that has come: its pool's name, what was said of it, its descriptor, its luggage.
type Arrival = (String, Snapshot, OwnedFd, Option<OwnedFd>);

impl TakeoverClient {
    /// Asks the master behind a control socket for its listeners.
    ///
    /// # Errors
    /// When nobody listens there, or it refuses.
    pub fn connect(path: &Path) -> Result<(Self, Vec<Listener>)> {
        let attempt = format!("take over at {}", path.display());
        let connected = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            connect(&socket, &socket_path::address(path)?)?;
            Ok(socket)
        };
        let mut version = VERSION;
        loop {
            let socket = connected().map_err(|error| Error::new(&attempt, error))?;
            match Self::ask(socket, version) {
                Ok(offer) => return Ok(offer),
                // It says so in its refusal, and is asked again in its own words.
                Err(NoOffer::Version(older)) if older < version => version = older,
                Err(NoOffer::Version(other)) => {
                    let why = format!("{OLD} speaks version {other}, not {version}");
                    return Err(Error::because(attempt, why));
                }
                Err(NoOffer::Failed(why)) => return Err(Error::because(attempt, why)),
            }
        }
    }

    /// Asks the master that has started this program for its listeners.
    ///
    /// # Errors
    /// When it is gone, or refuses.
    pub fn answer(offered: OfferedSession) -> Result<(Self, Vec<Listener>)> {
        let version = offered.version.min(VERSION);
        Self::ask(offered.socket, version).map_err(|failure| match failure {
            NoOffer::Version(other) => {
                let why = format!("{OLD} speaks version {other}, not {version}");
                Error::because("take over", why)
            }
            NoOffer::Failed(why) => Error::because("take over", why),
        })
    }

    fn ask(socket: OwnedFd, version: u32) -> Result<(Self, Vec<Listener>), NoOffer> {
        let failed = |error: io::Error| NoOffer::Failed(reason(OLD, &error));
        let mut session = Session::over(socket).map_err(failed)?;
        session.set_version(version);
        let mut buffer = Buffer::default();
        let hello = FromNew::Takeover(version);
        let deadline = Some(Instant::now() + PATIENCE);
        match session.send_to_old(&hello, deadline) {
            // A master that has closed its end already may have said before why it refuses.
            Err(error) if !is_gone(&error) => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let mut listeners = Vec::new();
        loop {
            let said = session.recv_from_old(&mut buffer, deadline);
            match said.map_err(failed)? {
                (FromOld::Listener { address, has_file }, (Some(socket), None)) => {
                    let unusable = |error: String| NoOffer::Failed(error);
                    let asked = address.parse().map_err(|e| unusable(format!("{e}")))?;
                    let listener = Listener::adopt(socket, asked, has_file);
                    listeners.push(listener.map_err(|error| unusable(error.to_string()))?);
                }
                (FromOld::Offer, (None, _)) => break,
                (FromOld::Refused(why), (None, _)) => return Err(refusal(&why)),
                _ => return Err(NoOffer::Failed(format!("{OLD} sent an unexpected message"))),
            }
        }
        let client = Self {
            session,
            buffer,
            since: None,
            active: false,
            awaited_until: None,
        };
        Ok((client, listeners))
    }

    /// The process of the old master.
    #[must_use]
    pub fn old(&self) -> Pid {
        self.session.peer()
    }

    /// Whether this master is in charge.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// When it is given up that the workers become ready.
    #[must_use]
    pub fn due(&self, pools: &Pools<'_>) -> Option<Time> {
        if self.awaited_until.is_some() {
            return self.awaited_until;
        }
        // It waits for one pool after the other. When all are ready it waits for nothing.
        let since = self.since.filter(|_| !self.active)?;
        let slow = pools.iter().find(|pool| !pool.workers().is_whole())?;
        Some(since.after(slow.plan().settings.start_timeout))
    }

    /// Takes over from the old master as soon as all workers are ready.
    ///
    /// # Errors
    /// When they never are, or the old master is gone or refuses.
    pub fn advance(&mut self, pools: &mut Pools<'_>, office: &mut Office, now: Time) -> Result<()> {
        if self.active {
            return Ok(());
        }
        let since = *self.since.get_or_insert(now);
        if let Some(slow) = pools.iter().find(|pool| !pool.workers().is_whole()) {
            let limit = slow.plan().settings.start_timeout;
            if since.after(limit) > now {
                return Ok(());
            }
            let (name, limit) = (&slow.plan().name, limit.as_secs_f64());
            let cause = format!("the workers of pool {name} are not ready within {limit} s");
            return Err(Error::because("take over", cause));
        }
        let arrivals = self
            .take_over(pools)
            .map_err(|error| Error::because("take over", reason(OLD, &error)))?;
        let watched = pools
            .epoll()
            .add(&self.session, MasterEvent::OldMaster, EventFlags::IN);
        if let Err(error) = watched {
            log::error!("cannot watch {OLD}: {}", Plain(&error));
        }
        let mut adopted = 0;
        for (name, snapshot, socket, luggage) in arrivals {
            let descriptors = (socket, luggage);
            adopted += usize::from(adopt(pools, &name, &snapshot, descriptors, now));
        }
        log::info!("took over with {adopted} connections");
        for pool in pools.iter_mut() {
            pool.listeners_mut().set_unlink_on_drop(true, |_| true);
            pool.begin_accepting();
        }
        office.take_charge(pools.epoll());
        // It is no loss that it can't be sent: the old master waits for it for a while only.
        let _ = self.session.send_to_old(&FromNew::Settled, None);
        Ok(())
    }

    /// Takes everything over that is not lent.
    fn take_over(&mut self, pools: &Pools<'_>) -> io::Result<Vec<Arrival>> {
        let begin = Instant::now();
        let deadline = |arrivals: usize| Some(begin + PATIENCE + longer_for(arrivals));
        for listener in pools.listeners() {
            let keep = FromNew::Keep(listener.asked().to_string());
            self.session.send_to_old(&keep, deadline(0))?;
        }
        let names = pools.iter().map(|pool| pool.plan().name.to_string());
        let ready = FromNew::Ready(names.collect());
        self.session.send_to_old(&ready, deadline(0))?;
        let mut arrivals = Vec::new();
        loop {
            let until = deadline(arrivals.len());
            match self.session.recv_from_old(&mut self.buffer, until)? {
                (FromOld::Connection(name, snapshot), (Some(socket), luggage)) => {
                    arrivals.push((name, snapshot, socket, luggage));
                }
                (FromOld::All(count), (None, _)) if count == arrivals.len() as u64 => break,
                _ => return Err(unexpected()),
            }
        }
        let until = deadline(arrivals.len());
        let confirm = FromNew::Confirm(arrivals.len() as u64);
        self.session.send_to_old(&confirm, until)?;
        match self.session.recv_from_old(&mut self.buffer, until)? {
            (FromOld::Go, (None, _)) => {}
            _ => return Err(unexpected()),
        }
        // Sent is said: the old master looks for it even after it has waited in vain. And when it
        // can't be sent any more (EPIPE), the old one has decided to go on.
        self.session.send_to_old(&FromNew::Done, until)?;
        self.active = true;
        Ok(arrivals)
    }

    /// Goes on with what the old master still had lent. `Some` says why nothing more comes: because
    /// the old one has ended, and for no other reason. It takes this master for dead when the
    /// session is closed, so that nothing it says may close it.
    pub fn on_message(&mut self, pools: &mut Pools<'_>, now: Time) -> Option<String> {
        // What is left after these makes another event.
        for _ in 0..BATCH {
            match self.session.recv_from_old(&mut self.buffer, None) {
                Ok((FromOld::Connection(name, snapshot), (Some(socket), luggage))) => {
                    adopt(pools, &name, &snapshot, (socket, luggage), now);
                }
                Ok((FromOld::Store(instance), (None, _))) => {
                    if let Some(store) = pools.store() {
                        store.take_charge(Some(instance));
                    }
                }
                Ok((FromOld::End, (None, _))) => return Some(format!("{OLD} has ended")),
                Ok(_) => log::error!("ignoring what {OLD} says: unexpected message"),
                Err(error) if is_gone(&error) => return Some(reason(OLD, &error)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => {
                    log::error!("cannot go on with a connection of {OLD}: {}", Plain(&error));
                    if error.kind() != io::ErrorKind::InvalidData {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// This master is told to stop: the old one is not to take charge again, but to stop as well.
    /// It has time for its turns until `limit`.
    pub fn stop(&mut self, limit: Time) {
        if self.active {
            let _ = self.session.send_to_old(&FromNew::Stop, None);
            self.awaited_until = Some(limit);
        }
    }

    /// Whether a master that stops has to stay because the old one has not ended: a service manager
    /// kills what is left of a service whose main process has ended.
    #[must_use]
    pub fn awaits_old(&self, now: Time) -> bool {
        self.awaited_until.is_some_and(|until| now < until)
    }
}

impl AsFd for TakeoverClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.session.as_fd()
    }
}

/// Goes on with a connection of the old master. False when it is closed instead.
fn adopt(
    pools: &mut Pools<'_>,
    name: &str,
    snapshot: &Snapshot,
    descriptors: (OwnedFd, Option<OwnedFd>),
    now: Time,
) -> bool {
    let adopted = pools.adopt(snapshot, descriptors, now);
    if !adopted {
        let peer = snapshot.peer.map(|peer| peer.to_string());
        let peer = peer.unwrap_or_default();
        log::error!("cannot adopt {peer}: no pool {name} serves");
    }
    adopted
}

/// The old master has refused. One of version 1 does so if it is asked in another version.
fn refusal(why: &str) -> NoOffer {
    let version = why.strip_prefix("this master speaks version ");
    let version = version.and_then(|rest| rest.split(',').next()?.parse().ok());
    match version.filter(|version| (OLDEST_VERSION..=VERSION).contains(version)) {
        Some(version) => NoOffer::Version(version),
        None => NoOffer::Failed(format!("{OLD} refuses: {why}")),
    }
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected message")
}
