//! Warnings of files that cannot be sent, and of bodies that cannot be kept, at a bounded rate: a
//! client can ask for one as often as it likes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Plain;

/// How long after a warning others of the same cause are only counted.
const PAUSE: Duration = Duration::from_secs(60);

/// What the threads of this worker have said.
static SAID: Mutex<Said> = Mutex::new(Said(BTreeMap::new()));

/// When each cause was last warned of, and how often it has come since. A cause is the number of an
/// error, of which there are few; all without one are the same cause.
struct Said(BTreeMap<Option<i32>, (Instant, u64)>);

impl Said {
    /// Counts a complaint. If it is to be made: how many of the same cause were not.
    fn count(&mut self, cause: Option<i32>, now: Instant) -> Option<u64> {
        match self.0.get_mut(&cause) {
            Some((last, unsaid)) if now.duration_since(*last) < PAUSE => {
                *unsaid += 1;
                None
            }
            _ => {
                let before = self.0.insert(cause, (now, 0));
                Some(before.map_or(0, |(_, unsaid)| unsaid))
            }
        }
    }
}

/// Warns that something cannot be done, and of what comes of it: at once if the cause is new, and
/// then once a minute, with the count.
#[cold]
pub(super) fn warn(attempt: impl Display, error: &io::Error, consequence: impl Display) {
    let said = SAID.lock();
    let mut said = said.unwrap_or_else(PoisonError::into_inner);
    let unsaid = said.count(error.raw_os_error(), Instant::now());
    drop(said);
    let cause = Plain(error);
    match unsaid {
        None => {}
        Some(0) => log::warn!("cannot {attempt}: {cause}; {consequence}"),
        Some(unsaid) => log::warn!(
            "cannot {attempt}: {cause}; {consequence}; {unsaid} others like it since the last one \
             that was reported"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_at_once_and_then_once_a_minute() {
        let mut said = Said(BTreeMap::new());
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let (denied, broken) = (Some(libc::EACCES), Some(libc::EIO));
        assert_eq!(said.count(denied, at(0)), Some(0));
        assert_eq!(said.count(denied, at(1)), None);
        assert_eq!(said.count(broken, at(2)), Some(0));
        assert_eq!(said.count(None, at(2)), Some(0));
        assert_eq!(said.count(denied, at(59)), None);
        assert_eq!(said.count(denied, at(60)), Some(2));
        assert_eq!(said.count(denied, at(61)), None);
        assert_eq!(said.count(broken, at(500)), Some(0));
        assert_eq!(said.count(denied, at(500)), Some(1));
    }
}
