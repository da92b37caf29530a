//! What the master leaves with the service manager, so that no client notices when it is killed:
//! its listeners, the connections of those clients that stay for more than a turn, and the
//! [`ledger`] with what has to be known of each.
//!
//! A connection is stored when it is parked after a turn; from then on, the ledger is kept up to
//! date without a system call. A stored copy hides from the client that the master has closed its
//! own: whatever is stored is shut down before it is closed (`Held`), in both directions. That is
//! also how the manager knows that it is over: it drops what hangs up. So the end of a connection
//! takes no message, and a lost message could leave nothing behind.
//!
//! The *life line* is a pipe. The master and its workers have its writing end, and the manager
//! keeps the reading end: when that is at its end, none of them is left, and nobody will touch a
//! connection that was lent.
//!
//! Luggage hangs up never, so it has an entry of its own, which is removed by its name. It is given
//! to the manager when it has been there for a while ([`stowed`]), and the ledger says whether the
//! manager has it.
//!
//! Without a manager that stores descriptors there is none of this, and no connection costs more.

pub mod deposit;
pub mod ledger;
pub mod names;
mod stowed;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rustix::pipe::{PipeFlags, pipe_with};

use super::dispatch::table::ConnectionId;
use super::snapshot::{Packing, Place, PoolKey, Snapshot};
use super::time::Time;
use crate::sys::memfile::MemoryFile;
use ledger::Ledger;
use stowed::{Stowed, WHILE, Waiting};

/// How many listeners have each name: a host name with several addresses has a socket for each.
pub type Names = BTreeMap<String, usize>;

/// How many descriptors the state of a master takes: the ledger and the life line. There are two
/// states while another master takes over.
const STATE: usize = 2;

/// See the module. All clones are the same one.
#[derive(Debug, Clone)]
pub struct Store(Rc<RefCell<Inner>>);

#[derive(Debug)]
struct Inner {
    ledger: Ledger<MemoryFile>,
    life: LifeLine,
    /// The number in the names that this master gives.
    instance: u64,
    /// How far the system's clock is ahead of the master's.
    ahead: Duration,
    /// How many descriptors the manager keeps.
    limit: usize,
    /// By their place in the ledger: whether the manager has the connection.
    stored: Vec<bool>,
    vacant: Vec<u32>,
    /// Connections that the manager has yet to be given, and their pools, by their place in the
    /// ledger.
    fresh: BTreeMap<u32, (u8, ConnectionId)>,
    /// The places of connections that another master has; they are free again if that one fails.
    passed_on: Vec<u32>,
    stowed: Stowed,
    /// The names of what the manager is to drop.
    gone: VecDeque<String>,
    /// The listeners that the manager has.
    listeners: Names,
    /// The listeners that came from the master from which this one takes over.
    offered: Names,
    /// The instance of that master.
    predecessor: Option<u64>,
    role: Role,
    /// The listeners have changed.
    relisted: bool,
    /// The manager may have fewer listeners than this says.
    unlisted: bool,
    /// The manager has the ledger and the life line.
    stated: bool,
    /// When the manager is spoken to again, after it had no room for a message.
    blocked_until: Option<Time>,
    /// The log has said that the manager can't be given something, and that is still so.
    warned: bool,
}

/// Whether the manager listens to this master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Not yet: this master is to replace another one.
    Replacement,
    /// It does.
    Active,
    /// No longer: another master has what is stored.
    Replaced,
}

#[derive(Debug)]
struct LifeLine {
    read: OwnedFd,
    write: OwnedFd,
}

/// A connection's place in the ledger. What was stored must be shut down when it is dropped.
#[derive(Debug)]
pub struct Kept {
    store: Store,
    place: u32,
    pool: PoolKey,
    cookie: u64,
}

impl Store {
    /// A store of so many descriptors.
    ///
    /// # Errors
    /// What the calls fail with that make a memory file and a pipe.
    pub fn open(limit: usize, connections: usize, active: bool, now: Time) -> io::Result<Self> {
        let capacity = limit.min(connections).min(names::MOST);
        let instance = random()?;
        let clock = monotonic()?;
        let words = MemoryFile::create("baton-ledger", ledger::size(capacity))?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self(Rc::new(RefCell::new(Inner {
            ledger: Ledger::begin(words, capacity, clock),
            life: LifeLine { read, write },
            instance,
            ahead: clock.saturating_sub(Duration::from_nanos(now.0)),
            limit,
            stored: Vec::new(),
            vacant: Vec::new(),
            fresh: BTreeMap::new(),
            passed_on: Vec::new(),
            stowed: Stowed::default(),
            gone: VecDeque::new(),
            listeners: Names::new(),
            offered: Names::new(),
            predecessor: None,
            role: if active {
                Role::Active
            } else {
                Role::Replacement
            },
            relisted: true,
            unlisted: false,
            stated: false,
            blocked_until: None,
            warned: false,
        }))))
    }

    /// The descriptor that workers keep: as long as one of them has it, not all are gone.
    #[must_use]
    pub fn life_line(&self) -> RawFd {
        self.0.borrow().life.write.as_fd().as_raw_fd()
    }

    /// The number in the names that this master gives.
    #[must_use]
    pub fn instance(&self) -> u64 {
        self.0.borrow().instance
    }

    /// A place for a connection that the manager is to be [given](Kept::give), if there is room.
    #[must_use]
    pub fn keep(&self, cookie: u64, key: PoolKey) -> Option<Kept> {
        let place = self.0.borrow_mut().take_place(false)?;
        Some(self.kept(place, cookie, key))
    }

    /// A place for a connection that the manager has already, if there is room.
    #[must_use]
    pub fn keep_stored(&self, cookie: u64, key: PoolKey) -> Option<Kept> {
        let place = self.0.borrow_mut().take_place(true)?;
        Some(self.kept(place, cookie, key))
    }

    fn kept(&self, place: u32, cookie: u64, pool: PoolKey) -> Kept {
        Kept {
            store: self.clone(),
            place,
            pool,
            cookie,
        }
    }

    /// The manager is to drop what it has under a name.
    pub fn remove(&self, name: String) {
        let mut inner = self.0.borrow_mut();
        if inner.role != Role::Replaced {
            inner.gone.push_back(name);
        }
    }

    /// The manager is to drop the luggage that it has of the connection with this cookie.
    pub fn forget_luggage(&self, cookie: u64) {
        self.remove(names::of_luggage(cookie));
    }

    /// The listeners have changed, or may have.
    pub fn relist(&self) {
        self.0.borrow_mut().relisted = true;
    }

    /// From now on the manager listens to this master. With the instance of a master that has
    /// stored descriptors, what that one has stored is this one's.
    pub fn take_charge(&self, predecessor: Option<u64>) {
        let mut inner = self.0.borrow_mut();
        if inner.role == Role::Replacement {
            inner.role = Role::Active;
            inner.predecessor = predecessor;
            let offered = std::mem::take(&mut inner.offered);
            if predecessor.is_some() {
                inner.listeners.extend(offered);
            }
        }
    }

    /// The master from which this one has taken over has nothing left.
    pub fn predecessor_ended(&self) {
        self.take_charge(None);
        let predecessor = self.0.borrow_mut().predecessor.take();
        if let Some(instance) = predecessor {
            self.remove(names::of_state(instance));
        }
    }

    /// Former masters had these listeners. If one of them was killed, the manager has them; else it
    /// has them if that master has stored them.
    pub fn know_listeners(&self, names: Names) {
        let mut inner = self.0.borrow_mut();
        match inner.role {
            Role::Replacement => inner.offered = names,
            Role::Active | Role::Replaced => inner.listeners = names,
        }
    }

    /// What is stored is another master's from now on.
    pub fn give_up(&self) {
        self.0.borrow_mut().role = Role::Replaced;
    }

    /// The other master is gone without an end, and this one is in charge again. What that one had
    /// is ended: nobody knows how it stands. The copies of what is still lent go with it, until it
    /// is parked, and the manager gets all listeners: that one may have had it drop some.
    pub fn resume(&self) {
        let inner = &mut *self.0.borrow_mut();
        inner.role = Role::Active;
        inner.relisted = true;
        inner.unlisted = true;
        inner.gone.push_back(names::CONNECTION.to_owned());
        inner.stored.fill(false);
        for place in std::mem::take(&mut inner.passed_on) {
            inner.free(place);
        }
        let passed_on = inner.stowed.take_passed_on();
        inner.gone.extend(passed_on.map(names::of_luggage));
    }

    /// A time by the clock that all masters share.
    fn clock(&self, now: Time) -> Duration {
        self.0.borrow().ahead + Duration::from_nanos(now.0)
    }
}

impl Inner {
    /// How many further connections the manager has room for.
    fn room(&self) -> usize {
        let taken = self.stored.len() - self.vacant.len();
        let others = 2 * STATE + self.listeners.values().sum::<usize>();
        let luggage = self.stowed.given();
        let room = self.limit.saturating_sub(others + luggage);
        let names = names::MOST.saturating_sub(luggage * names::LUGGAGE_TAKES);
        room.min(names).saturating_sub(taken)
    }

    fn has_room_for_luggage(&self) -> bool {
        self.room() >= names::LUGGAGE_TAKES
    }

    fn take_place(&mut self, stored: bool) -> Option<u32> {
        if self.room() == 0 || self.role == Role::Replaced {
            return None;
        }
        if let Some(place) = self.vacant.pop() {
            self.stored[place as usize] = stored;
            return Some(place);
        }
        if self.stored.len() >= self.ledger.capacity() {
            return None;
        }
        self.stored.push(stored);
        u32::try_from(self.stored.len() - 1).ok()
    }
}

impl Kept {
    /// Whether the manager has the connection.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.store.0.borrow().stored[self.place as usize]
    }

    /// The manager gets the connection soon, unless it has it.
    pub fn give(&self, pool: u8, id: ConnectionId) {
        let mut inner = self.store.0.borrow_mut();
        if !inner.stored[self.place as usize] {
            inner.fresh.insert(self.place, (pool, id));
        }
    }

    /// The key of the connection's pool.
    #[must_use]
    pub fn pool(&self) -> PoolKey {
        self.pool
    }

    /// The connection has gone over to the pool of this key.
    pub fn move_to(&mut self, pool: PoolKey) {
        self.pool = pool;
    }

    /// Writes down how the connection stands.
    pub fn store(&self, snapshot: &Snapshot, now: Time) {
        let clock = self.store.clock(now);
        let inner = self.store.0.borrow();
        let carried = inner.ledger.carry_length(self.place) > 0;
        let noted = inner.ledger.note_length(self.place) > 0;
        inner.ledger.write(self.place, self.cookie, snapshot, clock);
        if carried && snapshot.carry.is_empty() {
            inner.forget_carry(self.place);
        }
        if noted && snapshot.packed.note.is_empty() {
            inner.forget_note(self.place);
        }
        if !inner.stowed.is_empty() {
            drop(inner);
            self.check_luggage(snapshot.packed.luggage);
        }
    }

    /// The connection, which is found there, has the luggage of this number: the manager gets it if
    /// it stays for a while.
    pub fn stow(&self, number: u64, (pool, id): (u8, ConnectionId), now: Time) {
        let waiting = Waiting {
            due: now.after(WHILE),
            place: self.place,
            number,
            pool,
            id,
        };
        let stowed = &mut self.store.0.borrow_mut().stowed;
        stowed.stow(waiting, self.cookie);
    }

    /// The connection has the luggage of this number, and so has the manager.
    pub fn luggage_came_stored(&self, number: u64) {
        let stowed = &mut self.store.0.borrow_mut().stowed;
        stowed.know(self.place, self.cookie, number);
    }

    /// Whether the manager has the luggage of this number.
    #[must_use]
    pub fn has_stowed(&self, number: u64) -> bool {
        self.store.0.borrow().stowed.at(self.place) == Some((number, true))
    }

    /// The connection has this luggage now: if the manager has another one, it is to drop that.
    fn check_luggage(&self, luggage: Packing) {
        let inner = &mut *self.store.0.borrow_mut();
        let now = match luggage {
            Packing::None => None,
            Packing::Held(number) | Packing::Stored(number) => Some(number),
        };
        if inner.stowed.at(self.place).map(|(number, _)| number) != now {
            let gone = inner.stowed.forget(self.place);
            inner.gone.extend(gone.map(names::of_luggage));
        }
    }

    /// Writes down where the connection is now.
    pub fn enter(&self, place: Place) {
        self.store.0.borrow().ledger.enter(self.place, place);
    }

    /// Another master has the connection from now on, and what is stored of it. If both are killed
    /// before that one has noted it, what stands in this ledger is old: so it is to be held against
    /// what the kernel says.
    pub fn pass_on(self) {
        self.enter(Place::Lent);
        let kept = ManuallyDrop::new(self);
        let mut inner = kept.store.0.borrow_mut();
        inner.fresh.remove(&kept.place);
        inner.passed_on.push(kept.place);
        inner.stowed.pass_on(kept.place);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.store.0.borrow_mut().free(self.place);
    }
}

impl Inner {
    /// Takes an entry out, and then its carry: SIGKILL in between must not leave an entry whose
    /// carry is not what the client has sent.
    fn free(&mut self, place: u32) {
        let carried = self.ledger.carry_length(place) > 0;
        let noted = self.ledger.note_length(place) > 0;
        self.ledger.clear(place);
        if carried {
            self.forget_carry(place);
        }
        if noted {
            self.forget_note(place);
        }
        let luggage = self.stowed.forget(place);
        self.gone.extend(luggage.map(names::of_luggage));
        self.fresh.remove(&place);
        self.vacant.push(place);
    }

    fn forget_carry(&self, place: u32) {
        self.ledger.words().forget(self.ledger.carry_of(place));
    }

    fn forget_note(&self, place: u32) {
        self.ledger.words().forget(self.ledger.note_of(place));
    }
}

/// The system's monotonic clock, which all masters share until the next boot.
///
/// # Errors
/// What clock_gettime(2) fails with.
pub fn monotonic() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests;
