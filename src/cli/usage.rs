//! What the commands have in common: usage errors, and values that several flags have.

use std::fmt::Display;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;

/// A usage error that clap can't see by itself, because it takes more than one word to see it.
#[derive(Debug)]
pub(super) struct UsageError {
    pub(super) kind: ErrorKind,
    /// One clear line for the user.
    pub(super) reason: String,
}

impl UsageError {
    pub(super) fn new(kind: ErrorKind, reason: impl Display) -> Self {
        let reason = reason.to_string();
        Self { kind, reason }
    }
}

/// A parser for paths that refuses the empty one, which would make the kernel choose the name of a
/// socket.
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|path| {
        if path.is_empty() {
            Err("a path cannot be empty")
        } else {
            Ok(PathBuf::from(path))
        }
    })
}
