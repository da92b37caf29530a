//! Both typed ends of a worker's socketpair: descriptor passing and wire format put together.
//!
//! The master keeps both descriptors of the pair. So a connection that lies in the inbox of a stuck or dead worker is
//! simply received back ([`MasterEnd::take_back`]): the kernel decides who got it. The worker keeps its own end only;
//! when the master dies, the worker reads the end of the stream.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socketpair, sockopt,
};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::fdpass::{self, Wait};
use crate::wire::{FromWorker, Lend, MAX_MESSAGE, ToWorker};

/// The master's end, and its copy of the worker's.
#[derive(Debug)]
pub struct MasterEnd {
    ours: OwnedFd,
    theirs: OwnedFd,
}

/// The worker's end: its inbox.
#[derive(Debug)]
pub struct WorkerEnd {
    socket: OwnedFd,
}

/// What either end has room for at least, in bytes: the largest message, and the kernel's own data about it. The kernel
/// doubles what is asked for (socket(7)).
const ROOM: usize = MAX_MESSAGE;

/// A buffer that takes any message.
#[derive(Debug)]
pub struct MessageBuffer(Box<[u8]>);

impl Default for MessageBuffer {
    fn default() -> Self {
        Self(vec![0; MAX_MESSAGE].into_boxed_slice())
    }
}

/// What came of a lend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lent {
    /// It is in the worker's inbox.
    Sent,
    /// The kernel has no room for it now: the inbox is full, or too many descriptors are in flight.
    Refused,
    /// The worker takes no more.
    Gone,
}

/// What a worker finds in its inbox.
#[derive(Debug)]
pub enum Assignment<'a> {
    /// A connection for one turn.
    Serve(Lend<'a>, OwnedFd),
    /// Nothing more will come: exit.
    Retire,
}

/// Makes the two ends for one worker.
///
/// # Errors
/// What socketpair(2) fails with.
pub fn pair() -> io::Result<(MasterEnd, WorkerEnd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    make_room(&ours)?;
    make_room(&theirs)?;
    let socket = theirs.try_clone()?;
    Ok((MasterEnd { ours, theirs }, WorkerEnd { socket }))
}

/// A full carry must fit, whatever the system's default (net.core.wmem_default).
fn make_room(end: &OwnedFd) -> io::Result<()> {
    if getsockopt(end, sockopt::SndBuf)? < 2 * ROOM {
        setsockopt(end, sockopt::SndBuf, &ROOM)?;
    }
    Ok(())
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl MasterEnd {
    /// Lends a connection, without sleeping.
    ///
    /// # Errors
    /// What sendmsg(2) fails with, but for the expected outcomes that [`Lent`] names.
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
                // ETOOMANYREFS: descriptors in flight count against RLIMIT_NOFILE (unix(7)).
                Some(libc::EAGAIN | libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM) => {
                    Ok(Lent::Refused)
                }
                Some(libc::EPIPE | libc::ECONNRESET) => Ok(Lent::Gone),
                _ => Err(error),
            },
        }
    }

    /// Asks the worker to exit, behind whatever is in its inbox.
    ///
    /// # Errors
    /// What sendmsg(2) fails with; EPIPE when the worker takes no more.
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

    /// The next message of the worker, if there is one.
    ///
    /// # Errors
    /// What recvmsg(2) fails with; `InvalidData` for a message that breaks the format.
    pub fn receive<'a>(&self, buffer: &'a mut MessageBuffer) -> io::Result<Option<FromWorker<'a>>> {
        let Some(message) = receive(&self.ours, buffer, 0, Wait::Dont)? else {
            return Ok(None);
        };
        match message.length {
            // The master holds the other end too, so this is no end of file but an empty message.
            0 => Err(broken("an empty message")),
            length => FromWorker::parse(&buffer.0[..length])
                .map(Some)
                .map_err(|e| broken(&e.to_string())),
        }
    }

    /// Receives a lent connection back, if one is still in the inbox: its name. The master has a
    /// descriptor of its own, so there is no room for the one that came along, and the kernel
    /// discards it (unix(7)): this works at the limit of open files too.
    ///
    /// # Errors
    /// What recv(2) fails with.
    pub fn take_back(&self, buffer: &mut MessageBuffer) -> io::Result<Option<u64>> {
        loop {
            let length = match recv(&self.theirs, &mut *buffer.0, RecvFlags::DONTWAIT) {
                Ok((_, length)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            match ToWorker::parse(&buffer.0[..length]) {
                Ok(ToWorker::Lend(lend)) => return Ok(Some(lend.id)),
                // A worker is asked to retire when it has nothing; that message is of no more use to a dead one.
                Ok(ToWorker::Retire) => {}
                Err(_) if length == 0 => return Ok(None),
                Err(error) => return Err(broken(&error.to_string())),
            }
        }
    }
}

impl AsFd for MasterEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }
}

impl WorkerEnd {
    /// Sleeps until the master lends a connection or wants no more of this worker.
    ///
    /// # Errors
    /// What recvmsg(2) fails with; `InvalidData` for a message that breaks the format.
    pub fn receive<'a>(&self, buffer: &'a mut MessageBuffer) -> io::Result<Assignment<'a>> {
        let Some(mut message) = receive(&self.socket, buffer, 1, Wait::Block)? else {
            return Err(broken("the inbox does not block"));
        };
        if message.length == 0 {
            return Ok(Assignment::Retire);
        }
        match ToWorker::parse(&buffer.0[..message.length]) {
            Ok(ToWorker::Lend(lend)) => match message.descriptors.pop() {
                Some(connection) => Ok(Assignment::Serve(lend, connection)),
                None => Err(broken(
                    "a lend without its descriptor (is RLIMIT_NOFILE reached?)",
                )),
            },
            Ok(ToWorker::Retire) => Ok(Assignment::Retire),
            Err(error) => Err(broken(&error.to_string())),
        }
    }

    /// Says something to the master; sleeps while the master is behind.
    ///
    /// # Errors
    /// What sendmsg(2) fails with; EPIPE when the master is gone.
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

/// One message, or `None` where there is none yet.
fn receive(
    socket: &OwnedFd,
    buffer: &mut MessageBuffer,
    wanted: usize,
    wait: Wait,
) -> io::Result<Option<fdpass::Message>> {
    match fdpass::receive(socket, &mut buffer.0, wanted, wait).map_err(io::Error::from) {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
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
        make_room(&master.ours).unwrap();
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
