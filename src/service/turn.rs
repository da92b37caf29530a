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
    /// The request is served: wait for the next one. If another pool has passed the connection on,
    /// it goes back there, and its next request begins there; else this is [`Turn::Park`].
    Home,
    /// Have the pool of this name serve the request that has begun. It gets what was read and not
    /// consumed. Only a connection that is at home can be passed on, before anything was sent, and
    /// without luggage; else its client gets the service's `crashed` reply.
    Pass(&'static str),
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
            Self::Home => Outcome::Home,
            Self::Pass(_) => Outcome::Pass,
            Self::Close => Outcome::Close,
            Self::Linger => Outcome::Linger,
        }
    }
}
