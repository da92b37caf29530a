//! A reload: all pools go over to what the configuration says now, or none does.

use std::rc::Rc;

use super::listen::listener::Listener;
use super::listen::matching::{bind_missing, take_wanted};
use super::plan::Plan;
use super::pool::Pool;
use super::pools::Pools;
use super::time::Time;
use crate::config::Address;
use crate::error::Result;

/// A reload that is under way: the new generations are getting ready.
#[derive(Debug)]
pub struct Reload {
    /// The pools that there are to be.
    names: Vec<Rc<str>>,
    /// Listeners that are new, and accept nothing yet.
    bound: Vec<Listener>,
    /// How many connections each pool has room for.
    room: usize,
}

/// What is to become of a reload.
#[derive(Debug)]
pub enum Step {
    /// The new generations are not ready yet.
    Wait,
    /// All of them are: the pools can go over.
    Commit,
    /// One of them never will be, and this is why.
    Fail(String),
}

impl Reload {
    /// Binds what is new, and has all pools prepare for what the plans say. On a failure, what was
    /// begun is taken back.
    ///
    /// # Errors
    /// When an address can't be bound, or there are too many pools.
    pub fn begin<'a>(
        plans: Vec<Plan<'a>>,
        room: usize,
        pools: &mut Pools<'a>,
        now: Time,
    ) -> Result<Self> {
        let there: Vec<_> = pools.listeners().collect();
        let bound = bind_missing(&plans, &there)?;
        let names = plans.iter().map(|plan| Rc::clone(&plan.name)).collect();
        for plan in plans {
            if let Err(error) = prepare(plan, room, pools, now) {
                give_up(pools, now);
                return Err(error);
            }
        }
        Ok(Self { names, bound, room })
    }

    /// Whether all new generations are ready.
    #[must_use]
    pub fn step(&self, pools: &Pools<'_>, now: Time) -> Step {
        let mut ready = true;
        for pool in pools.iter() {
            match pool.workers().is_prepared(now) {
                Ok(prepared) => ready &= prepared,
                Err(why) => return Step::Fail(why),
            }
        }
        if ready { Step::Commit } else { Step::Wait }
    }

    /// Goes over to the new generations; pools that are wanted no more stop.
    pub fn commit(self, pools: &mut Pools<'_>, now: Time) {
        let Self { names, bound, room } = self;
        // An address of a Unix socket that was bound anew is one whose file was gone: the socket that
        // nobody can reach makes way.
        let unix = |one: &&Listener| matches!(one.asked(), Address::Unix(_));
        let anew: Vec<_> = bound
            .iter()
            .filter(unix)
            .map(|one| one.asked().clone())
            .collect();
        let mut free = bound;
        // What each of the pools wants; one that is to go, or goes already, wants nothing.
        let wants = |pool: &Pool<'_>| {
            if pool.is_wanted() && names.contains(&pool.plan().name) {
                pool.addresses().to_vec()
            } else {
                Vec::new()
            }
        };
        let wanted: Vec<Address> = pools.iter().flat_map(wants).collect();
        for pool in pools.iter_mut() {
            let unwanted = |address: &Address| !wanted.contains(address) || anew.contains(address);
            pool.close_listeners(unwanted, now);
            let own = wants(pool);
            let listeners = pool.listeners_mut();
            free.extend(listeners.give_away(|address| !own.contains(address)));
        }
        for pool in pools.iter_mut() {
            let mine = take_wanted(&mut free, &wants(pool), pool.listeners().all());
            if names.contains(&pool.plan().name) {
                pool.promote(room, now);
            } else {
                pool.stop(now);
            }
            if let Err(error) = pool.listen_on(mine) {
                log::error!("{error}");
            }
        }
        if let Some(store) = pools.store() {
            store.renew(&anew);
            store.relist();
        }
    }
}

/// Has the pool of the plan's name prepare for it, or a new one without workers.
fn prepare<'a>(plan: Plan<'a>, room: usize, pools: &mut Pools<'a>, now: Time) -> Result<()> {
    // Not `if let`: the borrow of what was found would last into the other branch.
    if pools.serving(&plan.name).is_none() {
        pools.add(plan.clone(), 0, room, false)?.await_reload();
    }
    let same = |pool: &&mut Pool<'_>| pool.is_wanted() && pool.plan().name == plan.name;
    if let Some(pool) = pools.iter_mut().find(same) {
        pool.prepare(plan, now);
    }
    Ok(())
}

/// Gives up what the pools have begun for a reload.
pub fn give_up(pools: &mut Pools<'_>, now: Time) {
    pools.iter_mut().for_each(|pool| pool.abandon(now));
}
