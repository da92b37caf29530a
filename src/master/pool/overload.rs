//! What is said of clients that are turned away: one warning when it begins, and one when it has
//! ended, with the count. Pure.

use std::fmt;
use std::time::Duration;

use crate::config::Settings;
use crate::master::dispatch::{Canned, Excess};
use crate::master::time::Time;

/// How long nobody must have been turned away before that counts as the end.
const QUIET: Duration = Duration::from_secs(10);

/// What happens when there is no room for a further connection.
const CONSEQUENCE: &str = "idle ones are closed, or new ones wait";

/// Why clients are turned away, or kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A client has too many connections.
    PerClient,
    /// Too many requests wait for a worker.
    Queue,
    /// A request has waited for too long.
    QueueWait,
    /// A request did not come to its end in time.
    HeadTimeout,
    /// There are as many connections as there may be: idle ones are closed, or newcomers wait.
    MaxConnections,
    /// There are as many as the limit of open files allows; likewise.
    OpenFiles,
}

const CAUSES: [Cause; 6] = [
    Cause::PerClient,
    Cause::Queue,
    Cause::QueueWait,
    Cause::HeadTimeout,
    Cause::MaxConnections,
    Cause::OpenFiles,
];

impl Cause {
    /// The cause of a reply; none for one that tells of a worker's fault, which has its own
    /// warning.
    #[must_use]
    pub fn of(reply: Canned) -> Option<Self> {
        match reply {
            Canned::Overloaded(Excess::PerClient) => Some(Self::PerClient),
            Canned::Overloaded(Excess::Queue) => Some(Self::Queue),
            Canned::Overloaded(Excess::QueueWait) => Some(Self::QueueWait),
            Canned::RequestTimeout => Some(Self::HeadTimeout),
            Canned::Crashed | Canned::TimedOut => None,
        }
    }

    /// The name of the setting.
    fn setting(self) -> &'static str {
        match self {
            Self::PerClient => "per-client",
            Self::Queue => "queue",
            Self::QueueWait => "queue-wait",
            Self::HeadTimeout => "head-timeout",
            Self::MaxConnections => "max-connections",
            Self::OpenFiles => "limit of open files",
        }
    }

    fn begin(self, settings: &Settings, connections: usize) -> String {
        let seconds = |span: Option<Duration>| span.unwrap_or_default().as_secs_f64();
        match self {
            Self::PerClient => {
                let limit = settings.per_client.unwrap_or_default();
                format!("turning clients away that have {limit} connections already")
            }
            Self::Queue => {
                let limit = settings.queue;
                format!("turning requests away because {limit} wait for a worker")
            }
            Self::QueueWait => {
                let limit = seconds(settings.queue_wait);
                format!("turning requests away that no worker took up within {limit} s")
            }
            Self::HeadTimeout => {
                let limit = seconds(settings.head_timeout);
                format!("turning clients away whose request was not complete within {limit} s")
            }
            Self::MaxConnections => {
                format!("there are {connections} connections: {CONSEQUENCE}")
            }
            Self::OpenFiles => {
                format!("cannot accept more than {connections} connections: {CONSEQUENCE}")
            }
        }
    }
}

/// Since when, until when, and how many.
#[derive(Debug, Clone, Copy)]
struct Episode {
    begin: Time,
    last: Time,
    count: u64,
}

/// The clients of a pool that are being turned away.
#[derive(Debug, Default)]
pub struct Overload {
    episodes: [Option<Episode>; CAUSES.len()],
}

/// An episode that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    cause: Cause,
    count: u64,
    lasted: Duration,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, .. } = self;
        let (setting, lasted) = (self.cause.setting(), self.lasted.as_secs_f64());
        let quiet = QUIET.as_secs();
        let what = match self.cause {
            Cause::MaxConnections | Cause::OpenFiles => "times no connection was free",
            _ => "clients were turned away",
        };
        write!(
            f,
            "{setting}: {count} {what} in {lasted:.1} s, none in the {quiet} s since"
        )
    }
}

impl Overload {
    /// Counts a client, while there are so many connections. Returns what is to be said if it is
    /// the first.
    #[must_use]
    pub fn count(
        &mut self,
        cause: Cause,
        settings: &Settings,
        connections: usize,
        now: Time,
    ) -> Option<String> {
        let episode = &mut self.episodes[cause as usize];
        match episode {
            Some(episode) => {
                episode.last = now;
                episode.count += 1;
                None
            }
            None => {
                *episode = Some(Episode {
                    begin: now,
                    last: now,
                    count: 1,
                });
                Some(format!(
                    "{}: {}",
                    cause.setting(),
                    cause.begin(settings, connections)
                ))
            }
        }
    }

    /// When the next episode ends, if nobody else is turned away.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let ends = self.episodes.iter().flatten();
        ends.map(|episode| episode.last.after(QUIET)).min()
    }

    /// The episodes that have ended.
    pub fn ended(&mut self, now: Time) -> impl Iterator<Item = Ended> {
        let all = self.episodes.iter_mut().zip(CAUSES);
        all.filter_map(move |(episode, cause)| {
            let ended = episode.take_if(|episode| episode.last.after(QUIET) <= now)?;
            Some(Ended {
                cause,
                count: ended.count,
                lasted: ended.last.since(ended.begin),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_is_told_of_at_its_beginning_and_after_its_end() {
        let settings = Settings::for_processors(1);
        let second = Duration::from_secs(1);
        let mut now = Time(1_000_000_000);
        let mut overload = Overload::default();
        assert_eq!(overload.next_due(), None);
        let first = overload.count(Cause::Queue, &settings, 0, now);
        let said = "queue: turning requests away because 10000 wait for a worker";
        assert_eq!(first.as_deref(), Some(said));
        for _ in 0..4 {
            now = now.after(9 * second);
            assert_eq!(overload.count(Cause::Queue, &settings, 0, now), None);
            assert_eq!(overload.ended(now).count(), 0);
        }
        // Another cause is another episode.
        assert!(
            overload
                .count(Cause::PerClient, &settings, 0, now.after(second))
                .is_some()
        );
        assert_eq!(overload.next_due(), Some(now.after(QUIET)));
        now = now.after(QUIET);
        let ended: Vec<_> = overload.ended(now).map(|ended| ended.to_string()).collect();
        let said = "queue: 5 clients were turned away in 36.0 s, none in the 10 s since";
        assert_eq!(ended, [said]);
        assert_eq!(overload.next_due(), Some(now.after(second)));
        assert!(overload.count(Cause::Queue, &settings, 0, now).is_some());
    }
}
