//! What is said of clients that are turned away or kept waiting for want of something: one warning
//! when it begins, and one with the count when it has ended, or the pool does. Pure.

use std::io;
use std::mem::discriminant;
use std::rc::Rc;
use std::time::Duration;

use crate::config::Settings;
use crate::error::Plain;
use crate::master::connection::visit::PassFault;
use crate::master::dispatch::{Canned, Excess, Late};
use crate::master::plan::MAIN;
use crate::master::time::Time;

/// How long it must not have happened before that counts as the end.
const QUIET: Duration = Duration::from_secs(10);

/// What happens when there is no room for a further connection.
const CONSEQUENCE: &str = "idle ones are closed, or new ones wait";

/// Why clients are turned away, or kept waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A client has too many connections.
    PerClient,
    /// Too many requests wait for a worker.
    Queue,
    /// A request has waited for too long.
    QueueWait,
    /// A client was too slow.
    Late(Late),
    /// There are as many connections as there may be: idle ones are closed, or newcomers wait.
    MaxConnections,
    /// There are as many as the limit of open files allows; likewise.
    OpenFiles,
    /// All workers wait because there is none for the luggage that they have sent.
    Luggage,
    /// The kernel does not pass descriptors on, for want of something that no worker has:
    /// connections wait, and are turned away when they have waited for too long. With the error's
    /// number.
    Lends(i32),
    /// A service wants connections passed to another pool that can't be.
    Passing(PassFault),
}

impl Cause {
    /// The cause of a reply; none for one that tells of a worker's fault, which has its own
    /// warning.
    #[must_use]
    pub fn of(reply: Canned) -> Option<Self> {
        match reply {
            Canned::Overloaded(Excess::PerClient) => Some(Self::PerClient),
            Canned::Overloaded(Excess::Queue) => Some(Self::Queue),
            Canned::Overloaded(Excess::QueueWait) => Some(Self::QueueWait),
            Canned::Overloaded(Excess::Descriptors) => Some(Self::Luggage),
            // Why it comes is told when the time of the connection is over.
            Canned::RequestTimeout => None,
            Canned::Crashed | Canned::TimedOut | Canned::Stopping => None,
        }
    }

    /// The name of the setting, or of what the kernel limits.
    fn name(self) -> &'static str {
        match self {
            Self::PerClient => "per-client",
            Self::Queue => "queue",
            Self::QueueWait => "queue-wait",
            Self::Late(Late::Head) => "head-timeout",
            Self::Late(Late::SilentBody) => "idle-timeout",
            Self::Late(Late::Body | Late::Reader) => "min-rate",
            Self::MaxConnections => "max-connections",
            Self::OpenFiles | Self::Luggage => "limit of open files",
            Self::Lends(_) => "lending",
            Self::Passing(_) => "passing",
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
            Self::Late(late) => begin_late(late, settings),
            Self::MaxConnections => {
                format!("there are {connections} connections: {CONSEQUENCE}")
            }
            Self::OpenFiles => {
                format!("cannot accept more than {connections} connections: {CONSEQUENCE}")
            }
            Self::Luggage => "turning clients away so that slow ones can be kept".to_owned(),
            Self::Passing(fault) => {
                format!("turning clients away that can't be passed to another pool: {fault}")
            }
            Self::Lends(errno) => {
                let why = io::Error::from_raw_os_error(errno);
                format!(
                    "cannot lend connections to workers: {}; they wait",
                    Plain(&why)
                )
            }
        }
    }

    /// What has happened so many times.
    fn events(self, count: u64) -> String {
        match (self, count) {
            (Self::Late(Late::Reader), 1) => "1 client was cut off".to_owned(),
            (Self::Late(Late::Reader), _) => format!("{count} clients were cut off"),
            (Self::MaxConnections | Self::OpenFiles, 1) => "once no connection was free".to_owned(),
            (Self::MaxConnections | Self::OpenFiles, _) => {
                format!("{count} times no connection was free")
            }
            (Self::Lends(_), 1) => "1 lend was refused".to_owned(),
            (Self::Lends(_), _) => format!("{count} lends were refused"),
            (_, 1) => "1 client was turned away".to_owned(),
            (_, _) => format!("{count} clients were turned away"),
        }
    }
}

fn begin_late(late: Late, settings: &Settings) -> String {
    let seconds = |span: Option<Duration>| span.unwrap_or_default().as_secs_f64();
    let rate = settings.min_rate.unwrap_or_default();
    match late {
        Late::Head => {
            let limit = seconds(settings.head_timeout);
            format!("turning clients away whose request was not complete within {limit} s")
        }
        Late::Body => {
            format!("turning clients away that send less than {rate} bytes of a body in a second")
        }
        Late::SilentBody => {
            let limit = seconds(settings.idle_timeout);
            format!("turning clients away that stop within a body for {limit} s")
        }
        Late::Reader => {
            format!(
                "cutting clients off that take less than {rate} bytes of a response in a second"
            )
        }
    }
}

/// Since when, until when, and how many.
#[derive(Debug, Clone, Copy)]
struct Episode {
    cause: Cause,
    begin: Time,
    last: Time,
    count: u64,
}

/// What is scarce in a pool.
#[derive(Debug)]
pub struct Overload {
    pool: Rc<str>,
    episodes: Vec<Episode>,
}

impl Overload {
    /// Nothing is, in the pool of this name.
    #[must_use]
    pub fn new(pool: &Rc<str>) -> Self {
        Self {
            pool: Rc::clone(pool),
            episodes: Vec::new(),
        }
    }

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
        let same = |episode: &&mut Episode| match (episode.cause, cause) {
            (Cause::Late(one), Cause::Late(other)) => one == other,
            (one, other) => discriminant(&one) == discriminant(&other),
        };
        if let Some(episode) = self.episodes.iter_mut().find(same) {
            episode.last = now;
            episode.count += 1;
            return None;
        }
        self.episodes.push(Episode {
            cause,
            begin: now,
            last: now,
            count: 1,
        });
        Some(self.line(cause, &cause.begin(settings, connections)))
    }

    /// There is still no room, and somebody waits for some.
    pub fn stays_full(&mut self, now: Time) {
        let full =
            |one: &&mut Episode| matches!(one.cause, Cause::MaxConnections | Cause::OpenFiles);
        self.episodes
            .iter_mut()
            .filter(full)
            .for_each(|one| one.last = now);
    }

    /// When the next episode ends, if nothing else happens.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        let ends = self.episodes.iter();
        ends.map(|episode| episode.last.after(QUIET)).min()
    }

    /// What is to be said of the episodes that have ended.
    pub fn ended(&mut self, now: Time) -> Vec<String> {
        let ended = |episode: &mut Episode| episode.last.after(QUIET) <= now;
        let ended: Vec<_> = self.episodes.extract_if(.., ended).collect();
        let quiet = format!(", none in the {} s since", QUIET.as_secs());
        ended.iter().map(|one| self.sum_up(one, &quiet)).collect()
    }

    /// What is to be said of all episodes, because the pool ends.
    pub fn end(&mut self) -> Vec<String> {
        let all = std::mem::take(&mut self.episodes);
        all.iter().map(|one| self.sum_up(one, "")).collect()
    }

    fn sum_up(&self, episode: &Episode, since: &str) -> String {
        let Episode {
            cause,
            begin,
            last,
            count,
        } = episode;
        let (events, lasted) = (cause.events(*count), last.since(*begin).as_secs_f64());
        self.line(*cause, &format!("{events} in {lasted:.1} s{since}"))
    }

    /// The pool is named if it has a name of its own.
    fn line(&self, cause: Cause, what: &str) -> String {
        match &*self.pool {
            MAIN => format!("{}: {what}", cause.name()),
            pool => format!("{} pool={pool}: {what}", cause.name()),
        }
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
        let mut overload = Overload::new(&MAIN.into());
        assert_eq!(overload.next_due(), None);
        let first = overload.count(Cause::Queue, &settings, 0, now);
        let said = "queue: turning requests away because 10000 wait for a worker";
        assert_eq!(first.as_deref(), Some(said));
        for _ in 0..4 {
            now = now.after(9 * second);
            assert_eq!(overload.count(Cause::Queue, &settings, 0, now), None);
            assert!(overload.ended(now).is_empty());
        }
        // Another cause is another episode.
        assert!(
            overload
                .count(Cause::PerClient, &settings, 0, now.after(second))
                .is_some()
        );
        assert_eq!(overload.next_due(), Some(now.after(QUIET)));
        now = now.after(QUIET);
        let said = "queue: 5 clients were turned away in 36.0 s, none in the 10 s since";
        assert_eq!(overload.ended(now), [said]);
        assert_eq!(overload.next_due(), Some(now.after(second)));
        assert!(overload.count(Cause::Queue, &settings, 0, now).is_some());
        let said = [
            "per-client: 1 client was turned away in 0.0 s",
            "queue: 1 client was turned away in 0.0 s",
        ];
        assert_eq!(overload.end(), said);
        assert_eq!(overload.next_due(), None);
    }

    #[test]
    fn what_stays_full_is_not_over() {
        let settings = Settings::for_processors(1);
        let mut overload = Overload::new(&MAIN.into());
        let now = Time::default();
        for cause in [Cause::MaxConnections, Cause::PerClient] {
            assert!(overload.count(cause, &settings, 2, now).is_some());
        }
        let now = now.after(QUIET);
        overload.stays_full(now);
        let said = "per-client: 1 client was turned away in 0.0 s, none in the 10 s since";
        assert_eq!(overload.ended(now), [said]);
        let said = "max-connections: once no connection was free in 10.0 s, none in the 10 s since";
        assert_eq!(overload.ended(now.after(QUIET)), [said]);
    }

    #[test]
    fn a_kernel_that_refuses_for_several_reasons_is_one_episode_of_its_pool() {
        let settings = Settings::for_processors(1);
        let mut overload = Overload::new(&"api".into());
        let now = Time::default();
        let mut refused = |errno| overload.count(Cause::Lends(errno), &settings, 0, now);
        let said = "lending pool=api: cannot lend connections to workers: \
                    The kernel has no memory for it; they wait";
        assert_eq!(refused(libc::ENOMEM).as_deref(), Some(said));
        assert_eq!(refused(libc::ETOOMANYREFS), None);
        let said = "lending pool=api: 2 lends were refused in 0.0 s, none in the 10 s since";
        assert_eq!(overload.ended(now.after(QUIET)), [said]);
    }
}
