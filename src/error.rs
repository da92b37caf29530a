//! The one error type of the crate: what was attempted, on what, and why it failed.
//!
//! An error becomes one line on stderr that a user can act on. So its text names the operation and
//! its object (an address, a path, a slot, a pid) first, and the cause last: `cannot listen on
//! 127.0.0.1:80: Permission denied`.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// A failed operation, its object, and the cause.
#[derive(Debug)]
pub struct Error {
    attempt: String,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    System(io::Error),
    Reason(String),
}

/// The result of an operation that fails with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failed system operation. `attempt` names the operation and its object: `listen on
    /// 127.0.0.1:80`.
    pub fn new(attempt: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Self {
            attempt: attempt.into(),
            cause: Cause::System(cause.into()),
        }
    }

    /// A failure that no system call reported. `reason` is a clause without a full stop: `the pool
    /// has no worker`.
    pub fn because(attempt: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            attempt: attempt.into(),
            cause: Cause::Reason(reason.into()),
        }
    }

    /// The I/O error that caused the failure, if one did.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match &self.cause {
            Cause::System(error) => Some(error),
            Cause::Reason(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: ", self.attempt)?;
        match &self.cause {
            Cause::System(error) => write!(f, "{}", Plain(error)),
            Cause::Reason(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.io().map(|error| error as _)
    }
}

/// Displays an I/O error in words alone: `Permission denied`, without the `(os error 13)` that the
/// standard library appends.
pub(crate) struct Plain<'a>(pub &'a io::Error);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(code) => f.write_str(words(Errno::from_raw(code))),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The words for an error number. Where the usual ones mislead, they say which limit it is about.
fn words(errno: Errno) -> &'static str {
    match errno {
        Errno::EAGAIN => "Not possible at the moment",
        Errno::EMFILE => "Too many open files (RLIMIT_NOFILE of this process)",
        Errno::ENFILE => "Too many open files on this machine (fs.file-max)",
        Errno::ENOMEM => "The kernel has no memory for it",
        Errno::ENOBUFS => "The kernel has no memory for socket buffers",
        Errno::ETOOMANYREFS => {
            "Too many descriptors of this user are in flight between processes (RLIMIT_NOFILE)"
        }
        other => other.desc(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_that_names_operation_object_and_cause() {
        let error = Error::new("listen on 127.0.0.1:80", Errno::EACCES);
        assert_eq!(
            error.to_string(),
            "cannot listen on 127.0.0.1:80: Permission denied"
        );
        let limit = Error::new("accept on :80", Errno::EMFILE).to_string();
        assert!(
            limit.ends_with("(RLIMIT_NOFILE of this process)"),
            "{limit}"
        );
        let error = Error::because("pass 300 descriptors", "one message carries at most 253");
        assert_eq!(
            error.to_string(),
            "cannot pass 300 descriptors: one message carries at most 253"
        );
    }
}
