//! The old master's part.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::error::Plain;
use crate::master::Master;
use crate::master::events::token::{Subject, Token};
use crate::master::office::control_socket::Control;
use crate::master::pool::Pool;
use crate::master::succession::messages::{FromNew, FromOld, VERSION};
use crate::master::succession::session::{PATIENCE, Room, Session, is_gone, reason};
use crate::master::time::Time;

/// What the log calls it.
const NEW: &str = "the new master";

/// How much longer the old master waits than the new one may take: that gives up first, and says why.
const MARGIN: Duration = Duration::from_secs(5);

/// How long a child that has closed its end may take to end, so that the log can say how.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// A takeover that is under way.
pub struct Takeover {
    session: Session,
    room: Room,
    /// The new master, if this one started it.
    child: Option<Pid>,
    stage: Stage,
    /// Listeners with which the new one goes on.
    kept: Vec<String>,
    /// When it is given up; when the new one is in charge, when it is no longer waited for.
    until: Time,
    /// Whoever looks for the master finds the new one.
    settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The new one has not said its version.
    Hello,
    /// It starts its workers.
    Starting,
    /// It has closed its end, and is this one's child: how it ends will be known at once.
    Gone,
    /// It is in charge, and gets the rest as it comes.
    Reigning,
}

impl Takeover {
    /// When it is given up.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        (!self.settled).then_some(self.until)
    }

    /// Whether the new master is in charge.
    #[must_use]
    fn reigns(&self) -> bool {
        self.stage == Stage::Reigning
    }
}

/// A child that was to be the new master, and is to end.
#[derive(Debug)]
pub struct Condemned {
    pid: Pid,
    /// When it is killed.
    until: Time,
}

impl Condemned {
    /// Tells it to end at once: whoever is killed leaves workers behind.
    fn new(pid: Pid, now: Time) -> Self {
        // ESRCH: it has ended by itself, and is reaped soon.
        let _ = kill(pid, Signal::SIGQUIT);
        let until = now.after(LAST_BREATH);
        Self { pid, until }
    }

    /// When it is killed.
    #[must_use]
    pub fn due(&self) -> Time {
        self.until
    }
}

impl Master<'_> {
    /// Somebody asks on the control socket.
    pub(in crate::master) fn on_control(&mut self, now: Time) {
        let asked = self.control.as_ref().map_or(Ok(None), Control::accept);
        let session = match asked.and_then(|socket| socket.map(Session::over).transpose()) {
            Ok(Some(session)) => session,
            Ok(None) => return,
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
        let limits = self.pools.iter().flatten();
        let limit = limits.map(|pool| pool.plan.settings.start_timeout).max();
        let limit = limit.unwrap_or_default() + MARGIN;
        // A program has to start first. Whoever is there already has something to say, or blocks the way for others.
        let hello = if child.is_some() { limit } else { PATIENCE };
        let takeover = Takeover {
            session,
            room: Room::default(),
            child,
            stage: Stage::Hello,
            kept: Vec::new(),
            until: now.after(hello),
            settled: false,
        };
        let data = EventData::new_u64(Token::own(Subject::Takeover).encode());
        match epoll::add(&*self.own.epoll, &takeover.session, data, EventFlags::IN) {
            Ok(()) => self.takeover = Some(takeover),
            Err(error) => {
                log::error!("cannot watch {NEW}: {error}");
                self.condemn(takeover.child, now);
            }
        }
    }

    fn condemn(&mut self, child: Option<Pid>, now: Time) {
        self.condemned
            .extend(child.map(|pid| Condemned::new(pid, now)));
    }

    /// Kills what was to end and has not.
    fn kill_condemned(&mut self, is_due: impl Fn(&Condemned) -> bool) {
        for condemned in self.condemned.extract_if(.., |one| is_due(one)) {
            let _ = kill(condemned.pid, Signal::SIGKILL);
        }
    }

    /// The new master has said something.
    pub(in crate::master) fn on_takeover(&mut self, now: Time) {
        while let Some(takeover) = &mut self.takeover {
            let said = takeover.session.poll_new(&mut takeover.room);
            let result = match (takeover.stage, said) {
                (_, Ok(None)) | (Stage::Gone, _) => return,
                (Stage::Hello, Ok(Some(FromNew::Takeover(VERSION)))) => self.offer(now),
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
                (Stage::Reigning, Ok(Some(FromNew::Settled))) => {
                    takeover.settled = true;
                    Ok(())
                }
                (Stage::Reigning, Ok(Some(FromNew::Stop))) => return self.stop_too(now),
                (_, Ok(Some(_))) => Err(format!("{NEW} says something unexpected")),
                (Stage::Hello | Stage::Starting, Err(error))
                    if is_gone(&error) && takeover.child.is_some() =>
                {
                    return self.await_child(now);
                }
                (_, Err(error)) => Err(reason(NEW, &error)),
            };
            if let Err(why) = result {
                self.take_charge_again(&why, now);
            }
        }
    }

    fn offer(&mut self, now: Time) -> Result<(), String> {
        let Some(takeover) = &mut self.takeover else {
            return Ok(());
        };
        let listeners = self.pools.iter().flatten().flat_map(|pool| &pool.listeners);
        let limits = self.pools.iter().flatten();
        let limit = limits.map(|pool| pool.plan.settings.start_timeout).max();
        takeover.until = now.after(limit.unwrap_or_default() + MARGIN);
        for listener in listeners {
            let message = FromOld::Listener {
                address: listener.asked().to_string(),
                has_file: listener.has_file(),
            };
            let sent = takeover.session.tell(&message, Some(listener.as_fd()));
            sent.map_err(|error| reason(NEW, &error))?;
        }
        takeover.stage = Stage::Starting;
        takeover
            .session
            .tell(&FromOld::Offer, None)
            .map_err(|error| reason(NEW, &error))
    }

    /// The child has closed its end: its exit status says more than that.
    fn await_child(&mut self, now: Time) {
        if let Some(takeover) = &mut self.takeover {
            let _ = epoll::delete(&*self.own.epoll, &takeover.session);
            takeover.stage = Stage::Gone;
            takeover.until = now.after(LAST_BREATH);
        }
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
            let ids = pool.pass_all(&takeover.session, now);
            passed.push(ids.map_err(|error| reason(NEW, &error))?);
        }
        let count = passed.iter().map(Vec::len).sum::<usize>();
        takeover.conclude(count as u64)?;
        // From here on the new master is in charge.
        takeover.stage = Stage::Reigning;
        takeover.until = now.after(PATIENCE);
        let mut passed = passed.into_iter();
        for pool in pools {
            pool.disown_listeners(&takeover.kept);
            if has(pool) {
                for id in passed.next().unwrap_or_default() {
                    pool.forget(id);
                }
                pool.leave(&takeover.kept, now);
            } else {
                pool.thaw(now);
                pool.stop(now);
            }
        }
        let successor = takeover.child.or_else(|| takeover.session.peer());
        self.manager
            .hand_over_to(successor.map(|pid| pid.as_raw().cast_unsigned()));
        if let Some(store) = &self.store {
            // The manager listens to the new one from here on. If that is gone already, it needs to know nothing.
            let _ = takeover.session.tell(&FromOld::Store(store.mark()), None);
            store.relieve();
        }
        log::info!("handed over {count} connections to {NEW}; finishing what is lent");
        Ok(())
    }

    /// The new master has failed: this one is in charge, as it was.
    fn take_charge_again(&mut self, why: &str, now: Time) {
        let Some(takeover) = self.takeover.take() else {
            return;
        };
        self.condemn(takeover.child, now);
        let reigned = takeover.reigns();
        let mut serving = false;
        for pool in self.pools.iter_mut().flatten().filter(|p| !p.is_ending()) {
            serving = true;
            pool.thaw(now);
            if self.stopping.is_some() {
                pool.stop(now);
            }
        }
        match (reigned, serving) {
            (false, _) => log::error!("takeover failed: {why}; this master serves on"),
            (true, false) => log::error!("{why}, and this one has nothing left to serve with"),
            (true, true) => {
                log::error!("{why}; this one takes charge again");
                if self.stopping.is_none() {
                    self.return_to_office();
                }
            }
        }
    }

    fn return_to_office(&mut self) {
        // What was there is the other one's, which was to be found at the same places.
        (self.control, self.pid_file) = (None, None);
        if let Err(error) = self.prepare_office(true) {
            log::error!("{error}");
        }
        self.take_office();
        if let Some(store) = &self.store {
            store.resume();
        }
    }

    /// The new master was told to stop: so is this one.
    fn stop_too(&mut self, now: Time) {
        if let Some(takeover) = self.takeover.take() {
            let _ = takeover.session.tell(&FromOld::End, None);
        }
        log::info!("{NEW} stops");
        for pool in self.pools.iter_mut().flatten() {
            pool.return_from_leave(now);
        }
        self.stopping = None;
        self.stop(false, now);
    }

    /// Ends a takeover before the new master is in charge, for this one has other things to do.
    pub(in crate::master) fn give_up_takeover(&mut self, why: &str, now: Time) {
        if let Some(takeover) = self.takeover.take_if(|takeover| !takeover.reigns()) {
            log::warn!("takeover given up: {why}");
            self.condemn(takeover.child, now);
        }
    }

    /// What is due in a takeover: the rest of the connections, or its end.
    pub(in crate::master) fn advance_takeover(&mut self, now: Time) {
        self.kill_condemned(|one| one.until <= now);
        let Some(takeover) = &mut self.takeover else {
            return;
        };
        if !takeover.reigns() {
            if takeover.until <= now {
                let why = match takeover.stage {
                    Stage::Gone => "is gone",
                    _ => "is not ready in time",
                };
                self.take_charge_again(&format!("{NEW} {why}"), now);
            }
            return;
        }
        takeover.settled |= takeover.until <= now;
        let settled = takeover.settled;
        let pools = self.pools.iter_mut().flatten();
        let mut leaving: Vec<_> = pools.filter(|pool| pool.is_leaving()).collect();
        let passed = leaving
            .iter_mut()
            .try_for_each(|pool| pool.pass_on(&takeover.session, now));
        if let Err(error) = passed {
            self.take_charge_again(&reason(NEW, &error), now);
        } else if settled && leaving.iter().all(|pool| pool.dispatcher.is_empty()) {
            // All at the same time: as long as one of them is needed, this master may have to take charge again.
            leaving.iter_mut().for_each(|pool| pool.let_workers_go(now));
        }
    }

    /// A child that is no worker has ended: the new master, if it was started by this one.
    pub(in crate::master) fn on_stranger(&mut self, pid: Pid, how: &str, now: Time) {
        self.condemned.retain(|one| one.pid != pid);
        let Some(takeover) = &self.takeover else {
            return;
        };
        // It may have said that it stops.
        if takeover.child == Some(pid) && takeover.reigns() {
            self.on_takeover(now);
        }
        if let Some(takeover) = self.takeover.as_mut().filter(|t| t.child == Some(pid)) {
            // It is reaped: the number may come to mean another process.
            takeover.child = None;
            self.take_charge_again(&format!("{NEW} (pid {pid}) {how}"), now);
        }
    }

    /// Nothing is left here: the new master need not wait for more.
    pub(in crate::master) fn end_takeover(&mut self) {
        if let Some(takeover) = self.takeover.take_if(|takeover| takeover.reigns()) {
            let _ = takeover.session.tell(&FromOld::End, None);
        }
    }
}

impl Takeover {
    /// The last words on either side. When the new master has said that it serves, it does.
    fn conclude(&mut self, count: u64) -> Result<(), String> {
        let run = |takeover: &mut Self| -> io::Result<bool> {
            takeover.session.tell(&FromOld::All(count), None)?;
            if takeover.session.hear_new(&mut takeover.room)? != FromNew::Confirm(count) {
                return Ok(false);
            }
            takeover.session.tell(&FromOld::Go, None)?;
            Ok(takeover.session.hear_new(&mut takeover.room)? == FromNew::Done)
        };
        match run(self) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{NEW} says something unexpected")),
            Err(error) => {
                // It may say so this very moment: after this, it can't.
                let _ = rustix::net::shutdown(&self.session, rustix::net::Shutdown::Both);
                match self.session.poll_new(&mut self.room) {
                    Ok(Some(FromNew::Done)) => Ok(()),
                    _ => Err(reason(NEW, &error)),
                }
            }
        }
    }
}
