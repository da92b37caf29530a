//! The old master's side of a takeover: offer, hand over, and take charge again if that fails.
//!
//! Nothing here waits for the new master but [`hand_over`](TakeoverServer), between READY and DONE,
//! for which there is one deadline. DONE is the moment at which the new one is in charge. Before
//! it, whatever goes wrong ends the takeover; after it, the new one is gone when its end of the
//! session is closed or its process has ended, and for no other reason: one that is late, or says
//! nonsense, may be serving.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::launch::NewMaster;
use super::messages::{FromNew, FromOld, OLDEST_VERSION, VERSION};
use super::session::{BATCH, Buffer, PATIENCE, Session, is_gone, longer_for, reason};
use crate::error::Plain;
use crate::master::child::LAST_CHANCE;
use crate::master::connection::held::Held;
use crate::master::dispatch::table::ConnectionId;
use crate::master::events::epoll::{Epoll, EventFlags};
use crate::master::events::token::MasterEvent;
use crate::master::listen::listener::Listener;
use crate::master::office::Office;
use crate::master::plan::MAX_POOLS;
use crate::master::pool::Pool;
use crate::master::pools::Pools;
use crate::master::snapshot::WITH_BAGGAGE;
use crate::master::time::Time;

/// What the log calls the other master.
pub const NEW: &str = "the new master";

/// How much longer the old master waits than the new one may take: that gives up first, and says
/// why.
const MARGIN: Duration = Duration::from_secs(5);

/// How long both masters hold still at the most, and [longer](longer_for) with many connections.
/// Clients wait with them.
const HOLD: Duration = Duration::from_secs(2);

/// How long a new master which is in charge and does not read is left alone.
const RETRY: Duration = Duration::from_millis(10);

/// A takeover from this master that is under way.
#[derive(Debug)]
pub struct TakeoverServer {
    session: Session,
    buffer: Buffer,
    /// The new master, if this one has started it.
    child: Option<NewMaster>,
    stage: Stage,
    /// How many listeners were offered.
    offered: usize,
    /// The addresses of this master's listeners with which the new one goes on.
    kept: BTreeSet<String>,
    /// When the takeover is given up; once the new master is in charge, when SETTLED is no longer
    /// waited for.
    until: Time,
    /// A master that asks at the control socket finds the new one.
    settled: bool,
    /// What the new master has yet to be told of the store.
    stored: Option<u64>,
    /// When the new master is sent something again, because it does not read at the moment.
    retry: Option<Time>,
    /// The log has said that the new master, which is in charge, says what it should not.
    warned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The new master has not said its version.
    Hello,
    /// It is being offered the listeners.
    Offering,
    /// It starts its workers.
    Starting,
    /// It has closed its end, and is a child of this master: its exit status will be there at once.
    Gone,
    /// It is in charge, and gets the other connections as their turns end.
    Replaced,
}

/// What is to become of a takeover.
#[derive(Debug)]
pub enum Step {
    /// The takeover goes on.
    GoOn,
    /// The new master has failed, and this is why: this one is in charge, as it was.
    Fail(String),
    /// The same, and clients have waited in vain for a new master that was silent.
    Silent(String),
    /// This master is told to stop: the takeover is to be given up.
    GiveUp,
    /// The new master was told to stop: so is this one.
    Stop,
}

impl TakeoverServer {
    /// A new master is about to take over, and speaks through this session. `child` is its process,
    /// if this one has started it. Else it has asked at the control socket, and [said
    /// so](Self::on_takeover).
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn begin(
        session: Session,
        child: Option<NewMaster>,
        pools: &Pools<'_>,
        now: Time,
    ) -> Result<Self, (io::Error, Option<NewMaster>)> {
        let patience = start_limit(pools);
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
            offered: 0,
            kept: BTreeSet::new(),
            until: now.after(patience),
            settled: false,
            stored: None,
            retry: None,
            warned: false,
        })
    }

    /// When something is to be done if nothing happens.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        let settled = (!self.settled).then_some(self.until);
        settled.into_iter().chain(self.retry).min()
    }

    /// Whether the new master is in charge.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.stage == Stage::Replaced
    }

    /// The process of the new master, which has not made the session if this one has started it.
    fn pid(&self) -> Pid {
        let child = self.child.as_ref().map(NewMaster::pid);
        child.unwrap_or_else(|| self.session.peer())
    }

    /// The process of the new master, if this one has started it.
    #[must_use]
    pub fn into_child(self) -> Option<NewMaster> {
        self.child
    }

    /// Does what is due: passes the rest of the connections on, or gives up.
    pub fn advance(&mut self, pools: &mut Pools<'_>, office: &mut Office, now: Time) -> Step {
        if !self.is_replaced() {
            return match self.until <= now {
                true if self.stage == Stage::Gone => Step::Fail(format!("{NEW} is gone")),
                true => Step::Fail(format!("{NEW} is not ready in time")),
                false if self.stage == Stage::Offering && self.is_to_retry(now) => {
                    let offered = self.go_on_offering(pools, now);
                    offered.map_or_else(Step::Fail, |()| Step::GoOn)
                }
                false => Step::GoOn,
            };
        }
        self.settled |= self.until <= now;
        // Until it knows the new master, the service manager ignores what that one says.
        let known = !office.manager().is_waiting();
        if self.retry.is_none() || self.is_to_retry(now) {
            match self.pass_rest(known, pools, now) {
                Ok(()) => {}
                Err(error) if is_gone(&error) => return Step::Fail(reason(NEW, &error)),
                // It may be serving, so this is no reason to take charge again.
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.warn(&Plain(&error));
                    }
                    self.retry = Some(now.after(RETRY));
                }
            }
        }
        let mut leaving: Vec<_> = pools.iter_mut().filter(|pool| pool.is_leaving()).collect();
        let told = known && self.stored.is_none() || self.until <= now;
        if self.settled && told && leaving.iter().all(|pool| pool.is_done()) {
            // All at the same time: as long as one of them is needed, this master may have to take
            // charge again.
            leaving.iter_mut().for_each(|pool| pool.let_workers_go(now));
        }
        Step::GoOn
    }

    /// Whether the new master, which did not read, is to be sent something again.
    fn is_to_retry(&mut self, now: Time) -> bool {
        self.retry.take_if(|retry| *retry <= now).is_some()
    }

    /// Passes on what was lent when the new master took charge, as far as that one reads it.
    fn pass_rest(&mut self, known: bool, pools: &mut Pools<'_>, now: Time) -> io::Result<()> {
        if known && let Some(instance) = self.stored {
            self.session
                .send_to_new(&FromOld::Store(instance), &[], None)?;
            self.stored = None;
        }
        for pool in pools.iter_mut().filter(|pool| pool.is_leaving()) {
            let (passed, left_over) = self.passable(pool);
            for id in passed {
                pass(pool, id, &self.session, now, None)?;
                pool.forget(id);
            }
            end_left_over(pool, &left_over, now);
        }
        Ok(())
    }

    /// The connections of a pool that the new master can go on with, and those with which it can't,
    /// because it does not know of what travels with them.
    fn passable(&self, pool: &Pool<'_>) -> (Vec<ConnectionId>, Vec<ConnectionId>) {
        let knows = self.session.version() >= WITH_BAGGAGE;
        let is_known = |id: &ConnectionId| knows || !pool.held(*id).is_some_and(Held::is_packed);
        pool.passable().into_iter().partition(is_known)
    }

    /// Says once that the new master, which is in charge, does what it should not.
    fn warn(&mut self, what: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.warned, true) {
            log::warn!("{NEW}: {what}; it is in charge nevertheless");
        }
    }

    /// The new master has said something.
    pub fn on_message(&mut self, pools: &mut Pools<'_>, office: &mut Office, now: Time) -> Step {
        // What is left after these makes another event.
        for _ in 0..BATCH {
            let said = match self.session.recv_from_new(&mut self.buffer, None) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::GoOn,
                said => said,
            };
            let step = match self.stage {
                Stage::Gone => return Step::GoOn,
                Stage::Replaced => self.on_rest(said),
                Stage::Hello | Stage::Offering | Stage::Starting => {
                    self.on_preparation(said, pools, office, now)
                }
            };
            match step {
                Step::GoOn => {}
                step => return step,
            }
        }
        Step::GoOn
    }

    /// What a new master says before it is in charge.
    fn on_preparation(
        &mut self,
        said: io::Result<FromNew>,
        pools: &mut Pools<'_>,
        office: &mut Office,
        now: Time,
    ) -> Step {
        let result = match (self.stage, said) {
            (Stage::Hello, Ok(FromNew::Takeover(version))) => {
                self.offer(version, pools, now).map_err(Step::Fail)
            }
            (Stage::Starting, Ok(FromNew::Keep(address))) => {
                // A new master names each listener that it has, those too that it has bound itself.
                // They are none of this master's business; what it keeps is bounded by its own.
                let is_ours = |own: &Listener| own.asked().to_string() == address;
                if pools.listeners().any(is_ours) {
                    self.kept.insert(address);
                }
                Ok(())
            }
            (Stage::Starting, Ok(FromNew::Ready(names))) if names.len() <= MAX_POOLS => {
                self.hand_over(&names, pools, office, now)
            }
            (_, Ok(_)) => Err(unexpected()),
            (_, Err(error))
                if is_gone(&error) && self.child.as_ref().is_some_and(NewMaster::is_watched) =>
            {
                // Its exit status says more than that it is gone.
                pools.epoll().remove(&self.session);
                self.stage = Stage::Gone;
                self.until = now.after(LAST_CHANCE);
                Ok(())
            }
            (_, Err(error)) => Err(Step::Fail(reason(NEW, &error))),
        };
        result.err().unwrap_or(Step::GoOn)
    }

    /// What the new master says when it is in charge.
    fn on_rest(&mut self, said: io::Result<FromNew>) -> Step {
        match said {
            Ok(FromNew::Settled) => self.settled = true,
            Ok(FromNew::Stop) => return Step::Stop,
            Err(error) if is_gone(&error) => return Step::Fail(reason(NEW, &error)),
            Ok(_) => self.warn(&"unexpected message"),
            Err(error) => self.warn(&Plain(&error)),
        }
        Step::GoOn
    }

    /// The new master, which has asked at the control socket, wants to take over in this version of
    /// the protocol.
    pub fn on_takeover(&mut self, version: u32, pools: &Pools<'_>, now: Time) -> Step {
        let offered = self.offer(version, pools, now);
        offered.map_or_else(Step::Fail, |()| Step::GoOn)
    }

    /// A child that is no worker has ended. Of a new master that is in charge, none is the launcher
    /// any more.
    pub fn on_exit(&mut self, pid: Pid, how: &str) -> Step {
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
        Step::Fail(format!("{NEW} (pid {pid}) {how}"))
    }

    /// Offers the listeners.
    fn offer(&mut self, version: u32, pools: &Pools<'_>, now: Time) -> Result<(), String> {
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            let why = format!("this master speaks version {VERSION}, not {version}");
            let refusal = FromOld::Refused(why.clone());
            let _ = self.session.send_to_new(&refusal, &[], None);
            return Err(why);
        }
        self.session.set_version(version);
        self.until = now.after(start_limit(pools));
        self.stage = Stage::Offering;
        self.go_on_offering(pools, now)
    }

    /// Offers the listeners, as far as the new master reads.
    fn go_on_offering(&mut self, pools: &Pools<'_>, now: Time) -> Result<(), String> {
        match self.send_offer(pools) {
            Ok(()) => self.stage = Stage::Starting,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.retry = Some(now.after(RETRY));
            }
            // Its end of the session is an event of its own.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(reason(NEW, &error)),
        }
        Ok(())
    }

    fn send_offer(&mut self, pools: &Pools<'_>) -> io::Result<()> {
        for listener in pools.listeners().skip(self.offered) {
            if listener.has_lost_file() {
                // Only this master knows that: somebody else may have a socket at the path. The new
                // one binds it, and the manager is to have that one.
                pools.store().iter().for_each(|store| store.relist());
            } else {
                let message = FromOld::Listener {
                    address: listener.asked().to_string(),
                    has_file: listener.has_file(),
                };
                self.session
                    .send_to_new(&message, &[listener.as_fd()], None)?;
            }
            self.offered += 1;
        }
        self.session.send_to_new(&FromOld::Offer, &[], None)
    }

    /// The new master is ready: it gets all that is not lent, and is in charge from then on.
    fn hand_over(
        &mut self,
        names: &[String],
        pools: &mut Pools<'_>,
        office: &mut Office,
        now: Time,
    ) -> Result<(), Step> {
        let is_wanted = |pool: &Pool<'_>| names.iter().any(|name| **name == *pool.plan().name);
        let mut serving: Vec<_> = pools.iter_mut().filter(|p| p.is_serving()).collect();
        serving.iter_mut().for_each(|pool| pool.freeze(now));
        let wanted = serving.iter().filter(|pool| is_wanted(pool));
        let passable = wanted.clone().map(|pool| self.passable(pool));
        let (passed, left_over): (Vec<_>, Vec<_>) = passable.unzip();
        let count = passed.iter().map(Vec::len).sum::<usize>();
        let limit = HOLD + longer_for(count);
        let deadline = Some(Instant::now() + limit);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::Interrupted => Step::GiveUp,
            io::ErrorKind::TimedOut => {
                Step::Silent(format!("{NEW} is silent for {} s", limit.as_secs()))
            }
            _ => Step::Fail(reason(NEW, &error)),
        };
        for (pool, ids) in wanted.zip(&passed) {
            for id in ids {
                pass(pool, *id, &self.session, now, deadline).map_err(failed)?;
            }
        }
        self.conclude(count as u64, deadline, failed)?;
        // From here on the new master is in charge.
        self.stage = Stage::Replaced;
        let is_kept = |address: &crate::config::Address| self.kept.contains(&address.to_string());
        let mut passed = passed.into_iter().zip(left_over);
        for pool in serving {
            pool.listeners_mut().set_unlink_on_drop(false, is_kept);
            if is_wanted(pool) {
                let (passed, left_over) = passed.next().unwrap_or_default();
                for id in passed {
                    pool.forget(id);
                }
                end_left_over(pool, &left_over, now);
                pool.leave(is_kept, now);
            } else {
                pool.thaw(now);
                pool.stop(now);
            }
        }
        if let Some(child) = &mut self.child {
            child.set_free();
        }
        let new = self.pid().as_raw().cast_unsigned();
        office.manager().hand_over_to((new > 0).then_some(new));
        if let Some(store) = pools.store() {
            // The manager listens to the new one from here on, or soon.
            self.stored = Some(store.instance());
            store.give_up();
        }
        self.until = now.after(pools.longest(|settings| settings.grace).max(PATIENCE));
        log::info!("handed over {count} connections to {NEW}; finishing what is lent");
        Ok(())
    }

    /// The last words on either side. When the new master has said that it serves, it does.
    fn conclude(
        &mut self,
        count: u64,
        deadline: Option<Instant>,
        failed: impl Fn(io::Error) -> Step,
    ) -> Result<(), Step> {
        let (session, buffer) = (&self.session, &mut self.buffer);
        let all = FromOld::All(count);
        session.send_to_new(&all, &[], deadline).map_err(&failed)?;
        match session.recv_from_new(buffer, deadline).map_err(&failed)? {
            FromNew::Confirm(confirmed) if confirmed == count => {}
            _ => return Err(unexpected()),
        }
        let go = session.send_to_new(&FromOld::Go, &[], deadline);
        go.map_err(&failed)?;
        let said = session.recv_from_new(buffer, deadline).or_else(|error| {
            // It may say so this very moment: after this, it can't.
            let _ = rustix::net::shutdown(session, rustix::net::Shutdown::Both);
            let said = session.recv_from_new(buffer, None);
            said.map_err(|_| failed(error))
        });
        match said? {
            FromNew::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// The new master has failed: this one is in charge, as it was, or stops if it is not
    /// `serving`. The process of the new one is returned, if this one has started it.
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
                    office.return_to(self.pid(), pools.epoll());
                    if let Some(store) = pools.store() {
                        store.resume();
                    }
                }
            }
        }
        self.child
    }

    /// Both masters stop. The new one waits until this one has closed the session, which is to be
    /// kept until this one ends.
    #[must_use]
    pub fn into_session(self, epoll: &Epoll) -> Session {
        epoll.remove(&self.session);
        self.session
    }

    /// Nothing is left here: the new master need not wait for more.
    pub fn end(&self) {
        // When there is no room for it, the new one sees the end of the session instead.
        let _ = self.session.send_to_new(&FromOld::End, &[], None);
    }
}

/// Tells of a connection, and gives its descriptor along.
fn pass(
    pool: &Pool<'_>,
    id: ConnectionId,
    session: &Session,
    now: Time,
    deadline: Option<Instant>,
) -> io::Result<()> {
    match pool.snapshot(id, now) {
        Some((snapshot, held)) => {
            let name = pool.plan().name.to_string();
            let message = FromOld::Connection(name, snapshot);
            let descriptors = [
                held.descriptor(),
                held.luggage().unwrap_or(held.descriptor()),
            ];
            let descriptors = &descriptors[..1 + usize::from(held.luggage().is_some())];
            session.send_to_new(&message, descriptors, deadline)
        }
        None => Ok(()),
    }
}

/// Ends what the new master can't go on with.
fn end_left_over(pool: &mut Pool<'_>, left_over: &[ConnectionId], now: Time) {
    if !left_over.is_empty() {
        let (name, count) = (&pool.plan().name, left_over.len());
        log::warn!(
            "{NEW} is of an older version, which knows neither notes nor luggage: closing {count} \
             connections of pool {name} that have some"
        );
        left_over
            .iter()
            .for_each(|id| pool.end_unpassable(*id, now));
    }
}

fn unexpected() -> Step {
    Step::Fail(format!("{NEW} sent an unexpected message"))
}

/// How long a new master may take to start its workers.
fn start_limit(pools: &Pools<'_>) -> Duration {
    pools.longest(|settings| settings.start_timeout) + MARGIN
}
