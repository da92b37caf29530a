//! `batond serve`: which service, where, with how many workers.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, ValueEnum};

use super::refuse;
use crate::config::{Address, MAX_THREADS, Settings};
use crate::error::Result;
use crate::logging::{self, Role};
use crate::server::Server;
use crate::services::{Echo, http};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// What to serve.
    #[arg(value_enum, default_value_t = ServiceName::Demo)]
    service: ServiceName,
    /// The directory that http serves.
    #[arg(value_name = "DIR")]
    argument: Option<PathBuf>,
    /// Listen here: 127.0.0.1:8080, [::1]:8080, :8080 for every address of this machine, or
    /// unix:/path. Port 0 takes a free one. May be given more than once.
    #[arg(short, long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: Vec<Address>,
    /// Run this many worker processes. [default: two for each processor, at least 4]
    #[arg(short, long, value_name = "N", value_parser = worker_count)]
    workers: Option<NonZeroUsize>,
    /// Let each worker serve this many turns at the same time, in threads.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN, value_parser = thread_count)]
    threads: NonZeroUsize,
    #[command(flatten)]
    limits: Limits,
}

/// The bounds within which it serves. 0 stands for no bound, where that makes sense.
#[derive(Debug, Args, PartialEq, Eq)]
#[command(next_help_heading = "Limits")]
struct Limits {
    /// When stopping, give requests this many seconds to finish.
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = seconds)]
    grace: Duration,
    /// Let a connection wait this many microseconds behind another one before it goes elsewhere.
    #[arg(long, value_name = "US", default_value = "500", value_parser = patience)]
    patience: Duration,
    /// Kill a worker whose turn takes longer than this many seconds. 0: never.
    #[arg(long, value_name = "SECS", default_value = "0", value_parser = seconds)]
    turn_timeout: Duration,
    /// Stop accepting while there are this many connections. 0: as many as descriptors allow.
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_connections: usize,
    /// Turn away whoever has this many connections already (IPv6: by /64). 0: nobody.
    #[arg(long, value_name = "N", default_value_t = 0)]
    per_client: u32,
    /// Turn requests away while this many wait for a worker.
    #[arg(long, value_name = "N", default_value = "10000", value_parser = queue_length)]
    queue: usize,
    /// Turn a request away when it has waited this many milliseconds for a worker. 0: never.
    #[arg(long, value_name = "MS", default_value = "30000", value_parser = milliseconds)]
    queue_wait: Duration,
    /// Close a connection that was idle for this many seconds. 0: never. [default: 75, echo: 0]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    idle_timeout: Option<Duration>,
    /// Give a client this many seconds to send the head of a request. 0: for ever.
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = seconds)]
    head_timeout: Duration,
    /// Drain a finished connection for this many seconds at most.
    #[arg(long, value_name = "SECS", default_value = "2", value_parser = seconds)]
    linger: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ServiceName {
    /// A page that shows which worker answered.
    Demo,
    /// Send back what the client sends.
    Echo,
    /// Serve the files of a directory over HTTP.
    Http,
}

/// What `serve` was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Serve {
    service: Service,
    listen: Vec<Address>,
    workers: Option<NonZeroUsize>,
    threads: NonZeroUsize,
    limits: Limits,
}

#[derive(Debug, PartialEq, Eq)]
enum Service {
    Demo,
    Echo,
    Http { directory: PathBuf },
}

impl ServeArgs {
    pub(super) fn check(self) -> Serve {
        let service = match (self.service, self.argument) {
            (ServiceName::Demo, None) => Service::Demo,
            (ServiceName::Echo, None) => Service::Echo,
            (ServiceName::Http, Some(directory)) => Service::Http { directory },
            (ServiceName::Http, None) => refuse(
                ErrorKind::MissingRequiredArgument,
                "http needs the directory that it is to serve: batond serve http DIR",
            ),
            (ServiceName::Demo | ServiceName::Echo, Some(extra)) => refuse(
                ErrorKind::UnknownArgument,
                format_args!(
                    "unexpected argument '{}': only http has one",
                    extra.display()
                ),
            ),
        };
        Serve {
            service,
            listen: self.listen,
            workers: self.workers,
            threads: self.threads,
            limits: self.limits,
        }
    }
}

fn worker_count(text: &str) -> Result<NonZeroUsize, &'static str> {
    /// More is a slip of the finger: the process table would be full long before.
    const MOST: usize = 10_000;
    text.parse::<NonZeroUsize>()
        .ok()
        .filter(|count| count.get() <= MOST)
        .ok_or("expected a number from 1 to 10000")
}

fn thread_count(text: &str) -> Result<NonZeroUsize, String> {
    text.parse::<NonZeroUsize>()
        .ok()
        .filter(|count| count.get() <= MAX_THREADS)
        .ok_or(format!("expected a number from 1 to {MAX_THREADS}"))
}

fn queue_length(text: &str) -> Result<usize, &'static str> {
    text.parse::<NonZeroUsize>()
        .map(NonZeroUsize::get)
        .map_err(|_| "expected a number from 1 on")
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse::<u32>()
        .map(|seconds| Duration::from_secs(seconds.into()))
        .map_err(|_| "expected a whole number of seconds")
}

fn milliseconds(text: &str) -> Result<Duration, &'static str> {
    text.parse::<u32>()
        .map(|count| Duration::from_millis(count.into()))
        .map_err(|_| "expected a whole number of milliseconds")
}

fn patience(text: &str) -> Result<Duration, &'static str> {
    text.parse::<u32>()
        .ok()
        .filter(|count| (1..=10_000_000).contains(count))
        .map(|count| Duration::from_micros(count.into()))
        .ok_or("expected a number of microseconds from 1 to 10000000")
}

/// Serves until it is told to stop.
pub(super) fn serve(serve: Serve) -> Result<()> {
    logging::start(Role::Master);
    match &serve.service {
        Service::Demo => serve.bind()?.run(|| http::Http::new(http::Demo::default())),
        Service::Echo => serve.bind()?.run(Echo::new),
        Service::Http { directory } => {
            let files = http::Files::open(directory)?;
            serve.bind()?.run(move || http::Http::new(files.clone()))
        }
    }
}

impl Serve {
    fn bind(&self) -> Result<Server> {
        let unbound = Server::with(self.settings());
        self.listen
            .iter()
            .try_fold(unbound, |server, address| server.and(address.clone()))
    }

    fn settings(&self) -> Settings {
        let processors = available_parallelism().map_or(1, usize::from);
        let mut settings = Settings::for_processors(processors);
        if let Some(workers) = self.workers {
            settings.workers = workers.get();
        }
        let bound = |limit: Duration| Some(limit).filter(|limit| !limit.is_zero());
        let limits = &self.limits;
        if limits.max_connections > 0 {
            settings.max_connections = limits.max_connections;
        }
        Settings {
            threads: self.threads.get(),
            grace: limits.grace,
            patience: limits.patience,
            turn_timeout: bound(limits.turn_timeout),
            per_client: Some(limits.per_client).filter(|limit| *limit > 0),
            queue: limits.queue,
            queue_wait: bound(limits.queue_wait),
            idle_timeout: match (limits.idle_timeout, &self.service) {
                (Some(limit), _) => bound(limit),
                // Who talks to an echo by hand thinks between two lines.
                (None, Service::Echo) => None,
                (None, _) => settings.idle_timeout,
            },
            head_timeout: bound(limits.head_timeout),
            linger: limits.linger,
            ..settings
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::parse;
    use super::*;

    fn parse_serve(words: &str) -> Serve {
        match parse(words) {
            Ok(Command::Serve(args)) => args.check(),
            other => panic!("{words}: {other:?}"),
        }
    }

    #[test]
    fn the_service_may_stand_before_or_after_the_options() {
        let before = parse_serve("serve echo -l 127.0.0.1:0 -l unix:/tmp/s -w 2 --grace 5");
        let after = parse_serve("serve -l 127.0.0.1:0 -w 2 -l unix:/tmp/s --grace 5 echo");
        assert_eq!(before, after);
        assert_eq!(before.service, Service::Echo);
        assert_eq!(before.listen.len(), 2);
        assert_eq!(before.workers.map(NonZeroUsize::get), Some(2));
        assert_eq!(before.limits.grace, Duration::from_secs(5));
    }

    #[test]
    fn serve_alone_is_the_demo_on_the_usual_port() {
        let serve = parse_serve("serve");
        assert_eq!(serve.service, Service::Demo);
        assert_eq!(serve.listen, ["127.0.0.1:8080".parse().unwrap()]);
        assert_eq!(serve.limits.grace, Duration::from_secs(30));
        let processors = available_parallelism().map_or(1, usize::from);
        assert_eq!(serve.settings(), Settings::for_processors(processors));
        let http = parse_serve("serve -w 1 http some/dir");
        let directory = PathBuf::from("some/dir");
        assert_eq!(http.service, Service::Http { directory });
    }
}
