//! The loop of a worker that serves several turns at the same time: one thread receives, and hands
//! each connection to a serving thread over a channel.
//!
//! The receiving thread takes a connection out of the inbox only when a serving thread is free.
//! Other connections have to wait in the inbox, because only there can the master take them back.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::channel::inbox::{Assignment, MessageBuffer};
use crate::channel::start::WorkerHandles;
use crate::error::Plain;
use crate::service::{Buffer, Connection, Keeping, Service};
use crate::sys::process::exit_now;
use crate::wire::FromWorker;
use crate::worker::report::{Reporter, Served, turn};

/// Serves up to `count` turns at a time, until the master asks this worker to exit or is gone. Each
/// thread makes a service of its own with `make`.
///
/// # Errors
/// An error of the inbox, or a thread that can't be started.
pub fn serve<S: Service>(
    handles: WorkerHandles<'_>,
    keeping: &'static Keeping,
    count: usize,
    make: &(impl Fn() -> S + Sync),
) -> io::Result<()> {
    let (free, idle) = bounded(count);
    let (jobs, work) = bounded(count);
    let WorkerHandles {
        slot,
        inbox,
        board,
        linger,
    } = handles;
    let reporter = Mutex::new(Reporter::new(&inbox, board));
    let served = thread::scope(|scope| -> io::Result<()> {
        for number in 0..count {
            let (free, work, reporter) = (free.clone(), work.clone(), &reporter);
            let body = move || {
                // A panic ends the process, as it does in a worker with one thread, because the
                // state that the threads share can't be trusted any more.
                let served = catch_unwind(AssertUnwindSafe(|| {
                    serve_thread(&mut make(), &work, &free, reporter)
                }));
                if served.is_err() {
                    exit_now(crate::sys::process::PANICKED);
                }
            };
            let builder = thread::Builder::new().name(format!("serving {number}"));
            builder.spawn_scoped(scope, body).map_err(|error| {
                let (nth, error) = (number + 1, Plain(&error));
                io::Error::other(format!("thread {nth} of {count} does not start: {error}"))
            })?;
        }
        // Without this sender, `idle` ends when the last serving thread has ended.
        drop(free);
        lock(&reporter).send(&FromWorker::Ready { luggage: true }, None)?;
        let mut messages = MessageBuffer::default();
        while let Ok(buffer) = idle.recv() {
            match inbox.receive(&mut messages)? {
                Assignment::Serve(lend, borrowed) => {
                    lock(&reporter).board.count_taken();
                    let connection =
                        Connection::lent(borrowed.into(), &lend, slot, keeping, buffer);
                    if jobs.send(connection).is_err() {
                        break;
                    }
                }
                Assignment::Retire => break,
            }
        }
        // The threads finish their turns, then find the channel closed and end.
        drop(jobs);
        Ok(())
    });
    let reporter = reporter.into_inner();
    reporter
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .end(linger);
    served
}

fn serve_thread(
    service: &mut dyn Service,
    work: &Receiver<Connection>,
    free: &Sender<Buffer>,
    reporter: &Mutex<Reporter<'_>>,
) {
    let mut buffer = Buffer::default();
    while free.send(buffer).is_ok() {
        let Ok(mut connection) = work.recv() else {
            return;
        };
        let begin = Instant::now();
        let served = Served {
            outcome: turn(service, &mut connection),
            turns: 1,
            took: begin.elapsed(),
        };
        match lock(reporter).give_back(connection, &served) {
            Ok(returned) => buffer = returned,
            // The master is gone. The receiving thread sees that too, and ends the worker.
            Err(_) => return,
        }
    }
}

fn lock<'a, 'b>(reporter: &'a Mutex<Reporter<'b>>) -> std::sync::MutexGuard<'a, Reporter<'b>> {
    // The lock is never found poisoned, because a thread that panics ends the process.
    reporter
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
