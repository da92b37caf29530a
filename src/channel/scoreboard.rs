//! The shared memory between the master and one worker: what the worker has done, at the cost of no system call.
//!
//! Each worker has a board of its own, which the master and that worker alone have mapped. The worker *publishes* its
//! reports into a ring and rings the *doorbell* (an eventfd in the master's epoll set) only when the master has said
//! that it sleeps. Whatever the master reads here is the worker's word: it is checked against the master's own table.
//!
//! The order of stores and loads is what matters. The worker stores a report, then looks whether the master sleeps; the
//! master says that it sleeps, then looks for reports. With a sequentially consistent fence between the two steps on
//! either side, at least one of them sees the other (Dekker). The models below hold that under loom.

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sys::shared::Shared;
use crate::wire::{Outcome, Traffic};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// How many reports the ring holds. The master never has more connections at a worker than this, so the ring can't be
/// full for an honest worker.
#[cfg(not(loom))]
pub const RING: usize = 96;
#[cfg(loom)]
pub const RING: usize = 2;

/// The end of one turn (or of several in a row), as it stands in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The connection, as the lend named it.
    pub id: u64,
    /// What is to become of it.
    pub outcome: Outcome,
    /// How many turns the worker served before it reported, at least one.
    pub turns: u64,
    /// What these turns moved.
    pub traffic: Traffic,
    /// How long the last of these turns took.
    pub took: Duration,
}

/// A cache line of its own: what one side writes must not slow the other's line down.
#[repr(align(64))]
#[derive(Debug)]
struct Line<T>(T);

/// One worker's shared memory.
#[derive(Debug)]
pub struct Board {
    worker: Line<ByWorker>,
    master: Line<ByMaster>,
    ring: [Cell; RING],
}

/// What only the worker writes.
#[derive(Debug)]
struct ByWorker {
    /// Reports that were put into the ring since the start.
    published: AtomicU64,
    /// Connections that were taken out of the inbox since the start.
    taken: AtomicU64,
    /// Whether the worker stays with its connection, waiting for the client's next request.
    stays: AtomicU64,
    /// The connection that it has served without a report so far, and what that moved; 0 for none.
    unreported: Cell,
    /// What the report will be if the call that the worker is making does all that it is asked; no turns for nothing.
    pending_report: Cell,
}

/// What the master writes; the worker clears `asleep` when it has rung.
#[derive(Debug)]
struct ByMaster {
    /// Reports that were taken out of the ring since the start.
    collected: AtomicU64,
    /// Connections that were sent into the inbox since the start, less those that were taken back.
    sent: AtomicU64,
    /// Whether there are so few connections that the worker may stay with the one it has.
    may_stay: AtomicU64,
    asleep: AtomicU64,
}

#[derive(Debug)]
struct Cell {
    id_and_outcome: AtomicU64,
    turns: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    nanos: AtomicU64,
}

impl Default for Cell {
    fn default() -> Self {
        Self {
            id_and_outcome: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        }
    }
}

impl Cell {
    fn store(&self, entry: &Entry) {
        let outcome = OUTCOMES
            .iter()
            .position(|outcome| *outcome == entry.outcome);
        let outcome = outcome.unwrap_or_default() as u64;
        self.turns.store(entry.turns, Ordering::Relaxed);
        self.read.store(entry.traffic.read, Ordering::Relaxed);
        self.written.store(entry.traffic.written, Ordering::Relaxed);
        let nanos = u64::try_from(entry.took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.store(nanos, Ordering::Relaxed);
        self.id_and_outcome
            .store(entry.id | outcome << OUTCOME_SHIFT, Ordering::Release);
    }

    fn about(&self, id: u64) -> Option<Entry> {
        let entry = self.load()?;
        (entry.id == id && entry.turns > 0).then_some(entry)
    }

    fn clear(&self) {
        if self.turns.load(Ordering::Relaxed) != 0 {
            self.turns.store(0, Ordering::Release);
        }
    }

    fn load(&self) -> Option<Entry> {
        let word = self.id_and_outcome.load(Ordering::Acquire);
        let outcome = OUTCOMES.get((word >> OUTCOME_SHIFT) as usize)?;
        Some(Entry {
            id: word & ((1 << OUTCOME_SHIFT) - 1),
            outcome: *outcome,
            turns: self.turns.load(Ordering::Relaxed),
            traffic: Traffic {
                read: self.read.load(Ordering::Relaxed),
                written: self.written.load(Ordering::Relaxed),
            },
            took: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        })
    }
}

/// Names of connections leave these bits of their 64 free.
const OUTCOME_SHIFT: u32 = 60;

const OUTCOMES: [Outcome; 6] = [
    Outcome::Park,
    Outcome::ParkDrained,
    Outcome::ParkWrite,
    Outcome::Again,
    Outcome::Close,
    Outcome::Linger,
];

impl Default for Board {
    fn default() -> Self {
        Self {
            worker: Line(ByWorker {
                published: AtomicU64::new(0),
                taken: AtomicU64::new(0),
                stays: AtomicU64::new(0),
                unreported: Cell::default(),
                pending_report: Cell::default(),
            }),
            master: Line(ByMaster {
                collected: AtomicU64::new(0),
                sent: AtomicU64::new(0),
                may_stay: AtomicU64::new(0),
                asleep: AtomicU64::new(0),
            }),
            ring: std::array::from_fn(|_| Cell::default()),
        }
    }
}

/// For what the master wants to be rung while it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// For urgent reports.
    Deep,
    /// Also for any report of a worker that has little left to do: a connection waits for a worker.
    Light,
}

/// Whether a report can wait until the master wakes for another reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// It can: the connection is parked, and the master watches it already.
    None,
    /// It can't: there is something for the master to do.
    Urgent,
}

/// Values of `asleep`: one bit for each urgency for which to ring.
const AWAKE: u64 = 0;
const DEEP: u64 = 1;
const LIGHT: u64 = 2;

/// A worker whose inbox holds no more than this rings, if others wait.
const LOW_WATER: u64 = 2;

/// What publishing a report calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
enum Published {
    /// The master will see it by itself.
    Seen,
    /// The master sleeps: ring.
    Ring,
    /// The ring is full; nothing was published.
    Full,
}

impl Board {
    // ---- the worker's side; one thread at a time --------------------------------------------------------------

    fn publish(&self, entry: &Entry, urgency: Urgency) -> Published {
        let published = self.worker.0.published.load(Ordering::Relaxed);
        let collected = self.master.0.collected.load(Ordering::Acquire);
        if published.wrapping_sub(collected) >= RING as u64 {
            return Published::Full;
        }
        self.ring[published as usize % RING].store(entry);
        self.worker
            .0
            .published
            .store(published.wrapping_add(1), Ordering::Release);
        // Between this store and that load: the master must see the report, or the worker must see it asleep.
        fence(Ordering::SeqCst);
        let asleep = &self.master.0.asleep;
        if asleep.load(Ordering::Relaxed) & self.occasion(urgency) != 0
            && asleep.swap(AWAKE, Ordering::Relaxed) != AWAKE
        {
            Published::Ring
        } else {
            Published::Seen
        }
    }

    /// The sleeps out of which this report wakes the master.
    fn occasion(&self, urgency: Urgency) -> u64 {
        match urgency {
            Urgency::Urgent => DEEP,
            Urgency::None => {
                // What others wait for can come a little later if this worker still has something to do: so the
                // master fills its inbox again in one go, and not one by one.
                let sent = self.master.0.sent.load(Ordering::Relaxed);
                let taken = self.worker.0.taken.load(Ordering::Relaxed);
                let left = sent.saturating_sub(taken);
                if left <= LOW_WATER { LIGHT } else { 0 }
            }
        }
    }

    // ---- the master's side ------------------------------------------------------------------------------------

    /// The next report, if there is one. `Err` is a report that no honest worker writes.
    fn collect(&self) -> Option<Result<Entry, Malformed>> {
        let collected = self.master.0.collected.load(Ordering::Relaxed);
        let published = self.worker.0.published.load(Ordering::Acquire);
        if published == collected {
            return None;
        }
        if published.wrapping_sub(collected) > RING as u64 {
            self.master.0.collected.store(published, Ordering::Release);
            return Some(Err(Malformed));
        }
        let entry = self.ring[collected as usize % RING].load();
        self.master
            .0
            .collected
            .store(collected.wrapping_add(1), Ordering::Release);
        Some(entry.ok_or(Malformed))
    }

    /// Says that the master goes to sleep; false when there is something to collect first.
    fn sleep(&self, sleep: Sleep) -> bool {
        let asleep = match sleep {
            Sleep::Deep => DEEP,
            Sleep::Light => DEEP | LIGHT,
        };
        // A read-modify-write, so that it has its place behind the worker's own in everybody's order of events.
        self.master.0.asleep.swap(asleep, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let collected = self.master.0.collected.load(Ordering::Relaxed);
        if self.worker.0.published.load(Ordering::Relaxed) == collected {
            return true;
        }
        self.wake();
        false
    }

    fn wake(&self) {
        self.master.0.asleep.store(AWAKE, Ordering::Relaxed);
    }
}

/// A report that no honest worker writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A worker's board and doorbell. Made before the fork; the master uses one half of its functions, and the worker the
/// other, through its [`Publisher`].
#[derive(Debug)]
pub struct Scoreboard {
    board: Arc<Shared<Board>>,
    doorbell: EventFd,
}

impl Scoreboard {
    /// A board with nothing on it.
    ///
    /// # Errors
    /// What mmap(2) and eventfd(2) fail with.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            board: Arc::new(Shared::new(Board::default())?),
            doorbell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// The eventfd that the worker rings. To be watched edge-triggered: it is never read.
    #[must_use]
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    /// Workers that are started from now on do not have this board.
    ///
    /// # Errors
    /// What madvise(2) fails with.
    pub fn keep_from_children(&self) -> io::Result<()> {
        self.board.keep_from_children()
    }

    /// The worker's half.
    #[must_use]
    pub fn publisher(&self) -> Publisher<'_> {
        Publisher(self)
    }

    /// The next report, if there is one.
    pub fn collect(&self) -> Option<Result<Entry, Malformed>> {
        self.board.collect()
    }

    /// Asks to be rung for the next report; false, and nothing is asked, when one is there already.
    #[must_use]
    pub fn sleep(&self, sleep: Sleep) -> bool {
        self.board.sleep(sleep)
    }

    /// Wants no ringing: the master looks by itself.
    pub fn wake(&self) {
        self.board.wake();
    }

    /// Notes how many connections have been sent into the worker's inbox, less those that were taken back.
    pub fn sent(&self, count: u64) {
        self.board.master.0.sent.store(count, Ordering::Relaxed);
    }

    /// Says whether there are so few connections that the worker may stay with the one it is lent.
    pub fn set_may_stay(&self, may_stay: bool) {
        self.board
            .master
            .0
            .may_stay
            .store(u64::from(may_stay), Ordering::Relaxed);
    }

    /// Whether the worker stays with its connection, waiting for the client's next request.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.board.worker.0.stays.load(Ordering::Relaxed) != 0
    }

    /// The turns of this connection that the worker has served and not reported. To be asked when the worker is dead:
    /// before, the answer may change while it is given.
    #[must_use]
    pub fn unreported(&self, id: u64) -> Option<Entry> {
        self.board.worker.0.unreported.about(id)
    }

    /// What the worker was about to report of this connection, if its last call did all that it was asked. To be asked
    /// when the worker is dead, and held against what the kernel says.
    #[must_use]
    pub fn pending_report(&self, id: u64) -> Option<Entry> {
        self.board.worker.0.pending_report.about(id)
    }

    /// How many connections the worker has taken out of its inbox since its start.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.board.worker.0.taken.load(Ordering::Relaxed)
    }
}

/// The worker's half of its board. There is one, for the ring has one producer.
#[derive(Debug)]
pub struct Publisher<'a>(&'a Scoreboard);

impl Publisher<'_> {
    /// Reports the end of a turn; false when the report has to go another way, for the ring is full.
    pub fn publish(&mut self, entry: &Entry, urgency: Urgency) -> bool {
        match self.0.board.publish(entry, urgency) {
            Published::Seen => true,
            Published::Ring => {
                self.ring();
                true
            }
            Published::Full => false,
        }
    }

    /// Wakes the master: there is something to collect, or a message.
    pub fn ring(&mut self) {
        // It can only fail when the counter is full, and then the master is being woken anyway.
        let _ = self.0.doorbell.write(1);
    }

    /// Whether there is nothing else to do: nothing in the inbox, and few connections altogether.
    #[must_use]
    pub fn may_stay(&self) -> bool {
        let board = &self.0.board;
        board.master.0.may_stay.load(Ordering::Relaxed) != 0
            && board.master.0.sent.load(Ordering::Relaxed)
                == board.worker.0.taken.load(Ordering::Relaxed)
    }

    /// Notes the turns that were served without a report, before the worker waits for the next one.
    pub fn stay(&mut self, entry: &Entry) {
        let worker = &self.0.board.worker.0;
        worker.unreported.store(entry);
        worker.pending_report.clear();
        worker.stays.store(1, Ordering::Relaxed);
    }

    /// The wait is over.
    pub fn go_on(&mut self) {
        self.0.board.worker.0.stays.store(0, Ordering::Relaxed);
    }

    /// All turns are reported.
    pub fn reported(&mut self) {
        let worker = &self.0.board.worker.0;
        worker.unreported.clear();
        worker.pending_report.clear();
    }

    /// The place for notes on what is about to be true, for whoever makes the calls.
    #[must_use]
    pub fn pending_report(&self) -> PendingReport {
        PendingReport(Arc::clone(&self.0.board))
    }

    /// Notes that a connection was taken out of the inbox.
    pub fn took(&mut self) {
        let taken = &self.0.board.worker.0.taken;
        taken.store(taken.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// Where a worker notes what its report will be, before the call that makes it true. If it dies in that call, the
/// kernel's counters tell whether it became true, and the master goes on as if it had been reported.
#[derive(Debug, Clone)]
pub struct PendingReport(Arc<Shared<Board>>);

impl PendingReport {
    /// Notes what the report will be.
    pub fn note(&self, entry: &Entry) {
        self.0.worker.0.pending_report.store(entry);
    }
}
