//! The messages between master and worker, as values and as bytes. Pure: no descriptor, no system
//! call.
//!
//! One message is one SEQPACKET datagram: an ASCII header line, then the note, then the carry. The
//! header is text so that strace(1) shows it in readable form. `docs/worker-protocol.md` describes
//! the format for authors of workers in other languages.

mod header;
mod message;
mod parse;
#[cfg(test)]
mod tests;

pub use header::Header;
pub use message::{
    Extras, FromWorker, Lend, LuggageChange, MAX_CARRY, MAX_HEADER, MAX_MESSAGE, MAX_NOTE,
    MAX_POOL_NAME, Malformed, Outcome, Peer, Report, ToWorker, Traffic, pool_word,
};
