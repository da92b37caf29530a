//! The master: accepts connections, holds them, and lends them to workers.
//!
//! One thread, one epoll set, one loop: events go to the [`pool`]s, each of which has a
//! [`dispatch`]er and carries out what that decides, or to one of the master's own parts. The
//! master never runs service code and parses no protocol.

mod child;
mod connection;
pub mod dispatch;
mod events;
mod listen;
mod master_only;
pub mod office;
pub mod plan;
mod planner;
mod pool;
mod pools;
mod reload;
mod removal;
mod snapshot;
mod store;
pub mod succession;
pub mod time;
mod transition;
mod workers;

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::error::{Plain, Result};
use crate::logging;
use child::{ChildEvent, LAST_CHANCE};
use events::epoll::{Epoll, Events};
use events::signals::{Request, Signals};
use events::token::{MasterEvent, Token};
use listen::matching;
use master_only::MasterOnly;
use office::service_manager::ServiceManager;
use office::{Endpoints, Office};
use plan::{Plan, PlanSource};
use pools::Pools;
pub use pools::check;
use reload::Reload;
use store::Store;
use succession::callers::Callers;
use succession::inherited::Inherited;
use succession::launch::{self, NewMaster, Upgrades};
use succession::new_side::TakeoverClient;
use succession::old_side::{self, NEW, TakeoverServer};
use succession::recover::{UnsettledTurns, open_store};
use succession::session::Session;
use time::Time;
use transition::{Run, Transition};

/// What a master begins with.
pub struct Start<'a> {
    /// What the pools are to be.
    pub plans: Vec<Plan<'a>>,
    /// Listeners that exist already (what else the plans want is bound), and the master from which
    /// it takes over.
    pub inherited: Inherited,
    /// Where it can be found.
    pub endpoints: Endpoints,
}

/// See the module.
struct Master<'a> {
    pools: Pools<'a>,
    source: &'a PlanSource<'a>,
    only: MasterOnly,
    office: Office,
    transition: Transition<'a>,
    /// What a master that was killed had lent.
    unsettled: Option<UnsettledTurns>,
    upgrades: Upgrades,
    /// The session with the new master, which stops too, and waits until this is closed.
    stopping_with: Option<Session>,
    callers: Callers,
    begin: Instant,
    run: Run,
}

/// Runs a server until it is told to stop.
///
/// # Errors
/// When the master can't be set up. Once it serves, it reports trouble in the log and goes on,
/// unless it can't wait for events.
pub fn run<'a>(start: Start<'a>, source: &'a PlanSource<'a>) -> Result<()> {
    let mut master = Master::set_up(start, source)?;
    let result = master.serve();
    if result.is_err() {
        master.pools.quit();
    }
    let now = master.now();
    master.pools.close_all(now);
    child::reap(master.pools.killed());
    master.upgrades.set_free();
    master.clear_store();
    result
}

impl<'a> Master<'a> {
    fn set_up(start: Start<'a>, source: &'a PlanSource<'a>) -> Result<Self> {
        let Start {
            plans,
            mut inherited,
            endpoints,
        } = start;
        let begin = Instant::now();
        let now = time_since(begin);
        let kept = plans.iter().flat_map(|plan| plan.keep.iter().copied());
        let own: Vec<_> = inherited.descriptors().into_iter().chain(kept).collect();
        let mut only = MasterOnly::with_inherited(&own);
        let epoll = Epoll::new()?;
        only.signals = Some(Signals::watched(&epoll)?);

        let takeover = inherited.takeover.take();
        let old = takeover.as_ref().map(TakeoverClient::old);
        let replaces = old.is_some();
        let manager = ServiceManager::new(inherited.notifier.take(), !replaces);
        for (plan, address, before) in matching::wanted(&plans) {
            inherited.listen_on(address, before, &plan.settings)?;
        }
        inherited.close_unused();
        let room = Pools::room(&plans, only.inherited.len())?;
        let store = open_store(manager.store_limit(), room, !replaces, now);
        only.inherited.extend(store.as_ref().map(Store::life_line));
        let mut pools = Pools::new(epoll, store);
        pools.begin(plans, inherited.listeners, room, replaces)?;
        let mut office = Office::new(endpoints, manager);
        office.prepare(old)?;
        if !replaces {
            office.open(pools.epoll())?;
        }
        let unsettled = inherited.recovered.adopt(&mut pools, now);
        Ok(Self {
            pools,
            source,
            only,
            office,
            transition: takeover.map_or(Transition::None, Transition::TakeOver),
            unsettled,
            upgrades: Upgrades::of_this_program(),
            stopping_with: None,
            callers: Callers::default(),
            begin,
            run: Run::Serving,
        })
    }

    fn now(&self) -> Time {
        time_since(self.begin)
    }

    // ---- the loop -------------------------------------------------------------------------------

    /// Goes on until the end.
    ///
    /// # Errors
    /// When this master was to take over and can't, or can't wait for events any more.
    fn serve(&mut self) -> Result<()> {
        let mut events = Events::default();
        loop {
            let now = self.now();
            self.pools.advance(&mut self.only, now);
            self.advance(now)?;
            self.deposit(now);
            if self.pools.is_empty() && !self.awaits_old_master(now) {
                if self.run != Run::Quitting {
                    log::info!("stopped");
                }
                self.end_takeover();
                return Ok(());
            }
            let losses = logging::report_losses(self.begin + now.since(BEGIN));
            let losses = losses.map(|wait| now.after(wait));
            let may_sleep = self.pools.fall_asleep();
            let timeout = match may_sleep {
                true => {
                    let due = self.next_due().into_iter().chain(losses).min();
                    due.map(|due| due.since(now))
                }
                false => Some(Duration::ZERO),
            };
            self.pools.epoll().wait(&mut events, timeout)?;
            self.pools.wake_up();
            let now = self.now();
            for (token, flags) in events.drain() {
                match token {
                    Token::Pool(place, event) => {
                        if let Some(pool) = self.pools.get_mut(place) {
                            pool.on_event(event, flags, now);
                        }
                    }
                    Token::Master(event) => self.on_event(event, now),
                }
            }
            self.pools.tick(now);
        }
    }

    fn on_event(&mut self, event: MasterEvent, now: Time) {
        match event {
            MasterEvent::Signals => self.on_signals(now),
            MasterEvent::Control => self.on_control(now),
            MasterEvent::NewMaster => {
                if let Transition::HandOver(server) = &mut self.transition {
                    let step = server.on_message(&mut self.pools, &mut self.office, now);
                    self.go_on_handing_over(step, now);
                }
            }
            MasterEvent::OldMaster => {
                if let Transition::TakeOver(client) = &mut self.transition
                    && let Some(why) = client.on_message(&mut self.pools, now)
                {
                    log::info!("the takeover is complete: {why}");
                    self.transition = Transition::None;
                    if let Some(store) = self.pools.store() {
                        store.predecessor_ended();
                    }
                }
            }
            MasterEvent::LifeLine => self.settle_recovered(now),
            MasterEvent::Planner => {
                if let Transition::Reload(reload) = &mut self.transition {
                    let step = reload.on_message(&mut self.pools, &mut self.office, now);
                    self.go_on_reloading(step);
                }
            }
        }
    }

    /// Does whatever is due in the master's own parts.
    ///
    /// # Errors
    /// When this master was to take over and can't.
    fn advance(&mut self, now: Time) -> Result<()> {
        // First: a takeover goes on when the manager knows of it.
        self.office.manager().tick(now);
        match &mut self.transition {
            Transition::None => {}
            Transition::Reload(reload) => {
                let step = reload.step(&mut self.pools, &mut self.office, now);
                self.go_on_reloading(step);
            }
            Transition::HandOver(server) => {
                let step = server.advance(&mut self.pools, &mut self.office, now);
                self.go_on_handing_over(step, now);
            }
            Transition::TakeOver(client) if !client.is_active() && self.run != Run::Serving => {
                self.transition = Transition::None;
            }
            Transition::TakeOver(client) => {
                client.advance(&mut self.pools, &mut self.office, now)?;
            }
        }
        self.settle_recovered(now);
        self.upgrades.escalate(now);
        self.callers.expire(self.pools.epoll(), now);
        if self.callers.is_to_retry(now) {
            self.on_control(now);
        }
        if self.is_settled() && self.pools.are_ready() {
            self.office.manager().ready();
        }
        // What came of all this is done before the master sleeps.
        self.pools.carry_out(now);
        Ok(())
    }

    /// When something is to be done if nothing happens.
    fn next_due(&self) -> Option<Time> {
        let due = [
            self.pools.next_due(),
            self.transition.due(&self.pools),
            self.office.next_due(),
            self.pools.store().and_then(Store::due),
            self.unsettled.as_ref().map(UnsettledTurns::due),
            self.upgrades.due(),
            self.callers.due(),
        ];
        due.into_iter().flatten().min()
    }

    /// Whether this master serves and nothing changes, as far as it knows.
    fn is_settled(&self) -> bool {
        let changing = matches!(self.transition, Transition::Reload(_));
        !changing && !self.transition.is_pending_takeover() && self.run == Run::Serving
    }

    // ---- signals --------------------------------------------------------------------------------

    fn on_signals(&mut self, now: Time) {
        let signals = self.only.signals.as_mut();
        for request in signals.map(Signals::requests).unwrap_or_default() {
            match request {
                Request::Reap => self.on_children(now),
                Request::Stop { interrupt } => self.stop(interrupt, now),
                Request::Quit => self.quit("SIGQUIT", now),
                Request::Reload => self.reload(now),
                Request::Reopen => logging::obey_reopen(),
                Request::Upgrade => self.upgrade(now),
                Request::Grow => self.resize_by(1, now),
                Request::Shrink => self.resize_by(-1, now),
            }
        }
    }

    /// Looks which children have ended, were stopped or go on.
    fn on_children(&mut self, now: Time) {
        while let Some((pid, event)) = child::next_event() {
            let ours = self.pools.on_child(pid, event, now);
            if !ours && let ChildEvent::Ended(exit) = event {
                self.on_exit(pid, &exit.to_string(), now);
            }
        }
    }

    /// A child that is no worker has ended: a new master that this one has started, or a planner.
    fn on_exit(&mut self, pid: Pid, how: &str, now: Time) {
        self.upgrades.forget(pid);
        if let Transition::Reload(reload) = &mut self.transition {
            let (pools, office) = (&mut self.pools, &mut self.office);
            let step = reload.on_exit(pid, how, pools, office, now);
            self.go_on_reloading(step);
        }
        if let Transition::HandOver(server) = &mut self.transition {
            let step = server.on_exit(pid, how);
            self.go_on_handing_over(step, now);
        }
    }

    fn resize_by(&mut self, change: isize, now: Time) {
        // A server that stops has no use for more, and lets all of them go anyway.
        if self.run == Run::Serving {
            let pools = self.pools.iter_mut();
            pools.for_each(|pool| pool.resize_by(change, now));
        }
    }

    fn stop(&mut self, interrupt: bool, now: Time) {
        match &mut self.run {
            Run::Quitting => {}
            Run::Stopping { interrupts } => {
                *interrupts += u32::from(interrupt);
                if *interrupts >= 2 {
                    self.quit("a second SIGINT", now);
                }
            }
            Run::Serving => self.begin_stop(u32::from(interrupt), now),
        }
    }

    /// Finishes what this master has, after so many SIGINT.
    fn begin_stop(&mut self, interrupts: u32, now: Time) {
        let longest = self.pools.longest(|settings| settings.grace);
        if self.run == Run::Serving {
            let grace = longest.as_secs();
            log::info!("stopping: at most {grace} s for what is in hand");
            self.office.manager().stopping();
        }
        self.run = Run::Stopping { interrupts };
        self.give_up_reload("the server stops", now);
        self.give_up_takeover("the server stops", now);
        if let Transition::TakeOver(client) = &mut self.transition {
            client.stop(now.after(longest + LAST_CHANCE));
        }
        self.pools.iter_mut().for_each(|pool| pool.stop(now));
        if let Some(store) = self.pools.store() {
            store.relist();
        }
    }

    fn quit(&mut self, why: &str, now: Time) {
        log::info!("stopping at once: {why}");
        self.run = Run::Quitting;
        self.give_up_reload("the server stops", now);
        self.give_up_takeover("the server stops", now);
        if let Transition::TakeOver(client) = &mut self.transition {
            // It waits for nothing, not for the end of the old one either.
            client.stop(now);
        }
        self.pools.quit();
    }

    // ---- reload ---------------------------------------------------------------------------------

    /// SIGHUP: reads the configuration anew, and begins to change over to it.
    fn reload(&mut self, now: Time) {
        if self.run != Run::Serving {
            return;
        }
        // A program that waits for the end of a reload is told of it, whatever comes of it.
        self.office.manager().reloading();
        if let Transition::HandOver(_) | Transition::TakeOver(_) = self.transition {
            return log::warn!("reload refused: a takeover is under way");
        }
        self.give_up_reload("another one begins", now);
        match Reload::begin(self.source, &mut self.only, &self.pools, &self.office, now) {
            Ok(reload) => self.transition = Transition::Reload(reload),
            Err(error) => reload::refuse(&error),
        }
    }

    fn go_on_reloading(&mut self, step: reload::Step) {
        if step == reload::Step::Over {
            self.transition = Transition::None;
        }
    }

    /// Gives up a reload that is under way, if one is.
    fn give_up_reload(&mut self, why: &str, now: Time) {
        match self.transition.take() {
            Transition::Reload(reload) => reload.give_up(why, &mut self.pools, now),
            other => self.transition = other,
        }
    }

    // ---- another master -------------------------------------------------------------------------

    /// Why no other master can take over now.
    fn obstacle(&self) -> Option<&'static str> {
        if self.run != Run::Serving {
            return Some("the server stops");
        }
        let recovering = "this master waits for workers of one that was killed";
        let recovering = self.unsettled.as_ref().map(|_| recovering);
        self.transition.obstacle().or(recovering)
    }

    /// SIGUSR2: starts the program anew, to take over.
    fn upgrade(&mut self, now: Time) {
        if let Some(why) = self.obstacle().or_else(launch::obstacle) {
            return log::warn!("upgrade refused: {why}");
        }
        let started = self.upgrades.start(&mut self.only, self.office.manager());
        match started {
            Ok((session, child)) => {
                let program = self.upgrades.launch();
                log::info!("upgrading: started {program} pid={}", child.pid());
                self.begin_handing_over(session, Some(child), now);
            }
            Err(error) => {
                let (program, error) = (self.upgrades.launch(), Plain(&error));
                log::error!("upgrade refused: cannot start {program}: {error}");
            }
        }
    }

    /// Somebody asks on the control socket, or one that has asked says what it wants.
    fn on_control(&mut self, now: Time) {
        let epoll = self.pools.epoll();
        self.callers.accept(&self.office, epoll, now);
        while let Some((session, version)) = self.callers.next(self.pools.epoll()) {
            // A process of another PID namespace has no number here, and outlives this one.
            let obstacle = || launch::obstacle().filter(|_| session.peer().as_raw() > 0);
            let pause = || self.callers.obstacle(now);
            if let Some(why) = self.obstacle().or_else(obstacle).or_else(pause) {
                log::warn!("takeover refused: {why}");
                session.refuse(why);
                continue;
            }
            self.begin_handing_over(session, None, now);
            if let Transition::HandOver(server) = &mut self.transition {
                let step = server.on_takeover(version, &self.pools, now);
                self.go_on_handing_over(step, now);
            }
        }
    }

    fn begin_handing_over(&mut self, mut session: Session, child: Option<NewMaster>, now: Time) {
        if let Some(signals) = &self.only.signals {
            session.wait_unless(signals.told_to_stop());
        }
        match TakeoverServer::begin(session, child, &self.pools, now) {
            Ok(server) => self.transition = Transition::HandOver(server),
            Err((error, child)) => {
                log::error!("cannot watch {NEW}: {}", Plain(&error));
                self.upgrades.end(child, now);
            }
        }
    }

    fn go_on_handing_over(&mut self, step: old_side::Step, now: Time) {
        match step {
            old_side::Step::GoOn => {}
            old_side::Step::Silent(why) => {
                self.callers.pause(self.now());
                self.go_on_handing_over(old_side::Step::Fail(why), now);
            }
            old_side::Step::GiveUp => {
                let held = self.pools.iter_mut().filter(|pool| !pool.is_ending());
                held.for_each(|pool| pool.thaw(now));
                self.on_signals(self.now());
            }
            old_side::Step::Fail(why) => {
                if let Transition::HandOver(server) = self.transition.take() {
                    let serving = self.run == Run::Serving;
                    let (pools, office) = (&mut self.pools, &mut self.office);
                    let child = server.fail(&why, serving, pools, office, now);
                    self.upgrades.end(child, now);
                }
            }
            old_side::Step::Stop => {
                if let Transition::HandOver(server) = self.transition.take() {
                    self.stopping_with = Some(server.into_session(self.pools.epoll()));
                }
                log::info!("{NEW} stops");
                let pools = self.pools.iter_mut();
                pools.for_each(|pool| pool.return_from_leave(now));
                // Also when it was told to stop itself, because it had left all to the new one.
                if let Some(interrupts) = self.run.interrupts() {
                    self.begin_stop(interrupts, now);
                }
            }
        }
    }

    /// Whether this master has nothing left to do, and stays for the one from which it has taken
    /// over.
    fn awaits_old_master(&self, now: Time) -> bool {
        let stopping = matches!(self.run, Run::Stopping { .. });
        matches!(&self.transition, Transition::TakeOver(old) if stopping && old.awaits_old(now))
    }

    /// Ends a takeover before the new master is in charge, because this one has other things to do.
    fn give_up_takeover(&mut self, why: &str, now: Time) {
        match self.transition.take() {
            Transition::HandOver(server) if !server.is_replaced() => {
                log::warn!("takeover given up: {why}");
                self.upgrades.end(server.into_child(), now);
            }
            other => self.transition = other,
        }
    }

    /// Nothing is left here for the new master, if there is one.
    fn end_takeover(&mut self) {
        match self.transition.take() {
            Transition::HandOver(server) if server.is_replaced() => server.end(),
            other => self.transition = other,
        }
    }

    // ---- what a service manager keeps -----------------------------------------------------------

    /// Settles what a killed master had lent, once its workers have ended or have had their time.
    fn settle_recovered(&mut self, now: Time) {
        UnsettledTurns::settle_if_over(&mut self.unsettled, &mut self.pools, now);
    }

    /// Tells the service manager what has changed.
    fn deposit(&mut self, now: Time) {
        if let Some(store) = self.pools.store() {
            store.deposit(&self.pools, self.office.manager(), now);
        }
    }

    /// The server has ended: nothing of it stays with the service manager.
    fn clear_store(&mut self) {
        if let Some(unsettled) = self.unsettled.take() {
            unsettled.end(&self.pools);
        }
        let Some(store) = self.pools.store().cloned() else {
            return;
        };
        if !self.transition.is_pending_takeover() {
            store.predecessor_ended();
        }
        let begin = self.begin;
        store.clear(&self.pools, self.office.manager(), || time_since(begin));
    }
}

/// The time when the master's clock begins. Nothing that was never set lies in its future.
const BEGIN: Time = Time(3600 * 1_000_000_000);

fn time_since(begin: Instant) -> Time {
    BEGIN.after(begin.elapsed())
}
