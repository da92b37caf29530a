//! What a master that was killed has left with the service manager, and what becomes of it.
//!
//! Its parked connections are adopted as they stood. What it had lent is looked at when the last of
//! its workers has ended (its life line is at its end), as after any other death of a worker: until
//! then one of them may be answering.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, fstat};
use rustix::net::sockopt;

use crate::config::Address;
use crate::error::{Error, Plain, Result};
use crate::master::events::epoll::EventFlags;
use crate::master::events::token::MasterEvent;
use crate::master::listen::listener::Listener;
use crate::master::pools::{Pools, end_stored};
use crate::master::snapshot::{Packing, Place, Snapshot};
use crate::master::store::deposit::name_of;
use crate::master::store::ledger::Ledger;
use crate::master::store::names::{self, Meaning};
use crate::master::store::{Names, Store, monotonic};
use crate::master::time::Time;
use crate::sys::memfile::MemoryFile;
use crate::systemd::Inherited;

/// What was stored with the service manager, as it was passed to this process; not looked into yet.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The ledgers and life lines, by the instances of their masters.
    states: BTreeMap<u64, Vec<OwnedFd>>,
    connections: Vec<OwnedFd>,
    /// By the cookies of their connections. What there is several of, nobody knows which is right.
    luggage: BTreeMap<u64, Vec<OwnedFd>>,
    listeners: Names,
    /// The names of those that are of no use.
    useless: BTreeSet<String>,
}

/// Connections that were lent when their master was killed, while some worker of it may still be
/// there.
#[derive(Debug)]
pub struct UnsettledTurns {
    /// The life lines of the masters, by their instances.
    life_lines: Vec<(u64, Option<OwnedFd>)>,
    connections: Vec<Recoverable>,
    /// When it is no longer waited for the workers.
    until: Time,
}

/// A connection, with the descriptor of its luggage if it has some.
type Recoverable = (Snapshot, (OwnedFd, Option<OwnedFd>));

/// Why it is no longer waited for the workers of a killed master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// None of them is left, or none of them had anything.
    Ended,
    /// They have had their time, and may still have it.
    Late,
}

impl Recovered {
    /// Takes what is a master's out of what was passed. Listeners are ready to be used.
    pub fn claim(passed: &mut Vec<Inherited>) -> (Self, Vec<Listener>) {
        let mut recovered = Self::default();
        let mut listeners = Vec::new();
        for one in std::mem::take(passed) {
            match Meaning::of(&one.name) {
                None => passed.push(one),
                Some(Meaning::State(instance)) => {
                    recovered.states.entry(instance).or_default().push(one.fd);
                }
                Some(Meaning::Connection) => recovered.connections.push(one.fd),
                Some(Meaning::Luggage(cookie)) => {
                    recovered.luggage.entry(cookie).or_default().push(one.fd);
                }
                Some(Meaning::Listener(asked, file)) => match adopted(one.fd, asked, file) {
                    Ok(listener) => {
                        *recovered.listeners.entry(one.name).or_default() += 1;
                        listeners.push(listener);
                    }
                    Err(error) => {
                        log::warn!("{error}; dropping the stored listener");
                        recovered.useless.insert(one.name);
                    }
                },
            }
        }
        (recovered, listeners)
    }

    /// Nothing but the listeners that a living master has offered.
    pub fn offered(listeners: &[Listener]) -> Self {
        let mut offered = Self::default();
        for name in listeners.iter().filter_map(name_of) {
            *offered.listeners.entry(name).or_default() += 1;
        }
        offered
    }

    /// The descriptors of the states, of the connections and of luggage.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let states = self.states.values().flatten();
        let luggage = self.luggage.values().flatten();
        let all = states.chain(&self.connections).chain(luggage);
        all.map(AsFd::as_fd)
    }

    /// Takes over from a master that was killed. What it had lent is returned, to be settled when
    /// its workers have ended.
    pub fn adopt(mut self, pools: &mut Pools<'_>, now: Time) -> Option<UnsettledTurns> {
        let Some(store) = pools.store().cloned() else {
            // The manager's copies would keep their clients waiting.
            self.connections.iter().for_each(end_stored);
            return None;
        };
        self.listeners
            .retain(|name, _| !self.useless.contains(name));
        store.know_listeners(self.listeners);
        for name in self.useless {
            store.remove(name);
        }
        let nothing = self.states.is_empty() && self.connections.is_empty();
        if nothing && self.luggage.is_empty() {
            return None;
        }
        let Notes {
            mut snapshots,
            life_lines,
        } = Notes::read(self.states);
        let mut lent = Vec::new();
        let (mut adopted, mut closed, mut unpacked) = (0, 0, 0);
        for socket in self.connections {
            let cookie = sockopt::socket_cookie(&socket).ok();
            let noted = cookie.and_then(|cookie| Some((cookie, snapshots.remove(&cookie)?)));
            let Some((cookie, snapshot)) = noted else {
                closed += 1;
                end_stored(&socket);
                continue;
            };
            let Ok(luggage) = take_luggage(&mut self.luggage, cookie, snapshot.packed.luggage)
            else {
                unpacked += 1;
                end_stored(&socket);
                continue;
            };
            let descriptors = (socket, luggage);
            match snapshot.place {
                Place::Lent => lent.push((snapshot, descriptors)),
                Place::Ending => {
                    pools.adopt(&snapshot, descriptors, now);
                }
                Place::Parked | Place::Ready => match pools.adopt(&snapshot, descriptors, now) {
                    true => adopted += 1,
                    false => closed += 1,
                },
            }
        }
        for cookie in self.luggage.into_keys() {
            store.forget_luggage(cookie);
        }
        let count = lent.len();
        log::info!(
            "took over from a master that was killed: {adopted} connections, and {count} that were lent"
        );
        if closed > 0 {
            log::warn!("closed {closed} stored connections of which nothing is known");
        }
        if unpacked > 0 {
            log::warn!("closed {unpacked} stored connections whose luggage was not stored");
        }
        Some(UnsettledTurns::await_workers(life_lines, lent, pools, now))
    }
}

/// Whether a connection needs luggage that was not stored.
struct NotStored;

/// Takes out the luggage of a connection which has some.
fn take_luggage(
    all: &mut BTreeMap<u64, Vec<OwnedFd>>,
    cookie: u64,
    noted: Packing,
) -> Result<Option<OwnedFd>, NotStored> {
    match noted {
        Packing::None => Ok(None),
        Packing::Held(_) => Err(NotStored),
        Packing::Stored(_) => {
            let pieces = all.get_mut(&cookie).filter(|pieces| pieces.len() == 1);
            let piece = pieces.and_then(Vec::pop).ok_or(NotStored)?;
            all.remove(&cookie);
            Ok(Some(piece))
        }
    }
}

/// A listener that a killed master had, with the file of its Unix socket.
fn adopted(socket: OwnedFd, asked: Address, file: Option<names::File>) -> Result<Listener> {
    let unix = matches!(asked, Address::Unix(_));
    let mut listener = Listener::adopt(socket, asked, true)?;
    // A name of an earlier version does not say which file it was.
    let is_another = file.is_some() && listener.file() != file;
    if unix && (is_another || listener.has_lost_file()) {
        let attempt = format!("listen on {listener}");
        return Err(Error::because(attempt, "its file is gone"));
    }
    listener.set_unlink_on_drop(true);
    Ok(listener)
}

/// What the ledgers say of all connections, by their cookies, and the life lines of their masters.
#[derive(Default)]
struct Notes {
    snapshots: HashMap<u64, Snapshot>,
    life_lines: Vec<(u64, Option<OwnedFd>)>,
}

impl Notes {
    fn read(states: BTreeMap<u64, Vec<OwnedFd>>) -> Self {
        let mut notes = Self::default();
        let mut ledgers = Vec::new();
        for (instance, descriptors) in states {
            let is_pipe = |fd: &OwnedFd| {
                fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
            };
            let (mut pipes, files): (Vec<_>, Vec<_>) = descriptors.into_iter().partition(is_pipe);
            notes.life_lines.push((instance, pipes.pop()));
            for file in files {
                let ledger = MemoryFile::open(file).map_err(|error| Plain(&error).to_string());
                let ledger =
                    ledger.and_then(|file| Ledger::read(file).map_err(|why| why.to_string()));
                match ledger {
                    Ok(ledger) => ledgers.push(ledger),
                    Err(why) => log::error!(
                        "cannot read the ledger of a master that was killed: {why}; \
                         closing the connections in it"
                    ),
                }
            }
        }
        // The later one is right, where a connection is in several.
        ledgers.sort_by_key(Ledger::since);
        for ledger in &ledgers {
            notes.take(ledger);
        }
        notes
    }

    fn take(&mut self, ledger: &Ledger<MemoryFile>) {
        let clock = monotonic().unwrap_or_default();
        let mut malformed = 0;
        for place in 0..ledger.capacity() as u32 {
            match ledger.entry(place, clock) {
                Ok(Some((cookie, snapshot))) => {
                    self.snapshots.insert(cookie, snapshot);
                }
                Ok(None) => {}
                Err(_) => malformed += 1,
            }
        }
        if malformed > 0 {
            log::warn!(
                "the ledger of a master that was killed has {malformed} malformed entries; \
                 closing their connections"
            );
        }
    }
}

impl UnsettledTurns {
    fn await_workers(
        life_lines: Vec<(u64, Option<OwnedFd>)>,
        connections: Vec<Recoverable>,
        pools: &Pools<'_>,
        now: Time,
    ) -> Self {
        for life_line in life_lines.iter().filter_map(|(_, life)| life.as_ref()) {
            // Edge-triggered: one that has ended stays so, and is watched until all have.
            let watched = pools
                .epoll()
                .add(life_line, MasterEvent::LifeLine, EventFlags::ET);
            if let Err(error) = watched {
                let error = Plain(&error);
                log::error!("cannot watch the workers of a master that was killed: {error}");
            }
        }
        Self {
            life_lines,
            connections,
            until: now.after(pools.longest(|settings| settings.grace)),
        }
    }

    /// When it is no longer waited for the workers of the killed master.
    #[must_use]
    pub fn due(&self) -> Time {
        self.until
    }

    /// Settles what was lent, once the workers of the killed master have ended or have had their
    /// time.
    pub fn settle_if_over(unsettled: &mut Option<Self>, pools: &mut Pools<'_>, now: Time) {
        if let Some(over) = unsettled.as_ref().and_then(|turns| turns.over(now))
            && let Some(turns) = unsettled.take()
        {
            turns.settle(over, pools, now);
        }
    }

    /// Settles what was lent: as after the death of a worker, unless one may still have it.
    fn settle(self, over: Over, pools: &mut Pools<'_>, now: Time) {
        self.forget_states(pools);
        if over == Over::Late {
            log::warn!("workers of a master that was killed do not end: closing what they have");
        }
        for (snapshot, descriptors) in self.connections {
            match over {
                Over::Late => pools.end_stored(&snapshot, &descriptors.0),
                Over::Ended => {
                    pools.adopt(&snapshot, descriptors, now);
                }
            }
        }
    }

    /// Closes what is left.
    pub fn end(self, pools: &Pools<'_>) {
        self.forget_states(pools);
        for (snapshot, (socket, _)) in &self.connections {
            pools.end_stored(snapshot, socket);
        }
    }

    fn forget_states(&self, pools: &Pools<'_>) {
        for (instance, life_line) in &self.life_lines {
            if let Some(life_line) = life_line {
                // The manager has it too.
                pools.epoll().remove(life_line);
            }
            if let Some(store) = pools.store() {
                store.remove(names::of_state(*instance));
            }
        }
    }

    /// Whether it is no longer waited for the workers, and why. This is asked once: what is settled
    /// is settled by this answer.
    fn over(&self, now: Time) -> Option<Over> {
        let mut lives = self.life_lines.iter().filter_map(|(_, life)| life.as_ref());
        if self.connections.is_empty() || !lives.any(may_be_open) {
            return Some(Over::Ended);
        }
        (self.until <= now).then_some(Over::Late)
    }
}

/// Whether somebody may have the other end of a life line. When it can't be asked (a signal
/// interrupts poll(2)), a worker may still be answering.
fn may_be_open(life: &OwnedFd) -> bool {
    let mut poll = [PollFd::new(life, PollFlags::empty())];
    !matches!(event::poll(&mut poll, Some(&Timespec::default())), Ok(1..))
}

/// Opens a store for this master, if there is a manager that has room for one.
#[must_use]
pub fn open_store(limit: Option<usize>, room: usize, active: bool, now: Time) -> Option<Store> {
    let limit = limit.filter(|limit| *limit > 0)?;
    match Store::open(limit, room, active, now) {
        Ok(store) => Some(store),
        Err(error) => {
            let error = Plain(&error);
            log::error!(
                "cannot keep a ledger: {error}; nothing is stored with the service manager"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::dispatch::Interest;
    use crate::master::events::epoll::{Epoll, Events};
    use crate::master::snapshot::{Packed, PoolKey};
    use crate::sys::unforked::Unforked;
    use crate::wire::Traffic;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use rustix::pipe::pipe;

    fn pools() -> Pools<'static> {
        Pools::new(Epoll::new().unwrap(), None)
    }

    /// A connection that was lent.
    fn lent() -> Recoverable {
        let snapshot = Snapshot {
            pool: PoolKey::of("main"),
            home: None,
            peer: None,
            place: Place::Lent,
            interest: Interest::Input,
            turns: 1,
            remaining: None,
            incomplete_for: None,
            time_left: None,
            total: Traffic::default(),
            stored: true,
            carry: Unforked::default(),
            packed: Packed::default(),
        };
        let (socket, _other) = UnixStream::pair().unwrap();
        (snapshot, (socket.into(), None))
    }

    #[test]
    fn without_a_store_the_clients_see_the_end_though_the_manager_has_copies() {
        let (socket, mut client) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let _copy = socket.try_clone().unwrap();
        let recovered = Recovered {
            connections: vec![socket.into()],
            ..Recovered::default()
        };
        assert!(recovered.adopt(&mut pools(), Time(0)).is_none());
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn the_end_of_one_life_line_is_told_once_while_another_one_is_open() {
        let pools = pools();
        let ((ended, _), (open, _writer)) = (pipe().unwrap(), pipe().unwrap());
        let lines = vec![(1, Some(ended)), (2, Some(open))];
        let turns = UnsettledTurns::await_workers(lines, vec![lent()], &pools, Time(0));
        let mut events = Events::default();
        let mut count = || {
            let waited = pools.epoll().wait(&mut events, Some(Duration::ZERO));
            waited.unwrap();
            events.drain().count()
        };
        assert_eq!((count(), count()), (1, 0), "{turns:?}");
    }

    #[test]
    fn it_is_waited_for_the_last_worker_or_until_it_has_had_its_time() {
        let pools = pools();
        let ((one, first), (other, last)) = (pipe().unwrap(), pipe().unwrap());
        let lines = vec![(1, Some(one)), (2, Some(other))];
        let mut turns = UnsettledTurns::await_workers(lines, vec![lent()], &pools, Time(0));
        turns.until = Time(10);
        assert_eq!(turns.over(Time(9)), None);
        assert_eq!(turns.over(Time(10)), Some(Over::Late));
        drop(first);
        assert_eq!(turns.over(Time(9)), None);
        drop(last);
        assert_eq!(turns.over(Time(9)), Some(Over::Ended));
        assert_eq!(turns.over(Time(10)), Some(Over::Ended));
    }
}
