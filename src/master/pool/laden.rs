//! Workers that have sent luggage while there was no descriptor for it: their messages wait where
//! they are, and idle connections give way as they do for newcomers.

use crate::error::Plain;
use crate::master::connection::descriptors;
use crate::master::dispatch::WorkerId;
use crate::master::time::Time;

use super::Pool;

impl Pool<'_> {
    /// A worker has sent luggage for which there is no descriptor.
    #[cold]
    pub(super) fn keep_waiting(&mut self, worker: WorkerId) {
        if !self.attention.laden.contains(&worker) {
            self.attention.laden.push(worker);
        }
        if let Some(process) = self.workers.get_mut(worker)
            && let Err(error) = process.channel.put_off(&self.epoll, worker)
        {
            log::error!("cannot watch worker {process}: {}", Plain(&error));
        }
    }

    /// Whether luggage waits for a descriptor.
    #[must_use]
    pub fn is_laden(&self) -> bool {
        !self.attention.laden.is_empty()
    }

    fn has_room_for_luggage(&self) -> bool {
        descriptors::count() <= self.dispatcher.descriptors()
    }

    /// Whether luggage waits that can be received.
    pub(super) fn can_receive_luggage(&self) -> bool {
        self.is_laden() && self.has_room_for_luggage()
    }

    /// Receives the luggage that waits, as far as there is room for it. Others give way.
    pub(super) fn receive_luggage(&mut self, now: Time) {
        if !self.is_laden() {
            return;
        }
        self.free_descriptors(now);
        if !self.has_room_for_luggage() {
            return;
        }
        for worker in std::mem::take(&mut self.attention.laden) {
            if let Some(process) = self.workers.get_mut(worker)
                && let Err(error) = process.channel.go_on(&self.epoll, worker)
            {
                log::error!("cannot watch worker {process}: {}", Plain(&error));
            }
            self.receive(worker, now);
        }
        self.carry_out(now);
    }

    /// Lets others give way to luggage, here or in another pool, if there is no descriptor for it.
    pub fn free_descriptors(&mut self, now: Time) {
        let most = self.dispatcher.descriptors();
        let short = descriptors::count().saturating_sub(most);
        if short > 0 {
            self.dispatcher.free_descriptors(short);
            self.carry_out(now);
        }
    }

    /// Has clients turned away if all workers wait for a descriptor: none of them would ever go on.
    pub fn force_descriptors(&mut self, now: Time) {
        let short = descriptors::count().saturating_sub(self.dispatcher.descriptors());
        if short > 0 && self.dispatcher.are_all_serving(&self.attention.laden) {
            self.dispatcher.force_room(short, now);
            self.carry_out(now);
            // Those that were told linger.
            self.free_descriptors(now);
        }
    }
}
