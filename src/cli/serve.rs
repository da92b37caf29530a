//! `batond serve`: which service, where, with how many workers.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, ValueEnum};

use super::refuse;
use crate::config::Address;
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
    /// When stopping, give requests this many seconds to finish.
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = seconds)]
    grace: Duration,
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
    grace: Duration,
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
            grace: self.grace,
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

fn seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse::<u32>()
        .map(|seconds| Duration::from_secs(seconds.into()))
        .map_err(|_| "expected a whole number of seconds")
}

/// Serves until it is told to stop.
pub(super) fn serve(serve: Serve) -> Result<()> {
    logging::start(Role::Master);
    match &serve.service {
        Service::Demo => serve.bind()?.run(|| http::Http::new(http::Demo)),
        Service::Echo => serve.bind()?.run(Echo::new),
        Service::Http { directory } => {
            let files = http::Files::open(directory)?;
            serve.bind()?.run(move || http::Http::new(files.clone()))
        }
    }
}

impl Serve {
    fn bind(&self) -> Result<Server> {
        let mut server = Server::unbound().grace(self.grace);
        if let Some(workers) = self.workers {
            server = server.workers(workers.get());
        }
        self.listen
            .iter()
            .try_fold(server, |server, address| server.and(address.clone()))
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
        assert_eq!(before.grace, Duration::from_secs(5));
    }

    #[test]
    fn serve_alone_is_the_demo_on_the_usual_port() {
        let serve = parse_serve("serve");
        assert_eq!(serve.service, Service::Demo);
        assert_eq!(serve.listen, ["127.0.0.1:8080".parse().unwrap()]);
        assert_eq!(serve.grace, Duration::from_secs(30));
        let http = parse_serve("serve -w 1 http some/dir");
        let directory = PathBuf::from("some/dir");
        assert_eq!(http.service, Service::Http { directory });
    }
}
