//! Connections that are over when the master is gone, which would have let them linger. Nobody else
//! is there to do so: if this process closed the last descriptor now, what a client still sends
//! would make the kernel reset the connection, and what it has not taken would be lost
//! (RFC 9112 §9.6).

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

use crate::channel::start::Linger;
use crate::service::Peer;
use crate::sys::tcp;

/// The time between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// How much of a client's input is discarded at a look.
const DRAIN_SIZE: usize = 64 * 1024;

/// A connection of which this side has ended.
#[derive(Debug)]
pub(super) struct Orphan {
    pub(super) socket: OwnedFd,
    pub(super) peer: Peer,
    /// When the client was last found to have sent something since the end.
    pub(super) heard: Option<Instant>,
}

impl Orphan {
    /// Discards what the client has sent. Whether something could be lost still: the client has not
    /// taken all that was sent, or may be sending more.
    fn lingers(&mut self, silence: Duration, scratch: &mut [u8]) -> bool {
        match recv(&self.socket, &mut *scratch, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return false,
            Ok(_) => self.heard = Some(Instant::now()),
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        // What a Unix socket has taken is with the client already.
        let inet = matches!(self.peer, Peer::Inet(_));
        let unsent = inet && tcp::unacknowledged(&self.socket).is_ok_and(|unsent| unsent > 0);
        unsent || self.heard.is_some_and(|heard| heard.elapsed() < silence)
    }
}

/// Lets connections linger, all at the same time.
pub(super) fn linger(mut orphans: Vec<Orphan>, linger: Linger) {
    if orphans.is_empty() {
        return;
    }
    let end = Instant::now() + linger.total;
    let mut scratch = vec![0; DRAIN_SIZE];
    loop {
        orphans.retain_mut(|orphan| orphan.lingers(linger.silence, &mut scratch));
        if orphans.is_empty() || Instant::now() >= end {
            return;
        }
        thread::sleep(INTERVAL);
    }
}
