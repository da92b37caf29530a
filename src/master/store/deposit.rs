//! Giving the service manager what it is to keep, and telling it what to drop. Whatever it has no
//! room for waits here.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::{Inner, Role, Store, names};
use crate::config::Address;
use crate::fdpass::MAX_DESCRIPTORS;
use crate::master::dispatch::table::ConnectionId;
use crate::master::listen::listener::Listener;
use crate::master::office::service_manager::ServiceManager;
use crate::master::time::Time;
use crate::systemd::Hold;

/// How long the manager is left alone when its queue is full.
const RETRY: Duration = Duration::from_millis(5);

/// How long the end of the server may wait for room in the manager's queue.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long it is left alone when it could not be given something: it may be starting again.
const RETRY_AFTER_ERROR: Duration = Duration::from_secs(1);

/// The manager can't be sent a message now: how long it is left alone.
struct Later(Duration);

/// What the store asks of the pools when it has something for the manager.
pub trait Stock {
    /// All listeners; `None` when the server has ended and nothing of it is to stay.
    fn listeners(&self) -> Option<Vec<&Listener>>;
    /// The descriptor of a connection.
    fn connection(&self, pool: u8, id: ConnectionId) -> Option<BorrowedFd<'_>>;
    /// The luggage of a connection, with its number.
    fn luggage(&self, pool: u8, id: ConnectionId) -> Option<(BorrowedFd<'_>, u64)>;
}

impl Store {
    /// When the manager is to be spoken to again.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        let inner = self.0.borrow();
        if inner.has_news() {
            return inner.blocked_until;
        }
        inner.stowed.due().filter(|_| inner.role == Role::Active)
    }

    /// The server has ended: has the manager drop all that it has of it, in the time that there is.
    pub fn clear(
        &self,
        stock: &impl Stock,
        manager: &mut ServiceManager,
        clock: impl Fn() -> Time,
    ) {
        self.relist();
        self.remove(names::of_state(self.instance()));
        let end = Instant::now() + LAST_WORDS;
        loop {
            self.deposit(stock, manager, clock());
            manager.flush();
            if self.due().is_none() && !manager.is_waiting() || Instant::now() >= end {
                return;
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Tells the manager what has changed, as far as it has room for it.
    pub fn deposit(&self, stock: &impl Stock, manager: &mut ServiceManager, now: Time) {
        let mut inner = self.0.borrow_mut();
        if inner.blocked_until.is_some_and(|until| until > now) {
            return;
        }
        inner.blocked_until = None;
        let stows = inner.role == Role::Active && inner.stowed.due().is_some_and(|due| due <= now);
        if (inner.has_news() || stows)
            && let Err(Later(pause)) = inner.tell(stock, manager, now)
        {
            inner.blocked_until = Some(now.after(pause));
        }
    }
}

impl Inner {
    fn has_news(&self) -> bool {
        let news = self.relisted || !self.gone.is_empty() || !self.fresh.is_empty();
        self.role == Role::Active && (news || !self.stated)
    }

    fn tell(
        &mut self,
        stock: &impl Stock,
        manager: &mut ServiceManager,
        now: Time,
    ) -> Result<(), Later> {
        let listeners = stock.listeners();
        if !self.stated && listeners.is_some() {
            let state = [self.ledger.words().as_fd(), self.life.read.as_fd()];
            let name = names::of_state(self.instance);
            give(&mut self.warned, manager, &name, &state, Hold::UntilRemoved)?;
        }
        self.stated = true;
        while let Some(name) = self.gone.front() {
            take_away(manager, name)?;
            self.gone.pop_front();
        }
        if self.relisted {
            self.list(&listeners.unwrap_or_default(), manager)?;
            self.relisted = false;
            self.unlisted = false;
        }
        while !self.fresh.is_empty() {
            self.give_connections(stock, manager)?;
        }
        self.give_luggage(stock, manager, now)
    }

    /// Gives the manager the luggage that is due.
    fn give_luggage(
        &mut self,
        stock: &impl Stock,
        manager: &mut ServiceManager,
        now: Time,
    ) -> Result<(), Later> {
        while let Some((waiting, cookie)) = self.stowed.next(now) {
            let found = stock.luggage(waiting.pool, waiting.id);
            let Some((luggage, _)) = found.filter(|(_, number)| *number == waiting.number) else {
                self.stowed.is_gone();
                continue;
            };
            if !self.has_room_for_luggage() {
                self.stowed.wait_for_room(now);
                continue;
            }
            let name = names::of_luggage(cookie);
            let hold = Hold::UntilRemoved;
            give(&mut self.warned, manager, &name, &[luggage], hold)?;
            self.stowed.is_given();
            self.ledger.luggage_is_stored(waiting.place);
        }
        Ok(())
    }

    /// Gives the manager as many connections as go into one message: it works for each message.
    fn give_connections(
        &mut self,
        stock: &impl Stock,
        manager: &mut ServiceManager,
    ) -> Result<(), Later> {
        let fresh = self.fresh.iter().take(MAX_DESCRIPTORS);
        let found = fresh.map(|(place, (pool, id))| (*place, stock.connection(*pool, *id)));
        let (places, sockets): (Vec<_>, Vec<_>) = found.unzip();
        let name = names::CONNECTION;
        let there: Vec<_> = sockets.iter().flatten().copied().collect();
        if !there.is_empty() {
            give(&mut self.warned, manager, name, &there, Hold::UntilHangup)?;
        }
        for (place, socket) in places.into_iter().zip(sockets) {
            self.stored[place as usize] = socket.is_some();
            self.fresh.remove(&place);
        }
        Ok(())
    }

    /// Has the manager keep these listeners, and no others.
    fn list(&mut self, all: &[&Listener], manager: &mut ServiceManager) -> Result<(), Later> {
        // A name can stand for several.
        let mut wanted = BTreeMap::<String, Vec<BorrowedFd<'_>>>::new();
        for listener in all {
            if let Some(name) = name_of(listener) {
                wanted.entry(name).or_default().push(listener.as_fd());
            }
        }
        let unwanted = |name: &&String| !wanted.contains_key(*name);
        while let Some(name) = self.listeners.keys().find(unwanted) {
            let name = name.clone();
            take_away(manager, &name)?;
            self.listeners.remove(&name);
        }
        for (name, sockets) in wanted {
            let known = self.listeners.get(&name).copied().unwrap_or_default();
            if known > sockets.len() {
                // Which of them are wanted no longer can't be said in a message.
                take_away(manager, &name)?;
                self.listeners.remove(&name);
            }
            if self.unlisted || known != sockets.len() {
                give(
                    &mut self.warned,
                    manager,
                    &name,
                    &sockets,
                    Hold::UntilRemoved,
                )?;
                self.listeners.insert(name, sockets.len());
            }
        }
        Ok(())
    }
}

/// What a listener is called; nothing when somebody else has bound it, or its address does not fit
/// into a name.
#[must_use]
pub fn name_of(listener: &Listener) -> Option<String> {
    let (asked, file) = (listener.asked(), listener.file());
    // One whose file is gone is of no use to the next master.
    let ours = match asked {
        Address::Unix(_) => file.is_some() && !listener.has_lost_file(),
        _ => true,
    };
    names::of_listener(asked, file).filter(|_| ours)
}

/// Gives the manager copies to keep. That it can't be given something is said once; it may have
/// some of them then, and knows them again.
fn give(
    warned: &mut bool,
    manager: &mut ServiceManager,
    name: &str,
    descriptors: &[BorrowedFd<'_>],
    hold: Hold,
) -> Result<(), Later> {
    match manager.keep(name, descriptors, hold) {
        Ok(true) => {
            *warned = false;
            Ok(())
        }
        Ok(false) => Err(Later(RETRY)),
        Err(error) => {
            if !std::mem::replace(warned, true) {
                log::warn!("{error}");
            }
            Err(Later(RETRY_AFTER_ERROR))
        }
    }
}

fn take_away(manager: &mut ServiceManager, name: &str) -> Result<(), Later> {
    match manager.drop_kept(name) {
        true => Ok(()),
        false => Err(Later(RETRY)),
    }
}
