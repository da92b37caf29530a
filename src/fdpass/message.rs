//! One message with its descriptors, out and in.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::error::{Error, MAX_DESCRIPTORS};

/// Whether a call may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Sleep until the message can be sent or one has come, unless the socket itself is
    /// non-blocking or has a timeout. A signal does not end the sleep.
    Block,
    /// Fail with an error that [would block](Error::would_block) instead of sleeping
    /// (MSG_DONTWAIT).
    Dont,
}

/// One received message.
#[derive(Debug)]
pub struct Message {
    /// Bytes of data that were stored at the start of the buffer. 0 means the end of the stream; on
    /// a datagram socket, an empty datagram.
    pub length: usize,
    /// The descriptors that came with it, in the sender's order, all close-on-exec. May be fewer
    /// than were wanted.
    pub descriptors: Vec<OwnedFd>,
}

/// Control data for one message: uninitialized, and only as much of it is used as the message
/// needs. So the size costs nothing where few descriptors travel.
const CONTROL: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1));

/// Sends `data`, at least one byte, and `descriptors` in one message; returns the bytes of data
/// that were sent.
///
/// On a stream that may be fewer than there are. The descriptors are on their way nevertheless,
/// with the first byte: send the rest without them. Datagram and SEQPACKET sockets take a message
/// whole or not at all. A peer that is gone is the error EPIPE, never a SIGPIPE.
///
/// # Errors
/// [`Error::Os`] with what sendmsg(2) fails with, EINTR excepted; [`Error::Empty`];
/// [`Error::TooMany`]. Nothing was sent then. See [`Error::is_back_pressure`] for those that are
/// worth trying again.
pub fn send(
    socket: impl AsFd,
    data: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<usize, Error> {
    if data.iter().all(|slice| slice.is_empty()) {
        return Err(Error::Empty);
    }
    let count = descriptors.len();
    if count > MAX_DESCRIPTORS {
        return Err(Error::TooMany { count });
    }
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, wait == Wait::Dont);

    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if count > 0 {
        let pushed = control.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(pushed, "CONTROL has room for MAX_DESCRIPTORS");
    }
    let socket = socket.as_fd();
    Ok(retry_on_intr(|| {
        sendmsg(socket, data, &mut control, flags)
    })?)
}

/// Receives one message into `buffer`, at least one byte long, with at most `wanted` descriptors.
///
/// On a stream there are no boundaries between messages. Descriptors come with the first byte of
/// their message. Data that was sent before may be in front of it, and no call brings descriptors
/// of two messages; but if an earlier call took only the start of a message with descriptors, its
/// rest may come together with the next message and the descriptors of that one. Nothing is ever
/// peeked at, since that would install the descriptors twice (unix(7)).
///
/// # Errors
/// [`Error::Os`] with what recvmsg(2) fails with, EINTR excepted; [`Error::Empty`] and
/// [`Error::TooMany`] for arguments that make no sense. After [`Error::Unwanted`], [`Error::Lost`]
/// and [`Error::TooLong`] the message is gone: on a stream that is best the end of the connection.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    wanted: usize,
    wait: Wait,
) -> Result<Message, Error> {
    let mut descriptors = Vec::new();
    let length = receive_into(socket, buffer, wanted, wait, &mut descriptors)?;
    Ok(Message {
        length,
        descriptors,
    })
}

/// The same, for a receiver that has room for the descriptors already, or must not close what it
/// knows nothing of: they are added to `descriptors`, also those that came with
/// [`Error::Unwanted`], [`Error::Lost`] and [`Error::TooLong`]. Returns the bytes of data.
pub(crate) fn receive_into(
    socket: impl AsFd,
    buffer: &mut [u8],
    wanted: usize,
    wait: Wait,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, Error> {
    if buffer.is_empty() {
        return Err(Error::Empty);
    }
    if wanted > MAX_DESCRIPTORS {
        return Err(Error::TooMany { count: wanted });
    }
    let room = buffer.len();
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::DONTWAIT, wait == Wait::Dont);

    // Alignment and the place of the credentials leave room for more than `wanted`, so count what
    // comes (cmsg(3)).
    let size = rustix::cmsg_space!(ScmRights(wanted), ScmCredentials(1));
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space[..size]);
    let socket = socket.as_fd();
    let received =
        retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags))?;

    // Own them before anything is decided.
    let before = descriptors.len();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let got = descriptors.len() - before;
    let cut = received.flags.contains(ReturnFlags::CTRUNC);
    let error = if got > wanted {
        Some(Error::Unwanted { wanted, got })
    } else if cut && got == wanted {
        // Credentials may fill the place of what is too much, which the kernel has then dropped.
        let got = wanted + 1;
        Some(Error::Unwanted { wanted, got })
    } else if cut {
        // What came is still open, so this finds the table as recvmsg found it.
        let at_limit = matches!(fcntl_dupfd_cloexec(socket, 0), Err(Errno::MFILE));
        Some(Error::Lost { got, at_limit })
    } else if received.flags.contains(ReturnFlags::TRUNC) {
        Some(Error::TooLong { room })
    } else {
        None
    };
    error.map_or(Ok(received.bytes), Err)
}
