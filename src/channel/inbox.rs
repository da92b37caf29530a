//! The two typed ends of a worker's socketpair: wire format and descriptor passing put together.
//!
//! The master keeps both descriptors of the pair. That lets it receive back a connection that lies
//! in the inbox of a stuck or dead worker ([`MasterEnd::take_back`]); if both receive at once, the
//! kernel gives the message to one of them. The worker has only its own end, so that it reads an
//! end of file when the master dies.
//!
//! A worker sends no descriptors but luggage, and that only once it has said that it may. Until
//! then the kernel refuses them where it can (Linux 6.16). What comes and is no luggage is closed
//! by another process, because closing it could take any time.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socketpair, sockopt,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::scoreboard::TEXT;
use crate::error::Plain;
use crate::fdpass::{self, MAX_DESCRIPTORS, Wait};
use crate::sys;
use crate::sys::unforked::Unforked;
use crate::wire::{FromWorker, Lend, LuggageChange, MAX_HEADER, MAX_MESSAGE, ToWorker};

/// The master's end of the pair, and its copy of the worker's end.
#[derive(Debug)]
pub struct MasterEnd {
    ours: OwnedFd,
    theirs: OwnedFd,
    /// The kernel lets nobody send descriptors to this end.
    refuses: bool,
    /// The worker may send luggage.
    accepts: bool,
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

    /// Where a message is put that does not come over the socketpair.
    pub fn text(&mut self) -> &mut [u8] {
        &mut self.bytes[..TEXT]
    }

    /// What a worker says in a message of so many bytes that was put there.
    ///
    /// # Errors
    /// [`InvalidData`](io::ErrorKind::InvalidData) when it is malformed.
    pub fn said(&mut self, length: usize) -> io::Result<FromWorker<'_>> {
        self.length = self.length.max(length.min(TEXT));
        let text = self.bytes[..TEXT].get(..length);
        let text = text.ok_or_else(|| invalid_data("it is longer than its place"))?;
        FromWorker::parse(text).map_err(|malformed| invalid_data(&malformed.to_string()))
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

/// What came of an attempt to receive.
#[derive(Debug)]
pub enum Received<'a> {
    /// There is no message.
    Nothing,
    /// The next message brings luggage, for which there is no room. It is still there.
    Laden,
    /// A message, and the luggage that came with it.
    Message(FromWorker<'a>, Option<OwnedFd>),
}

/// What a worker is asked to do next.
#[derive(Debug)]
pub enum Assignment<'a> {
    /// Serve one turn of this connection.
    Serve(Lend<'a>, Borrowed),
    /// Exit; nothing more will come.
    Retire,
}

/// The descriptors that come with a lend.
#[derive(Debug)]
pub struct Borrowed {
    /// The connection.
    pub connection: OwnedFd,
    /// What the service has put beside it in an earlier turn.
    pub luggage: Option<OwnedFd>,
}

impl From<Borrowed> for (OwnedFd, Option<OwnedFd>) {
    fn from(borrowed: Borrowed) -> Self {
        (borrowed.connection, borrowed.luggage)
    }
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
        accepts: false,
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
    /// Lends a connection without sleeping, and its luggage if there is any.
    ///
    /// # Errors
    /// An error of sendmsg(2) that is none of the expected outcomes in [`Lent`].
    pub fn lend(
        &self,
        lend: Lend<'_>,
        connection: BorrowedFd<'_>,
        luggage: Option<BorrowedFd<'_>>,
    ) -> io::Result<Lent> {
        let header = ToWorker::Lend(lend).header();
        let data = [header.as_bytes(), lend.note, lend.carry].map(IoSlice::new);
        let parts = if lend.carry.is_empty() && lend.note.is_empty() {
            &data[..1]
        } else {
            &data[..]
        };
        let descriptors = [connection, luggage.unwrap_or(connection)];
        let descriptors = &descriptors[..1 + usize::from(luggage.is_some())];
        match fdpass::send(&self.ours, parts, descriptors, Wait::Dont).map_err(io::Error::from) {
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

    /// From now on the worker may send luggage.
    ///
    /// # Errors
    /// What setsockopt(2) fails with.
    pub fn accept_luggage(&mut self) -> io::Result<()> {
        if self.refuses {
            sys::rights::accept_descriptors(&self.ours)?;
            self.refuses = false;
        }
        self.accepts = true;
        Ok(())
    }

    /// Whether the worker has said that it takes luggage.
    #[must_use]
    pub fn accepts_luggage(&self) -> bool {
        self.accepts
    }

    /// Receives the worker's next message without sleeping, with the luggage that came with it. One
    /// that brings luggage stays where it is if there is no `room` for descriptors.
    ///
    /// # Errors
    /// Any error of recvmsg(2); `InvalidData` for a malformed message, and for descriptors that are
    /// no luggage.
    pub fn receive<'a>(
        &self,
        buffer: &'a mut MessageBuffer,
        room: bool,
    ) -> io::Result<Received<'a>> {
        if self.accepts && !room && self.is_laden(buffer) {
            return Ok(Received::Laden);
        }
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
        let descriptors = std::mem::take(&mut buffer.descriptors);
        let Some(length) = (match length {
            Ok(length) => length,
            Err(error) => {
                dispose(descriptors);
                return Err(error);
            }
        }) else {
            return Ok(Received::Nothing);
        };
        if length == 0 {
            // This is no end of file, because the master holds the worker's end open too.
            dispose(descriptors);
            return Err(invalid_data("empty message"));
        }
        let message = match FromWorker::parse(&buffer.bytes[..length]) {
            Ok(message) => message,
            Err(error) => {
                dispose(descriptors);
                return Err(invalid_data(&error.to_string()));
            }
        };
        let luggage = self.take_luggage(&message, descriptors)?;
        Ok(Received::Message(message, luggage))
    }

    /// Whether the next message says that it brings luggage. To look at it takes no descriptor,
    /// because no space is offered for one.
    fn is_laden(&self, buffer: &mut MessageBuffer) -> bool {
        let header = &mut buffer.bytes[..MAX_HEADER];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let Ok((_, length)) = recv(&self.ours, &mut *header, flags) else {
            return false;
        };
        let header = &header[..length.min(MAX_HEADER)];
        let line = header.split(|byte| *byte == b'\n').next();
        let mut words = line.unwrap_or_default().split(|byte| *byte == b' ');
        buffer.length = buffer.length.max(header.len());
        words.next() != Some(b"READY") && words.any(|word| word == b"luggage")
    }

    /// The luggage among the descriptors that came with a message.
    fn take_luggage(
        &self,
        message: &FromWorker<'_>,
        mut descriptors: Vec<OwnedFd>,
    ) -> io::Result<Option<OwnedFd>> {
        let said = match message {
            FromWorker::Report(report) => report.extras.luggage == LuggageChange::New,
            FromWorker::Ready { .. } => false,
        };
        if !said && descriptors.is_empty() {
            return Ok(None);
        }
        let wanted = usize::from(said && self.accepts);
        if descriptors.len() == wanted
            && let Some(luggage) = descriptors.pop_if(|one| sys::luggage::is_acceptable(one))
        {
            return Ok(Some(luggage));
        }
        let what = match (said, descriptors.len()) {
            (true, 0) => "the luggage is missing",
            (true, 1) if self.accepts => "luggage that is neither a memory file nor a plain file",
            _ => "unexpected descriptors",
        };
        dispose(descriptors);
        Err(invalid_data(what))
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
        dispose(unread);
    }
}

/// Has descriptors closed that a worker has sent.
fn dispose(descriptors: Vec<OwnedFd>) {
    if descriptors.is_empty() {
        return;
    }
    if let Err((error, descriptors)) = sys::dispose::close_unknown(descriptors) {
        log::error!("cannot close what a worker has sent: {}", Plain(&error));
        descriptors.into_iter().for_each(std::mem::forget);
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
            2,
            Wait::Block,
            &mut buffer.descriptors,
        )?;
        if length == 0 {
            return Ok(Assignment::Retire);
        }
        match ToWorker::parse(&buffer.bytes[..length]) {
            Ok(ToWorker::Lend(lend)) => {
                let mut came = buffer.descriptors.drain(..);
                let (connection, luggage) = (came.next(), came.next());
                match connection {
                    Some(connection) if luggage.is_some() == lend.luggage => Ok(Assignment::Serve(
                        lend,
                        Borrowed {
                            connection,
                            luggage,
                        },
                    )),
                    _ => Err(invalid_data(
                        "a LEND message came without its descriptors (is RLIMIT_NOFILE reached?)",
                    )),
                }
            }
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

    /// Sends a message to the master, with its luggage if it says that there is some; sleeps while
    /// the master's receive queue is full.
    ///
    /// # Errors
    /// Any error of sendmsg(2); EPIPE when the master is gone.
    pub fn send(
        &self,
        message: &FromWorker<'_>,
        luggage: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let (note, carry) = match message {
            FromWorker::Report(report) => (report.extras.note.unwrap_or_default(), report.carry),
            FromWorker::Ready { .. } => (&[][..], &[][..]),
        };
        let header = message.header();
        let data = [header.as_bytes(), note, carry].map(IoSlice::new);
        fdpass::send(&self.socket, &data, luggage.as_slice(), Wait::Block)?;
        Ok(())
    }
}

impl AsFd for WorkerEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
