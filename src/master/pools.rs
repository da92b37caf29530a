//! All pools of the master: by their place, by their name; and the one way in for a connection of
//! another master.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;
use rustix::net::{AddressFamily, Shutdown, getpeername, shutdown, sockopt};

use super::child::{Child, ChildEvent};
use super::connection::descriptors::Closing;
use super::connection::held::Held;
use super::connection::luggage::Luggage;
use super::connection::visit::{PassFault, PoolId, Visit};
use super::dispatch::Departure;
use super::dispatch::table::ConnectionId;
use super::events::epoll::Epoll;
use super::listen::listener::Listener;
use super::listen::{bind, matching};
use super::master_only::MasterOnly;
use super::plan::{MAX_POOLS, Plan};
use super::pool::{Phase, Pool};
use super::snapshot::{Packing, Snapshot, unescape};
use super::store::Store;
use super::store::deposit::Stock;
use super::time::Time;
use super::workers::autoscale::Bounds;
use super::workers::spawn;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::fdpass::MAX_DESCRIPTORS;
use crate::service::Peer;
use crate::sys::process::open_descriptors;

/// Descriptors that are kept back for the master itself.
const SPARE_DESCRIPTORS: usize = 8;

/// Descriptors that are kept back for what workers send: a piece of luggage, and one more, which
/// shows that a worker sends too many. With so many that it does not matter, all that one message
/// can bring: what there is no room for the kernel closes here, and that may sleep.
fn kept_for_luggage(limit: usize) -> usize {
    const PLENTY: usize = 4096;
    if limit < PLENTY {
        2
    } else {
        MAX_DESCRIPTORS + 1
    }
}

/// See the module.
pub struct Pools<'a> {
    /// By their place, which is in the tokens of the epoll set.
    all: Vec<Option<Pool<'a>>>,
    /// How many pools there were.
    serial: u64,
    epoll: Epoll,
    store: Option<Store>,
    /// Workers and planners that were killed, and are to be reaped before the master exits.
    killed: Vec<Child>,
    closing: Closing,
}

impl<'a> Pools<'a> {
    /// No pools yet, in this epoll set; what they store goes to `store`.
    #[must_use]
    pub fn new(epoll: Epoll, store: Option<Store>) -> Self {
        Self {
            all: Vec::new(),
            serial: 0,
            epoll,
            store,
            killed: Vec::new(),
            closing: Closing::default(),
        }
    }

    /// The master's epoll set.
    #[must_use]
    pub fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Where connections are kept beside this process, if there is a manager for that.
    #[must_use]
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Adds a pool that wants `size` workers, with descriptors for so many connections.
    ///
    /// # Errors
    /// When there are too many pools.
    pub fn add(
        &mut self,
        plan: Plan<'a>,
        size: usize,
        room: usize,
        held_back: bool,
    ) -> Result<&mut Pool<'a>> {
        let free = self.all.iter().position(Option::is_none);
        let place = free.unwrap_or(self.all.len());
        if place >= MAX_POOLS {
            let cause = format!("there are {MAX_POOLS} already");
            return Err(Error::because(format!("add pool {}", plan.name), cause));
        }
        if place == self.all.len() {
            self.all.push(None);
        }
        self.serial += 1;
        let at = (place as u8, self.serial, &self.epoll);
        let pool = Pool::new(at, plan, size, room, self.store.clone(), held_back);
        Ok(self.all[place].insert(pool))
    }

    /// All pools.
    pub fn iter(&self) -> impl Iterator<Item = &Pool<'a>> {
        self.all.iter().flatten()
    }

    /// All pools.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pool<'a>> {
        self.all.iter_mut().flatten()
    }

    /// The pool at a place.
    pub fn get_mut(&mut self, place: u8) -> Option<&mut Pool<'a>> {
        self.all.get_mut(usize::from(place))?.as_mut()
    }

    /// The pool of this name that serves.
    pub fn serving(&mut self, name: &str) -> Option<&mut Pool<'a>> {
        let same = |pool: &&mut Pool<'_>| pool.is_serving() && *pool.plan().name == *name;
        self.iter_mut().find(same)
    }

    /// Whether there are none any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// All listeners.
    pub fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.iter().flat_map(|pool| pool.listeners().all())
    }

    /// The longest of one of the times in the settings of all pools.
    #[must_use]
    pub fn longest(&self, time: impl Fn(&Settings) -> Duration) -> Duration {
        let times = self.iter().map(|pool| time(&pool.plan().settings));
        times.max().unwrap_or_default()
    }

    /// How many connections, each piece of luggage counted as one, leave enough descriptors for the
    /// workers and their replacements, for a reload, and to receive luggage; so many descriptors
    /// are `open` already.
    ///
    /// # Errors
    /// When not even one connection does: such a server would listen and never serve.
    pub fn room(plans: &[Plan<'_>], open: usize) -> Result<usize> {
        let limit =
            getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| soft as usize);
        let most = |plan: &Plan<'_>| Bounds::most_of(&plan.settings);
        let workers: usize = plans.iter().map(most).sum();
        // Both ends of a socketpair, and a doorbell; while a worker is started, its own copy of its
        // end too. At a reload each worker has a successor beside it.
        let kept_back = (spawn::DESCRIPTORS + 3) * workers + spawn::DESCRIPTORS * 2;
        let listen = |plan: &Plan<'_>| plan.listen.len() + plan.keep.len();
        let own: usize = plans.iter().map(listen).sum();
        let needed = open + own + kept_back + kept_for_luggage(limit) + SPARE_DESCRIPTORS + 1;
        if limit < needed {
            let attempt = format!("serve with {workers} workers and {limit} open files");
            let reason = format!(
                "they need {needed} to serve a single client; raise RLIMIT_NOFILE (ulimit -n, \
                 LimitNOFILE=), or run fewer workers"
            );
            return Err(Error::because(attempt, reason));
        }
        Ok(limit - needed + 1)
    }

    /// Adds the pools with which a master begins, each with its listeners out of these.
    ///
    /// # Errors
    /// When there are too many pools, or a listener can't be set up.
    pub fn begin(
        &mut self,
        plans: Vec<Plan<'a>>,
        mut bound: Vec<Listener>,
        room: usize,
        held_back: bool,
    ) -> Result<()> {
        for plan in plans {
            let size = plan.settings.workers;
            let pool = self.add(plan, size, room, held_back)?;
            let mine = matching::take_wanted(&mut bound, pool.addresses(), &[]);
            pool.listen_on(mine)?;
        }
        Ok(())
    }

    /// Whether each pool that serves has a worker which can.
    #[must_use]
    pub fn are_ready(&self) -> bool {
        self.iter()
            .all(|pool| !pool.is_serving() || pool.workers().any_serving())
    }

    // ---- what the master's loop calls -----------------------------------------------------------

    /// Does whatever is due in all of them, and forgets those that are over.
    pub fn advance(&mut self, only: &mut MasterOnly, now: Time) {
        self.tell_who_may_be_needed();
        self.iter_mut().for_each(|pool| pool.advance(only, now));
        self.deliver(now);
        let is_over = |pool: &Pool<'_>| pool.phase() == Phase::Over;
        if self.iter().any(is_over) {
            let over = self.iter_mut().filter(|pool| is_over(pool));
            over.for_each(Pool::end_visits);
            self.deliver(now);
        }
        for place in &mut self.all {
            if let Some(mut pool) = place.take_if(|pool| is_over(pool)) {
                self.killed.append(&mut pool.quit());
            }
        }
    }

    /// Does what has been decided in all of them.
    pub fn carry_out(&mut self, now: Time) {
        self.iter_mut().for_each(|pool| pool.carry_out(now));
        self.deliver(now);
    }

    /// When something is to be done if nothing happens.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let pools = self.iter().filter_map(Pool::next_due);
        pools.chain(self.closing.due()).min()
    }

    /// Whether the master may sleep. Each pool asks its workers to wake it then.
    pub fn fall_asleep(&mut self) -> bool {
        // Each of them is asked: those that may sleep are woken later.
        let wanted = self.iter().any(Pool::wants_reports_of_others);
        self.iter_mut()
            .fold(true, |may_sleep, pool| may_sleep & pool.fall_asleep(wanted))
    }

    /// The master is awake.
    pub fn wake_up(&self) {
        self.iter().for_each(Pool::wake_up);
    }

    /// All events of a round were told, and time has passed.
    pub fn tick(&mut self, now: Time) {
        self.iter_mut().for_each(|pool| pool.tick(now));
        self.deliver(now);
        let laden = self.iter().any(Pool::is_laden);
        if laden {
            self.iter_mut().for_each(|pool| pool.free_descriptors(now));
            self.closing.advance(true, now);
            self.iter_mut().for_each(|pool| pool.force_descriptors(now));
        }
        self.closing.advance(laden, now);
    }

    /// Closes what connections have left that are over.
    pub fn close_all(&mut self, now: Time) {
        self.closing.close_all(now);
    }

    /// Something has happened to a child of the master; false when it is no worker.
    pub fn on_child(&mut self, pid: Pid, event: ChildEvent, now: Time) -> bool {
        if let ChildEvent::Ended(_) = event {
            self.killed.retain(|child| child.pid() != pid);
        }
        self.iter_mut().any(|pool| pool.on_child(pid, event, now))
    }

    /// Ends all of them at once.
    pub fn quit(&mut self) {
        for mut pool in self.all.drain(..).flatten() {
            self.killed.append(&mut pool.quit());
        }
    }

    /// A child that is no worker was killed too, if there was one.
    pub fn add_killed(&mut self, child: Option<Child>) {
        self.killed.extend(child);
    }

    /// The children that were killed and, as far as is known, not reaped.
    #[must_use]
    pub fn killed(&self) -> &[Child] {
        &self.killed
    }

    // ---- connections that go from one pool to another -------------------------------------------

    /// Takes connections from the pools that they leave to those where they go.
    fn deliver(&mut self, now: Time) {
        // What arrives may end there at once, and its own pool is to know.
        while let Some(from) = self.next_outgoing() {
            let Some(pool) = self.find(from) else { return };
            let (departures, ended) = (pool.take_departures(), pool.take_ended_visits());
            for departure in departures {
                match departure.homewards {
                    true => self.take_home(from, departure, now),
                    false => self.pass(from, departure, now),
                }
            }
            for (home, peer) in ended {
                if let Some(home) = self.find(home) {
                    home.on_ended_away(peer, now);
                }
            }
        }
    }

    fn next_outgoing(&self) -> Option<PoolId> {
        let outgoing = self.iter().find(|pool| pool.has_outgoing());
        outgoing.map(Pool::id)
    }

    /// A connection goes to the pool whose name the service has said. One that finishes what it has
    /// takes it if there is no other: the service may not know yet that it goes.
    fn pass(&mut self, from: PoolId, departure: Departure<Held>, now: Time) {
        let visit = departure.payload.visit();
        let name = visit.map(|visit| unescape(&visit.target));
        let name = name.and_then(Result::ok).unwrap_or_default();
        let is_target = |pool: &&mut Pool<'_>| *pool.plan().name == *name && pool.takes_visitors();
        let targets = self.iter_mut().filter(is_target);
        let target = targets.max_by_key(|pool| (pool.id() != from, pool.is_serving()));
        let fault = match target {
            Some(target) if target.id() != from => return target.on_arrival(departure, now),
            Some(_) => PassFault::Itself,
            None => PassFault::Unknown,
        };
        if let Some(pool) = self.find(from) {
            pool.on_turned_back(departure, Some(fault), now);
        }
    }

    fn take_home(&mut self, from: PoolId, departure: Departure<Held>, now: Time) {
        let home = departure.payload.visit().map(|visit| visit.home);
        let home = home.and_then(|id| self.find(id));
        match home.filter(|home| home.takes_visitors()) {
            Some(home) => home.on_return(departure, now),
            // As an idle connection of a pool that stops.
            None => {
                if let Some(pool) = self.find(from) {
                    pool.on_turned_back(departure, None, now);
                }
            }
        }
    }

    fn find(&mut self, id: PoolId) -> Option<&mut Pool<'a>> {
        self.iter_mut().find(|pool| pool.id() == id)
    }

    /// The clients of a pool whose connections are with others.
    #[must_use]
    pub fn away_from(&self, home: PoolId) -> Vec<Peer> {
        let guests = self.iter().flat_map(Pool::guests);
        guests
            .filter(|(id, _)| *id == home)
            .map(|(_, peer)| peer)
            .collect()
    }

    /// While one of those that stop has something in hand, it may pass that to any other.
    fn tell_who_may_be_needed(&mut self) {
        let needed = self.iter().any(Pool::finishes);
        self.iter_mut()
            .for_each(|pool| pool.set_may_be_needed(needed));
    }

    // ---- connections of another master ----------------------------------------------------------

    /// Goes on with a connection of another master: the one way in, whether that one is being
    /// replaced or was killed. False when it is closed instead, because no pool would serve it, or
    /// its client is gone.
    pub fn adopt(
        &mut self,
        snapshot: &Snapshot,
        (socket, luggage): (OwnedFd, Option<OwnedFd>),
        now: Time,
    ) -> bool {
        let luggage = luggage.map(Luggage::from);
        let peer = snapshot.peer.or_else(|| peer_of(&socket));
        let serves = |pool: &&Pool<'_>| pool.key() == snapshot.pool && pool.serves_adopted();
        let there = self.iter().find(serves).map(Pool::id);
        let (Some(there), Some(peer)) = (there, peer) else {
            if snapshot.stored {
                self.end_stored(snapshot, &socket);
            }
            return false;
        };
        let visit = self.adopt_home(snapshot, peer);
        if let Some(pool) = self.find(there) {
            pool.adopt((snapshot, visit), peer, (socket, luggage), now);
        }
        true
    }

    /// Ends a connection of another master of which a service manager has a copy, and what it has
    /// of its luggage.
    pub fn end_stored(&self, snapshot: &Snapshot, socket: &OwnedFd) {
        end_stored(socket);
        if let Packing::Stored(_) = snapshot.packed.luggage
            && let Some(store) = &self.store
            && let Ok(cookie) = sockopt::socket_cookie(socket)
        {
            store.forget_luggage(cookie);
        }
    }

    /// Counts a connection of another master at its home, if it is with another pool. Without such
    /// a home, it is closed when it would go there.
    fn adopt_home(&mut self, snapshot: &Snapshot, peer: Peer) -> Option<Visit> {
        let home = snapshot.home.as_ref()?;
        let same = |pool: &&mut Pool<'_>| pool.key() == home.pool && pool.serves_adopted();
        let nowhere = PoolId {
            serial: 0,
            key: home.pool,
        };
        let (id, name) = match self.iter_mut().find(same) {
            Some(pool) => {
                pool.adopt_away(peer);
                (pool.id(), Rc::clone(&pool.plan().name))
            }
            None => (nowhere, Rc::clone(&home.name)),
        };
        Some(Visit::adopted(home, id, name))
    }
}

impl Stock for Pools<'_> {
    fn listeners(&self) -> Option<Vec<&Listener>> {
        (!self.is_empty()).then(|| self.listeners().collect())
    }

    fn connection(&self, pool: u8, id: ConnectionId) -> Option<BorrowedFd<'_>> {
        let pool = self.all.get(usize::from(pool))?.as_ref()?;
        Some(pool.held(id)?.descriptor())
    }

    fn luggage(&self, pool: u8, id: ConnectionId) -> Option<(BorrowedFd<'_>, u64)> {
        let held = self.all.get(usize::from(pool))?.as_ref()?.held(id)?;
        Some((held.luggage()?, held.luggage_number()?))
    }
}

/// Looks for what would keep a master with these plans from serving, without binding their
/// addresses.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(plans: &[Plan<'_>]) -> Result<()> {
    bind::refuse_overlaps(plans.iter().flat_map(|plan| &plan.listen))?;
    for (_, address, _) in matching::wanted(plans) {
        bind::check(address)?;
    }
    Pools::room(plans, open_descriptors().len()).map(drop)
}

/// Ends a connection of which a service manager has a copy: for its client, and for the manager.
pub fn end_stored(socket: &OwnedFd) {
    // ENOTCONN: the client has ended it already.
    let _ = shutdown(socket, Shutdown::Both);
}

/// The client at the other end; nothing when it is gone.
fn peer_of(socket: &OwnedFd) -> Option<Peer> {
    match sockopt::socket_domain(socket).ok()? {
        AddressFamily::UNIX => Some(Peer::Unix),
        _ => {
            let address = getpeername(socket).ok()??;
            SocketAddr::try_from(address).ok().map(Peer::Inet)
        }
    }
}
