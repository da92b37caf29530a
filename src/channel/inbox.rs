//! The two typed ends of a worker's socketpair: wire format and descriptor passing put together.
//!
//! The master keeps both descriptors of the pair. That lets it receive back a connection that lies
//! in the inbox of a stuck or dead worker ([`MasterEnd::take_back`]); if both receive at once, the
//! kernel gives the message to one of them. The worker has only its own end, so that it reads an
//! end of file when the master dies.
//!
//! A worker never sends descriptors. The kernel refuses them where it can (Linux 6.16); elsewhere
//! one that comes all the same is closed by another process, because closing it could take any
//! time.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socketpair, sockopt,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::error::Plain;
use crate::fdpass::{self, MAX_DESCRIPTORS, Wait};
use crate::sys;
use crate::sys::unforked::Unforked;
use crate::wire::{FromWorker, Lend, MAX_MESSAGE, ToWorker};

/// The master's end of the pair, and its copy of the worker's end.
#[derive(Debug)]
pub struct MasterEnd {
    ours: OwnedFd,
    theirs: OwnedFd,
    /// The kernel lets nobody send descriptors to this end.
    refuses: bool,
}

/// The worker's end of the pair: its inbox.
#[derive(Debug)]
pub struct WorkerEnd {
    socket: OwnedFd,
}

/// The send buffer to ask for, in bytes. The kernel doubles it (socket(7)), so the largest message
/// fits together with the kernel's bookkeeping.
const SEND_BUFFER: usize = MAX_MESSAGE;

/// More messages than can lie unread in a socket.
const MOST_UNREAD: usize = 4096;

/// A receive buffer for messages of any permitted length. Forked processes find it empty, because
/// it holds what clients have sent.
#[derive(Debug)]
pub struct MessageBuffer {
    bytes: Unforked,
    /// The descriptors of the message, until they are taken.
    descriptors: Vec<OwnedFd>,
    /// How long the longest message was that may still be there.
    length: usize,
}

impl MessageBuffer {
    /// Overwrites what was received.
    pub fn wipe(&mut self) {
        self.bytes[..self.length].fill(0);
        self.length = 0;
    }

    /// Whether nothing of what was received is left.
    #[cfg(test)]
    pub fn is_wiped(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == 0)
    }
}

impl Default for MessageBuffer {
    fn default() -> Self {
        Self {
            bytes: Unforked::zeroed(MAX_MESSAGE),
            descriptors: Vec::new(),
            length: 0,
        }
    }
}

/// What came of an attempt to lend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lent {
    /// The connection is in the worker's inbox.
    Sent,
    /// The inbox is full.
    Full,
    /// The kernel refuses, whatever the inbox holds: too many descriptors are in flight between the
    /// processes of this user, or it has no memory. The error says which.
    Refused(Errno),
    /// The worker has closed its end.
    Gone,
}

/// What a worker is asked to do next.
#[derive(Debug)]
pub enum Assignment<'a> {
    /// Serve one turn of the connection behind this descriptor.
    Serve(Lend<'a>, OwnedFd),
    /// Exit; nothing more will come.
    Retire,
}

/// Creates the socketpair of one worker.
///
/// # Errors
/// Any error of socketpair(2), getsockopt(2) or setsockopt(2).
pub fn pair() -> io::Result<(MasterEnd, WorkerEnd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    ensure_send_buffer(&ours)?;
    ensure_send_buffer(&theirs)?;
    let refuses = sys::rights::refuse_descriptors(&ours)?;
    let socket = theirs.try_clone()?;
    let master = MasterEnd {
        ours,
        theirs,
        refuses,
    };
    Ok((master, WorkerEnd { socket }))
}

/// Makes sure that a message with a full carry fits into the send buffer, because the system's
/// default (net.core.wmem_default) may be smaller.
fn ensure_send_buffer(end: &OwnedFd) -> io::Result<()> {
    if getsockopt(end, sockopt::SndBuf)? < 2 * SEND_BUFFER {
        setsockopt(end, sockopt::SndBuf, &SEND_BUFFER)?;
    }
    Ok(())
}

#[cold]
fn invalid_data(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl MasterEnd {
    /// Lends a connection without sleeping.
    ///
    /// # Errors
    /// An error of sendmsg(2) that is none of the expected outcomes in [`Lent`].
    pub fn lend(&self, lend: Lend<'_>, connection: BorrowedFd<'_>) -> io::Result<Lent> {
        let header = ToWorker::Lend(lend).header();
        let data = [IoSlice::new(header.as_bytes()), IoSlice::new(lend.carry)];
        let parts = if lend.carry.is_empty() {
            &data[..1]
        } else {
            &data[..]
        };
        match fdpass::send(&self.ours, parts, &[connection], Wait::Dont).map_err(io::Error::from) {
            Ok(_) => Ok(Lent::Sent),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(Lent::Full),
                // ETOOMANYREFS: descriptors in flight count against RLIMIT_NOFILE (unix(7)).
                Some(code @ (libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM)) => {
                    Ok(Lent::Refused(Errno::from_raw_os_error(code)))
                }
                Some(libc::EPIPE | libc::ECONNRESET) => Ok(Lent::Gone),
                _ => Err(error),
            },
        }
    }

    /// Asks the worker to exit after what is already in its inbox.
    ///
    /// # Errors
    /// Any error of sendmsg(2); EPIPE when the worker has closed its end.
    pub fn retire(&self) -> io::Result<()> {
        let header = ToWorker::Retire.header();
        fdpass::send(
            &self.ours,
            &[IoSlice::new(header.as_bytes())],
            &[],
            Wait::Dont,
        )?;
        Ok(())
    }

    /// Receives the worker's next message without sleeping; `None` when there is none yet.
    ///
    /// # Errors
    /// Any error of recvmsg(2); `InvalidData` for a malformed message.
    pub fn receive<'a>(&self, buffer: &'a mut MessageBuffer) -> io::Result<Option<FromWorker<'a>>> {
        let received = fdpass::receive_into(
            &self.ours,
            &mut buffer.bytes,
            self.room(),
            Wait::Dont,
            &mut buffer.descriptors,
        );
        let length = match received {
            Ok(length) => {
                buffer.length = buffer.length.max(length);
                Ok(Some(length))
            }
            Err(error) if error.would_block() => Ok(None),
            Err(error) => {
                // How much of it has come is not known.
                buffer.length = buffer.bytes.len();
                Err(io::Error::from(error))
            }
        };
        if !buffer.descriptors.is_empty() {
            dispose(std::mem::take(&mut buffer.descriptors));
            return Err(invalid_data("unexpected descriptors"));
        }
        let Some(length) = length? else {
            return Ok(None);
        };
        match length {
            // This is no end of file, because the master holds the worker's end open too.
            0 => Err(invalid_data("empty message")),
            length => FromWorker::parse(&buffer.bytes[..length])
                .map(Some)
                .map_err(|e| invalid_data(&e.to_string())),
        }
    }

    /// For how many descriptors there must be room, so that none is closed here.
    fn room(&self) -> usize {
        if self.refuses { 0 } else { MAX_DESCRIPTORS }
    }

    /// Receives back the first connection that is still in the worker's inbox and returns its id;
    /// `None` when no connection is left there.
    ///
    /// The master has kept a descriptor of its own. So this offers no space for the one in the
    /// message, and the kernel discards it (unix(7)), which works at the limit of open files too.
    ///
    /// # Errors
    /// Any error of recv(2); `InvalidData` for a malformed message.
    pub fn take_back(&self, buffer: &mut MessageBuffer) -> io::Result<Option<u64>> {
        loop {
            let length = match recv(&self.theirs, &mut *buffer.bytes, RecvFlags::DONTWAIT) {
                Ok((_, length)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            buffer.length = buffer.length.max(length);
            match ToWorker::parse(&buffer.bytes[..length]) {
                Ok(ToWorker::Lend(lend)) => return Ok(Some(lend.id)),
                // A worker is asked to retire when nothing is lent to it. If the message is still
                // here, the worker is dead and does not need it any more.
                Ok(ToWorker::Retire) => {}
                Err(_) if length == 0 => return Ok(None),
                Err(error) => return Err(invalid_data(&error.to_string())),
            }
        }
    }
}

impl Drop for MasterEnd {
    fn drop(&mut self) {
        if self.refuses {
            return;
        }
        // What lies unread in a socket is closed with it.
        let mut unread = Vec::new();
        for _ in 0..MOST_UNREAD {
            let (mut data, wanted) = ([0; 1], MAX_DESCRIPTORS);
            let received =
                fdpass::receive_into(&self.ours, &mut data, wanted, Wait::Dont, &mut unread);
            if let Err(fdpass::Error::Os(_)) = received {
                break;
            }
        }
        if !unread.is_empty() {
            dispose(unread);
        }
    }
}

/// Has descriptors closed that a worker has sent.
fn dispose(descriptors: Vec<OwnedFd>) {
    if let Err(error) = sys::dispose::close_elsewhere(descriptors) {
        log::error!("cannot close what a worker has sent: {}", Plain(&error));
    }
}

impl AsFd for MasterEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }
}

impl WorkerEnd {
    /// Sleeps until the master lends a connection, asks this worker to exit, or is gone.
    ///
    /// # Errors
    /// Any error of recvmsg(2); `InvalidData` for a malformed message.
    pub fn receive<'a>(&self, buffer: &'a mut MessageBuffer) -> io::Result<Assignment<'a>> {
        let length = fdpass::receive_into(
            &self.socket,
            &mut buffer.bytes,
            1,
            Wait::Block,
            &mut buffer.descriptors,
        )?;
        if length == 0 {
            return Ok(Assignment::Retire);
        }
        match ToWorker::parse(&buffer.bytes[..length]) {
            Ok(ToWorker::Lend(lend)) => match buffer.descriptors.pop() {
                Some(connection) => Ok(Assignment::Serve(lend, connection)),
                None => Err(invalid_data(
                    "a LEND message came without its descriptor (is RLIMIT_NOFILE reached?)",
                )),
            },
            Ok(ToWorker::Retire) => Ok(Assignment::Retire),
            Err(error) => Err(invalid_data(&error.to_string())),
        }
    }

    /// Whether the master is gone. What it has lent before may still be in the inbox.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        let mut wait = [PollFd::new(&self.socket, PollFlags::empty())];
        poll(&mut wait, Some(&Timespec::default())).is_ok_and(|count| count > 0)
            && wait[0].revents().contains(PollFlags::HUP)
    }

    /// Sends a message to the master; sleeps while the master's receive queue is full.
    ///
    /// # Errors
    /// Any error of sendmsg(2); EPIPE when the master is gone.
    pub fn send(&self, message: &FromWorker<'_>) -> io::Result<()> {
        let carry = match message {
            FromWorker::Report(report) => report.carry,
            FromWorker::Ready => &[],
        };
        let header = message.header();
        let data = [IoSlice::new(header.as_bytes()), IoSlice::new(carry)];
        fdpass::send(&self.socket, &data, &[], Wait::Block)?;
        Ok(())
    }
}

impl AsFd for WorkerEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Outcome, Peer, Report, Traffic};

    fn lend(id: u64, carry: &[u8]) -> Lend<'_> {
        Lend {
            id,
            turn: 1,
            peer: Peer::Unix,
            watched: false,
            carry,
        }
    }

    #[test]
    fn a_connection_goes_to_the_worker_and_the_report_comes_back() {
        let (master, worker) = pair().unwrap();
        let mut buffer = MessageBuffer::default();
        assert_eq!(
            master.lend(lend(7, b"carry"), master.as_fd()).unwrap(),
            Lent::Sent
        );
        let Assignment::Serve(lend, _) = worker.receive(&mut buffer).unwrap() else {
            panic!("no lend")
        };
        assert_eq!((lend.id, lend.carry), (7, &b"carry"[..]));
        let report = FromWorker::Report(Report {
            id: 7,
            outcome: Outcome::Park,
            traffic: Some(Traffic {
                read: 1,
                written: 2,
            }),
            carry: b"rest",
        });
        worker.send(&report).unwrap();
        assert_eq!(master.receive(&mut buffer).unwrap(), Some(report));
        assert_eq!(master.receive(&mut buffer).unwrap(), None);
    }

    #[test]
    fn what_is_in_an_inbox_can_be_taken_back_in_order() {
        let (master, worker) = pair().unwrap();
        let mut buffer = MessageBuffer::default();
        for id in 1..=3 {
            master.lend(lend(id, b""), master.as_fd()).unwrap();
        }
        assert!(matches!(
            worker.receive(&mut buffer),
            Ok(Assignment::Serve(..))
        ));
        assert_eq!(master.take_back(&mut buffer).unwrap(), Some(2));
        assert_eq!(master.take_back(&mut buffer).unwrap(), Some(3));
        assert_eq!(master.take_back(&mut buffer).unwrap(), None);
    }

    #[test]
    fn a_descriptor_that_comes_back_with_its_connection_is_closed() {
        let (master, _worker) = pair().unwrap();
        let (kept, lent) = std::os::unix::net::UnixStream::pair().unwrap();
        kept.set_nonblocking(true).unwrap();
        assert_eq!(master.lend(lend(7, b""), lent.as_fd()).unwrap(), Lent::Sent);
        drop(lent);
        let read = || io::Read::read(&mut &kept, &mut [0]);
        let in_flight = read().map_err(|error| error.kind());
        assert_eq!(in_flight, Err(io::ErrorKind::WouldBlock));
        let taken_back = master.take_back(&mut MessageBuffer::default());
        assert_eq!(taken_back.unwrap(), Some(7));
        assert_eq!(read().unwrap(), 0);
    }

    #[test]
    fn a_full_inbox_refuses_and_loses_nothing() {
        let (master, worker) = pair().unwrap();
        let mut buffer = MessageBuffer::default();
        let carry = vec![b'x'; crate::wire::MAX_CARRY];
        let mut sent = 0;
        while master.lend(lend(sent, &carry), master.as_fd()).unwrap() == Lent::Sent {
            sent += 1;
        }
        assert!(sent > 0);
        for id in 0..sent {
            match worker.receive(&mut buffer).unwrap() {
                Assignment::Serve(lend, _) => assert_eq!(lend.id, id),
                Assignment::Retire => panic!("a connection is missing"),
            }
        }
    }

    #[test]
    fn a_worker_that_sends_a_descriptor_is_no_honest_one() {
        let (mut master, worker) = pair().unwrap();
        let send = || {
            fdpass::send(
                &worker,
                &[IoSlice::new(b"x")],
                &[worker.as_fd()],
                Wait::Dont,
            )
        };
        if master.refuses {
            assert!(send().is_err());
            // As on a kernel that can't refuse it.
            sys::rights::accept_descriptors(&master.ours).unwrap();
            master.refuses = false;
        }
        send().unwrap();
        let mut buffer = MessageBuffer::default();
        let received = master.receive(&mut buffer);
        assert_eq!(received.unwrap_err().kind(), io::ErrorKind::InvalidData);
        send().unwrap();
        drop(master);
    }

    #[test]
    fn a_worker_is_told_of_the_masters_end() {
        let (master, worker) = pair().unwrap();
        drop(master);
        assert!(matches!(
            worker.receive(&mut MessageBuffer::default()),
            Ok(Assignment::Retire)
        ));
    }

    #[test]
    fn a_full_carry_fits_even_where_the_default_is_small() {
        let (master, _worker) = pair().unwrap();
        setsockopt(&master.ours, sockopt::SndBuf, &4096).unwrap();
        ensure_send_buffer(&master.ours).unwrap();
        let lend = Lend {
            id: u64::MAX >> 4,
            turn: u64::MAX,
            peer: crate::service::Peer::Unix,
            watched: true,
            carry: &[b'x'; crate::wire::MAX_CARRY],
        };
        let some = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(master.lend(lend, some.as_fd()).unwrap(), Lent::Sent);
    }
}
