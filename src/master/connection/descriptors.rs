//! How many descriptors this process has for connections and their luggage, and which of them
//! another process is to close for the last time.
//!
//! Both are known to the one thread of the master, whichever pool a connection is in.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::error::Plain;
use crate::master::time::Time;
use crate::sys;

/// How long what is to be closed waits for more of it: a fork for each would cost a busy master
/// more than the connections themselves.
const GATHERED_FOR: Duration = Duration::from_millis(50);

/// How much of it waits at the most.
const GATHERED: usize = 64;

/// How long it stays open when there is no process to close it.
const RETRY: Duration = Duration::from_secs(1);

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static NUMBER: Cell<u64> = const { Cell::new(0) };
    static DROPPED: RefCell<Vec<(OwnedFd, Counted)>> = const { RefCell::new(Vec::new()) };
}

/// A descriptor of a connection, or of its luggage: it counts as long as this is there.
#[derive(Debug)]
pub struct Counted(());

impl Counted {
    /// Counts one more.
    #[must_use]
    pub fn new() -> Self {
        COUNT.set(COUNT.get() + 1);
        Self(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COUNT.set(COUNT.get() - 1);
    }
}

/// How many there are.
#[must_use]
pub fn count() -> usize {
    COUNT.get()
}

/// A number that was not given before.
#[must_use]
pub fn new_number() -> u64 {
    NUMBER.set(NUMBER.get() + 1);
    NUMBER.get()
}

/// Has one closed by another process, soon.
pub fn close_later(descriptor: OwnedFd, counted: Counted) {
    DROPPED.with_borrow_mut(|dropped| dropped.push((descriptor, counted)));
}

/// When what was dropped is closed.
#[derive(Debug, Default)]
pub struct Closing {
    due: Option<Time>,
    /// The log has said that there is no process to close it.
    warned: bool,
}

impl Closing {
    /// When there is something to do if nothing happens.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        let some = DROPPED.with_borrow(|dropped| !dropped.is_empty());
        // What was dropped since the last look is due at once: then it is seen.
        some.then(|| self.due.unwrap_or_default())
    }

    /// Closes what is due, or all if descriptors are `short`.
    pub fn advance(&mut self, short: bool, now: Time) {
        let count = DROPPED.with_borrow(Vec::len);
        if count == 0 {
            return;
        }
        let due = *self.due.get_or_insert(now.after(GATHERED_FOR));
        if due <= now || !self.warned && (short || count >= GATHERED) {
            self.close_all(now);
        }
    }

    /// Closes all of it. Without a process to do that it stays open, and is tried again.
    pub fn close_all(&mut self, now: Time) {
        let (descriptors, counted): (Vec<_>, Vec<_>) = DROPPED.take().into_iter().unzip();
        if descriptors.is_empty() {
            return;
        }
        match sys::dispose::close_elsewhere(descriptors) {
            Ok(()) => *self = Self::default(),
            Err((error, descriptors)) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let count = descriptors.len();
                    let error = Plain(&error);
                    log::error!("cannot close {count} pieces of luggage: {error}; trying again");
                }
                self.due = Some(now.after(RETRY));
                DROPPED.with_borrow_mut(|dropped| {
                    dropped.extend(descriptors.into_iter().zip(counted));
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::master::connection::luggage::Luggage;

    fn large() -> Luggage {
        let memory = memfd_create("large", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&memory, &vec![1; 2 << 20]).unwrap();
        memory.into()
    }

    /// A process with threads forks none, so there is nobody to close anything here.
    #[test]
    fn what_takes_long_to_close_waits_for_more_and_for_a_process() {
        let mut closing = Closing::default();
        assert_eq!((closing.due(), count()), (None, 0));
        drop(Luggage::from(
            memfd_create("small", MemfdFlags::CLOEXEC).unwrap(),
        ));
        assert_eq!((closing.due(), count()), (None, 0));
        drop(large());
        // It is seen at once, and waits for more.
        assert_eq!((closing.due(), count()), (Some(Time(0)), 1));
        closing.advance(false, Time(1));
        let due = closing.due().unwrap();
        assert_eq!(due, Time(1).after(GATHERED_FOR));
        drop(large());
        closing.advance(false, Time(2));
        assert_eq!((closing.due(), count()), (Some(due), 2));
        closing.advance(false, due);
        let again = due.after(RETRY);
        assert_eq!((closing.due(), count()), (Some(again), 2));
        closing.advance(true, due);
        assert_eq!(closing.due(), Some(again));
    }

    #[test]
    fn what_takes_long_to_close_does_not_wait_when_it_is_much_or_descriptors_are_short() {
        for (short, pieces) in [(true, 1), (false, GATHERED)] {
            let mut closing = Closing::default();
            (0..pieces).for_each(|_| drop(large()));
            closing.advance(short, Time(1));
            assert_eq!(closing.due(), Some(Time(1).after(RETRY)));
        }
    }
}
