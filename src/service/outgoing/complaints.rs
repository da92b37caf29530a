//! Warnings of what cannot be kept or sent on, at a bounded rate: a client can cause one as often
//! as it likes.

use std::fmt::Display;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::kept::Full;
use crate::error::Plain;

/// How long after a warning others are only counted.
const PAUSE: Duration = Duration::from_secs(60);

/// What was said, and how often it would have been said since.
#[derive(Debug)]
struct Said(Mutex<Option<(Instant, u64)>>);

static WAITS: Said = Said(Mutex::new(None));
static FILES: Said = Said(Mutex::new(None));

impl Said {
    /// What is to be said after it, if it is to be said now: once a minute at the most.
    fn end(&self) -> Option<String> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unsaid = match &mut *said {
            Some((last, unsaid)) if last.elapsed() < PAUSE => {
                *unsaid += 1;
                return None;
            }
            last => last.replace((Instant::now(), 0)),
        };
        Some(match unsaid {
            None | Some((_, 0)) => String::new(),
            Some((_, unsaid)) => {
                format!("; {unsaid} others like it since the last one that was reported")
            }
        })
    }
}

/// Warns that a write waits for its client.
#[cold]
pub fn warn_of_wait(peer: impl Display, full: &Full) {
    let Some(end) = WAITS.end() else { return };
    match full {
        Full::TooMuch(limit) => log::warn!(
            "{peer} has yet to take {limit} bytes (max-spool): its worker waits for it{end}"
        ),
        Full::Luggage => log::warn!(
            "cannot keep what {peer} has yet to take: its service has luggage of its own; its \
             worker waits for it{end}"
        ),
        Full::Strange => log::warn!(
            "cannot keep what {peer} has yet to take: it is a file that is not sure to be on this \
             machine; its worker waits for it{end}"
        ),
        Full::File(error) => log::warn!(
            "cannot keep what {peer} has yet to take: {}; its worker waits for it{end}",
            Plain(error)
        ),
    }
}

/// Warns that the rest of a file cannot be sent.
#[cold]
pub fn warn_of_file(peer: impl Display, error: &io::Error) {
    let Some(end) = FILES.end() else { return };
    log::warn!(
        "cannot send the rest of a file to {peer}: {}; closing the connection within the \
         response{end}",
        Plain(error)
    );
}
