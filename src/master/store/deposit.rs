//! Giving the manager what it is to keep, and telling it what to drop. Whatever it has no room for waits here.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::error::Plain;
use crate::master::Master;
use crate::master::office::service_manager::Manager;
use crate::master::pool::Pool;
use crate::master::store::names;
use crate::master::store::{Inner, Standing, Store, name_of};
use crate::master::succession::Successor;
use crate::master::time::Time;
use crate::systemd::Hold;

/// How long the manager is left alone when its queue is full.
const RETRY: Duration = Duration::from_millis(5);

/// How long the end of the server may wait for room in the manager's queue.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The manager has no room for a message now.
struct Full;

impl Master<'_> {
    /// Opens a store, if there is a manager that has one.
    pub(in crate::master) fn open_store(&mut self, room: usize, now: Time) {
        let Some(limit) = self.manager.store_limit().filter(|limit| *limit > 0) else {
            return;
        };
        match Store::open(limit, room, self.successor.is_none(), now) {
            Ok(store) => {
                self.own.inherited.push(store.life_line());
                self.store = Some(store);
            }
            Err(error) => log::error!(
                "cannot keep a ledger: {}; nothing is stored with the service manager",
                Plain(&error)
            ),
        }
    }

    /// The listeners have changed, or may have.
    pub(in crate::master) fn relist(&self) {
        if let Some(store) = &self.store {
            store.relist();
        }
    }

    /// Tells the manager what has changed.
    pub(in crate::master) fn tend_store(&mut self, now: Time) {
        if let Some(store) = &self.store {
            store.tend(&mut self.manager, &mut self.pools, now);
        }
    }

    /// The server has ended: nothing of it stays behind.
    pub(in crate::master) fn clear_store(&mut self) {
        let Some(store) = self.store.clone() else {
            return;
        };
        if let Some(orphans) = self.orphans.take() {
            orphans.end(&store);
        }
        self.pools.clear();
        if self.successor.as_ref().is_none_or(Successor::reigns) {
            store.predecessor_ended();
        }
        store.relist();
        store.remove(names::of_state(store.mark()));
        let end = Instant::now() + LAST_WORDS;
        loop {
            let now = self.now();
            self.tend_store(now);
            self.manager.flush();
            if store.due().is_none() && !self.manager.is_waiting() || Instant::now() >= end {
                return;
            }
            std::thread::sleep(RETRY);
        }
    }
}

impl Store {
    /// When the manager is to be spoken to again.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        let inner = self.0.borrow();
        inner.has_news().then_some(inner.blocked_until).flatten()
    }

    fn tend(&self, manager: &mut Manager, pools: &mut [Option<Pool<'_>>], now: Time) {
        let mut inner = self.0.borrow_mut();
        if inner.blocked_until.is_some_and(|until| until > now) {
            return;
        }
        inner.blocked_until = None;
        if inner.has_news() && inner.tell(manager, pools).is_err() {
            inner.blocked_until = Some(now.after(RETRY));
        }
    }
}

impl Inner {
    fn has_news(&self) -> bool {
        let news = self.relisted || !self.gone.is_empty() || !self.fresh.is_empty();
        self.standing == Standing::InCharge && (news || !self.stated)
    }

    fn tell(&mut self, manager: &mut Manager, pools: &mut [Option<Pool<'_>>]) -> Result<(), Full> {
        let over = pools.is_empty();
        if !self.stated && !over {
            let state = [self.ledger.words().as_fd(), self.life.read.as_fd()];
            let name = names::of_state(self.mark);
            self.trouble
                .give(manager, &name, &state, Hold::UntilRemoved)?;
        }
        self.stated = true;
        while let Some(name) = self.gone.front() {
            take_away(manager, name)?;
            self.gone.pop_front();
        }
        self.list(manager, pools)?;
        while let Some((pool, id)) = self.fresh.front().copied() {
            let pool = pools.get_mut(usize::from(pool)).and_then(Option::as_mut);
            let held = pool.and_then(|pool| pool.dispatcher.payload(id));
            if let Some(held) = held
                && let Some(place) = held.kept().map(|kept| kept.place)
                && !self.stored[place as usize]
            {
                let socket = [held.descriptor()];
                self.trouble
                    .give(manager, names::CONNECTION, &socket, Hold::UntilHangup)?;
                self.stored[place as usize] = true;
            }
            self.fresh.pop_front();
        }
        Ok(())
    }

    /// Has the manager keep the listeners that there are, and no others.
    fn list(&mut self, manager: &mut Manager, pools: &[Option<Pool<'_>>]) -> Result<(), Full> {
        if !self.relisted {
            return Ok(());
        }
        // A name can stand for several.
        let mut all = BTreeMap::<String, Vec<BorrowedFd<'_>>>::new();
        for listener in pools.iter().flatten().flat_map(|pool| &pool.listeners) {
            if let Some(name) = name_of(listener) {
                all.entry(name).or_default().push(listener.as_fd());
            }
        }
        while let Some(name) = self.listeners.iter().find(|name| !all.contains_key(*name)) {
            let name = name.clone();
            take_away(manager, &name)?;
            self.listeners.remove(&name);
        }
        for (name, sockets) in all {
            if !self.listeners.contains(&name) {
                self.trouble
                    .give(manager, &name, &sockets, Hold::UntilRemoved)?;
                self.listeners.insert(name);
            }
        }
        self.relisted = false;
        Ok(())
    }
}

/// Whether the manager can be given something, as far as is known.
#[derive(Debug, Default)]
pub(in crate::master) struct Trouble {
    /// It can't, and that was said.
    said: bool,
}

impl Trouble {
    fn give(
        &mut self,
        manager: &mut Manager,
        name: &str,
        descriptors: &[BorrowedFd<'_>],
        hold: Hold,
    ) -> Result<(), Full> {
        match manager.keep(name, descriptors, hold) {
            Ok(true) => {
                self.said = false;
                Ok(())
            }
            Ok(false) => Err(Full),
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    log::warn!("{error}");
                }
                Ok(())
            }
        }
    }
}

fn take_away(manager: &mut Manager, name: &str) -> Result<(), Full> {
    match manager.drop_kept(name) {
        true => Ok(()),
        false => Err(Full),
    }
}
