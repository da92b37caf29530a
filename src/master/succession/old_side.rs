//! The old master's side of a takeover: offer, hand over, and take charge again if that fails.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::unistd::Pid;

use super::launch::NewMaster;
use super::messages::{FromNew, FromOld, OLDEST_VERSION, VERSION};
use super::session::{Buffer, PATIENCE, Session, is_gone, reason};
use crate::master::child::LAST_CHANCE;
use crate::master::dispatch::table::ConnectionId;
use crate::master::events::epoll::{Epoll, EventFlags};
use crate::master::events::token::MasterEvent;
use crate::master::office::Office;
use crate::master::pool::Pool;
use crate::master::pools::Pools;
use crate::master::time::Time;

/// What the log calls the other master.
pub const NEW: &str = "the new master";

/// How much longer the old master waits than the new one may take: that gives up first, and says why.
const MARGIN: Duration = Duration::from_secs(5);

/// A takeover from this master that is under way.
#[derive(Debug)]
pub struct TakeoverServer {
    session: Session,
    buffer: Buffer,
    /// The new master, if this one has started it.
    child: Option<NewMaster>,
    stage: Stage,
    /// The addresses of the listeners with which the new one goes on.
    kept: Vec<String>,
    /// When the takeover is given up; once the new master is in charge, when it is no longer waited
    /// for.
    until: Time,
    /// A new master that asks finds the new one.
    settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The new master has not said its version.
    Hello,
    /// It starts its workers.
    Starting,
    /// It has closed its end, and is this one's child: how it ends will be known at once.
    Gone,
    /// It is in charge, and gets the rest as it comes.
    Replaced,
}

/// What is to become of a takeover.
#[derive(Debug)]
pub enum Step {
    /// It goes on.
    GoOn,
    /// The new master has failed, and this is why: this one is in charge, as it was.
    Fail(String),
    /// The new master was told to stop: so is this one.
    Stop,
}

impl TakeoverServer {
    /// A new master is about to take over, and speaks through this session. `child` is its process, if
    /// this one has started it.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn begin(
        session: Session,
        child: Option<NewMaster>,
        pools: &Pools<'_>,
        now: Time,
    ) -> Result<Self, (io::Error, Option<NewMaster>)> {
        // A program has to start first. One that is there already has something to say, or blocks the
        // way for others.
        let patience = match child {
            Some(_) => start_limit(pools),
            None => PATIENCE,
        };
        let watched = pools
            .epoll()
            .add(&session, MasterEvent::NewMaster, EventFlags::IN);
        if let Err(error) = watched {
            return Err((error, child));
        }
        Ok(Self {
            session,
            buffer: Buffer::default(),
            child,
            stage: Stage::Hello,
            kept: Vec::new(),
            until: now.after(patience),
            settled: false,
        })
    }

    /// When something is to be done if nothing happens.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        (!self.settled).then_some(self.until)
    }

    /// Whether the new master is in charge.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.stage == Stage::Replaced
    }

    /// The process of the new master, if this one has started it.
    #[must_use]
    pub fn into_child(self) -> Option<NewMaster> {
        self.child
    }

    /// Does what is due: passes the rest of the connections on, or gives up.
    pub fn advance(&mut self, pools: &mut Pools<'_>, now: Time) -> Step {
        if !self.is_replaced() {
            return match self.until <= now {
                true if self.stage == Stage::Gone => Step::Fail(format!("{NEW} is gone")),
                true => Step::Fail(format!("{NEW} is not ready in time")),
                false => Step::GoOn,
            };
        }
        self.settled |= self.until <= now;
        let mut leaving: Vec<_> = pools.iter_mut().filter(|pool| pool.is_leaving()).collect();
        let passed = leaving.iter_mut().try_for_each(|pool| {
            for id in pool.passable() {
                pass(pool, id, &self.session, now)?;
                pool.forget(id);
            }
            Ok(())
        });
        if let Err(error) = passed {
            return Step::Fail(reason(NEW, &error));
        }
        if self.settled && leaving.iter().all(|pool| pool.is_done()) {
            // All at the same time: as long as one of them is needed, this master may have to take
            // charge again.
            leaving.iter_mut().for_each(|pool| pool.let_workers_go(now));
        }
        Step::GoOn
    }

    /// The new master has said something.
    pub fn on_message(&mut self, pools: &mut Pools<'_>, office: &mut Office, now: Time) -> Step {
        loop {
            let said = self.session.poll_new(&mut self.buffer);
            let result = match (self.stage, said) {
                (_, Ok(None)) | (Stage::Gone, _) => return Step::GoOn,
                (Stage::Hello, Ok(Some(FromNew::Takeover(version)))) => {
                    self.offer(version, pools, now)
                }
                (Stage::Starting, Ok(Some(FromNew::Keep(address)))) => {
                    self.kept.push(address);
                    Ok(())
                }
                (Stage::Starting, Ok(Some(FromNew::Ready(names)))) => {
                    self.hand_over(&names, pools, office, now)
                }
                (Stage::Replaced, Ok(Some(FromNew::Settled))) => {
                    self.settled = true;
                    Ok(())
                }
                (Stage::Replaced, Ok(Some(FromNew::Stop))) => return Step::Stop,
                (_, Ok(Some(_))) => Err(format!("{NEW} sent an unexpected message")),
                (Stage::Hello | Stage::Starting, Err(error))
                    if is_gone(&error)
                        && self.child.as_ref().is_some_and(NewMaster::is_watched) =>
                {
                    // Its exit status says more than that it is gone.
                    pools.epoll().remove(&self.session);
                    self.stage = Stage::Gone;
                    self.until = now.after(LAST_CHANCE);
                    return Step::GoOn;
                }
                (_, Err(error)) => Err(reason(NEW, &error)),
            };
            if let Err(why) = result {
                return Step::Fail(why);
            }
        }
    }

    /// A child that is no worker has ended.
    pub fn on_exit(
        &mut self,
        pid: Pid,
        how: &str,
        pools: &mut Pools<'_>,
        office: &mut Office,
        now: Time,
    ) -> Step {
        let child = self.child.as_mut().filter(|new| new.is_launched_by(pid));
        let Some(new) = child else {
            return Step::GoOn;
        };
        let pid = new.pid();
        let how = match new.end_of_launcher() {
            Some(exit) => {
                self.child = None;
                exit.to_string()
            }
            None => format!("was left alone: its launcher {how}"),
        };
        if self.is_replaced() {
            // It may have said that it stops.
            match self.on_message(pools, office, now) {
                Step::GoOn => {}
                Step::Fail(_) => {}
                Step::Stop => return Step::Stop,
            }
        }
        Step::Fail(format!("{NEW} (pid {pid}) {how}"))
    }

    /// Offers the listeners.
    fn offer(&mut self, version: u32, pools: &Pools<'_>, now: Time) -> Result<(), String> {
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            let why = format!("this master speaks version {VERSION}, not {version}");
            let refusal = FromOld::Refused(why.clone());
            let _ = self.session.send_to_new(&refusal, None);
            return Err(why);
        }
        self.session.set_version(version);
        self.until = now.after(start_limit(pools));
        let failed = |error: io::Error| reason(NEW, &error);
        for listener in pools.listeners() {
            let message = FromOld::Listener {
                address: listener.asked().to_string(),
                has_file: listener.has_file(),
            };
            let sent = self.session.send_to_new(&message, Some(listener.as_fd()));
            sent.map_err(failed)?;
        }
        self.stage = Stage::Starting;
        self.session
            .send_to_new(&FromOld::Offer, None)
            .map_err(failed)
    }

    /// The new master is ready: it gets all that is not lent, and is in charge from then on.
    fn hand_over(
        &mut self,
        names: &[String],
        pools: &mut Pools<'_>,
        office: &mut Office,
        now: Time,
    ) -> Result<(), String> {
        let is_wanted = |pool: &Pool<'_>| names.iter().any(|name| **name == *pool.plan().name);
        let mut serving: Vec<_> = pools.iter_mut().filter(|p| p.is_serving()).collect();
        serving.iter_mut().for_each(|pool| pool.freeze(now));
        let mut passed = Vec::new();
        for pool in serving.iter().filter(|pool| is_wanted(pool)) {
            let ids = pool.passable();
            for id in &ids {
                let sent = pass(pool, *id, &self.session, now);
                sent.map_err(|error| reason(NEW, &error))?;
            }
            passed.push(ids);
        }
        let count = passed.iter().map(Vec::len).sum::<usize>();
        self.conclude(count as u64)?;
        // From here on the new master is in charge.
        self.stage = Stage::Replaced;
        self.until = now.after(PATIENCE);
        let is_kept = |address: &crate::config::Address| self.kept.contains(&address.to_string());
        let mut passed = passed.into_iter();
        for pool in serving {
            pool.listeners_mut().set_unlink_on_drop(false, is_kept);
            if is_wanted(pool) {
                for id in passed.next().unwrap_or_default() {
                    pool.forget(id);
                }
                pool.leave(is_kept, now);
            } else {
                pool.thaw(now);
                pool.stop(now);
            }
        }
        if let Some(child) = &mut self.child {
            child.set_free();
        }
        let new = self
            .child
            .as_ref()
            .map(NewMaster::pid)
            .or_else(|| self.session.peer());
        let new = new.map(|pid| pid.as_raw().cast_unsigned());
        office.manager().hand_over_to(new);
        if let Some(store) = pools.store() {
            // The manager listens to the new one from here on. If that is gone already, it needs to
            // know nothing.
            let stored = FromOld::Store(store.instance());
            let _ = self.session.send_to_new(&stored, None);
            store.give_up();
        }
        log::info!("handed over {count} connections to {NEW}; finishing what is lent");
        Ok(())
    }

    /// The last words on either side. When the new master has said that it serves, it does.
    fn conclude(&mut self, count: u64) -> Result<(), String> {
        let run = |server: &mut Self| -> io::Result<bool> {
            server.session.send_to_new(&FromOld::All(count), None)?;
            if server.session.recv_from_new(&mut server.buffer)? != FromNew::Confirm(count) {
                return Ok(false);
            }
            server.session.send_to_new(&FromOld::Go, None)?;
            Ok(server.session.recv_from_new(&mut server.buffer)? == FromNew::Done)
        };
        match run(self) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{NEW} sent an unexpected message")),
            Err(error) => {
                // It may say so this very moment: after this, it can't.
                let _ = rustix::net::shutdown(&self.session, rustix::net::Shutdown::Both);
                match self.session.poll_new(&mut self.buffer) {
                    Ok(Some(FromNew::Done)) => Ok(()),
                    _ => Err(reason(NEW, &error)),
                }
            }
        }
    }

    /// The new master has failed: this one is in charge, as it was, or stops if it is not `serving`.
    /// The process of the new one is returned, if this one has started it.
    pub fn fail(
        self,
        why: &str,
        serving: bool,
        pools: &mut Pools<'_>,
        office: &mut Office,
        now: Time,
    ) -> Option<NewMaster> {
        let mut left = false;
        for pool in pools.iter_mut().filter(|pool| !pool.is_ending()) {
            left = true;
            pool.thaw(now);
            if !serving {
                pool.stop(now);
            }
        }
        match (self.is_replaced(), left) {
            (false, _) => log::error!("takeover failed: {why}; this master serves on"),
            (true, false) => log::error!("{why}, and this one has nothing left to serve with"),
            (true, true) => {
                log::error!("{why}; this one takes charge again");
                if serving {
                    office.return_to(pools.epoll());
                    if let Some(store) = pools.store() {
                        store.resume();
                    }
                }
            }
        }
        self.child
    }

    /// Both masters stop. The new one waits until this one has closed the session, which is to be kept
    /// until this one ends.
    #[must_use]
    pub fn into_session(self, epoll: &Epoll) -> Session {
        epoll.remove(&self.session);
        self.session
    }

    /// Nothing is left here: the new master need not wait for more.
    pub fn end(&self) {
        let _ = self.session.send_to_new(&FromOld::End, None);
    }
}

/// Tells of a connection, and gives its descriptor along.
fn pass(pool: &Pool<'_>, id: ConnectionId, session: &Session, now: Time) -> io::Result<()> {
    match pool.snapshot(id, now) {
        Some((snapshot, held)) => {
            let name = pool.plan().name.to_string();
            let message = FromOld::Connection(name, snapshot);
            session.send_to_new(&message, Some(held.descriptor()))
        }
        None => Ok(()),
    }
}

/// How long a new master may take to start its workers.
fn start_limit(pools: &Pools<'_>) -> Duration {
    pools.longest(|settings| settings.start_timeout) + MARGIN
}
