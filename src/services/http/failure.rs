//! How the sending of a response can fail.

use std::io;

/// Why a response was not sent whole.
#[derive(Debug)]
pub(super) enum Failure {
    /// Writing to the client failed. The response may have gone in part.
    Client(io::Error),
    /// The body could not be read from where it is, which is named. Nothing was sent.
    Body(&'static str, io::Error),
    /// The body could not be read to its end. A part was sent.
    CutOff(&'static str, io::Error),
}

impl Failure {
    pub(super) fn into_error(self) -> io::Error {
        match self {
            Self::Client(error) | Self::Body(_, error) | Self::CutOff(_, error) => error,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Client(error)
    }
}
