//! The new master's part.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::{Error, Result};
use crate::master::Master;
use crate::master::connection::held::Held;
use crate::master::dispatch::{Interest, Standing};
use crate::master::events::token::{Subject, Token};
use crate::master::listen::listener::Listener;
use crate::master::pool::{Phase, Pool};
use crate::master::store::ledger::Stage;
use crate::master::succession::messages::{FromNew, FromOld, Passed, VERSION, Waiting};
use crate::master::succession::session::{Room, Session, reason};
use crate::master::time::Time;

/// What the log calls the other one.
const OLD: &str = "the old master";

/// A master to be: it has been offered the listeners of the old one.
#[derive(Debug)]
pub struct Successor {
    session: Session,
    room: Room,
    /// Since when it starts its workers.
    since: Option<Time>,
    /// It is in charge.
    reigns: bool,
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.session.as_fd()
    }
}

/// A connection that has come, and what was said of it.
struct Arrival {
    passed: Passed<'static>,
    carry: Vec<u8>,
    socket: OwnedFd,
}

impl Successor {
    /// Asks the master behind a control socket for its listeners.
    ///
    /// # Errors
    /// When nobody listens there, or it refuses.
    pub fn connect(path: &Path) -> Result<(Self, Vec<Listener>)> {
        let attempt = || format!("take over at {}", path.display());
        let connected = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let socket = connected().map_err(|error| Error::new(attempt(), error))?;
        Self::ask(socket, &attempt())
    }

    /// Asks the master at the other end of a socket for its listeners.
    ///
    /// # Errors
    /// When it is gone, or refuses.
    pub fn ask(socket: OwnedFd, attempt: &str) -> Result<(Self, Vec<Listener>)> {
        let failed = |error: io::Error| Error::because(attempt, reason(OLD, &error));
        let session = Session::over(socket).map_err(failed)?;
        let mut room = Room::default();
        session
            .answer(&FromNew::Takeover(VERSION))
            .map_err(failed)?;
        let mut listeners = Vec::new();
        loop {
            match session.hear_old(&mut room).map_err(failed)? {
                (FromOld::Listener { address, has_file }, Some(socket)) => {
                    let asked = address.parse();
                    let asked =
                        asked.map_err(|error| Error::because(attempt, format!("{error}")))?;
                    listeners.push(Listener::adopt(socket, asked, has_file)?);
                }
                (FromOld::Offer, None) => break,
                (FromOld::Refused(why), None) => {
                    return Err(Error::because(
                        attempt,
                        format!("the old master refuses: {why}"),
                    ));
                }
                _ => {
                    return Err(Error::because(
                        attempt,
                        "the old master says something else",
                    ));
                }
            }
        }
        let successor = Self {
            session,
            room,
            since: None,
            reigns: false,
        };
        Ok((successor, listeners))
    }

    /// Whether it is in charge.
    #[must_use]
    pub fn reigns(&self) -> bool {
        self.reigns
    }

    /// When it looks again whether the workers are ready, at the latest.
    #[must_use]
    pub fn due(&self, limit: Duration) -> Option<Time> {
        let since = self.since.filter(|_| !self.reigns)?;
        Some(since.after(limit))
    }

    /// Takes everything over that is not lent.
    fn take_over(&mut self, keep: &[String], pools: Vec<String>) -> io::Result<Vec<Arrival>> {
        for address in keep {
            self.session.answer(&FromNew::Keep(address.clone()))?;
        }
        self.session.answer(&FromNew::Ready(pools))?;
        let mut arrivals = Vec::new();
        loop {
            match self.session.hear_old(&mut self.room)? {
                (FromOld::Connection(passed), Some(socket)) => {
                    arrivals.push(Arrival::new(passed, socket));
                }
                (FromOld::All(count), None) if count == arrivals.len() as u64 => break,
                _ => return Err(unexpected()),
            }
        }
        let count = arrivals.len() as u64;
        self.session.answer(&FromNew::Confirm(count))?;
        match self.session.hear_old(&mut self.room)? {
            (FromOld::Go, None) => {}
            _ => return Err(unexpected()),
        }
        self.session.answer(&FromNew::Done)?;
        self.reigns = true;
        Ok(arrivals)
    }
}

impl Arrival {
    fn new(passed: Passed<'_>, socket: OwnedFd) -> Self {
        let carry = passed.carry.to_vec();
        let pool = passed.pool.into_owned().into();
        let passed = Passed {
            pool,
            carry: &[],
            ..passed
        };
        Self {
            passed,
            carry,
            socket,
        }
    }
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it says something unexpected")
}

impl Master<'_> {
    /// Takes over from the old master as soon as all workers are ready.
    ///
    /// # Errors
    /// When they never are, or the old master is gone or says no.
    pub(in crate::master) fn advance_succession(&mut self, now: Time) -> Result<()> {
        let Some(successor) = self.successor.as_mut().filter(|s| !s.reigns) else {
            return Ok(());
        };
        if self.stopping.is_some() {
            self.successor = None;
            return Ok(());
        }
        let since = *successor.since.get_or_insert(now);
        let pools = || self.pools.iter().flatten();
        if let Some(slow) = pools().find(|pool| !pool.processes.is_whole()) {
            let limit = slow.plan.settings.start_timeout;
            if since.after(limit) > now {
                return Ok(());
            }
            let (name, limit) = (&slow.plan.name, limit.as_secs_f64());
            let cause = format!("the workers of pool {name} are not ready within {limit} s");
            return Err(Error::because("take over", cause));
        }
        let keep: Vec<_> = pools()
            .flat_map(|pool| &pool.listeners)
            .map(|listener| listener.asked().to_string())
            .collect();
        let names = pools().map(|pool| pool.plan.name.to_string()).collect();
        let arrivals = successor
            .take_over(&keep, names)
            .map_err(|error| Error::because("take over", reason(OLD, &error)))?;
        let data = EventData::new_u64(Token::own(Subject::Succession).encode());
        let session = &successor.session;
        if let Err(error) = epoll::add(&*self.own.epoll, session, data, EventFlags::IN) {
            log::error!("cannot watch the old master: {error}");
        }
        log::info!("took over with {} connections", arrivals.len());
        for arrival in arrivals {
            self.adopt(arrival, now);
        }
        for pool in self.pools() {
            pool.listeners.iter_mut().for_each(Listener::own);
            pool.begin_accepting();
        }
        self.take_office();
        if let Some(successor) = &self.successor {
            let _ = successor.session.answer(&FromNew::Settled);
        }
        Ok(())
    }

    /// This master is told to stop: the old one is not to take charge again.
    pub(in crate::master) fn tell_of_stop(&mut self) {
        if let Some(successor) = self.successor.as_ref().filter(|s| s.reigns) {
            let _ = successor.session.answer(&FromNew::Stop);
        }
    }

    /// The old master passes on what it still had lent.
    pub(in crate::master) fn on_predecessor(&mut self, now: Time) {
        while let Some(successor) = &mut self.successor {
            let arrival = match successor.session.poll_old(&mut successor.room) {
                Ok(None) => return,
                Ok(Some((FromOld::Connection(passed), Some(socket)))) => {
                    Ok(Arrival::new(passed, socket))
                }
                Ok(Some((FromOld::Store(mark), None))) => {
                    if let Some(store) = &self.store {
                        store.take_charge(Some(mark));
                    }
                    continue;
                }
                Ok(Some((FromOld::End, None))) => Err(format!("{OLD} has ended")),
                Ok(Some(_)) => Err(reason(OLD, &unexpected())),
                Err(error) => Err(reason(OLD, &error)),
            };
            match arrival {
                Ok(arrival) => self.adopt(arrival, now),
                Err(why) => {
                    log::info!("the takeover is complete: {why}");
                    self.successor = None;
                    if let Some(store) = &self.store {
                        store.predecessor_ended();
                    }
                }
            }
        }
    }

    fn adopt(&mut self, arrival: Arrival, now: Time) {
        let name = arrival.passed.pool.clone();
        let pool = self.pools().find(|pool| *pool.plan.name == *name);
        match pool {
            Some(pool) => pool.adopt(arrival, now),
            None => log::error!(
                "cannot adopt {}: there is no pool {name}",
                arrival.passed.peer
            ),
        }
    }
}

impl Pool<'_> {
    fn adopt(&mut self, arrival: Arrival, now: Time) {
        if !matches!(self.phase, Phase::Serving | Phase::Stopping { .. }) {
            // There is nobody left to serve it.
            return;
        }
        let Arrival {
            passed,
            carry,
            socket,
        } = arrival;
        let mut held = Held::adopted(socket, passed.peer, &carry, passed.total);
        if passed.stored {
            let kept = self.store.as_ref().and_then(|store| {
                let cookie = held.cookie().ok()?;
                store.keep_stored(cookie, &self.plan.name)
            });
            held.copied(kept);
        }
        // It was counted by the old master, and is not refused now.
        let _ = self.clients.enter(passed.peer);
        let standing = Standing {
            ready: passed.waiting == Waiting::Worker,
            turns: passed.turns,
            left: passed.left,
            owing: passed.owing,
        };
        let interest = match passed.waiting {
            Waiting::Output => Interest::Output,
            Waiting::Worker | Waiting::Input => Interest::Input,
        };
        let stage = match standing.ready {
            true => Stage::Ready,
            false => Stage::Parked,
        };
        held.note_standing(stage, &standing, now);
        self.dispatcher.adopt(held, &standing, interest, now);
    }
}
