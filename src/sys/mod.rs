//! The only unsafe code: the few calls for which no safe crate exists, each behind a safe function.
//!
//! Everything here is mechanism. Who may call what, and when, is decided by the callers; what must
//! hold for memory and descriptor safety is checked or documented at each function.
#![allow(unsafe_code)]

pub mod accounts;
pub mod bounded;
pub mod descriptors;
pub mod directory;
pub mod dispose;
pub mod environment;
pub mod luggage;
pub mod memfile;
pub mod process;
pub mod processors;
pub mod program;
pub mod rights;
pub mod shared;
pub mod signals;
pub mod socket_path;
pub mod tcp;
pub mod unforked;
pub mod unlinked;
