//! The old master's part.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Pid, geteuid};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use super::messages::{FromNew, FromOld, Passed, VERSION, Waiting};
use super::session::{Room, Session, reason};
use crate::error::{Error, Plain, Result};
use crate::master::Master;
use crate::master::connections::ConnectionId;
use crate::master::dispatch::{Interest, Lending};
use crate::master::listener::SocketFile;
use crate::master::pool::{Phase, Pool};
use crate::master::store::Kept;
use crate::master::time::Time;
use crate::master::token::{Subject, Token};

/// The socket where a new master asks.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    file: SocketFile,
}

/// A takeover that is under way.
pub struct Takeover {
    session: Session,
    room: Room,
    /// The new master, if this one started it.
    child: Option<Pid>,
    stage: Stage,
    /// Listeners with which the new one goes on.
    kept: Vec<String>,
    /// When it is given up.
    until: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The new one has not said its version.
    Hello,
    /// It starts its workers.
    Starting,
    /// It is in charge, and gets the rest as it comes.
    Reigning,
}

impl Control {
    /// Listens at a path, where only this user may ask. A socket that is there already is replaced: it belongs to the
    /// master that this one has taken over from, or to nobody.
    ///
    /// # Errors
    /// What bind(2) and rename(2) fail with, and when another program listens there.
    pub fn listen(path: &Path, replace: bool) -> Result<Self> {
        let attempt = || format!("listen on control socket {}", path.display());
        let failed = |error: io::Error| Error::new(attempt(), error);
        if !replace && is_in_use(path) {
            return Err(Error::because(
                attempt(),
                "another master listens there; take over from it with --takeover",
            ));
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => {
                return Err(Error::because(
                    attempt(),
                    "the path exists and is not a socket",
                ));
            }
            _ => {}
        }
        // Bound beside it and moved there, so that there is no moment without a socket, nor one without its mode.
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let bound = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            let _ = fs::remove_file(&beside);
            bind(&socket, &SocketAddrUnix::new(&beside)?)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(&beside, mode)?;
            listen(&socket, 8)?;
            fs::rename(&beside, path)?;
            Ok(socket)
        };
        let socket = bound().map_err(|error| {
            let _ = fs::remove_file(&beside);
            failed(error)
        })?;
        let file = SocketFile::at(path).map_err(failed)?;
        Ok(Self { socket, file })
    }

    /// The next who asks, if he may.
    fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let socket = match accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let peer = getsockopt(&socket, PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
            log::warn!(
                "control socket: refused process {} of user {}",
                peer.pid(),
                peer.uid()
            );
            return Ok(None);
        }
        log::info!("control socket: process {} asks", peer.pid());
        Ok(Some(socket))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Display for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

fn is_in_use(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let attempt = || -> io::Result<()> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(())
    };
    attempt().is_ok()
}

impl Takeover {
    /// The first thing that the new master must say is its version, and until `until` it must serve.
    pub fn new(session: Session, child: Option<Pid>, until: Time) -> Self {
        Self {
            session,
            room: Room::default(),
            child,
            stage: Stage::Hello,
            kept: Vec::new(),
            until,
        }
    }

    /// When it is given up.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        (self.stage != Stage::Reigning).then_some(self.until)
    }
}

impl Master<'_> {
    /// Somebody asks on the control socket.
    pub(in crate::master) fn on_control(&mut self, now: Time) {
        let asked = self.control.as_ref().map_or(Ok(None), Control::accept);
        let socket = match asked {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(error) => return log::error!("control socket: {}", Plain(&error)),
        };
        let session = match Session::over(socket) {
            Ok(session) => session,
            Err(error) => return log::error!("control socket: {}", Plain(&error)),
        };
        match self.why_not() {
            None => self.begin_takeover(session, None, now),
            Some(why) => {
                log::warn!("takeover refused: {why}");
                let _ = session.tell(&FromOld::Refused(why.to_owned()), None);
            }
        }
    }

    /// Why nobody can take over now.
    pub(in crate::master) fn why_not(&self) -> Option<&'static str> {
        if self.stopping.is_some() {
            Some("the server stops")
        } else if self.reload.is_some() {
            Some("a reload is under way")
        } else if self.takeover.is_some() {
            Some("another one is under way")
        } else if self.successor.is_some() {
            Some("this master is still taking over itself")
        } else if self.orphans.is_some() {
            Some("this master waits for workers of one that was killed")
        } else {
            None
        }
    }

    /// Somebody is about to take over.
    pub(in crate::master) fn begin_takeover(
        &mut self,
        session: Session,
        child: Option<Pid>,
        now: Time,
    ) {
        let data = EventData::new_u64(Token::own(Subject::Takeover).encode());
        if let Err(error) = epoll::add(&*self.own.epoll, &session, data, EventFlags::IN) {
            return log::error!("cannot watch the new master: {error}");
        }
        let limits = self.pools.iter().flatten();
        let limit = limits.map(|pool| pool.plan.settings.start_timeout).max();
        // The new one gives up first, and says why.
        let until = now.after(limit.unwrap_or_default() + std::time::Duration::from_secs(10));
        self.takeover = Some(Takeover::new(session, child, until));
    }

    /// The new master has said something.
    pub(in crate::master) fn on_takeover(&mut self, now: Time) {
        while let Some(takeover) = &mut self.takeover {
            let said = takeover.session.poll_new(&mut takeover.room);
            let result = match (takeover.stage, said) {
                (_, Ok(None)) => return,
                (Stage::Hello, Ok(Some(FromNew::Takeover(VERSION)))) => self.offer(),
                (Stage::Hello, Ok(Some(FromNew::Takeover(version)))) => {
                    let why = format!("this master speaks version {VERSION}, not {version}");
                    let _ = takeover.session.tell(&FromOld::Refused(why.clone()), None);
                    Err(why)
                }
                (Stage::Starting, Ok(Some(FromNew::Keep(address)))) => {
                    takeover.kept.push(address);
                    Ok(())
                }
                (Stage::Starting, Ok(Some(FromNew::Ready(pools)))) => self.hand_over(&pools, now),
                (_, Ok(Some(_))) => Err("it says something unexpected".to_owned()),
                (_, Err(error)) => Err(reason(&error)),
            };
            if let Err(why) = result {
                self.take_charge_again(&why, now);
            }
        }
    }

    fn offer(&mut self) -> Result<(), String> {
        let Some(takeover) = &mut self.takeover else {
            return Ok(());
        };
        let listeners = self.pools.iter().flatten().flat_map(|pool| &pool.listeners);
        for listener in listeners {
            let message = FromOld::Listener(listener.asked().to_string());
            let sent = takeover.session.tell(&message, Some(listener.as_fd()));
            sent.map_err(|error| reason(&error))?;
        }
        takeover.stage = Stage::Starting;
        takeover
            .session
            .tell(&FromOld::Offer, None)
            .map_err(|error| reason(&error))
    }

    /// The new master is ready: it gets all that is not lent, and is in charge from then on.
    fn hand_over(&mut self, names: &[String], now: Time) -> Result<(), String> {
        let Some(takeover) = &mut self.takeover else {
            return Ok(());
        };
        let has = |pool: &Pool<'_>| names.iter().any(|name| **name == *pool.plan.name);
        let mut pools: Vec<_> = self
            .pools
            .iter_mut()
            .flatten()
            .filter(|p| p.is_serving())
            .collect();
        for pool in &mut pools {
            pool.freeze(now);
        }
        let mut passed = Vec::new();
        for pool in pools.iter_mut().filter(|pool| has(pool)) {
            passed.push(pool.pass_all(&takeover.session, now));
        }
        let count = passed.iter().flatten().map(Vec::len).sum::<usize>() as u64;
        let result = passed.iter().find_map(|passed| passed.as_ref().err());
        let result = match result {
            Some(error) => Err(reason(error)),
            None => takeover.conclude(count),
        };
        result?;
        for pool in &mut pools {
            for listener in &mut pool.listeners {
                if takeover.kept.contains(&listener.asked().to_string()) {
                    listener.disown();
                }
            }
        }
        let mut passed = passed.into_iter().flatten();
        for pool in pools {
            if has(pool) {
                for id in passed.next().unwrap_or_default() {
                    pool.forget(id);
                }
                pool.leave(now);
            } else {
                pool.thaw(now);
                pool.stop(now);
            }
        }
        takeover.stage = Stage::Reigning;
        let successor = takeover.child.or_else(|| takeover.session.peer());
        self.manager
            .hand_over_to(successor.map(|pid| pid.as_raw().cast_unsigned()));
        if let Some(store) = &self.store {
            // The manager listens to the new one from here on. If that is gone already, it needs to know nothing.
            let _ = takeover.session.tell(&FromOld::Store(store.mark()), None);
            store.relieve();
        }
        log::info!("handed over {count} connections to the new master; finishing what is lent");
        Ok(())
    }

    /// Gives a takeover up: this master is in charge, as it was.
    fn take_charge_again(&mut self, why: &str, now: Time) {
        let Some(takeover) = self.takeover.take() else {
            return;
        };
        log::error!("takeover failed: {why}; this master serves on");
        if let Some(child) = takeover.child {
            // ESRCH: it has ended by itself.
            let _ = kill(child, Signal::SIGKILL);
        }
        for pool in self.pools.iter_mut().flatten() {
            pool.thaw(now);
        }
    }

    /// What is due in a takeover: the rest of the connections, or its end.
    pub(in crate::master) fn advance_takeover(&mut self, now: Time) {
        let Some(takeover) = &mut self.takeover else {
            return;
        };
        if takeover.stage != Stage::Reigning {
            if takeover.until <= now {
                self.take_charge_again("the new master is not ready in time", now);
            }
            return;
        }
        let pools = self.pools.iter_mut().flatten();
        let mut result = Ok(());
        for pool in pools.filter(|pool| pool.is_leaving()) {
            result = result.and(pool.pass_on(&takeover.session, now));
        }
        if let Err(error) = result {
            self.take_charge_again(&reason(&error), now);
        }
    }

    /// A child that is no worker has ended: the new master, if it was started by this one.
    pub(in crate::master) fn on_stranger(&mut self, pid: Pid, how: &str, now: Time) {
        let ours = |takeover: &Takeover| takeover.child == Some(pid);
        if self.takeover.as_ref().is_some_and(ours) {
            self.take_charge_again(&format!("the new master (pid {pid}) {how}"), now);
        }
    }

    /// Nothing is left here: the new master need not wait for more.
    pub(in crate::master) fn end_takeover(&mut self) {
        if let Some(takeover) = self.takeover.take()
            && takeover.stage == Stage::Reigning
        {
            let _ = takeover.session.tell(&FromOld::End, None);
        }
    }
}

impl Takeover {
    /// The last words on either side. When the new master has said that it serves, it does.
    fn conclude(&mut self, count: u64) -> Result<(), String> {
        let tell = |session: &Session, message| session.tell(&message, None);
        let run = |takeover: &mut Self| -> io::Result<bool> {
            tell(&takeover.session, FromOld::All(count))?;
            if takeover.session.hear_new(&mut takeover.room)? != FromNew::Confirm(count) {
                return Ok(false);
            }
            tell(&takeover.session, FromOld::Go)?;
            Ok(takeover.session.hear_new(&mut takeover.room)? == FromNew::Done)
        };
        match run(self) {
            Ok(true) => Ok(()),
            Ok(false) => Err("it says something unexpected".to_owned()),
            Err(error) => {
                // It may say so this very moment: after this, it can't.
                let _ = rustix::net::shutdown(&self.session, rustix::net::Shutdown::Both);
                match self.session.poll_new(&mut self.room) {
                    Ok(Some(FromNew::Done)) => Ok(()),
                    _ => Err(reason(&error)),
                }
            }
        }
    }
}

impl Pool<'_> {
    /// Holds still, so that another master can be told how everything stands.
    fn freeze(&mut self, now: Time) {
        self.hold_accepting();
        self.dispatcher.set_lending(Lending::Frozen, now);
    }

    fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    /// Goes on as before.
    fn thaw(&mut self, now: Time) {
        if self.is_leaving() {
            self.phase = Phase::Serving;
            self.upkeep.soon();
        }
        self.dispatcher.set_lending(Lending::Yes, now);
        self.begin_accepting();
    }

    fn pass_all(&mut self, session: &Session, now: Time) -> io::Result<Vec<ConnectionId>> {
        let ids = self.dispatcher.passable();
        for id in &ids {
            self.pass(*id, session, now)?;
        }
        Ok(ids)
    }

    fn pass(&mut self, id: ConnectionId, session: &Session, now: Time) -> io::Result<()> {
        let standing = self.dispatcher.standing(id, now);
        let (Some(standing), Some(held)) = (standing, self.dispatcher.payload(id)) else {
            return Ok(());
        };
        let waiting = match held.interest() {
            _ if standing.ready => Waiting::Worker,
            Interest::Output => Waiting::Output,
            Interest::Input | Interest::NewInput => Waiting::Input,
        };
        let passed = Passed {
            pool: (&*self.plan.name).into(),
            peer: held.peer(),
            turns: standing.turns,
            waiting,
            left: standing.left,
            owing: standing.owing,
            total: held.total(),
            stored: held.kept().is_some_and(Kept::is_stored),
            carry: held.carry(),
        };
        session.tell(&FromOld::Connection(passed), Some(held.descriptor()))
    }

    /// A connection is the new master's.
    fn forget(&mut self, id: ConnectionId) {
        let epoll = self.epoll.as_fd();
        if let Some(mut held) = self.dispatcher.release(id) {
            held.unwatch(epoll);
            held.pass_on();
            self.clients.leave(held.peer());
        }
    }

    /// Serves no more, but for what is lent.
    fn leave(&mut self, now: Time) {
        let until = now.after(self.plan.settings.grace);
        self.phase = Phase::Leaving { until };
        self.dispatcher.set_lending(Lending::PassingOn, now);
    }

    /// Passes on what has become ready or parked since.
    fn pass_on(&mut self, session: &Session, now: Time) -> io::Result<()> {
        for id in self.dispatcher.passable() {
            self.pass(id, session, now)?;
            self.forget(id);
        }
        Ok(())
    }
}
