//! A reload: all pools go over to what the configuration says now, or none does.
//!
//! First a [`Planner`] makes all look-ups that the plans take, while this process serves. Then the
//! plans are made, and the pools start their next generations.

use std::rc::Rc;

use nix::unistd::Pid;

use super::child::Child;
use super::listen::listener::Listener;
use super::listen::matching::{bind_missing, take_wanted};
use super::master_only::MasterOnly;
use super::plan::{Plan, PlanSource};
use super::planner::{Answer, Planner};
use super::pool::Pool;
use super::pools::Pools;
use super::time::Time;
use crate::config::Address;
use crate::error::{Error, Result};
use crate::lookup::{self, Record};

/// A reload that is under way.
#[derive(Debug)]
pub enum Reload {
    /// What the plans depend on is being looked up.
    Planning(Planner),
    /// The new generations are getting ready.
    Preparing(Next),
}

/// What there is to be when the new generations are ready.
#[derive(Debug)]
pub struct Next {
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
    /// The plans can't be made yet, or the new generations are not ready.
    Wait,
    /// The plans can be made from this record.
    Plan(Record),
    /// There are no plans, and this is why.
    Refuse(String),
    /// All of them are: the pools can go over.
    Commit,
    /// One of them never will be, and this is why.
    Fail(String),
}

impl Reload {
    /// Begins to make the look-ups that new plans take.
    ///
    /// # Errors
    /// When no process can be started for that.
    pub fn begin(
        source: &PlanSource<'_>,
        only: &mut MasterOnly,
        pools: &Pools<'_>,
        now: Time,
    ) -> Result<Self> {
        // What the pools keep, the source may be using.
        let keep = pools.iter().flat_map(|pool| pool.plan().keep.clone());
        let planner = Planner::start(source, keep, only, pools.epoll(), now);
        let planner = planner.map_err(|error| Error::new("read the configuration", error))?;
        Ok(Self::Planning(planner))
    }

    /// Makes the plans, all of whose look-ups are in the record, and has all pools prepare for
    /// them. So many descriptors are `open` that are nobody's. On a failure, what was begun is
    /// taken back.
    ///
    /// # Errors
    /// What the source says; when an address can't be bound, or there are too many pools.
    pub fn prepare<'a>(
        record: Record,
        source: &PlanSource<'a>,
        open: usize,
        pools: &mut Pools<'a>,
        now: Time,
    ) -> Result<Self> {
        let next = lookup::replay(record, || {
            let plans = source()?;
            let room = Pools::room(&plans, open)?;
            Next::begin(plans, room, pools, now)
        });
        next.map(Self::Preparing)
    }

    /// What is to be done next.
    #[must_use]
    pub fn step(&self, pools: &Pools<'_>, now: Time) -> Step {
        match self {
            Self::Planning(planner) => planner.expire(now).map_or(Step::Wait, Step::from),
            Self::Preparing(_) => Next::step(pools, now),
        }
    }

    /// The child that makes the look-ups has said something, or ended.
    #[must_use]
    pub fn on_message(&self) -> Step {
        match self {
            Self::Planning(planner) => planner.on_message().map_or(Step::Wait, Step::from),
            Self::Preparing(_) => Step::Wait,
        }
    }

    /// A child of the master has ended, which may be the one that makes the look-ups.
    #[must_use]
    pub fn on_exit(&mut self, pid: Pid, how: &str) -> Step {
        match self {
            Self::Planning(planner) => {
                let answer = planner.on_exit(pid, how);
                answer.map_or(Step::Wait, Step::from)
            }
            Self::Preparing(_) => Step::Wait,
        }
    }

    /// When something is to be done if nothing happens. The pools know when their new generations
    /// are given up.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        match self {
            Self::Planning(planner) => Some(planner.due()),
            Self::Preparing(_) => None,
        }
    }

    /// Ends the look-ups, if they are being made. The process that makes them is the caller's to
    /// reap.
    #[must_use]
    pub fn end(self) -> Option<Child> {
        match self {
            Self::Planning(planner) => planner.end(),
            Self::Preparing(_) => None,
        }
    }

    /// Goes over to the new generations, if they are ready.
    pub fn commit(self, pools: &mut Pools<'_>, now: Time) {
        if let Self::Preparing(next) = self {
            next.commit(pools, now);
        }
    }
}

impl From<Answer> for Step {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Planned(record) => Self::Plan(record),
            Answer::Refused(why) => Self::Refuse(why),
        }
    }
}

impl Next {
    /// Binds what is new, and has all pools prepare for what the plans say. On a failure, what was
    /// begun is taken back.
    fn begin<'a>(
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
    fn step(pools: &Pools<'_>, now: Time) -> Step {
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
    fn commit(self, pools: &mut Pools<'_>, now: Time) {
        let Self { names, bound, room } = self;
        // An address of a Unix socket that was bound anew is one whose file was gone: the socket
        // that nobody can reach makes way.
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
