//! Lending connections to workers, and taking back what a slow one has not begun.

use crate::channel::inbox::Lent;
use crate::error::Plain;
use crate::master::dispatch::table::ConnectionId;
use crate::master::dispatch::{Canned, Progress, WorkerId};
use crate::master::snapshot::Place;
use crate::master::time::Time;
use crate::wire::Lend;

use super::Pool;
use super::overload::Cause;
use super::reports::store_ready;
use super::unawaited::{Fate, LONG_WAIT, fate};

impl Pool<'_> {
    pub(super) fn lend(&mut self, worker: WorkerId, id: ConnectionId, now: Time) {
        let uncontended = self.dispatcher.is_uncontended();
        let process = self.workers.get_mut(worker);
        let lendable = self.dispatcher.lendable(id);
        let (Some(process), Some((turn, ready_at, held))) = (process, lendable) else {
            return self.dispatcher.lend_refused(worker, id, now);
        };
        // One that has waited for so long may have lost its client meanwhile.
        if ready_at.after(LONG_WAIT) < now {
            let stopping = Some(Canned::Stopping);
            match fate(held, self.phase, &self.plan.profile) {
                Fate::Serve => {}
                Fate::Tell => return self.dispatcher.withdraw(worker, id, stopping, now),
                Fate::Close => return self.dispatcher.withdraw(worker, id, None, now),
            }
        }
        if held.luggage().is_some() && !process.channel.takes_luggage() {
            let peer = held.peer();
            log::warn!("cannot lend {peer} to worker {process}: it takes no luggage; closing it");
            return self.dispatcher.withdraw(worker, id, None, now);
        }
        let lend = Lend {
            id: id.into(),
            turn,
            peer: held.peer(),
            watched: held.is_watched(),
            luggage: held.luggage().is_some(),
            away: held.visit().is_some(),
            moved: held.moved(),
            note: held.note(),
            carry: held.carry(),
        };
        self.attention.may_stay |= uncontended;
        held.store(Place::Lent, &Progress::before(turn), now);
        match process
            .channel
            .lend(lend, held.descriptor(), held.luggage(), uncontended)
        {
            Ok(Lent::Sent) => {}
            Ok(Lent::Full) => self.refused(worker, id, now),
            Ok(Lent::Refused(errno)) => {
                self.suffer(
                    Cause::Lends(errno.raw_os_error()),
                    self.dispatcher.connections(),
                    now,
                );
                self.refused(worker, id, now);
            }
            Ok(Lent::Gone) => {
                self.refused(worker, id, now);
                self.retire(worker, now);
            }
            Err(error) => {
                let (peer, error) = (held.peer(), Plain(&error));
                log::error!("cannot lend {peer} to worker {process}: {error}");
                self.refused(worker, id, now);
            }
        }
    }

    /// A lend did not go out.
    #[cold]
    fn refused(&mut self, worker: WorkerId, id: ConnectionId, now: Time) {
        self.dispatcher.lend_refused(worker, id, now);
        store_ready(&self.dispatcher, id, now);
    }

    /// A worker has made no progress within the patience: others get what lies in its inbox.
    pub(super) fn take_back_from_slow(&mut self, worker: WorkerId, now: Time) {
        let Some(process) = self.workers.get(worker) else {
            return;
        };
        match process.channel.inbox_length() {
            Some(0) if process.channel.stays() => self.dispatcher.worker_stays(worker, now),
            Some(0) => self.dispatcher.inbox_empty(worker, now),
            // It has not even been woken: that is the kernel's scheduling, and may take a moment.
            Some(waiting)
                if waiting == self.dispatcher.lent(worker) as u64
                    && self.dispatcher.extend_patience(worker, now) =>
            {
                return;
            }
            Some(_) | None => self.take_back(worker, now),
        }
        self.ask_to_ring(worker, now);
    }

    /// Receives back whatever lies in a worker's inbox.
    #[cold]
    pub(super) fn take_back(&mut self, worker: WorkerId, now: Time) {
        while let Some(process) = self.workers.get_mut(worker) {
            match process.channel.take_back(&mut self.buffers.message) {
                Ok(Some(id)) => {
                    self.dispatcher.taken_back(worker, id.into());
                    store_ready(&self.dispatcher, id.into(), now);
                }
                Ok(None) => break,
                Err(error) => {
                    let error = Plain(&error);
                    log::error!("cannot take back from worker {process}: {error}");
                    break;
                }
            }
        }
        self.buffers.message.wipe();
        self.dispatcher.inbox_empty(worker, now);
    }

    /// Asks a worker to exit.
    pub(super) fn retire(&mut self, worker: WorkerId, now: Time) {
        self.dispatcher.retire(worker);
        let until = self.grace_until(now);
        if let Some(process) = self.workers.get_mut(worker) {
            if let Err(error) = process.retire(until, now) {
                log::error!("cannot retire worker {process}: {}", Plain(&error));
            }
            self.workers.schedule_check();
        }
    }
}
