//! A reload: all pools go over to what the configuration says now, or none does.
//!
//! First a [`Planner`] makes all look-ups that the plans take, while this process serves. Then the
//! plans are made, and the pools start their next generations.

use std::fmt::Display;
use std::rc::Rc;

use nix::unistd::Pid;

use super::listen::listener::Listener;
use super::listen::matching::{bind_missing, take_wanted};
use super::master_only::MasterOnly;
use super::office::Office;
use super::plan::{Plan, PlanSource};
use super::planner::{Answer, Planner};
use super::pool::Pool;
use super::pools::Pools;
use super::time::Time;
use crate::config::Address;
use crate::error::{Error, Result};
use crate::lookup::{self, Record};

/// A reload that is under way.
pub struct Reload<'a> {
    source: &'a PlanSource<'a>,
    /// How many descriptors are open that are nobody's.
    open: usize,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// What the plans depend on is being looked up.
    Planning(Planner),
    /// The new generations are getting ready.
    Preparing(Next),
}

/// What there is to be when the new generations are ready.
#[derive(Debug)]
struct Next {
    /// The pools that there are to be.
    names: Vec<Rc<str>>,
    /// Listeners that are new, and accept nothing yet.
    bound: Vec<Listener>,
    /// How many connections each pool has room for.
    room: usize,
}

/// Whether a reload goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The look-ups or the new generations take their time.
    Wait,
    /// It is done, or has failed; the log has it.
    Over,
}

impl<'a> Reload<'a> {
    /// Begins to make the look-ups that new plans take.
    ///
    /// # Errors
    /// When no process can be started for that.
    pub fn begin(
        source: &'a PlanSource<'a>,
        only: &mut MasterOnly,
        pools: &Pools<'a>,
        office: &Office,
        now: Time,
    ) -> Result<Self> {
        // What the pools keep, the source may be using.
        let keep = pools.iter().flat_map(|pool| pool.plan().keep.clone());
        let planner = Planner::start(source, office, keep, only, pools.epoll(), now);
        let planner = planner.map_err(|error| Error::new("read the configuration", error))?;
        Ok(Self {
            source,
            open: only.inherited.len(),
            stage: Stage::Planning(planner),
        })
    }

    /// Does what is due.
    pub fn step(&mut self, pools: &mut Pools<'a>, office: &mut Office, now: Time) -> Step {
        match &mut self.stage {
            Stage::Planning(planner) => {
                let answer = planner.expire(now);
                self.on_answer(answer, pools, office, now)
            }
            Stage::Preparing(next) => next.step(pools, now),
        }
    }

    /// The child that makes the look-ups has said something, or ended.
    pub fn on_message(&mut self, pools: &mut Pools<'a>, office: &mut Office, now: Time) -> Step {
        let answer = match &self.stage {
            Stage::Planning(planner) => planner.on_message(),
            Stage::Preparing(_) => None,
        };
        self.on_answer(answer, pools, office, now)
    }

    /// A child of the master has ended, which may be the one that makes the look-ups.
    pub fn on_exit(
        &mut self,
        pid: Pid,
        how: &str,
        pools: &mut Pools<'a>,
        office: &mut Office,
        now: Time,
    ) -> Step {
        let answer = match &mut self.stage {
            Stage::Planning(planner) => planner.on_exit(pid, how),
            Stage::Preparing(_) => None,
        };
        self.on_answer(answer, pools, office, now)
    }

    fn on_answer(
        &mut self,
        answer: Option<Answer>,
        pools: &mut Pools<'a>,
        office: &mut Office,
        now: Time,
    ) -> Step {
        let Some(Answer { lost, plans }) = answer else {
            return Step::Wait;
        };
        self.end_planner(pools);
        // Where the planner did not wait in vain, the master does not either.
        office.mend(lost, pools.epoll());
        let prepared = plans.and_then(|record| {
            let next = self.prepare(record, pools, now);
            next.map_err(|error| error.to_string())
        });
        match prepared {
            Ok(next) => {
                log::info!("reloading");
                self.stage = Stage::Preparing(next);
                Step::Wait
            }
            Err(why) => {
                refuse(&why);
                Step::Over
            }
        }
    }

    /// The planner has nothing more to say, and is to be reaped.
    fn end_planner(&mut self, pools: &mut Pools<'_>) {
        if let Stage::Planning(planner) = &mut self.stage {
            pools.add_killed(planner.end());
        }
    }

    /// Makes the plans, all of whose look-ups are in the record, and has all pools prepare for
    /// them. On a failure, what was begun is taken back.
    ///
    /// # Errors
    /// What the source says; when an address can't be bound, or there are too many pools.
    fn prepare(&self, record: Record, pools: &mut Pools<'a>, now: Time) -> Result<Next> {
        lookup::replay(record, || {
            let plans = (self.source)()?;
            let room = Pools::room(&plans, self.open)?;
            Next::begin(plans, room, pools, now)
        })
    }

    /// When something is to be done if nothing happens. The pools know when their new generations
    /// are given up.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        match &self.stage {
            Stage::Planning(planner) => Some(planner.due()),
            Stage::Preparing(_) => None,
        }
    }

    /// Gives the reload up, for something that comes before it.
    pub fn give_up(mut self, why: &str, pools: &mut Pools<'_>, now: Time) {
        log::info!("giving up the reload under way: {why}");
        self.end_planner(pools);
        abandon(pools, now);
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
                abandon(pools, now);
                return Err(error);
            }
        }
        Ok(Self { names, bound, room })
    }

    /// Goes over to the new generations, if all are ready.
    fn step(&mut self, pools: &mut Pools<'_>, now: Time) -> Step {
        let each = |pool: &Pool<'_>| pool.workers().is_prepared(now);
        let all: std::result::Result<Vec<_>, _> = pools.iter().map(each).collect();
        match all.map(|all| all.iter().all(|ready| *ready)) {
            Ok(false) => Step::Wait,
            Ok(true) => {
                self.commit(pools, now);
                log::info!("reloaded");
                Step::Over
            }
            Err(why) => {
                log::error!("reload failed: {why}; the old workers serve on");
                abandon(pools, now);
                Step::Over
            }
        }
    }

    /// Goes over to the new generations; pools that are wanted no more stop.
    fn commit(&mut self, pools: &mut Pools<'_>, now: Time) {
        let (names, room) = (&self.names, self.room);
        let bound = std::mem::take(&mut self.bound);
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
        let away: Vec<_> = pools
            .iter()
            .map(|pool| pools.away_from(pool.id()))
            .collect();
        for (pool, away) in pools.iter_mut().zip(away) {
            let mine = take_wanted(&mut free, &wants(pool), pool.listeners().all());
            if names.contains(&pool.plan().name) {
                pool.promote(room, away, now);
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
fn abandon(pools: &mut Pools<'_>, now: Time) {
    pools.iter_mut().for_each(|pool| pool.abandon(now));
}

/// Says that a reload has come to nothing before anything was changed.
pub fn refuse(why: &dyn Display) {
    log::error!("reload refused: {why}; nothing has changed");
}
