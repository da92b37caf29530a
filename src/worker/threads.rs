//! A worker that serves several turns at the same time: a receiving thread, and serving threads over a channel.
//!
//! A connection is taken out of the inbox only when a thread is free for it: what waits must wait in the inbox, where
//! the master can take it back.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Reporter, Served, turn};
use crate::channel::inbox::{Assignment, MessageBuffer};
use crate::channel::start::WorkerHandles;
use crate::service::{Buffer, Connection, Service};
use crate::sys::process::exit_now;
use crate::wire::FromWorker;

/// Serves until the master wants no more of this worker, up to `count` turns at a time. Each thread makes a service of
/// its own.
///
/// # Errors
/// When the inbox fails, or a thread can't be started.
pub fn serve<S: Service>(
    seat: WorkerHandles<'_>,
    count: usize,
    make: &(impl Fn() -> S + Sync),
) -> io::Result<()> {
    let (free, idle) = bounded(count);
    let (jobs, work) = bounded(count);
    let WorkerHandles { slot, inbox, board } = seat;
    let reporter = Mutex::new(Reporter {
        inbox: &inbox,
        board,
    });
    thread::scope(|scope| {
        for number in 0..count {
            let (free, work, reporter) = (free.clone(), work.clone(), &reporter);
            let body = move || {
                // A panic ends the process, as in a worker with one thread: what was served is not to be trusted.
                let served = catch_unwind(AssertUnwindSafe(|| {
                    serve_thread(&mut make(), &work, &free, reporter)
                }));
                if served.is_err() {
                    exit_now(crate::sys::process::PANICKED);
                }
            };
            thread::Builder::new()
                .name(format!("serving {number}"))
                .spawn_scoped(scope, body)?;
        }
        // The channel ends when the last thread has gone.
        drop(free);
        lock(&reporter).send(&FromWorker::Ready)?;
        let mut messages = MessageBuffer::default();
        while let Ok(buffer) = idle.recv() {
            match inbox.receive(&mut messages)? {
                Assignment::Serve(lend, socket) => {
                    lock(&reporter).board.took();
                    let connection = Connection::lent(socket, &lend, slot, buffer);
                    if jobs.send(connection).is_err() {
                        break;
                    }
                }
                Assignment::Retire => break,
            }
        }
        // The threads finish what they have, then find the channel closed.
        drop(jobs);
        Ok(())
    })
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
            Ok(spare) => buffer = spare,
            // The master is gone: the receiving thread finds out by itself.
            Err(_) => return,
        }
    }
}

fn lock<'a, 'b>(reporter: &'a Mutex<Reporter<'b>>) -> std::sync::MutexGuard<'a, Reporter<'b>> {
    // A thread that panics ends the process, so nobody ever sees the lock poisoned.
    reporter
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
