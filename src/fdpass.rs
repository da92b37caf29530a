//! Send and receive file descriptors over Unix sockets (SCM_RIGHTS). The only ancillary-data code
//! of the project.
//!
//! A message is some data, at least one byte, and up to [`MAX_DESCRIPTORS`] open file descriptors.
//! What arrives is a new descriptor for the *same open file description*: the file offset and the
//! status flags, O_NONBLOCK among them, stay shared between both processes (unix(7); TLPI 61.13.3).
//! Only the close-on-exec flag belongs to the descriptor, and it is set here from the first moment
//! on (MSG_CMSG_CLOEXEC), so that no exec in another thread can leak one.
//!
//! Descriptors are owned at every point: they go out borrowed and come in as [`OwnedFd`]. Whatever
//! the kernel installed for a message that is then refused is closed before the error is returned.
//!
//! ```
//! use batond::fdpass::{Wait, receive, send};
//! use std::io::{IoSlice, Read, Seek};
//! use std::os::{fd::AsFd, unix::net::UnixStream};
//!
//! let (here, there) = UnixStream::pair()?;
//! let file = std::fs::File::open("Cargo.toml")?;
//! send(&here, &[IoSlice::new(b"*")], &[file.as_fd()], Wait::Block)?;
//!
//! let mut data = [0; 16];
//! let mut message = receive(&there, &mut data, 1, Wait::Block)?;
//! assert_eq!(&data[..message.length], b"*");
//! let mut same_file = std::fs::File::from(message.descriptors.remove(0));
//! same_file.read_exact(&mut [0; 9])?;
//! assert_eq!((&file).stream_position()?, 9);
//! # std::io::Result::Ok(())
//! ```
//!
//! Not supported, for nothing here sets them: SO_PASSPIDFD, SO_PASSSEC and SO_TIMESTAMP on the
//! receiving socket. SO_PASSCRED does no harm; the credentials are skipped.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::Plain;

/// The kernel's bound on the descriptors in one message (SCM_MAX_FD, unix(7)).
pub const MAX_DESCRIPTORS: usize = 253;

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

/// Why a message could not be sent or received.
///
/// The text is the cause only, without a full stop: the caller says what was attempted, and on
/// which socket.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The system call failed.
    Os(io::Error),
    /// There was no data to send, or no room to receive any. On a stream a descriptor without a
    /// byte of data is silently lost, and on a SEQPACKET socket an empty message looks like the end
    /// of file.
    Empty,
    /// More descriptors than one message carries. Nothing was sent or received.
    TooMany {
        /// How many there were to send, or were wanted.
        count: usize,
    },
    /// The peer sent more descriptors than were wanted. All were closed. The message is gone.
    Unwanted {
        /// How many were wanted.
        wanted: usize,
        /// How many came, at least: the kernel discards those for which there is no room.
        got: usize,
    },
    /// The kernel could not install all descriptors of the message (MSG_CTRUNC). Those that it did
    /// install were closed. The message is gone. There was room for what was wanted, so this
    /// process, or the system, is at its limit of open files; recvmsg(2) has no EMFILE for it. (A
    /// security module that forbids a descriptor looks the same.)
    Lost {
        /// How many were installed, then closed.
        got: usize,
    },
    /// The message is longer than the buffer (MSG_TRUNC; datagram and SEQPACKET sockets only). Its
    /// descriptors were closed. The message is gone.
    TooLong {
        /// The size of the buffer in bytes.
        room: usize,
    },
}

impl Error {
    /// Whether the call would have had to sleep (EAGAIN).
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Os(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the same call may succeed later, once the receiver has taken messages: the socket is
    /// full (EAGAIN), or too many descriptors are in flight (ETOOMANYREFS, unix(7)).
    #[must_use]
    pub fn is_back_pressure(&self) -> bool {
        self.would_block() || self.is(Errno::TOOMANYREFS)
    }

    fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Os(error) if Errno::from_io_error(error) == Some(errno))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os(_) if self.is(Errno::TOOMANYREFS) => f.write_str(
                "more descriptors are on their way than the open-files limit allows; \
                 wait for the receiver, or raise ulimit -n",
            ),
            Self::Os(error) => write!(f, "{}", Plain(error)),
            Self::Empty => f.write_str("a message needs at least one byte of data"),
            Self::TooMany { count } => write!(
                f,
                "{count} descriptors are too many, one message carries at most {MAX_DESCRIPTORS}"
            ),
            Self::Unwanted { wanted, got } => write!(
                f,
                "the peer sent {got} or more descriptors where {wanted} were wanted; closed them"
            ),
            Self::Lost { got } => write!(
                f,
                "descriptors were lost on arrival; this process is probably at its limit of open \
                 files, see ulimit -n (closed the {got} that did arrive)"
            ),
            Self::TooLong { room } => write!(
                f,
                "the message is longer than the {room} bytes there is room for; discarded it"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Os(error) => Some(error),
            _ => None,
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Os(errno.into())
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Os(error) => return error,
            Error::Empty | Error::TooMany { .. } => io::ErrorKind::InvalidInput,
            Error::Unwanted { .. } | Error::Lost { .. } | Error::TooLong { .. } => {
                io::ErrorKind::InvalidData
            }
        };
        Self::new(kind, error)
    }
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
/// On a stream there are no boundaries between messages, with one exception: a call never returns
/// data from beyond the message that brought descriptors. They come with its first byte, at the
/// latest; data that was sent before them may be in front. Nothing is ever peeked at, since that
/// would install the descriptors twice (unix(7)).
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
    receive_or(socket, buffer, wanted, wait, drop)
}

/// The same, for a receiver which must not close what it knows nothing of: [`Error::Unwanted`],
/// [`Error::Lost`] and [`Error::TooLong`] come with the descriptors going to `refused`.
pub(crate) fn receive_or(
    socket: impl AsFd,
    buffer: &mut [u8],
    wanted: usize,
    wait: Wait,
    refused: impl FnOnce(Vec<OwnedFd>),
) -> Result<Message, Error> {
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

    // Own them before anything is decided: every way out closes what it does not return.
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let got = descriptors.len();
    let error = if got > wanted {
        Some(Error::Unwanted { wanted, got })
    } else if received.flags.contains(ReturnFlags::CTRUNC) {
        Some(Error::Lost { got })
    } else if received.flags.contains(ReturnFlags::TRUNC) {
        Some(Error::TooLong { room })
    } else {
        None
    };
    if let Some(error) = error {
        refused(descriptors);
        return Err(error);
    }
    Ok(Message {
        length: received.bytes,
        descriptors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

    const KINDS: [SocketType; 3] = [SocketType::STREAM, SocketType::DGRAM, SocketType::SEQPACKET];

    fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("socketpair")
    }

    fn file() -> File {
        tempfile::tempfile().expect("a temporary file")
    }

    fn identity(file: impl AsFd) -> (u64, u64) {
        let stat = rustix::fs::fstat(file).expect("fstat");
        (stat.st_dev, stat.st_ino)
    }

    /// How many descriptors of this process are open on `file`. Other tests run beside this one, so
    /// a plain count of open descriptors would say nothing.
    fn open_on(file: &File) -> usize {
        let wanted = identity(file);
        fs::read_dir("/proc/self/fd")
            .expect("list of descriptors")
            .flatten()
            .filter_map(|entry| fs::metadata(entry.path()).ok())
            .filter(|meta| (meta.dev(), meta.ino()) == wanted)
            .count()
    }

    fn send_plain(socket: &OwnedFd, data: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let sent = send(socket, &[IoSlice::new(data)], descriptors, Wait::Block);
        assert_eq!(sent.expect("send"), data.len());
    }

    fn is_close_on_exec(descriptor: &OwnedFd) -> bool {
        rustix::io::fcntl_getfd(descriptor)
            .expect("fcntl")
            .contains(rustix::io::FdFlags::CLOEXEC)
    }

    fn counts() -> impl Strategy<Value = usize> {
        prop_oneof![0..=4_usize, 0..=MAX_DESCRIPTORS, Just(MAX_DESCRIPTORS)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn what_is_sent_is_what_is_received(
            kind in proptest::sample::select(&KINDS[..]),
            order in counts().prop_flat_map(|n| proptest::collection::vec(0..3_usize, n)),
            spare in 0..4_usize,
            data in proptest::collection::vec(any::<Vec<u8>>(), 1..4),
        ) {
            prop_assume!(data.iter().any(|part| !part.is_empty()));
            let files = [file(), file(), file()];
            let (here, there) = pair(kind);
            let slices: Vec<_> = data.iter().map(|part| IoSlice::new(part)).collect();
            let descriptors: Vec<_> = order.iter().map(|i| files[*i].as_fd()).collect();
            let whole = data.concat();
            let sent = send(&here, &slices, &descriptors, Wait::Dont).unwrap();
            prop_assert_eq!(sent, whole.len());

            let mut buffer = vec![0; whole.len() + 1];
            let wanted = (order.len() + spare).min(MAX_DESCRIPTORS);
            let message = receive(&there, &mut buffer, wanted, Wait::Dont).unwrap();
            prop_assert_eq!(&buffer[..message.length], &whole[..]);
            let came: Vec<_> = message.descriptors.iter().map(identity).collect();
            let went: Vec<_> = order.iter().map(|i| identity(&files[*i])).collect();
            prop_assert_eq!(came, went);
            prop_assert!(message.descriptors.iter().all(is_close_on_exec));
            drop(message);
            prop_assert!(files.iter().all(|file| open_on(file) == 1));
        }

        #[test]
        fn more_than_wanted_is_refused_and_nothing_stays_open(
            kind in proptest::sample::select(&KINDS[..]),
            wanted in 0..MAX_DESCRIPTORS,
            more in 1..=MAX_DESCRIPTORS,
            credentials: bool,
        ) {
            let count = (wanted + more).min(MAX_DESCRIPTORS);
            let file = file();
            let (here, there) = pair(kind);
            sockopt::set_socket_passcred(&there, credentials).unwrap();
            send_plain(&here, b"*", &vec![file.as_fd(); count]);
            let error = receive(&there, &mut [0; 8], wanted, Wait::Dont).unwrap_err();
            // With credentials in its place, the control buffer may be exactly full.
            match error {
                Error::Unwanted { wanted: w, got } => {
                    prop_assert_eq!(w, wanted);
                    prop_assert!(got > wanted && got <= count);
                }
                Error::Lost { got } => prop_assert!(credentials && got == wanted),
                other => prop_assert!(false, "{}", other),
            }
            prop_assert_eq!(open_on(&file), 1);
        }

        /// Whatever the buffer's size: no byte and no descriptor is lost, doubled or out of order
        /// on a stream.
        #[test]
        fn a_stream_in_pieces_loses_nothing(
            messages in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 1..40), 0..4_usize), 1..12),
            room in 1..64_usize,
        ) {
            let (here, there) = pair(SocketType::STREAM);
            let mut files = Vec::new();
            for (data, count) in &messages {
                let fresh: Vec<_> = (0..*count).map(|_| file()).collect();
                let descriptors: Vec<_> = fresh.iter().map(AsFd::as_fd).collect();
                send_plain(&here, data, &descriptors);
                files.extend(fresh);
            }
            drop(here);

            let mut bytes = Vec::new();
            let mut came = Vec::new();
            let mut buffer = vec![0; room];
            loop {
                let message = receive(&there, &mut buffer, 3, Wait::Block).unwrap();
                bytes.extend_from_slice(&buffer[..message.length]);
                came.extend(message.descriptors);
                if message.length == 0 {
                    break;
                }
            }
            let sent: Vec<_> = messages.into_iter().flat_map(|(data, _)| data).collect();
            prop_assert_eq!(bytes, sent);
            prop_assert_eq!(
                came.iter().map(identity).collect::<Vec<_>>(),
                files.iter().map(identity).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_message_longer_than_the_buffer_is_an_error_and_its_descriptors_are_closed() {
        for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
            let file = file();
            let (here, there) = pair(kind);
            send_plain(&here, b"123456789", &[file.as_fd()]);
            send_plain(&here, b"next", &[]);
            let mut buffer = [0; 8];
            let error = receive(&there, &mut buffer, 1, Wait::Dont).unwrap_err();
            assert!(matches!(error, Error::TooLong { room: 8 }), "{error}");
            assert_eq!(open_on(&file), 1);
            let message = receive(&there, &mut buffer, 1, Wait::Dont).unwrap();
            assert_eq!(&buffer[..message.length], b"next");
        }
    }

    #[test]
    fn arguments_that_make_no_sense_are_errors_and_send_nothing() {
        for kind in KINDS {
            let file = file();
            let (here, there) = pair(kind);
            for data in [&[][..], &[IoSlice::new(b""), IoSlice::new(b"")]] {
                for descriptors in [&[][..], &[file.as_fd()]] {
                    let error = send(&here, data, descriptors, Wait::Dont).unwrap_err();
                    assert!(matches!(error, Error::Empty), "{error}");
                }
            }
            let many = [file.as_fd(); MAX_DESCRIPTORS + 1];
            let error = send(&here, &[IoSlice::new(b"*")], &many, Wait::Dont).unwrap_err();
            assert_eq!(
                error.to_string(),
                "254 descriptors are too many, one message carries at most 253"
            );
            let error = receive(&there, &mut [0; 1], many.len(), Wait::Dont).unwrap_err();
            assert!(matches!(error, Error::TooMany { count: 254 }), "{error}");
            let error = receive(&there, &mut [], 1, Wait::Dont).unwrap_err();
            assert!(matches!(error, Error::Empty), "{error}");
            let error = receive(&there, &mut [0; 1], 1, Wait::Dont).unwrap_err();
            assert!(error.would_block(), "something was sent: {error}");
        }
    }

    #[test]
    fn credentials_beside_the_descriptors_do_no_harm() {
        for kind in KINDS {
            for wanted in [1, 2, MAX_DESCRIPTORS] {
                let file = file();
                let (here, there) = pair(kind);
                sockopt::set_socket_passcred(&there, true).unwrap();
                send_plain(&here, b"*", &vec![file.as_fd(); wanted]);
                send_plain(&here, b"+", &[]);
                let message = receive(&there, &mut [0; 1], wanted, Wait::Dont).unwrap();
                assert_eq!(message.descriptors.len(), wanted);
                let message = receive(&there, &mut [0; 1], 0, Wait::Dont).unwrap();
                assert_eq!((message.length, message.descriptors.len()), (1, 0));
            }
        }
    }

    #[test]
    fn a_full_socket_is_back_pressure() {
        for kind in KINDS {
            let file = file();
            let (here, there) = pair(kind);
            let error = loop {
                match send(&here, &[IoSlice::new(b"*")], &[file.as_fd()], Wait::Dont) {
                    Ok(sent) => assert_eq!(sent, 1),
                    Err(error) => break error,
                }
            };
            assert!(error.would_block() && error.is_back_pressure(), "{error}");
            assert_eq!(io::Error::from(error).kind(), io::ErrorKind::WouldBlock);
            receive(&there, &mut [0; 1], 1, Wait::Dont).unwrap();
        }
    }

    #[test]
    fn only_eagain_and_etoomanyrefs_are_back_pressure() {
        let too_many = Error::from(Errno::TOOMANYREFS);
        assert!(too_many.is_back_pressure() && !too_many.would_block());
        assert!(too_many.to_string().contains("ulimit -n"), "{too_many}");
        for other in [Errno::PIPE, Errno::CONNRESET, Errno::MFILE] {
            assert!(!Error::from(other).is_back_pressure());
        }
        assert!(!Error::Empty.is_back_pressure());
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_to_the_sender_and_the_end_to_the_receiver() {
        for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
            let (here, there) = pair(kind);
            drop(there);
            let error = send(&here, &[IoSlice::new(b"*")], &[], Wait::Block).unwrap_err();
            assert!(error.is(Errno::PIPE), "{error}");
            let message = receive(&here, &mut [0; 1], 1, Wait::Block).unwrap();
            assert_eq!((message.length, message.descriptors.len()), (0, 0));
        }
    }

    #[test]
    fn a_signal_does_not_end_a_wait() {
        let handled = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&handled)).unwrap();
        let (here, there) = pair(SocketType::SEQPACKET);
        // With a timeout on the socket the kernel does not restart the call by itself (signal(7)).
        let timeout = Some(Duration::from_secs(20));
        sockopt::set_socket_timeout(&there, sockopt::Timeout::Recv, timeout).unwrap();
        let (tell, told) = mpsc::channel();
        let receiver = std::thread::spawn(move || {
            tell.send((nix::unistd::gettid(), nix::sys::pthread::pthread_self()))
                .unwrap();
            receive(&there, &mut [0; 1], 0, Wait::Block).map(|message| message.length)
        });
        let (thread, handle) = told.recv().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let until = |what: &dyn Fn() -> bool| {
            while !what() {
                assert!(
                    Instant::now() < deadline,
                    "the receiver is not where it should be"
                );
                std::thread::yield_now();
            }
        };
        let call = format!("{} ", nix::libc::SYS_recvmsg);
        let syscall = format!("/proc/self/task/{thread}/syscall");
        until(&|| fs::read_to_string(&syscall).is_ok_and(|line| line.starts_with(&call)));
        nix::sys::pthread::pthread_kill(handle, nix::sys::signal::Signal::SIGUSR1).unwrap();
        until(&|| handled.load(Ordering::SeqCst));
        send_plain(&here, b"*", &[]);
        assert_eq!(receiver.join().unwrap().expect("receive"), 1);
    }
}
