//! What a service decides at the end of a turn.

use crate::wire::Outcome;

/// What is to become of a connection when its turn is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Wait for more bytes from the client. The buffer's unconsumed bytes come back with them.
    Park,
    /// Wait until the client has read so much of what was sent that more can be sent.
    ParkForWriting,
    /// Continue at once, after the other connections that wait: there is more to do, such as a
    /// further request in the buffer.
    Again,
    /// Close the connection. What was sent reaches the client all the same: if the client has sent
    /// something that was not read, or has yet to take something, this is [`Turn::Linger`].
    Close,
    /// Close the connection, whose client may still be sending. The master first discards what
    /// comes for a while, so that the last bytes sent are not lost to a reset (RFC 9112 §9.6).
    Linger,
}

impl Turn {
    /// The outcome that the worker reports for this turn.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Park => Outcome::Park,
            Self::ParkForWriting => Outcome::ParkWrite,
            Self::Again => Outcome::Again,
            Self::Close => Outcome::Close,
            Self::Linger => Outcome::Linger,
        }
    }
}
