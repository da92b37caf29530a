//! Plays one of the two masters of a takeover, word by word.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use batond::fdpass::{self, Wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use super::DEADLINE;

/// More than any message has.
const ROOM: usize = 128 * 1024;

/// One end of a session.
pub struct Session(OwnedFd);

/// Where a master is asked, as one that is to be asked has it.
pub struct Desk(OwnedFd);

fn seqpacket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let socket = socket.expect("a socket");
    limit(&socket, DEADLINE);
    socket
}

fn limit(socket: &OwnedFd, limit: Duration) {
    set_socket_timeout(socket, Timeout::Recv, Some(limit)).expect("a timeout");
}

fn address(path: &Path) -> SocketAddrUnix {
    SocketAddrUnix::new(path).expect("a short path")
}

impl Desk {
    #[track_caller]
    pub fn open(path: &Path) -> Self {
        let socket = seqpacket();
        bind(&socket, &address(path)).expect("the path is free");
        listen(&socket, 8).expect("it is bound");
        Self(socket)
    }

    #[track_caller]
    pub fn accept(&self) -> Session {
        let socket = accept_with(&self.0, SocketFlags::CLOEXEC).expect("somebody asks");
        limit(&socket, DEADLINE);
        Session(socket)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Session {
    #[track_caller]
    pub fn connect(path: &Path) -> Self {
        let socket = seqpacket();
        connect(&socket, &address(path)).expect("a master listens there");
        Self(socket)
    }

    #[track_caller]
    pub fn say(&self, text: &str) {
        self.pass(text, &[]);
    }

    /// Says this; false when the other one is gone.
    pub fn try_say(&self, text: &str) -> bool {
        let data = &[IoSlice::new(text.as_bytes())];
        fdpass::send(self.0.as_fd(), data, &[], Wait::Block).is_ok()
    }

    #[track_caller]
    pub fn pass(&self, text: &str, descriptors: &[BorrowedFd<'_>]) {
        let data = &[IoSlice::new(text.as_bytes())];
        fdpass::send(self.0.as_fd(), data, descriptors, Wait::Block).expect("it is taken");
    }

    /// The next message without its line end, and what came with it; nothing at the end.
    #[track_caller]
    pub fn hear(&self) -> Option<(String, Vec<OwnedFd>)> {
        let mut data = vec![0; ROOM];
        let message = match fdpass::receive(self.0.as_fd(), &mut data, 2, Wait::Block) {
            Err(fdpass::Error::Os(error)) if error.raw_os_error() == Some(libc::ECONNRESET) => {
                return None;
            }
            message => message.expect("the other one says something in time"),
        };
        let text = String::from_utf8_lossy(&data[..message.length]);
        let text = text.trim_end_matches('\n').to_owned();
        (message.length > 0).then_some((text, message.descriptors))
    }

    /// Checks that the other one says nothing, and does not go, for so long.
    #[track_caller]
    pub fn hear_nothing(&self, limit: Duration) {
        let limit = Timespec::try_from(limit).expect("a short time");
        let mut said = [PollFd::new(&self.0, PollFlags::IN)];
        assert_eq!(poll(&mut said, Some(&limit)), Ok(0));
    }

    /// Hears messages until one begins with this word; all of them.
    #[track_caller]
    pub fn hear_until(&self, word: &str) -> Vec<(String, Vec<OwnedFd>)> {
        let mut all = Vec::new();
        loop {
            all.push(
                self.hear()
                    .unwrap_or_else(|| panic!("the end before {word}: {all:?}")),
            );
            let (text, _) = all.last().expect("it was just added");
            if text.split(' ').next() == Some(word) {
                return all;
            }
        }
    }
}
