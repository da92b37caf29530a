//! Why a message cannot be sent or received, and the one limit that a caller has to know.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::error::Plain;

/// The kernel's bound on the descriptors in one message (SCM_MAX_FD, unix(7)).
pub const MAX_DESCRIPTORS: usize = 253;

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
    /// install were closed. The message is gone. There was room in the buffer for what was wanted,
    /// so either this process is at its limit of open files, which recvmsg(2) has no EMFILE for, or
    /// something else refused a descriptor: a security module.
    Lost {
        /// How many were installed, then closed.
        got: usize,
        /// Whether this process could open no further file, when it was tried.
        at_limit: bool,
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

    pub(super) fn is(&self, errno: Errno) -> bool {
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
                "more descriptors came than were expected (at most {wanted}, {got} or more came); \
                 closed them all"
            ),
            Self::Lost { got, at_limit } => {
                let why = match at_limit {
                    true => "this process is at its limit of open files, see ulimit -n",
                    false => {
                        "this process may open more files, so a security module may have refused \
                         them"
                    }
                };
                write!(
                    f,
                    "descriptors were lost on arrival: {why} (closed the {got} that came)"
                )
            }
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
