//! Connections that go to another master, and those that come from one.

use std::os::fd::OwnedFd;

use crate::master::connection::held::Held;
use crate::master::connection::luggage::Luggage;
use crate::master::connection::visit::Visit;
use crate::master::dispatch::table::ConnectionId;
use crate::master::dispatch::{Canned, Interest, Progress, Verdict};
use crate::master::snapshot::{Packing, Place, Snapshot};
use crate::master::time::Time;
use crate::service::Peer;

use super::visits::count_out;
use super::{Phase, Pool};

impl Pool<'_> {
    /// The connections that can be passed on: those that wait for a worker in their order, then the
    /// parked ones. Those that are lent follow when their turns are over.
    #[must_use]
    pub fn passable(&self) -> Vec<ConnectionId> {
        self.dispatcher.passable()
    }

    /// A connection that is ready or parked, as another master must know it.
    #[must_use]
    pub fn snapshot(&self, id: ConnectionId, now: Time) -> Option<(Snapshot, &Held)> {
        let progress = self.dispatcher.progress(id, now)?;
        let held = self.dispatcher.payload_of(id)?;
        let place = match progress.ready {
            true => Place::Ready,
            false => Place::Parked,
        };
        Some((held.snapshot(self.key(), place, &progress), held))
    }

    /// Forgets a connection that another master has from now on.
    pub fn forget(&mut self, id: ConnectionId) {
        if let Some(mut held) = self.dispatcher.release(id) {
            held.unwatch(&self.epoll);
            held.pass_on();
            count_out(&mut held, &mut self.listeners, &mut self.ended_visits);
        }
    }

    /// Ends a connection with which another master can't go on. What was sent reaches its client.
    pub fn end_unpassable(&mut self, id: ConnectionId, now: Time) {
        match self.held(id) {
            Some(held) if held.has_unsent() => self.dispatcher.finish(id, now),
            _ => self.dispatcher.hung_up(id),
        }
        self.carry_out(now);
    }

    /// Whether somebody is there to serve a connection of another master.
    #[must_use]
    pub fn serves_adopted(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Stopping { .. })
    }

    /// Goes on with a connection of another master. What became of one that was lent is asked of
    /// the kernel, so nobody may be serving it any more.
    pub fn adopt(
        &mut self,
        (snapshot, visit): (&Snapshot, Option<Visit>),
        peer: Peer,
        (socket, luggage): (OwnedFd, Option<Luggage>),
        now: Time,
    ) {
        let mut held = Held::adopted(socket, peer, (snapshot, visit), luggage);
        if snapshot.stored {
            let store = self.store.as_ref();
            let kept = store.and_then(|store| store.keep_stored(held.cookie().ok()?, self.key()));
            held.set_copied(kept);
        }
        if let Packing::Stored(_) = snapshot.packed.luggage {
            self.know_stored_luggage(&held);
        }
        match snapshot.place {
            Place::Parked | Place::Ready => {
                self.go_on_with(held, snapshot.interest, &snapshot.progress(), now);
            }
            Place::Lent => self.settle_lent(held, snapshot.turns + 1, now),
            Place::Ending => self.take_leave(held, None, now),
        }
    }

    /// A connection of another master, which is this pool's, is with another pool.
    pub fn adopt_away(&mut self, peer: Peer) {
        let _ = self.listeners.clients().enter(peer);
        self.dispatcher.adopt_away();
    }

    /// The manager has the luggage of a connection of another master.
    fn know_stored_luggage(&self, held: &Held) {
        match (held.kept(), held.luggage_number()) {
            (Some(kept), Some(number)) => kept.luggage_came_stored(number),
            _ => {
                // There is no place for it in the ledger.
                if let (Some(store), Ok(cookie)) = (&self.store, held.cookie()) {
                    store.forget_luggage(cookie);
                }
            }
        }
    }

    fn go_on_with(&mut self, held: Held, interest: Interest, progress: &Progress, now: Time) {
        self.count_in(&held);
        let interest = match interest {
            Interest::Output => Interest::Output,
            Interest::Input | Interest::NewInput => Interest::Input,
        };
        let place = match progress.ready {
            true => Place::Ready,
            false => Place::Parked,
        };
        held.store(place, progress, now);
        let guest = held.visit().is_some();
        self.dispatcher
            .adopt(held, (progress, guest), interest, now);
    }

    /// Looks what came of a turn whose worker died with its master.
    fn settle_lent(&mut self, mut held: Held, turn: u64, now: Time) {
        let peer = held.peer();
        let consequence = match held.examine(None, None) {
            Verdict::Resumable { .. } => {
                let progress = Progress::before(turn);
                self.go_on_with(held, Interest::Input, &progress, now);
                "another worker goes on with it"
            }
            Verdict::Untouched => {
                let unfinished = held.is_unfinished();
                let progress = Progress {
                    ready: !unfinished && held.has_input(),
                    remaining: self.plan.settings.idle_timeout,
                    ..Progress::before(turn)
                };
                let interest = match unfinished {
                    true => Interest::Output,
                    false => Interest::Input,
                };
                self.go_on_with(held, interest, &progress, now);
                "nothing was read, so it goes on"
            }
            Verdict::Consumed if held.is_unfinished() => {
                self.take_leave(held, None, now);
                "a part of the response was sent, so it is closed"
            }
            Verdict::Consumed => {
                self.take_leave(held, Some(Canned::Crashed), now);
                "nothing was sent, so the client gets an error reply"
            }
            Verdict::Sent | Verdict::Served(_) | Verdict::Unknown => {
                self.take_leave(held, None, now);
                "something was sent, so it is closed"
            }
        };
        log::info!("the master was killed in turn {turn} of {peer}: {consequence}");
    }

    /// Counts a connection for its client, unless that is done at its home. It was counted by the
    /// other master, and is not refused now.
    fn count_in(&mut self, held: &Held) {
        if held.visit().is_none() {
            let _ = self.listeners.clients().enter(held.peer());
        }
    }

    /// A connection is over, and lingers: its client may have yet to take what was sent.
    fn take_leave(&mut self, held: Held, reply: Option<Canned>, now: Time) {
        held.enter(Place::Ending);
        self.count_in(&held);
        self.dispatcher.adopt_over(held, reply, now);
    }
}
