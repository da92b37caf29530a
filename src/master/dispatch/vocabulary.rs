//! The words between the dispatcher and the master: bounds, actions, verdicts. Pure.

use std::time::Duration;

use crate::master::dispatch::table::{ConnectionId, Due};
use crate::master::dispatch::workers::WorkerId;
use crate::wire::Outcome;

/// The bounds within which the dispatcher works.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a lent connection may wait behind another one.
    pub patience: Duration,
    /// Up to how many connections may be lent while a worker stays with one of them.
    pub few: usize,
    /// The most connections at a time, without those that linger. Beyond it, an idle one gives way
    /// or accepting pauses.
    pub connections: usize,
    /// The most connections that linger at a time.
    pub lingering: usize,
    /// The most connections of both kinds.
    pub descriptors: usize,
    /// The most connections in the ready queue; more are answered as overload.
    pub queue: usize,
    /// The longest time in the ready queue, if there is a bound.
    pub queue_wait: Option<Duration>,
    /// How long a client may be silent between requests.
    pub idle: Option<Duration>,
    /// How long a client may take for the head of a request, from its first byte.
    pub head: Option<Duration>,
    /// How many bytes a second a client must send of a body, and take of a response.
    pub rate: Option<u64>,
    /// For how long it may be slower.
    pub rate_grace: Duration,
    /// How long the client of a finished connection may be silent.
    pub linger: Duration,
    /// How long a finished connection is drained in all.
    pub linger_total: Duration,
    /// How long a turn may take before its worker is taken for hung and killed.
    pub turn: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            patience: Duration::from_micros(500),
            few: 4,
            connections: usize::MAX,
            lingering: usize::MAX,
            descriptors: usize::MAX,
            queue: usize::MAX,
            queue_wait: None,
            idle: None,
            head: None,
            rate: None,
            rate_grace: Duration::from_secs(30),
            linger: Duration::from_secs(5),
            linger_total: Duration::from_secs(30),
            turn: None,
        }
    }
}

/// What a parked connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read.
    Input,
    /// There is something to read that had not come when the turn ended.
    NewInput,
    /// The client takes something.
    Output,
}

/// A reply that the master sends in the service's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canned {
    /// The worker died after it had read the request.
    Crashed,
    /// The turn took longer than it may, and its worker was killed.
    TimedOut,
    /// There is too much of something.
    Overloaded(Excess),
    /// The client did not complete its request in time.
    RequestTimeout,
    /// The server stops, and the client seems to have gone.
    Stopping,
}

/// For which bound a client was too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// The time for the head of a request.
    Head,
    /// The least rate of a body.
    Body,
    /// The time for which a client may be silent, within a body.
    SilentBody,
    /// The least rate at which a response is taken.
    Reader,
}

/// What the master sees of a connection whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// The client has sent something that nobody has read.
    pub unread: bool,
    /// The kernel has yet to deliver something.
    pub unsent: bool,
    /// How much the client has taken of what was sent to it, in all its life.
    pub taken: u64,
}

/// Of what there is too much when a client is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Connections of this client.
    PerClient,
    /// Connections in the ready queue.
    Queue,
    /// Time in the ready queue.
    QueueWait,
    /// Descriptors, of which a worker needs one to go on.
    Descriptors,
}

/// What the kernel says of a turn whose worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was read and nothing was sent.
    Untouched,
    /// The turn was over, with this outcome, and had not been reported yet; nothing has happened
    /// since.
    Served(Outcome),
    /// The turn was one that another worker can go on with. `progress` says that something was
    /// moved since the last look.
    Resumable {
        /// See there.
        progress: bool,
    },
    /// Something was read, or had been before and came along; nothing was sent.
    Consumed,
    /// Something was sent.
    Sent,
    /// Nobody has counted.
    Unknown,
}

/// How many workers may die under a turn that others go on with, one after the other and without
/// progress. The service does nothing in such a turn, so what the client has sent is hardly what
/// kills them.
const MOST_FRUITLESS: u8 = 5;

impl Verdict {
    /// If another worker is to have the turn: how many have died under it without a sign of having
    /// done anything, when so many had before.
    #[must_use]
    pub fn replays_after(self, before: u8) -> Option<u8> {
        match self {
            Self::Resumable { progress: true } => Some(0),
            Self::Resumable { progress: false } if before < MOST_FRUITLESS => Some(before + 1),
            // What kills the second one, too, is what the client has sent.
            Self::Untouched if before == 0 => Some(1),
            _ => None,
        }
    }
}

/// What the master is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<C> {
    /// Lend the connection to the worker.
    Lend(WorkerId, ConnectionId),
    /// Receive back what still is in the worker's inbox; say so with `Dispatcher::taken_back`, and
    /// at the end with `Dispatcher::inbox_empty`.
    TakeBack(WorkerId),
    /// Watch for the client.
    Arm(ConnectionId, Interest),
    /// Send the reply if there is one, end the sending side, and watch for the client's last bytes.
    Linger(ConnectionId, Option<Canned>),
    /// The time of the parked or lingering connection is over: look whether the client has sent
    /// or taken something all the same, then say
    /// [`Dispatcher::expired`](super::Dispatcher::expired).
    Expire(ConnectionId),
    /// Discard what the client has sent; say with `Dispatcher::drained` whether that was all.
    Drain(ConnectionId),
    /// Its worker died during the turn: ask the kernel what came of it, say so with
    /// `Dispatcher::examined`.
    Examine(ConnectionId, WorkerId),
    /// Tell the worker to exit.
    Retire(WorkerId),
    /// The worker hangs: end its process.
    End(WorkerId),
    /// The connection is over, and this is what the master held for it. Dropping it closes it.
    Close(ConnectionId, C),
    /// Likewise; and what is still under way to the client is given up (a reset).
    Reset(ConnectionId, C),
    /// Stop accepting connections.
    PauseAccepting,
    /// Accept connections again.
    ResumeAccepting,
}

/// A report that names what the worker does not have: it is ignored, and the worker is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray;

/// What the client owes when a turn has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owes {
    /// Nothing that it has begun.
    Nothing,
    /// The rest of a request.
    Head,
    /// The rest of a body, whose head is complete.
    Body,
}

/// What a report says, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub struct TurnEnd {
    /// What is to become of the connection.
    pub outcome: Outcome,
    /// How many turns the worker served in a row, at least one.
    pub turns: u64,
    /// What the client owes.
    pub owes: Owes,
    /// Something was sent to the client, so that what is carried belongs to a new request.
    pub answered: bool,
    /// With [`Outcome::Linger`]: what the client is told.
    pub reply: Option<Canned>,
    /// How many bytes were read since the report before.
    pub read: u64,
    /// How much the client has taken of what was sent to it, in all its life; with
    /// [`Outcome::ParkWrite`] only.
    pub taken: u64,
    /// How long the (last) turn took, if the worker has measured it.
    pub took: Option<Duration>,
}

/// A connection that leaves a dispatcher for another one.
#[derive(Debug, PartialEq, Eq)]
pub struct Departure<C> {
    /// What the master holds for it.
    pub payload: C,
    /// It was a guest, and goes home; else it has been passed to another pool.
    pub homewards: bool,
    /// There is something for a turn already.
    pub ready: bool,
    /// How many turns it has had.
    pub turns: u64,
    /// What its client owes, and until when.
    pub due: Due,
}

/// Whether connections are lent to workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lending {
    /// Ready connections are lent.
    Yes,
    /// Nothing changes but that turns end, because another master is being told how everything
    /// stands.
    Frozen,
    /// Nothing is lent, because another master gets what is ready or parked.
    PassingOn,
}

/// How far a connection that is not lent has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The connection waits for a worker; else it is parked.
    pub ready: bool,
    /// How many turns the connection has had.
    pub turns: u64,
    /// How much longer the connection may be parked; `None` is for ever.
    pub remaining: Option<Duration>,
    /// How long ago the client began the request that it has not completed.
    pub incomplete_for: Option<Duration>,
    /// How much time the client has left for what else is due.
    pub time_left: Option<TimeLeft>,
}

/// How much longer a client may do nothing at all before it is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLeft {
    /// It owes the rest of a body.
    Body(Duration),
    /// It is to take a response.
    Reading(Duration),
}

impl Progress {
    /// The progress of a connection that is about to have this turn.
    #[must_use]
    pub fn before(turn: u64) -> Self {
        Self {
            ready: true,
            turns: turn.saturating_sub(1),
            remaining: None,
            incomplete_for: None,
            time_left: None,
        }
    }
}
