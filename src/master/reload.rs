//! A reload: all pools go over to what the configuration says now, or none does.

use std::collections::HashMap;
use std::rc::Rc;

use crate::config::Address;
use crate::error::{Error, Result};
use crate::master::listen::listener::{self, Listener};
use crate::master::pool::{Phase, Plan, Pool};
use crate::master::time::Time;
use crate::master::{MAX_POOLS, Master};

/// A reload that is under way: the new generations are getting ready.
pub struct Reload {
    /// The pools that there are to be.
    names: Vec<Rc<str>>,
    /// Listeners that are new, and accept nothing yet.
    bound: Vec<Listener>,
    /// How many connections each pool has room for.
    room: usize,
}

/// Binds what the plans want and nobody has bound yet.
///
/// # Errors
/// When an address can't be bound.
pub fn bind_missing(plans: &[Plan<'_>], bound: &[&Listener]) -> Result<Vec<Listener>> {
    let mut new = Vec::new();
    for (plan, address, before) in wanted(plans) {
        let there = bound.iter().copied().chain(&new);
        if !listener::is_bound(there, address, before) {
            new.extend(listener::bind_all(address, plan.settings.backlog)?);
        }
    }
    Ok(new)
}

/// Each address that a plan wants, and how many times it was wanted before.
pub fn wanted<'p, 'a>(
    plans: &'p [Plan<'a>],
) -> impl Iterator<Item = (&'p Plan<'a>, &'p Address, usize)> {
    let mut times = HashMap::new();
    let all = plans
        .iter()
        .flat_map(|plan| plan.listen.iter().map(move |address| (plan, address)));
    all.map(move |(plan, address)| {
        let before: &mut usize = times.entry(address.to_string()).or_default();
        *before += 1;
        (plan, address, *before - 1)
    })
}

/// Takes those of the listeners that are for one of the addresses, and that whoever has those of `own` lacks: of port 0
/// there may be more, which are for others.
pub fn take_wanted(
    listeners: &mut Vec<Listener>,
    addresses: &[Address],
    own: &[Listener],
) -> Vec<Listener> {
    let mut wanted = Vec::new();
    for listener in std::mem::take(listeners) {
        let asked = listener.asked();
        let times = addresses.iter().filter(|one| *one == asked).count();
        let same = |one: &&Listener| one.asked() == asked && one.host() == listener.host();
        let there = own.iter().chain(&wanted).filter(same).count();
        if times > 0 && (asked.port() != Some(0) || there < times) {
            wanted.push(listener);
        } else {
            listeners.push(listener);
        }
    }
    wanted
}

impl<'a> Master<'a> {
    /// SIGHUP: reads the configuration anew, and begins to change over to it.
    pub(in crate::master) fn reload(&mut self, now: Time) {
        if self.stopping.is_some() {
            return;
        }
        // Whoever waits for the end of a reload is told of its end, whatever comes of it.
        self.manager.reloading();
        if self.takeover.is_some() || self.successor.is_some() {
            return log::warn!("reload refused: a takeover is under way");
        }
        self.give_up_reload("another one begins", now);
        match self.prepare(now) {
            Ok(()) => log::info!("reloading"),
            Err(error) => {
                self.roll_back_quietly(now);
                log::error!("reload refused: {error}; nothing has changed");
            }
        }
    }

    fn prepare(&mut self, now: Time) -> Result<()> {
        let plans = (self.source)()?;
        let room = self.room(&plans);
        let listeners = self.pools.iter().flatten().flat_map(|pool| &pool.listeners);
        let bound: Vec<_> = listeners.collect();
        let bound = bind_missing(&plans, &bound)?;
        let names = plans.iter().map(|plan| Rc::clone(&plan.name)).collect();
        // From here on a failure must be rolled back.
        self.reload = Some(Reload { names, bound, room });
        for plan in plans {
            self.pool_for(&plan, room)?.prepare(plan, now);
        }
        Ok(())
    }

    /// The pool of that name, or a new one without workers.
    fn pool_for(&mut self, plan: &Plan<'a>, room: usize) -> Result<&mut Pool<'a>> {
        let same = |pool: &Pool<'_>| pool.is_serving() && pool.plan.name == plan.name;
        let place = self
            .pools
            .iter()
            .position(|pool| pool.as_ref().is_some_and(same));
        let place = match place {
            Some(place) => place,
            None => {
                let free = self.pools.iter().position(Option::is_none);
                let place = free.unwrap_or(self.pools.len());
                if place >= MAX_POOLS {
                    let cause = format!("there are {MAX_POOLS} already");
                    return Err(Error::because(format!("add pool {}", plan.name), cause));
                }
                let epoll = Rc::clone(&self.own.epoll);
                let mut pool = Pool::new(place as u8, plan.clone(), 0, room, epoll);
                pool.phase = Phase::Coming;
                pool.store = self.store.clone();
                if place == self.pools.len() {
                    self.pools.push(None);
                }
                self.pools[place] = Some(pool);
                place
            }
        };
        Ok(self.pools[place].as_mut().expect("it was found or made"))
    }

    /// Goes over to the new generations when all are ready, or gives them up when one has failed.
    pub(in crate::master) fn advance_reload(&mut self, now: Time) {
        if self.reload.is_none() {
            return;
        }
        let mut prepared = true;
        for pool in self.pools.iter().flatten() {
            match pool.is_prepared(now) {
                Ok(ready) => prepared &= ready,
                Err(why) => return self.roll_back(&why, now),
            }
        }
        if prepared && let Some(reload) = self.reload.take() {
            self.commit(reload, now);
        }
    }

    fn commit(&mut self, reload: Reload, now: Time) {
        let Reload {
            names,
            bound: mut free,
            room,
        } = reload;
        // What each of the pools wants; one that is to go, or goes already, wants nothing.
        let wants = |pool: &Pool<'_>| {
            if pool.is_wanted() && names.contains(&pool.plan.name) {
                pool.addresses().to_vec()
            } else {
                Vec::new()
            }
        };
        let wanted: Vec<Address> = self.pools.iter().flatten().flat_map(wants).collect();
        for pool in self.pools.iter_mut().flatten() {
            pool.close_listeners(|address| !wanted.contains(address), now);
            let own = wants(pool);
            free.extend(pool.give_away(|address| !own.contains(address)));
        }
        for pool in self.pools.iter_mut().flatten() {
            let mine = take_wanted(&mut free, &wants(pool), &pool.listeners);
            if names.contains(&pool.plan.name) {
                pool.promote(room, now);
            } else {
                pool.stop(now);
            }
            if let Err(error) = pool.listen_on(mine) {
                log::error!("{error}");
            }
        }
        self.relist();
        log::info!("reloaded");
    }

    /// Gives up a reload that can't succeed.
    fn roll_back(&mut self, why: &str, now: Time) {
        log::error!("reload failed: {why}; the old workers serve on");
        self.roll_back_quietly(now);
    }

    /// Gives up a reload that is under way, if one is, for something that comes before it.
    pub(in crate::master) fn give_up_reload(&mut self, why: &str, now: Time) {
        if self.reload.is_some() {
            log::info!("giving up the reload under way: {why}");
            self.roll_back_quietly(now);
        }
    }

    fn roll_back_quietly(&mut self, now: Time) {
        self.reload = None;
        for pool in self.pools.iter_mut().flatten() {
            pool.abandon(now);
        }
    }
}
