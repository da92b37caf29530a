//! What the master holds for a connection, and the few things that it does with it. It parses nothing and copies none
//! of the client's bytes, but the carry.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::dispatch::{Interest, Verdict};
use crate::service::Peer;
use crate::sys::tcp;
use crate::wire::{Report, Traffic};

/// How much of a lingering client's input is discarded at a time.
const DRAIN_SIZE: usize = 64 * 1024;

/// A connection's descriptor, and what the next worker must know of it.
#[derive(Debug)]
pub struct Held {
    socket: OwnedFd,
    peer: Peer,
    carry: Box<[u8]>,
    /// It is in the epoll set.
    watched: bool,
    /// What all turns so far have moved; the kernel's own counters are measured against it after a crash.
    total: Traffic,
}

impl Held {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(socket: OwnedFd, peer: Peer) -> Self {
        Self {
            socket,
            peer,
            carry: Box::default(),
            watched: false,
            total: Traffic::default(),
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
                self.total.read += traffic.read;
                self.total.written += traffic.written;
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

    /// Whether the client has sent something that nobody has read yet.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.carry.is_empty()
            || rustix::io::ioctl_fionread(&self.socket).is_ok_and(|unread| unread > 0)
    }

    /// Wants one event of this connection from the epoll set.
    ///
    /// # Errors
    /// What epoll_ctl(2) fails with.
    pub fn watch(
        &mut self,
        epoll: BorrowedFd<'_>,
        interest: Interest,
        token: u64,
    ) -> io::Result<()> {
        let what = match interest {
            Interest::Read => EventFlags::IN | EventFlags::RDHUP,
            Interest::Write => EventFlags::OUT,
        };
        let (flags, data) = (what | EventFlags::ONESHOT, EventData::new_u64(token));
        if self.watched {
            epoll::modify(epoll, &self.socket, data, flags)?;
        } else {
            epoll::add(epoll, &self.socket, data, flags)?;
            self.watched = true;
        }
        Ok(())
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

    /// What came of a turn whose worker died, by the kernel's counters.
    #[must_use]
    pub fn examine(&self) -> Verdict {
        match tcp::progress(&self.socket) {
            Ok(now) if now.written != self.total.written => Verdict::Sent,
            Ok(now) if now.read != self.total.read => Verdict::Consumed,
            Ok(_) => Verdict::Untouched,
            // No TCP: nobody has counted.
            Err(_) => Verdict::Sent,
        }
    }

    /// How this connection's descriptor can be lent.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
