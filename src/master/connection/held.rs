//! What the master holds for a connection, and the few things that it does with it. It parses
//! nothing, and copies none of the client's bytes but the carry.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::baggage::Baggage;
use super::descriptors::Counted;
use super::evidence::{Evidence, difference, sum};
use super::luggage::Luggage;
use super::visit::Visit;
use crate::channel::scoreboard::Entry;
use crate::master::dispatch::table::ConnectionId;
use crate::master::dispatch::{Interest, Look, Verdict};
use crate::master::events::epoll::{EventFlags, PoolEpoll};
use crate::master::events::token::PoolEvent;
use crate::master::snapshot::Snapshot;
use crate::master::store::Kept;
use crate::service::Peer;
use crate::sys::tcp;
use crate::sys::unforked::Unforked;
use crate::wire::{Outcome, Report, Traffic};

/// How much of a lingering client's input is discarded at a time.
pub const DRAIN_SIZE: usize = 64 * 1024;

const INPUT: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);

/// How a connection is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    No,
    /// For a single event.
    Once,
    /// For all input that comes, an event each (edge-triggered), whether it is lent or not.
    Input,
}

/// A connection's descriptor, and what the next worker must know of the connection.
#[derive(Debug)]
pub struct Held {
    socket: OwnedFd,
    peer: Peer,
    carry: Unforked,
    /// What else travels with it; most connections have nothing.
    baggage: Option<Box<Baggage>>,
    /// It is with another pool than its own, or on the way there.
    visit: Option<Box<Visit>>,
    watch: Watch,
    /// A part of a response was sent, and the service means to send the rest.
    unfinished: bool,
    /// Events that came while the connection was lent.
    noticed: EventFlags,
    /// The server has ended its sending side.
    ending: bool,
    /// The client has sent something since then, and may be sending more.
    goes_on: bool,
    /// What all reported turns have moved; the kernel's own counters are compared with it after the
    /// death of a worker.
    total: Traffic,
    /// The connection's place in the ledger.
    kept: Option<Kept>,
    /// The service manager has a copy of the descriptor, so that closing this one does not end the
    /// connection.
    copied: bool,
    _counted: Counted,
}

impl Held {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(socket: OwnedFd, peer: Peer) -> Self {
        Self {
            socket,
            peer,
            carry: Unforked::default(),
            baggage: None,
            visit: None,
            watch: Watch::No,
            unfinished: false,
            noticed: EventFlags::empty(),
            ending: false,
            goes_on: false,
            total: Traffic::default(),
            kept: None,
            copied: false,
            _counted: Counted::new(),
        }
    }

    /// A connection that another master has had.
    #[must_use]
    pub fn adopted(
        socket: OwnedFd,
        peer: Peer,
        (snapshot, visit): (&Snapshot, Option<Visit>),
        luggage: Option<Luggage>,
    ) -> Self {
        let mut held = Self::new(socket, peer);
        held.visit = visit.map(Box::new);
        held.carry = snapshot.carry.clone();
        held.total = snapshot.total;
        held.unfinished = snapshot.interest == Interest::Output;
        if !snapshot.packed.is_empty() {
            let mut baggage = Baggage::unpacked(&snapshot.packed, luggage);
            // What dead workers have moved the kernel still knows.
            if let Some(now) = held.counted().filter(|_| baggage.resumable) {
                baggage.moved = difference(now, held.total);
            }
            held.baggage = Some(Box::new(baggage));
        }
        held
    }

    /// The client.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// What was read and not consumed.
    #[must_use]
    pub fn carry(&self) -> &[u8] {
        &self.carry
    }

    /// What the service has noted about the client.
    #[must_use]
    pub fn note(&self) -> &[u8] {
        self.baggage.as_ref().map_or(&[], |baggage| &baggage.note)
    }

    /// What the service has put beside the connection.
    #[must_use]
    pub fn luggage(&self) -> Option<BorrowedFd<'_>> {
        self.baggage.as_ref()?.luggage()
    }

    /// Its number, which no other luggage of this master has had.
    #[must_use]
    pub fn luggage_number(&self) -> Option<u64> {
        let luggage = self.baggage.as_ref()?.luggage.as_ref()?;
        Some(luggage.number())
    }

    /// What resumable turns have moved since the last report, whose workers died.
    #[must_use]
    pub fn moved(&self) -> Traffic {
        let baggage = self.baggage.as_ref();
        baggage.map_or_else(Traffic::default, |baggage| baggage.moved)
    }

    /// The descriptor, to be lent.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    // ---- between turns --------------------------------------------------------------------------

    /// Counts what a report says, and keeps what travels with the connection. `whole` says that
    /// turns end between two responses, but for those that wait for writing. Returns how many bytes
    /// were read since the report before.
    pub fn count(&mut self, report: &Report<'_>, luggage: Option<Luggage>, whole: bool) -> u64 {
        let before = self.total;
        match report.traffic {
            // The worker's word: only its own connection suffers if it is wrong.
            Some(traffic) => self.total = sum(sum(self.total, self.moved()), traffic),
            // A worker that does not count: the kernel does.
            None => {
                if let Some(counted) = self.counted() {
                    self.total = counted;
                }
            }
        }
        let uncounted = report.traffic.is_none() && self.peer == Peer::Unix;
        let answered = uncounted || self.total.written != before.written;
        let between = whole && !report.extras.resumable;
        self.end_turn(report.outcome, answered && !whole, between);
        if self.carry.len() + report.carry.len() > 0 {
            self.carry = report.carry.into();
        }
        if self.baggage.is_some() || report.extras.stay() {
            self.repack(report, luggage);
        }
        difference(self.total, before).read
    }

    /// Keeps what travels with the connection; nothing does when that is over.
    #[cold]
    fn repack(&mut self, report: &Report<'_>, luggage: Option<Luggage>) {
        let baggage = self.baggage.get_or_insert_default();
        baggage.repack(&report.extras, luggage);
        if baggage.is_empty() || !report.outcome.keeps() {
            self.baggage = None;
        }
    }

    /// A turn is over, and it may have sent a part of a response. Only the service knows where one
    /// ends. The master takes it for unfinished after `PARK-WRITE`, and when such a turn goes on
    /// with `AGAIN`, until the connection is parked; but not after a turn that ends `between` two
    /// responses.
    fn end_turn(&mut self, outcome: Outcome, partly: bool, between: bool) {
        self.unfinished = match outcome {
            Outcome::ParkWrite => true,
            Outcome::Again | Outcome::Pass => !between && (self.unfinished || partly),
            Outcome::Park | Outcome::ParkDrained | Outcome::Home => false,
            Outcome::Close | Outcome::Linger => self.unfinished,
        };
    }

    /// Whether a part of a response was sent, and the rest was not.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    /// What the kernel has counted; `None` if it does not count for this kind of socket.
    fn counted(&self) -> Option<Traffic> {
        let counted = tcp::progress(&self.socket).ok()?;
        Some(Traffic {
            read: counted.read,
            written: counted.written,
        })
    }

    /// Whether there is something for a turn: bytes that nobody has read, or that were not
    /// consumed.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.carry.is_empty() || self.has_unread()
    }

    /// Whether the client has sent something that nobody has read yet.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(&self.socket).is_ok_and(|unread| unread > 0)
    }

    /// Whether the kernel may still have to send something. What a Unix socket has taken is with
    /// the client already.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        matches!(self.peer, Peer::Inet(_)) && self.untaken() > 0
    }

    /// How many bytes the client has not taken of those that were sent. Of a Unix socket it is what
    /// they take in memory.
    fn untaken(&self) -> u64 {
        tcp::unacknowledged(&self.socket).unwrap_or(0)
    }

    /// How much the client has taken of what all reported turns have sent. Where the worker has
    /// counted wrong, or memory is what is counted, it may be less than nothing: it wraps around.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.total.written.wrapping_sub(self.untaken())
    }

    /// What is seen of the connection when its time is over.
    #[must_use]
    pub fn look(&self) -> Look {
        let untaken = self.untaken();
        Look {
            // What the client has sent may lie behind other events that have not been looked at
            // yet.
            unread: self.has_unread(),
            unsent: matches!(self.peer, Peer::Inet(_)) && untaken > 0,
            taken: self.total.written.wrapping_sub(untaken),
        }
    }

    /// Whether closing the connection after this turn could destroy what was sent: the kernel
    /// resets a connection that is closed with unread input, or gets some after that (RFC 9112
    /// §9.6). A client whose request came in pieces may be sending more of them. Else the kernel
    /// is asked, but only if there is a sign of it, because most connections have none: a worker
    /// that counts has also looked for unread input, and a connection on which little was sent, in
    /// all turns together, has none of it under way by the time the client could send more.
    #[must_use]
    pub fn would_lose(&self, report: &Report<'_>, on_board: bool) -> bool {
        let in_pieces = !self.carry.is_empty();
        let much = |now: Traffic| sum(self.total, now).written > tcp::SURE_TO_ARRIVE;
        let sign = !on_board
            || self.unfinished
            || report.traffic.is_none_or(much)
            || self.noticed.contains(EventFlags::IN);
        in_pieces || sign && (self.has_unread() || self.has_unsent())
    }

    /// Whether the client has ended both sides, or has reset the connection.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        // This is told without being asked for (poll(2)).
        self.is_told(PollFlags::empty(), PollFlags::HUP | PollFlags::ERR)
    }

    /// Whether the client has ended its side, or both.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.is_told(PollFlags::RDHUP, PollFlags::RDHUP)
    }

    fn is_told(&self, asked: PollFlags, gone: PollFlags) -> bool {
        let mut wait = [PollFd::new(&self.socket, asked)];
        poll(&mut wait, Some(&Timespec::default())).is_ok_and(|count| count > 0)
            && wait[0].revents().intersects(gone)
    }

    /// Watches for the client. While it waits for input, the connection stays watched when it is
    /// lent, so that the next time this costs no call; what came in the meantime is returned. Not
    /// with `once`: then a worker may stay with the connection, and what comes is not to wake the
    /// master.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn watch(
        &mut self,
        epoll: &PoolEpoll,
        id: ConnectionId,
        interest: Interest,
        once: bool,
    ) -> io::Result<EventFlags> {
        let noticed = std::mem::replace(&mut self.noticed, EventFlags::empty());
        let (mode, flags) = match interest {
            Interest::Input | Interest::NewInput if self.ending || once => {
                (Watch::Once, INPUT | EventFlags::ONESHOT)
            }
            Interest::Input | Interest::NewInput => (Watch::Input, INPUT | EventFlags::ET),
            Interest::Output => (Watch::Once, EventFlags::OUT | EventFlags::ONESHOT),
        };
        if self.watch == mode && mode == Watch::Input && interest == Interest::NewInput {
            return Ok(noticed);
        }
        self.set_watch(epoll, id, mode, flags)
    }

    /// Watches a connection of which the sending side has ended for input, and for the moment when
    /// the client has all that was sent: [`EventFlags::OUT`] comes once now, and once when the
    /// client's side has acknowledged the end (the kernel wakes those who wait in close(2) then).
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn watch_delivery(
        &mut self,
        epoll: &PoolEpoll,
        id: ConnectionId,
    ) -> io::Result<EventFlags> {
        let flags = INPUT | EventFlags::OUT | EventFlags::ET;
        self.set_watch(epoll, id, Watch::Input, flags)
    }

    fn set_watch(
        &mut self,
        epoll: &PoolEpoll,
        id: ConnectionId,
        mode: Watch,
        flags: EventFlags,
    ) -> io::Result<EventFlags> {
        let event = PoolEvent::Connection(id);
        match self.watch {
            Watch::No => epoll.add(&self.socket, event, flags)?,
            Watch::Once | Watch::Input => epoll.modify(&self.socket, event, flags)?,
        }
        self.watch = mode;
        // The call itself looks at the connection, and makes an event of what is there.
        Ok(EventFlags::empty())
    }

    /// Ends the watching, before somebody else goes on with the connection.
    pub fn unwatch(&mut self, epoll: &PoolEpoll) {
        if self.watch != Watch::No {
            self.watch = Watch::No;
            epoll.remove(&self.socket);
        }
    }

    /// Whether the client is watched while the connection is lent.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watch == Watch::Input
    }

    /// Whether the server has ended its sending side.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending
    }

    /// Whether the client has sent something since then, and may be sending more.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// Keeps events that came while the connection was lent. True when they are the first to say
    /// that the client has sent something.
    pub fn keep_events(&mut self, flags: EventFlags) -> bool {
        let news = flags - self.noticed;
        self.noticed |= flags;
        news.contains(EventFlags::IN)
    }

    // ---- the end --------------------------------------------------------------------------------

    /// Sends the server's last words, as far as they fit without sleeping, and ends the sending
    /// side.
    ///
    /// # Errors
    /// What send(2) and shutdown(2) fail with: the client is gone.
    pub fn finish(&mut self, last_words: &[u8]) -> io::Result<()> {
        self.ending = true;
        self.baggage = None;
        if !last_words.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.socket, last_words, flags) {
                Ok(sent) => self.total.written += sent as u64,
                // So much is under way to the client already that it gets that and no more.
                Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        shutdown(&self.socket, Shutdown::Write)?;
        Ok(())
    }

    /// What the client has not taken is given up when the connection is closed, by a reset: it
    /// occupies no memory of the kernel any more, and the client does not take a part of a response
    /// for the whole.
    pub fn give_up_unsent(&self) {
        // An error means that the client is gone.
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }

    /// Discards what the client has sent. True when that was the last of it.
    ///
    /// # Errors
    /// What recv(2) fails with: the client is gone.
    pub fn drain(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        let scratch = &mut scratch[..DRAIN_SIZE];
        // On TCP, MSG_TRUNC discards without copying (tcp(7)).
        let flags = match self.peer {
            Peer::Inet(_) => RecvFlags::DONTWAIT | RecvFlags::TRUNC,
            Peer::Unix => RecvFlags::DONTWAIT,
        };
        match recv(&self.socket, scratch, flags) {
            Ok((_, count)) => {
                self.goes_on |= count > 0;
                Ok(count == 0)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What came of a turn whose worker died before it had the connection.
    #[must_use]
    pub fn examine_unseen(&self) -> Verdict {
        match &self.baggage {
            Some(baggage) if baggage.resumable => Verdict::Resumable { progress: false },
            _ => Verdict::Untouched,
        }
    }

    /// What came of a turn whose worker died, by the kernel's counters. `unreported` is what the
    /// worker had served without a report, and `pending` what it would have reported if its last
    /// call came to its end.
    #[must_use]
    pub fn examine(&mut self, unreported: Option<Entry>, pending: Option<Entry>) -> Verdict {
        let Some(now) = self.counted() else {
            return Verdict::Unknown;
        };
        if let Some(baggage) = self.baggage.as_mut().filter(|baggage| baggage.resumable) {
            let moved = difference(now, self.total);
            let progress = moved != std::mem::replace(&mut baggage.moved, moved);
            self.unfinished |= moved.written > 0;
            return Verdict::Resumable { progress };
        }
        let evidence = Evidence {
            reported: self.total,
            carried: !self.carry.is_empty(),
            unreported,
            pending,
        };
        let (verdict, total) = evidence.weigh(now);
        self.total = total;
        if let Verdict::Served(outcome) = verdict {
            self.end_turn(outcome, true, false);
            // A turn that ends without a message leaves nothing to carry.
            self.carry = Unforked::default();
        }
        verdict
    }
}

/// Takes care that close(2) does not wait until the client has everything, because a worker may
/// have asked for that (socket(7), SO_LINGER). A service that has asked for a reset, which waits
/// for nothing, gets it. To ask costs less than to set the option each time, and takes no lock.
fn close_without_wait(socket: &OwnedFd) {
    if let Ok(Some(wait)) = sockopt::socket_linger(socket)
        && !wait.is_zero()
    {
        let _ = sockopt::set_socket_linger(socket, None);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Peer::Inet(_) = self.peer {
            close_without_wait(&self.socket);
        }
        if self.copied {
            // ENOTCONN: the client has ended it already.
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }
}

mod succession;
#[cfg(test)]
mod tests;
mod visiting;
