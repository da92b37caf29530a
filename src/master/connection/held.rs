//! What the master holds for a connection, and the few things that it does with it. It parses nothing and copies none
//! of the client's bytes, but the carry.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use crate::channel::scoreboard::Entry;
use crate::master::dispatch::{Interest, Standing, Verdict};
use crate::master::store::ledger::Stage;
use crate::master::store::{Kept, Note};
use crate::master::time::Time;
use crate::service::Peer;
use crate::sys::tcp;
use crate::wire::{Outcome, Report, Traffic};

/// How much of a lingering client's input is discarded at a time.
const DRAIN_SIZE: usize = 64 * 1024;

const INPUT: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);

/// How a connection stands in the epoll set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Not at all.
    No,
    /// For a single event.
    Once,
    /// For all input that comes, an event each (edge-triggered), whether it is lent or not.
    Input,
}

/// A connection's descriptor, and what the next worker must know of it.
#[derive(Debug)]
pub struct Held {
    socket: OwnedFd,
    peer: Peer,
    carry: Box<[u8]>,
    watch: Watch,
    /// What was last waited for.
    interest: Interest,
    /// Events that came while it was lent.
    noticed: EventFlags,
    /// It is over for the server.
    ending: bool,
    /// What all turns so far have moved; the kernel's own counters are measured against it after a crash.
    total: Traffic,
    /// Its place in the manager's store.
    kept: Option<Kept>,
    /// The manager has a copy of the descriptor, so that closing it does not end the connection.
    copied: bool,
}

impl Held {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(socket: OwnedFd, peer: Peer) -> Self {
        Self {
            socket,
            peer,
            carry: Box::default(),
            watch: Watch::No,
            interest: Interest::Input,
            noticed: EventFlags::empty(),
            ending: false,
            total: Traffic::default(),
            kept: None,
            copied: false,
        }
    }

    /// A connection that another master has had.
    #[must_use]
    pub fn adopted(socket: OwnedFd, peer: Peer, carry: &[u8], total: Traffic) -> Self {
        let mut held = Self::new(socket, peer);
        held.carry = carry.into();
        held.total = total;
        held
    }

    /// The manager has a copy of it, or gets one soon.
    pub fn copied(&mut self, kept: Option<Kept>) {
        self.kept = kept;
        self.copied = true;
    }

    /// What the kernel calls it, whichever process has it.
    ///
    /// # Errors
    /// What getsockopt(2) fails with.
    pub fn cookie(&self) -> io::Result<u64> {
        Ok(sockopt::socket_cookie(&self.socket)?)
    }

    /// Whether somebody else has its descriptor too, for good.
    #[must_use]
    pub fn is_copied(&self) -> bool {
        self.copied
    }

    /// Its place in the manager's store.
    #[must_use]
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// Notes how it stands, if it is stored.
    pub fn note_standing(&self, stage: Stage, standing: &Standing, now: Time) {
        if let Some(kept) = &self.kept {
            let note = Note {
                stage,
                interest: self.interest,
                turns: standing.turns,
                total: self.total,
                left: standing.left,
                owing: standing.owing,
                carry: &self.carry,
            };
            kept.note(note, now);
        }
    }

    /// Notes where it is now, if it is stored.
    pub fn enter(&self, stage: Stage) {
        if let Some(kept) = &self.kept {
            kept.enter(stage);
        }
    }

    /// Another master has it, and goes on with it.
    pub fn pass_on(&mut self) {
        self.copied = false;
        if let Some(kept) = self.kept.take() {
            kept.pass_on();
        }
    }

    /// What was last waited for.
    #[must_use]
    pub fn interest(&self) -> Interest {
        self.interest
    }

    /// What all turns so far have moved.
    #[must_use]
    pub fn total(&self) -> Traffic {
        self.total
    }

    /// Ends the watching: while another process has the connection too, closing would not (epoll(7)).
    pub fn unwatch(&mut self, epoll: BorrowedFd<'_>) {
        if self.watch != Watch::No {
            self.watch = Watch::No;
            let _ = epoll::delete(epoll, &self.socket);
        }
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

    /// Takes over what a report says.
    pub fn note(&mut self, report: &Report<'_>) {
        match report.traffic {
            Some(traffic) => {
                // The worker's word: only its own connection suffers if it is wrong.
                self.total.read = self.total.read.wrapping_add(traffic.read);
                self.total.written = self.total.written.wrapping_add(traffic.written);
            }
            // An external worker that does not count: the kernel does.
            None => {
                if let Ok(progress) = tcp::progress(&self.socket) {
                    self.total = Traffic {
                        read: progress.read,
                        written: progress.written,
                    };
                }
            }
        }
        if self.carry.len() + report.carry.len() > 0 {
            self.carry = report.carry.into();
        }
    }

    /// Whether there is something for a turn: bytes that nobody has read, or that were not consumed.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.carry.is_empty() || self.has_unread()
    }

    /// Whether the client has sent something that nobody has read yet.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(&self.socket).is_ok_and(|unread| unread > 0)
    }

    /// Watches for the client. While it waits for input, the connection stays watched when it is lent, so that the
    /// next time this costs no call; what the epoll set said in the meantime is returned. Not when it is `uncontended`: then
    /// the worker may stay with the connection, and the master is not to be woken by what comes.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn watch(
        &mut self,
        epoll: BorrowedFd<'_>,
        interest: Interest,
        uncontended: bool,
        token: u64,
    ) -> io::Result<EventFlags> {
        self.interest = interest;
        let noticed = std::mem::replace(&mut self.noticed, EventFlags::empty());
        let (mode, flags) = match interest {
            Interest::Input | Interest::NewInput if self.ending || uncontended => {
                (Watch::Once, INPUT | EventFlags::ONESHOT)
            }
            Interest::Input | Interest::NewInput => (Watch::Input, INPUT | EventFlags::ET),
            Interest::Output => (Watch::Once, EventFlags::OUT | EventFlags::ONESHOT),
        };
        let data = EventData::new_u64(token);
        match (self.watch, mode) {
            (Watch::Input, Watch::Input) if interest == Interest::NewInput => return Ok(noticed),
            (Watch::No, _) => epoll::add(epoll, &self.socket, data, flags)?,
            (Watch::Once | Watch::Input, _) => epoll::modify(epoll, &self.socket, data, flags)?,
        }
        self.watch = mode;
        // The call itself looks at the connection, and gives an event for what is there.
        Ok(EventFlags::empty())
    }

    /// Whether the client is watched while the connection is lent.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watch == Watch::Input
    }

    /// Keeps an event that came while the connection was lent. True when it is the first to say
    /// that the client has sent something.
    pub fn notice(&mut self, flags: EventFlags) -> bool {
        let news = flags - self.noticed;
        self.noticed |= flags;
        news.contains(EventFlags::IN)
    }

    /// Sends the server's last words, as far as they fit without sleeping, and ends the sending side.
    ///
    /// # Errors
    /// What send(2) and shutdown(2) fail with: the client is gone.
    pub fn finish(&mut self, last_words: &[u8]) -> io::Result<()> {
        if !last_words.is_empty() {
            let sent = send(
                &self.socket,
                last_words,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            )?;
            self.total.written += sent as u64;
        }
        self.ending = true;
        shutdown(&self.socket, Shutdown::Write)?;
        Ok(())
    }

    /// Discards what the client has sent; whether that was the last of it.
    ///
    /// # Errors
    /// What recv(2) fails with: the client is gone.
    pub fn drain(&self, scratch: &mut [u8]) -> io::Result<bool> {
        let scratch = &mut scratch[..DRAIN_SIZE];
        // On TCP, MSG_TRUNC discards without copying (tcp(7)).
        let flags = match self.peer {
            Peer::Inet(_) => RecvFlags::DONTWAIT | RecvFlags::TRUNC,
            Peer::Unix => RecvFlags::DONTWAIT,
        };
        match recv(&self.socket, scratch, flags) {
            Ok((_, count)) => Ok(count == 0),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What came of a turn whose worker died, by the kernel's counters. `unreported` is what the worker had served
    /// without a report, and `pending_report` what it would have reported if its last call came to its end.
    #[must_use]
    pub fn examine(&mut self, unreported: Option<Entry>, pending_report: Option<Entry>) -> Verdict {
        // No TCP: nobody has counted.
        let Ok(now) = tcp::progress(&self.socket) else {
            return Verdict::Unknown;
        };
        let now = Traffic {
            read: now.read,
            written: now.written,
        };
        if let Some(entry) = pending_report {
            let then = sum(self.total, entry.traffic);
            // The end of either side counts as one byte.
            let end = u64::from(!entry.outcome.keeps());
            let reached = |now: u64, then: u64| now == then || now == then.wrapping_add(end);
            if reached(now.read, then.read) && reached(now.written, then.written) {
                return self.served(then, entry.outcome);
            }
        }
        let before = sum(
            self.total,
            unreported.map(|e| e.traffic).unwrap_or_default(),
        );
        if now.written != before.written {
            Verdict::Sent
        } else if now.read != before.read {
            Verdict::Consumed
        } else if let Some(entry) = unreported {
            self.served(before, entry.outcome)
        } else if !self.carry.is_empty() {
            // The worker had it all without reading: whether it has begun on it, nobody can say.
            Verdict::Consumed
        } else {
            Verdict::Untouched
        }
    }

    /// Takes over what a dead worker left behind instead of a report. Such a turn leaves nothing to
    /// carry.
    fn served(&mut self, total: Traffic, outcome: Outcome) -> Verdict {
        self.total = total;
        self.carry = Box::default();
        Verdict::Served(outcome)
    }

    /// How this connection's descriptor can be lent.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.copied {
            // ENOTCONN: the client has ended it already.
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }
}

fn sum(one: Traffic, other: Traffic) -> Traffic {
    Traffic {
        read: one.read.wrapping_add(other.read),
        written: one.written.wrapping_add(other.written),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_came_along_with_a_served_turn_does_not_come_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut worker, peer) = listener.accept().unwrap();
        let mut held = Held::new(worker.try_clone().unwrap().into(), Peer::Inet(peer));
        client.write_all(b"half and half").unwrap();
        worker.read_exact(&mut [0; 5]).unwrap();
        let moved = |read, written| Some(Traffic { read, written });
        held.note(&Report {
            id: 1,
            outcome: Outcome::Park,
            traffic: moved(5, 0),
            carry: b"half ",
        });
        worker.read_exact(&mut [0; 8]).unwrap();
        worker.write_all(b"whole").unwrap();
        let pending_report = Entry {
            id: 1,
            outcome: Outcome::Park,
            turns: 1,
            traffic: Traffic {
                read: 8,
                written: 5,
            },
            took: std::time::Duration::ZERO,
        };
        let verdict = held.examine(None, Some(pending_report));
        assert_eq!(verdict, Verdict::Served(Outcome::Park));
        assert_eq!(held.carry(), b"");
        assert_eq!(held.examine(None, None), Verdict::Untouched);
    }
}
