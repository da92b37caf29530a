//! Gathers the body of a request in the connection's luggage, a turn at a time, so that a client
//! that sends slowly occupies no worker.
//!
//! The head stays in the buffer. The bytes of the body go into the luggage as they are, with their
//! chunked coding: first a look at them (MSG_PEEK), then pwrite(2) at the place that follows from
//! what was taken before, then they are taken. So such a turn is resumable: whenever its worker
//! dies, what was taken is in the luggage, and the kernel's counters say how much that is.

mod state;

use std::io;

use super::body::CONTINUE;
use super::chunked::Malformed;
use super::head::{Framing, Head};
use super::rest::Stored;
use crate::service::{Connection, Fill, MAX_IN_MEMORY, Turn};

pub(super) use self::state::{Purpose, restore_stored};
use self::state::{State, save_stored};

/// How many bytes one turn gathers, before others get a turn.
const MAX_TURN: u64 = 1 << 20;

/// How much is looked at at a time.
const WINDOW: usize = 64 * 1024;

/// Why a body cannot be gathered.
#[derive(Debug)]
pub(super) enum Trouble {
    Malformed,
    /// The client has ended its side before.
    Truncated,
    /// It is longer than this many bytes.
    TooLong(u64),
    /// It could not be stored.
    Storage(io::Error),
    /// The connection is gone.
    Broken(io::Error),
}

impl From<Malformed> for Trouble {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// What a body is gathered for, and how much of it may come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) purpose: Purpose,
    /// The client waits for a 100 before it sends the body.
    pub(super) expected: bool,
    pub(super) limit: u64,
}

/// Gathers bodies, one after the other, with the same memory.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    window: Vec<u8>,
}

impl Gatherer {
    /// Begins with the body whose head is the first `head` bytes of the buffer. What follows there
    /// belongs to it.
    pub(super) fn begin(
        &mut self,
        connection: &mut Connection,
        head: usize,
        framing: Framing,
        terms: Terms,
    ) -> Result<Turn, Trouble> {
        let here = &connection.buffer()[head..];
        // A client that has begun to send does not wait.
        let owes = terms.expected && here.is_empty();
        let owed = if owes { CONTINUE.len() as u8 } else { 0 };
        let mut state = State::new(framing, terms.purpose, owed);
        state.advance(here)?;
        check_limit(&state, terms.limit)?;
        state.long = state.expected() > MAX_IN_MEMORY;
        let made = connection.make_luggage(state.expected());
        made.map_err(Trouble::Storage)?;
        let stored = connection.write_to_luggage(&connection.buffer()[head..], 0);
        stored.map_err(Trouble::Storage)?;
        connection.truncate(head);
        let turn = match connection.is_drained() && !owes {
            true => Turn::Park,
            false => Turn::Again,
        };
        Ok(put_off(connection, &state, turn))
    }

    /// Goes on with the body of which the connection's record speaks.
    pub(super) fn go_on(
        &mut self,
        connection: &mut Connection,
        limit: u64,
    ) -> Result<Turn, Trouble> {
        let state = State::restore(connection.baggage().record());
        let mut state = state.ok_or_else(|| Trouble::Storage(unreadable()))?;
        self.catch_up(connection, &mut state)?;
        if !greet(connection, &mut state)? {
            return Ok(put_off(connection, &state, Turn::ParkForWriting));
        }
        if !state.long && state.expected() > MAX_IN_MEMORY {
            state.long = true;
            let moved = connection.move_luggage(state.stored, state.expected());
            moved.map_err(Trouble::Storage)?;
            // Nothing is taken before the master has the new file.
            return Ok(put_off(connection, &state, Turn::Again));
        }
        let end = state.stored.saturating_add(MAX_TURN);
        while !state.ended() {
            if state.stored >= end {
                return Ok(put_off(connection, &state, Turn::Again));
            }
            let most = usize::try_from(state.most().min(end - state.stored));
            let most = most.unwrap_or(WINDOW).min(WINDOW);
            let window = self.window(most);
            let count = match connection.peek(window).map_err(Trouble::Broken)? {
                Fill::Empty => return Ok(put_off(connection, &state, Turn::Park)),
                Fill::End => return Err(Trouble::Truncated),
                Fill::Bytes(count) => count,
            };
            let mut then = state.clone();
            let belonging = then.advance(&window[..count])?;
            if then.exceeds(limit) {
                if then.purpose == Purpose::Unwanted {
                    return Ok(complete(connection, &state));
                }
                return Err(Trouble::TooLong(limit));
            }
            let stored = connection.write_to_luggage(&window[..belonging], state.stored);
            stored.map_err(Trouble::Storage)?;
            let all = count < most && belonging == count;
            let taken = connection.take_peeked(belonging, all, window);
            taken.map_err(Trouble::Broken)?;
            state = then;
        }
        Ok(complete(connection, &state))
    }

    /// Counts what workers have gathered that died since the last report.
    fn catch_up(&mut self, connection: &mut Connection, state: &mut State) -> Result<(), Trouble> {
        let moved = connection.baggage().moved;
        let sent = u8::try_from(moved.written).unwrap_or(u8::MAX);
        state.owed = state.owed.saturating_sub(sent);
        if state.advance_by(moved.read) {
            return Ok(());
        }
        let end = state.stored.saturating_add(moved.read);
        while state.stored < end {
            let left = usize::try_from(end - state.stored).unwrap_or(WINDOW);
            let window = self.window(left.min(WINDOW));
            let read = connection.read_from_luggage(window, state.stored);
            let count = read.map_err(Trouble::Storage)?;
            if state.advance(&window[..count])? < count {
                return Err(Trouble::Storage(unreadable()));
            }
        }
        Ok(())
    }

    fn window(&mut self, length: usize) -> &mut [u8] {
        if self.window.len() < length {
            self.window.resize(WINDOW, 0);
        }
        &mut self.window[..length]
    }
}

/// Looks whether a body that is here already may be served.
pub(super) fn check(bytes: &[u8], head: &Head, terms: Terms) -> Result<(), Trouble> {
    let mut state = State::new(head.framing, terms.purpose, 0);
    state.advance(bytes)?;
    check_limit(&state, terms.limit)
}

fn check_limit(state: &State, limit: u64) -> Result<(), Trouble> {
    match state.exceeds(limit) {
        true => Err(Trouble::TooLong(limit)),
        false => Ok(()),
    }
}

/// Sends what is still to be sent of a 100. Returns whether that was all of it.
fn greet(connection: &mut Connection, state: &mut State) -> Result<bool, Trouble> {
    while state.owed > 0 {
        let rest = CONTINUE.len().saturating_sub(state.owed.into());
        match connection.write_now(&CONTINUE[rest..]) {
            Ok(0) => return Ok(false),
            Ok(count) => state.owed -= count as u8,
            Err(error) => return Err(Trouble::Broken(error)),
        }
    }
    Ok(true)
}

/// The turn ends so, and a later one goes on; also if its worker dies.
fn put_off(connection: &mut Connection, state: &State, turn: Turn) -> Turn {
    let baggage = connection.baggage_mut();
    baggage.set_record(&state.save());
    (baggage.resumable, baggage.body) = (true, true);
    turn
}

/// The next turn is the handler's. That one is not resumable.
fn complete(connection: &mut Connection, state: &State) -> Turn {
    let stored = Stored {
        at: 0,
        end: state.stored,
        whole: state.ended(),
    };
    let baggage = connection.baggage_mut();
    baggage.set_record(&save_stored(&stored));
    (baggage.resumable, baggage.body) = (false, false);
    Turn::Again
}

fn unreadable() -> io::Error {
    let text = "what is known of it does not agree with what came";
    io::Error::new(io::ErrorKind::InvalidData, text)
}
