//! The shared memory of the master and one worker, in which the worker reports without a system
//! call.
//!
//! Each worker has a board of its own, mapped by the master and by that worker only. The worker
//! *publishes* its reports in a ring. It rings the *doorbell* (an eventfd in the master's epoll
//! set) only when the master has marked itself asleep. A worker can write anything here, so the
//! master checks each report against its own table.
//!
//! No report is lost because of the order of stores and loads. The worker stores a report, then
//! loads the master's `asleep`; the master stores `asleep`, then loads the count of reports. With a
//! sequentially consistent fence between the two steps on either side, at least one of them sees
//! what the other has stored (Dekker's algorithm). The loom models in `models.rs` check it.

mod entry;
#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
mod text;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use self::entry::Cell;
use self::text::{TEXTS, Text};
use crate::sys::shared::Shared;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

pub use self::entry::Entry;
pub use self::text::TEXT;

/// How many reports the ring holds. The master never lends more connections than this to a worker,
/// so the ring never fills up while the worker reports each lend once.
#[cfg(not(loom))]
pub const RING: usize = 96;
#[cfg(loom)]
pub const RING: usize = 2;

/// Gives each side's words a cache line of their own, because two processors that write to the same
/// line slow each other down.
#[repr(align(64))]
#[derive(Debug)]
struct CacheLine<T>(T);

/// The layout of the shared memory: a page for reports, and two that only messages use.
#[derive(Debug)]
#[repr(C)]
pub struct Board {
    worker: CacheLine<ByWorker>,
    master: CacheLine<ByMaster>,
    ring: [Cell; RING],
    /// The entry of the ring at each place has the text at this place, modulo their number.
    texts: [Text; TEXTS],
}

/// The words that only the worker writes.
#[derive(Debug)]
struct ByWorker {
    /// How many reports the worker has put into the ring since its start.
    published: AtomicU64,
    /// How many connections the worker has taken out of its inbox since its start.
    taken: AtomicU64,
    /// 1 while the worker stays with its connection, waiting for the client's next request.
    stays: AtomicU64,
    /// The turns that the worker has served on its connection without reporting them yet.
    unreported: Cell,
    /// What the report will be if the call that the worker is in completes in full.
    pending_report: Cell,
}

/// The words that the master writes. The worker resets `asleep` when it rings.
#[derive(Debug)]
struct ByMaster {
    /// How many reports the master has taken out of the ring since the worker's start.
    collected: AtomicU64,
    /// How many connections the master has sent to the inbox, less those that it took back.
    sent: AtomicU64,
    /// 1 while there are so few connections that the worker may stay with the one it has.
    may_stay: AtomicU64,
    /// [`AWAKE`], or the bits of the urgencies for which the master wants to be rung.
    asleep: AtomicU64,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            worker: CacheLine(ByWorker {
                published: AtomicU64::new(0),
                taken: AtomicU64::new(0),
                stays: AtomicU64::new(0),
                unreported: Cell::default(),
                pending_report: Cell::default(),
            }),
            master: CacheLine(ByMaster {
                collected: AtomicU64::new(0),
                sent: AtomicU64::new(0),
                may_stay: AtomicU64::new(0),
                asleep: AtomicU64::new(0),
            }),
            ring: std::array::from_fn(|_| Cell::default()),
            texts: std::array::from_fn(|_| Text::default()),
        }
    }
}

/// Which reports ring the doorbell while the master sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// Urgent reports only.
    Deep,
    /// Urgent reports, and any report of a worker whose inbox is nearly empty, because a connection
    /// waits for a worker.
    Light,
}

/// Whether a report has to wake the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The report can wait until the master wakes for another reason, because no client waits for
    /// what the master does about it.
    None,
    /// The report wakes the master, because a client may wait for what it does.
    Urgent,
}

/// The value of `asleep` when no report has to ring.
const AWAKE: u64 = 0;
/// The bit of `asleep` for urgent reports.
const DEEP: u64 = 1;
/// The bit of `asleep` for reports of a worker whose inbox is nearly empty.
const LIGHT: u64 = 2;

/// With no more connections than this in its inbox, a worker rings a master that sleeps lightly.
const LOW_WATER: u64 = 2;

/// What a worker has to do after it tried to publish a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
enum Published {
    /// Nothing; the master will find the report.
    Seen,
    /// Ring, because the master sleeps.
    Ring,
    /// Send the report another way, because the ring is full.
    Full,
}

/// The worker's side. At most one thread may call these at a time.
impl Board {
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
        // The fence orders the store above before the load below, so that either the master sees
        // the report or the worker sees that the master sleeps.
        fence(Ordering::SeqCst);
        let asleep = &self.master.0.asleep;
        if asleep.load(Ordering::Relaxed) & self.ringing_bits(urgency) != 0
            && asleep.swap(AWAKE, Ordering::Relaxed) != AWAKE
        {
            Published::Ring
        } else {
            Published::Seen
        }
    }

    /// Publishes a short message, if there is room for it.
    fn publish_text(&self, id: u64, parts: &[&[u8]]) -> Published {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let published = self.worker.0.published.load(Ordering::Relaxed);
        let collected = self.master.0.collected.load(Ordering::Acquire);
        // Then the master has taken the entry that last had the text, and the text before that.
        let is_free = published.wrapping_sub(collected) < TEXTS as u64;
        if length > TEXT || !is_free {
            return Published::Full;
        }
        self.texts[published as usize % TEXTS].store(parts);
        self.publish(&Entry::of_text(id, length), Urgency::Urgent)
    }

    /// The bits of `asleep` that call for ringing after a report of this urgency.
    fn ringing_bits(&self, urgency: Urgency) -> u64 {
        match urgency {
            Urgency::Urgent => DEEP,
            Urgency::None => {
                // A worker that still has work lets the waiting connections wait a little longer,
                // so that the master wakes once and refills the inbox with several of them.
                let sent = self.master.0.sent.load(Ordering::Relaxed);
                let taken = self.worker.0.taken.load(Ordering::Relaxed);
                let waiting = sent.saturating_sub(taken);
                if waiting <= LOW_WATER { LIGHT } else { 0 }
            }
        }
    }
}

/// The master's side.
impl Board {
    /// The text of a message goes to `text`, as far as that has room.
    fn collect(&self, text: &mut [u8]) -> Option<Result<Entry, Malformed>> {
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
        if let Some(length) = entry.as_ref().and_then(Entry::text_length) {
            let length = length.min(text.len());
            self.texts[collected as usize % TEXTS].take(&mut text[..length]);
        }
        self.master
            .0
            .collected
            .store(collected.wrapping_add(1), Ordering::Release);
        Some(entry.ok_or(Malformed))
    }

    fn sleep(&self, sleep: Sleep) -> bool {
        let asleep = match sleep {
            Sleep::Deep => DEEP,
            Sleep::Light => DEEP | LIGHT,
        };
        // A read-modify-write and not a store, so that every processor orders it after the last
        // swap of `asleep` by the worker.
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

/// The worker has written something that makes no sense, so it is broken or hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A worker's board and doorbell, created before the fork. The methods are the master's; the
/// worker's are those of its [`Publisher`].
#[derive(Debug)]
pub struct Scoreboard {
    board: Arc<Shared<Board>>,
    doorbell: EventFd,
}

impl Scoreboard {
    /// Creates an empty board and its doorbell.
    ///
    /// # Errors
    /// Any error of mmap(2) or eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            board: Arc::new(Shared::new(Board::default())?),
            doorbell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// The eventfd that the worker rings. Watch it edge-triggered, because nobody reads it.
    #[must_use]
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    /// Keeps this board out of processes that are forked from now on, so that no other worker can
    /// write to it. Call it after this worker's fork.
    ///
    /// # Errors
    /// Any error of madvise(2).
    pub fn keep_from_children(&self) -> io::Result<()> {
        self.board.keep_from_children()
    }

    /// The half that the worker uses. Only one may be in use, because the ring has one producer.
    #[must_use]
    pub fn publisher(&self) -> Publisher<'_> {
        Publisher(self)
    }

    /// Takes the next report out of the ring; `None` when there is none. If it is a message, that
    /// goes to `text`, which is to have room for [`TEXT`] bytes.
    pub fn collect(&self, text: &mut [u8]) -> Option<Result<Entry, Malformed>> {
        self.board.collect(text)
    }

    /// Marks the master as asleep, so that the worker rings for the reports that `sleep` names.
    /// Returns false, and leaves the master marked as awake, when there is a report to collect
    /// first.
    #[must_use]
    pub fn sleep(&self, sleep: Sleep) -> bool {
        self.board.sleep(sleep)
    }

    /// Marks the master as awake, so that the worker does not ring: an awake master looks for
    /// reports by itself.
    pub fn wake(&self) {
        self.board.wake();
    }

    /// Stores how many connections the master has sent to the worker's inbox since the worker's
    /// start, less those that it took back.
    pub fn sent(&self, count: u64) {
        self.board.master.0.sent.store(count, Ordering::Relaxed);
    }

    /// Stores whether there are so few connections that the worker may stay with the one it has.
    pub fn set_may_stay(&self, may_stay: bool) {
        self.board
            .master
            .0
            .may_stay
            .store(u64::from(may_stay), Ordering::Relaxed);
    }

    /// Whether the worker is waiting at its connection for the client's next request.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.board.worker.0.stays.load(Ordering::Relaxed) != 0
    }

    /// The turns of this connection that the worker has served and not reported. Call this only
    /// when the worker is dead, because a live one may change the answer at any time.
    #[must_use]
    pub fn unreported(&self, id: u64) -> Option<Entry> {
        self.board.worker.0.unreported.about(id)
    }

    /// What the worker would have reported about this connection if its last call completed in
    /// full. Call this only when the worker is dead, and compare it with the kernel's counters of
    /// the connection.
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

/// The half of the scoreboard that the worker uses.
#[derive(Debug)]
pub struct Publisher<'a>(&'a Scoreboard);

impl Publisher<'_> {
    /// Publishes a report, and rings if the master sleeps. Returns false when the ring is full and
    /// the report has to be sent as a message.
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

    /// Publishes a message about a connection, in parts, and rings if the master sleeps. Returns
    /// false when there is no room, and the message has to be sent.
    pub fn publish_text(&mut self, id: u64, parts: &[&[u8]]) -> bool {
        match self.0.board.publish_text(id, parts) {
            Published::Seen => true,
            Published::Ring => {
                self.ring();
                true
            }
            Published::Full => false,
        }
    }

    /// Wakes the master, which then looks for reports and messages.
    pub fn ring(&mut self) {
        // This fails only when the eventfd's counter is full, and then the master has been woken.
        let _ = self.0.doorbell.write(1);
    }

    /// Whether the worker may wait at its connection: the master allows it, and the inbox is empty.
    #[must_use]
    pub fn may_stay(&self) -> bool {
        let board = &self.0.board;
        board.master.0.may_stay.load(Ordering::Relaxed) != 0
            && board.master.0.sent.load(Ordering::Relaxed)
                == board.worker.0.taken.load(Ordering::Relaxed)
    }

    /// Marks the worker as waiting at its connection, and stores the turns that it has served there
    /// without a report, in case it dies while it waits.
    pub fn begin_stay(&mut self, entry: &Entry) {
        let worker = &self.0.board.worker.0;
        worker.unreported.store(entry);
        worker.pending_report.clear();
        worker.stays.store(1, Ordering::Relaxed);
    }

    /// Marks the worker as no longer waiting at its connection.
    pub fn end_stay(&mut self) {
        self.0.board.worker.0.stays.store(0, Ordering::Relaxed);
    }

    /// Clears what was stored for the case of a death, because every turn has been reported.
    pub fn clear_unreported(&mut self) {
        let worker = &self.0.board.worker.0;
        worker.unreported.clear();
        worker.pending_report.clear();
    }

    /// A handle with which a connection stores the pending report before the call that ends a turn.
    #[must_use]
    pub fn pending_report(&self) -> PendingReport {
        PendingReport(Arc::clone(&self.0.board))
    }

    /// Counts a connection that the worker has taken out of its inbox.
    pub fn count_taken(&mut self) {
        let taken = &self.0.board.worker.0.taken;
        taken.store(taken.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// Where a worker writes its report ahead of the call that completes the turn. If the worker dies
/// in that call, the kernel's counters tell the master whether the call completed, and if so the
/// master treats the report as sent.
#[derive(Debug, Clone)]
pub struct PendingReport(Arc<Shared<Board>>);

impl PendingReport {
    /// Stores what the report will be.
    pub fn store(&self, entry: &Entry) {
        self.0.worker.0.pending_report.store(entry);
    }
}
