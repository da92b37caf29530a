//! Send and receive file descriptors over Unix sockets (SCM_RIGHTS). The only ancillary-data code of the project.
//!
//! (provisional: being written)

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The kernel's bound on the descriptors in one message (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;

/// Whether a call may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Sleep until the message can be sent or one has come (unless the socket itself is non-blocking).
    Block,
    /// Fail with [`io::ErrorKind::WouldBlock`] instead of sleeping (MSG_DONTWAIT).
    Dont,
}

/// One received message.
#[derive(Debug)]
pub struct Message {
    /// Bytes of data that were stored at the start of the buffer. 0 means the end of the stream.
    pub length: usize,
    /// The descriptors that came with it, in the sender's order, all close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Why a message could not be sent or received.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The system call failed.
    Os(io::Error),
    /// provisional
    Truncated,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
impl std::error::Error for Error {}
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Os(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// Sends `data` (at least one byte) and `descriptors` in one message; returns the bytes of data that were sent.
pub fn send(
    socket: impl AsFd,
    data: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<usize, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let mut flags = SendFlags::NOSIGNAL;
    if wait == Wait::Dont {
        flags |= SendFlags::DONTWAIT;
    }
    sendmsg(socket, data, &mut control, flags).map_err(|e| Error::Os(e.into()))
}

/// Receives one message with at most `wanted` descriptors.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    _wanted: usize,
    wait: Wait,
) -> Result<Message, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if wait == Wait::Dont {
        flags |= RecvFlags::DONTWAIT;
    }
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)
        .map_err(|e| Error::Os(e.into()))?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(Error::Truncated);
    }
    Ok(Message {
        length: got.bytes,
        descriptors,
    })
}
