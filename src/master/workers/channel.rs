//! How the master speaks to one worker: messages over its socketpair, and reports on its
//! scoreboard.
//!
//! A worker may do without a scoreboard. Then all of its reports are messages, and the master
//! watches the socketpair. A worker that has one rings its doorbell instead, for messages too: an
//! epoll set on the sending side would be called for each message that the worker takes, because
//! that makes room to send (unix_write_space in the kernel), and its lock is one that all share.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::channel::inbox::{Lent, MasterEnd, MessageBuffer, Received};
use crate::channel::scoreboard::{Entry, Malformed, Scoreboard, Sleep};
use crate::master::dispatch::WorkerId;
use crate::master::events::epoll::{EventFlags, PoolEpoll};
use crate::master::events::token::PoolEvent;
use crate::wire::{FromWorker, Lend, LuggageChange, Report};

/// See the module.
#[derive(Debug)]
pub struct Channel {
    end: MasterEnd,
    board: Option<Scoreboard>,
    /// How many connections were sent into the inbox, without those that were taken back.
    sent: u64,
    /// Whatever the worker still says is ignored.
    deaf: bool,
    /// What the worker says is not listened to for a while.
    put_off: bool,
}

/// What a worker says in a message.
#[derive(Debug)]
pub enum Said<'a> {
    /// The worker can serve.
    Ready,
    /// A turn is over, and this luggage came with the report.
    Turn(Report<'a>, Option<OwnedFd>),
    /// It has sent luggage, which waits until there is a descriptor for it.
    Laden,
}

/// Why a worker's message cannot be used.
#[derive(Debug)]
pub enum Fault {
    /// The worker has sent what no honest worker sends.
    Protocol(String),
    /// The socketpair fails.
    System(io::Error),
}

impl Channel {
    /// A channel over a worker's socketpair, with the scoreboard that both share, if there is one.
    #[must_use]
    pub fn new(end: MasterEnd, board: Option<Scoreboard>) -> Self {
        Self {
            end,
            board,
            sent: 0,
            deaf: false,
            put_off: false,
        }
    }

    /// Begins to listen to the worker.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn watch(&self, epoll: &PoolEpoll, worker: WorkerId) -> io::Result<()> {
        let event = PoolEvent::Worker(worker);
        match &self.board {
            // Each ring is an event of its own, and the counter need not be read.
            Some(board) => epoll.add(board.doorbell(), event, EventFlags::IN | EventFlags::ET),
            None => epoll.add(&self.end, event, EventFlags::IN),
        }
    }

    /// Stops listening for good, because a rogue worker may ring and report without end.
    pub fn unwatch(&mut self, epoll: &PoolEpoll) {
        self.deaf = true;
        match &self.board {
            Some(board) => epoll.remove(board.doorbell()),
            None => epoll.remove(&self.end),
        }
    }

    /// Does not listen to messages until [`go_on`](Self::go_on). Reports on the board count all the
    /// same.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn put_off(&mut self, epoll: &PoolEpoll, worker: WorkerId) -> io::Result<()> {
        self.put_off = true;
        self.set_watch(epoll, worker, EventFlags::empty())
    }

    /// Listens again.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn go_on(&mut self, epoll: &PoolEpoll, worker: WorkerId) -> io::Result<()> {
        self.put_off = false;
        self.set_watch(epoll, worker, EventFlags::IN)
    }

    fn set_watch(&self, epoll: &PoolEpoll, worker: WorkerId, flags: EventFlags) -> io::Result<()> {
        match self.board {
            None if !self.deaf => epoll.modify(&self.end, PoolEvent::Worker(worker), flags),
            // A doorbell makes one event for each ring, whether it is answered or not.
            _ => Ok(()),
        }
    }

    // ---- to the worker --------------------------------------------------------------------------

    /// Lends a connection, without sleeping. `may_stay` says that the worker may wait on it for the
    /// next request when the turn is over, because nobody else waits for a worker.
    ///
    /// # Errors
    /// What sendmsg(2) fails with, but for the expected outcomes that [`Lent`] names.
    pub fn lend(
        &mut self,
        lend: Lend<'_>,
        connection: BorrowedFd<'_>,
        luggage: Option<BorrowedFd<'_>>,
        may_stay: bool,
    ) -> io::Result<Lent> {
        self.set_may_stay(may_stay);
        let lent = self.end.lend(lend, connection, luggage)?;
        if lent == Lent::Sent {
            self.count_sent(self.sent + 1);
        }
        Ok(lent)
    }

    /// Takes back the connection that has been in the inbox for longest, and returns its name.
    ///
    /// # Errors
    /// What recv(2) fails with.
    pub fn take_back(&mut self, buffer: &mut MessageBuffer) -> io::Result<Option<u64>> {
        let taken = self.end.take_back(buffer)?;
        if taken.is_some() {
            self.count_sent(self.sent - 1);
        }
        Ok(taken)
    }

    fn count_sent(&mut self, sent: u64) {
        self.sent = sent;
        if let Some(board) = &self.board {
            board.sent(sent);
        }
    }

    /// Asks the worker to exit, behind whatever is in its inbox.
    ///
    /// # Errors
    /// What sendmsg(2) fails with; EPIPE when the worker takes no more.
    pub fn retire(&self) -> io::Result<()> {
        self.end.retire()
    }

    /// Says whether the worker may stay with a connection.
    pub fn set_may_stay(&self, may_stay: bool) {
        if let Some(board) = &self.board {
            board.set_may_stay(may_stay);
        }
    }

    /// Says that the master sleeps, and asks to be woken for the next report. False when there is a
    /// report already.
    #[must_use]
    pub fn sleep(&self, sleep: Sleep) -> bool {
        // A worker without a board wakes the master with each message.
        let board = self.board.as_ref().filter(|_| !self.deaf);
        board.is_none_or(|board| board.sleep(sleep))
    }

    /// Says that the master is awake, and looks by itself.
    pub fn wake(&self) {
        if let Some(board) = &self.board {
            board.wake();
        }
    }

    /// Whether the worker takes luggage.
    #[must_use]
    pub fn takes_luggage(&self) -> bool {
        self.end.accepts_luggage()
    }

    // ---- from the worker ------------------------------------------------------------------------

    /// The next report on the board. This costs no system call. It is the entry itself, because
    /// every request has one, and whatever is put around it is moved with it.
    ///
    /// # Errors
    /// [`Malformed`] for a report that no honest worker writes.
    pub fn next_published(&self, buffer: &mut MessageBuffer) -> Option<Result<Entry, Malformed>> {
        let board = self.board.as_ref().filter(|_| !self.deaf);
        board.and_then(|board| board.collect(buffer.text()))
    }

    /// The message of so many bytes that was on the board.
    ///
    /// # Errors
    /// [`Fault::Protocol`] for a message that no honest worker puts there.
    pub fn published_message<'b>(
        &self,
        buffer: &'b mut MessageBuffer,
        length: usize,
    ) -> Result<Option<Said<'b>>, Fault> {
        match buffer.said(length) {
            Ok(FromWorker::Report(report)) if report.extras.luggage != LuggageChange::New => {
                Ok(Some(Said::Turn(report, None)))
            }
            Ok(_) => Err(Fault::Protocol("a message on its board".to_owned())),
            Err(error) => Err(Fault::Protocol(format!("bad message: {error}"))),
        }
    }

    /// The next message. Without `room` for descriptors, one that brings luggage stays where it is.
    ///
    /// # Errors
    /// [`Fault::Protocol`] for a message that no honest worker sends, and what recvmsg(2) fails
    /// with.
    pub fn next_message<'b>(
        &mut self,
        buffer: &'b mut MessageBuffer,
        room: bool,
    ) -> Result<Option<Said<'b>>, Fault> {
        if self.deaf || self.put_off && !room {
            return Ok(None);
        }
        match self.end.receive(buffer, room) {
            Ok(Received::Nothing) => Ok(None),
            Ok(Received::Laden) => Ok(Some(Said::Laden)),
            Ok(Received::Message(FromWorker::Ready { luggage }, _)) => {
                if luggage {
                    self.end.accept_luggage().map_err(Fault::System)?;
                }
                Ok(Some(Said::Ready))
            }
            Ok(Received::Message(FromWorker::Report(report), luggage)) => {
                Ok(Some(Said::Turn(report, luggage)))
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(Fault::Protocol(format!("bad message: {error}")))
            }
            Err(error) => Err(Fault::System(error)),
        }
    }

    /// How many connections lie in the inbox: sent, and neither taken up nor taken back. `None`
    /// when that can't be known without asking the kernel.
    #[must_use]
    pub fn inbox_length(&self) -> Option<u64> {
        let board = self.board.as_ref()?;
        Some(self.sent.saturating_sub(board.taken()))
    }

    /// How many connections the worker has taken up, as far as that is known.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.board.as_ref().map_or(0, Scoreboard::taken)
    }

    /// Whether the worker stays with its connection, waiting for the client's next request.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.board.as_ref().is_some_and(Scoreboard::stays)
    }

    /// What a dead worker had served of a connection without a report, and what it would have
    /// reported if its last call came to its end.
    #[must_use]
    pub fn left_behind(&self, id: u64) -> (Option<Entry>, Option<Entry>) {
        let board = self.board.as_ref();
        (
            board.and_then(|board| board.unreported(id)),
            board.and_then(|board| board.pending_report(id)),
        )
    }
}
