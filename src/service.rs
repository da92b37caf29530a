//! What a service is: one turn on one borrowed connection.
//!
//! A [`Service`] lives in a worker process. When a client has sent something, the master lends the
//! client's [`Connection`] to the worker. The service reads, answers, and returns with a [`Turn`]
//! what is to become of the connection. Between turns the connection belongs to the master and
//! occupies no worker. So a service keeps nothing about a client from one turn to the next in its
//! own memory. Three things travel with the connection instead: the bytes that it leaves unconsumed
//! in the connection's buffer, a [note](Connection::note), and a piece of
//! [luggage](Connection::luggage). The next turn gets them, whichever worker has it.

mod baggage;
mod buffer;
mod connection;
mod keeping;
mod outgoing;
mod turn;

use std::borrow::Cow;
use std::io;
use std::time::SystemTime;

pub(crate) use baggage::{Baggage, GATHERED, GATHERING};
pub(crate) use buffer::Buffer;
pub(crate) use connection::WriteAhead;
pub use connection::{Connection, Fill};
pub(crate) use keeping::{Keeping, MAX_IN_MEMORY};
pub use turn::Turn;

pub use crate::wire::Peer;

/// Serves connections, a turn at a time, inside a worker process.
///
/// The worker makes its service after the fork, so a service may hold whatever its process needs: a
/// database connection, a cache, a thread. A panic or an abort ends the worker and costs the
/// request that it was serving, nothing else.
pub trait Service {
    /// Serves one turn: from "the client has sent something" to "nothing more to do for now".
    ///
    /// # Errors
    /// An error closes the connection. It is logged at debug level only, because it is normal that
    /// clients go away.
    fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn>;

    /// What the master has to know about the service.
    #[must_use]
    fn profile() -> ServiceProfile
    where
        Self: Sized,
    {
        ServiceProfile::default()
    }
}

/// What the master has to know about a service, because it never runs one: when a connection is
/// ready for its first turn, and which bytes to send in the service's name when no worker can. If
/// such a reply is empty, the master closes the connection without one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceProfile {
    /// Whether the service greets its clients: a new connection is ready at once, not only when the
    /// client has sent something.
    pub speaks_first: bool,
    /// Whether a turn that finds nothing to read does no harm, because the service begins with
    /// [`Connection::fill`], which never sleeps. This saves the master a look at each connection
    /// before it lends it.
    pub tolerates_empty_turns: bool,
    /// Whether a turn ends between two responses, unless it ends with [`Turn::ParkForWriting`]. If
    /// not, the master takes a response for unfinished, too, when a turn has sent something and
    /// ends with [`Turn::Again`]. It sends none of the replies below into an unfinished response.
    pub whole_responses: bool,
    /// A carry that begins no request: a client that has sent nothing else owes nothing, and is
    /// idle. Empty if any carry begins one.
    pub blank: Cow<'static, [u8]>,
    /// What stands for the time in the replies below: the master puts the present time in its
    /// place, as HTTP writes it (RFC 9110 §5.6.7). Empty if the replies hold no time.
    pub date_slot: Cow<'static, [u8]>,
    /// Sent when the worker died in a turn that had read the request and sent nothing.
    pub crashed: Cow<'static, [u8]>,
    /// Sent when a turn took longer than the limit.
    pub timed_out: Cow<'static, [u8]>,
    /// Sent when there is no room for the connection, or it has waited too long for a worker.
    pub overloaded: Cow<'static, [u8]>,
    /// Sent when the client did not complete its request in time.
    pub request_timeout: Cow<'static, [u8]>,
}

impl ServiceProfile {
    /// A reply with the present time in the place of the date slot.
    pub(crate) fn dated<'a>(&self, reply: &'a [u8]) -> Cow<'a, [u8]> {
        let slot = &*self.date_slot;
        let place = reply.windows(slot.len().max(1)).position(|at| at == slot);
        let Some(place) = place else {
            return reply.into();
        };
        let date = httpdate::fmt_http_date(SystemTime::now());
        let (before, after) = (&reply[..place], &reply[place + slot.len()..]);
        [before, date.as_bytes(), after].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_sent_with_the_time_in_its_slot() {
        let mut profile = ServiceProfile::default();
        assert_eq!(*profile.dated(b"sorry"), *b"sorry");
        profile.date_slot = b"(now)".into();
        assert_eq!(*profile.dated(b"sorry"), *b"sorry");
        let dated = profile.dated(b"at (now).");
        let dated = std::str::from_utf8(&dated).unwrap();
        let date = dated
            .strip_prefix("at ")
            .and_then(|rest| rest.strip_suffix('.'));
        let date = httpdate::parse_http_date(date.unwrap()).unwrap();
        assert!(SystemTime::now().duration_since(date).unwrap().as_secs() < 60);
    }
}
