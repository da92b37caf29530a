//! How much of a request has come, and whether the rest of it is waited for in memory. Pure: no
//! system call, no clock.

use super::head::{Framing, Head, Refusal, bad};
use super::rest::Rest;

/// A request up to this size, in bytes of head and body on the wire, is waited for in the
/// connection's buffer. It is well below what that can carry, so that a request behind it does not
/// matter.
pub(super) const MAX_WAIT: usize = 48 * 1024;

/// What has come of the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Not even its head.
    Nothing,
    /// Its head and, it may be, a part of its body. The rest is waited for in memory.
    Part,
    /// All of it: it is waited for in memory. Its head has so many bytes.
    Whole(usize),
    /// Its head, which has so many bytes. The body is not to be waited for in memory; whether it is
    /// here, too, is the second thing.
    Large(usize, bool),
}

impl Arrival {
    /// Whether it is not just to be waited for.
    pub(super) fn is_to_be_served(self) -> bool {
        matches!(self, Self::Whole(_) | Self::Large(..))
    }
}

/// What has come of a request whose head is the first `length` bytes of the buffer. Which kind it
/// is follows from what the client sends, and not from how the bytes arrive: a body is waited for
/// in memory if it is short, also for this `limit` of a body, and the client does not wait for a
/// 100.
pub(super) fn of(
    head: &Head,
    length: usize,
    buffer: &[u8],
    limit: u64,
) -> Result<Arrival, Refusal> {
    let (is_short, whole) = match head.framing {
        Framing::Length(0) => return Ok(Arrival::Whole(length)),
        Framing::Length(body) => {
            let end = body.saturating_add(length as u64);
            let is_short = end <= MAX_WAIT as u64 && body <= limit;
            (is_short, buffer.len() as u64 >= end)
        }
        Framing::Chunked => {
            let (window, behind) = buffer.split_at(buffer.len().min(MAX_WAIT));
            let mut rest = Rest::of(head.framing);
            let mut skip = |bytes| {
                let skipped = rest.skip(bytes);
                let (_, data) = skipped.map_err(|_| bad("malformed chunked coding"))?;
                Ok((rest.ended(), data))
            };
            let (ended, data) = skip(&window[length..])?;
            let is_short = (ended || window.len() < MAX_WAIT) && data <= limit;
            (is_short, ended || skip(behind)?.0)
        }
    };
    Ok(match (is_short && !head.expects_continue, whole) {
        (true, true) => Arrival::Whole(length),
        (true, false) => Arrival::Part,
        (false, whole) => Arrival::Large(length, whole),
    })
}
