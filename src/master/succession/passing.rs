//! What the old master's pools do in a takeover: hold still, tell of their connections, and let go of them.

use std::io;
use std::os::fd::AsFd;

use crate::config::Address;
use crate::master::dispatch::table::ConnectionId;
use crate::master::dispatch::{Interest, Lending};
use crate::master::listen::listener::Listener;
use crate::master::pool::{Phase, Pool};
use crate::master::store::Kept;
use crate::master::succession::messages::{FromOld, Passed, Waiting};
use crate::master::succession::session::Session;
use crate::master::time::Time;

impl Pool<'_> {
    /// Holds still, so that another master can be told how everything stands.
    pub(in crate::master) fn freeze(&mut self, now: Time) {
        self.hold_accepting();
        self.dispatcher.set_lending(Lending::Frozen, now);
        // What was decided before is done: it says what a connection waits for.
        self.carry_out(now);
    }

    pub(in crate::master) fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    /// Whether it is on its way to its end, and nothing brings it back.
    pub(in crate::master) fn is_ending(&self) -> bool {
        !self.is_serving() && !self.is_leaving()
    }

    /// Goes on as before.
    pub(in crate::master) fn thaw(&mut self, now: Time) {
        self.return_from_leave(now);
        self.dispatcher.set_lending(Lending::Yes, now);
        self.listeners.iter_mut().for_each(Listener::own);
        self.begin_accepting();
    }

    /// Serves what it has, whatever another master does. That one still accepts.
    pub(in crate::master) fn return_from_leave(&mut self, now: Time) {
        if self.is_leaving() {
            self.phase = Phase::Serving;
            self.upkeep.soon();
            self.dispatcher.set_lending(Lending::Yes, now);
        }
    }

    /// These listeners are the new master's.
    pub(in crate::master) fn disown_listeners(&mut self, kept: &[String]) {
        for listener in &mut self.listeners {
            if is_kept(kept, listener.asked()) {
                listener.disown();
            }
        }
    }

    /// Tells of all connections that are not lent, and gives their descriptors along.
    ///
    /// # Errors
    /// As [`Session::tell`].
    pub(in crate::master) fn pass_all(
        &mut self,
        session: &Session,
        now: Time,
    ) -> io::Result<Vec<ConnectionId>> {
        let ids = self.dispatcher.passable();
        for id in &ids {
            self.pass(*id, session, now)?;
        }
        Ok(ids)
    }

    fn pass(&mut self, id: ConnectionId, session: &Session, now: Time) -> io::Result<()> {
        let standing = self.dispatcher.standing(id, now);
        let (Some(standing), Some(held)) = (standing, self.dispatcher.payload(id)) else {
            return Ok(());
        };
        let waiting = match held.interest() {
            _ if standing.ready => Waiting::Worker,
            Interest::Output => Waiting::Output,
            Interest::Input | Interest::NewInput => Waiting::Input,
        };
        let passed = Passed {
            pool: (&*self.plan.name).into(),
            peer: held.peer(),
            turns: standing.turns,
            waiting,
            left: standing.left,
            owing: standing.owing,
            total: held.total(),
            stored: held.kept().is_some_and(Kept::is_stored),
            carry: held.carry(),
        };
        session.tell(&FromOld::Connection(passed), Some(held.descriptor()))
    }

    /// A connection is the new master's.
    pub(in crate::master) fn forget(&mut self, id: ConnectionId) {
        let epoll = self.epoll.as_fd();
        if let Some(mut held) = self.dispatcher.release(id) {
            held.unwatch(epoll);
            held.pass_on();
            self.clients.leave(held.peer());
        }
    }

    /// Serves no more, but for what is lent. Listeners that nobody has kept are closed, and what waits there goes to
    /// the new master with the rest.
    pub(in crate::master) fn leave(&mut self, kept: &[String], now: Time) {
        let until = now.after(self.plan.settings.grace);
        self.phase = Phase::Leaving { until };
        self.dispatcher.set_lending(Lending::PassingOn, now);
        // There may be room for more now.
        self.carry_out(now);
        self.held_back = false;
        self.close_listeners(|address| !is_kept(kept, address), now);
        self.hold_accepting();
        self.rouse();
    }

    /// Passes on what has become ready or parked since.
    ///
    /// # Errors
    /// As [`Session::tell`].
    pub(in crate::master) fn pass_on(&mut self, session: &Session, now: Time) -> io::Result<()> {
        for id in self.dispatcher.passable() {
            self.pass(id, session, now)?;
            self.forget(id);
        }
        Ok(())
    }
}

fn is_kept(kept: &[String], address: &Address) -> bool {
    kept.contains(&address.to_string())
}
