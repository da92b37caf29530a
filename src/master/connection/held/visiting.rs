//! A connection that another pool serves for a request.

use std::rc::Rc;

use super::{Held, Watch};
use crate::master::connection::visit::{PoolId, Visit};
use crate::master::snapshot::PoolKey;
use crate::wire::{Report, Traffic};

impl Held {
    /// Whether the turn that ends with this report has sent something, as far as that is known.
    #[must_use]
    pub fn has_answered(&self, report: &Report<'_>) -> bool {
        let sent = |now: Traffic| now.written != self.total.written + self.moved().written;
        match report.traffic {
            Some(traffic) => traffic.written > 0,
            None => self.counted().is_some_and(sent),
        }
    }

    /// What is to be known of a connection that is with another pool than its own.
    #[must_use]
    pub fn visit(&self) -> Option<&Visit> {
        self.visit.as_deref()
    }

    /// Sets out for another pool. What travels with it stays at home.
    pub fn set_out(&mut self, target: &str, (home, name): (PoolId, &Rc<str>)) {
        let visit = Visit::to(target, (home, name), self.baggage.take());
        self.visit = Some(Box::new(visit));
        self.outdate_watch();
    }

    /// The other pool has done its part: what that has left goes, and what was left at home is
    /// there again.
    pub fn go_home(&mut self) {
        if let Some(visit) = self.visit.take() {
            self.baggage = visit.baggage;
            self.outdate_watch();
        }
    }

    /// The connection is over. Returns its own pool, if it is with another one.
    pub fn end_visit(&mut self) -> Option<PoolId> {
        Some(self.visit.take()?.home)
    }

    /// The epoll set has the connection under a name that is not its own any more.
    fn outdate_watch(&mut self) {
        if self.watch == Watch::Input {
            self.watch = Watch::Once;
        }
    }

    /// The connection is in this pool from now on, as far as a service manager is concerned.
    pub fn move_kept(&mut self, pool: PoolKey) {
        if let Some(kept) = &mut self.kept {
            kept.move_to(pool);
        }
    }
}
