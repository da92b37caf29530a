//! What a client does not take at once: kept, and sent on in later turns, by whichever worker.
//!
//! A write that the kernel has no room for would hold a worker for as long as its client likes. So
//! what cannot go at once is kept ([`kept`]), and the turn goes on as if it had gone. When the turn
//! is over, what is left travels with the connection ([`record`]): up to 16 KiB in front of the
//! carry, more in a file, which is the luggage. The turns after that only send on ([`transmit`]).
//! They are resumable: where one is, the kernel's counters say, whatever became of its worker. The
//! service has the connection back when all is sent.

pub mod complaints;
pub mod kept;
pub mod pattern;
pub mod record;
pub mod transmit;

/// A write of more than this, in bytes, is kept before its first byte is sent: a worker that is
/// killed while it sends much has lost nothing then.
pub const AT_ONCE: u64 = 256 * 1024;

/// How much one turn sends, in bytes, before others get a turn.
pub const BUDGET: u64 = 1024 * 1024;

/// How much it takes then that it cannot send yet, in bytes.
pub const UNSENT: u32 = 128 * 1024;

/// The same for a client that is not known to be slow, in bytes: many of them at a time must not
/// use up what memory the system has for TCP (tcp(7), tcp_mem).
pub const UNSENT_AT_FIRST: u32 = 256 * 1024;

/// How much may be held back in the hope that more comes, in bytes: the head of a response.
pub const HELD: usize = 4 * 1024;
