//! The command line: what may be asked for, and which part of the program does it.
//!
//! Whatever can be known to be wrong from the words alone is refused here, as a usage error with
//! exit code 2. So the commands receive settings, not words.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::demo;
use crate::error::{Error, Result};
use crate::logging::{self, Role};

/// A pre-fork server that lends connections to its workers.
#[derive(Debug, Parser)]
#[command(name = "batond", version, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve TCP clients with a pool of worker processes.
    Serve(ServeArgs),
    /// Wait for file descriptors on a Unix socket and show what is behind them.
    RecvFd(RecvArgs),
    /// Open files and pass their descriptors to a waiting recv-fd.
    SendFd(SendArgs),
}

/// Does what the command line asks for.
///
/// # Errors
/// What went wrong, for one line on stderr.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Serve(args) => serve(args.check()),
        Command::RecvFd(args) => {
            logging::start(Role::Command("recv-fd"));
            demo::receive(&args.check())
        }
        Command::SendFd(args) => {
            logging::start(Role::Command("send-fd"));
            demo::send(&args.check())
        }
    }
}

/// A usage error that clap cannot see by itself: one clear line, the usage, exit code 2.
fn refuse(kind: ErrorKind, reason: impl std::fmt::Display) -> ! {
    Cli::command().error(kind, reason).exit()
}

// ---- serve --------------------------------------------------------------------------------------

#[derive(Debug, Args)]
struct ServeArgs {
    /// What to serve.
    #[arg(value_enum, default_value_t = ServiceName::Demo)]
    service: ServiceName,
    /// The directory that http serves.
    #[arg(value_name = "DIR")]
    argument: Option<PathBuf>,
    /// Listen on this IP address and port. May be given more than once.
    #[arg(short, long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    #[arg(value_parser = listen_address)]
    listen: Vec<SocketAddr>,
    /// Run this many worker processes. [default: one for each processor]
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
#[allow(dead_code)] // until `serve` reads it
struct Serve {
    service: Service,
    listen: Vec<SocketAddr>,
    workers: NonZeroUsize,
    grace: Duration,
}

#[derive(Debug, PartialEq, Eq)]
#[allow(dead_code)] // until `serve` reads it
enum Service {
    Demo,
    Echo,
    Http { directory: PathBuf },
}

impl ServeArgs {
    fn check(self) -> Serve {
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
        let processors = || available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Serve {
            service,
            listen: self.listen,
            workers: self.workers.unwrap_or_else(processors),
            grace: self.grace,
        }
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080")
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

fn serve(_serve: Serve) -> Result<()> {
    Err(Error::because("serve", "not in this build"))
}

// ---- recv-fd and send-fd ------------------------------------------------------------------------

/// What both ends of the demo must agree on.
#[derive(Debug, Args)]
struct SocketArgs {
    /// The path of the Unix socket. [default: fd.sock, with --tlpi: scm_rights]
    #[arg(short = 'f', long = "socket", value_name = "PATH", value_parser = path())]
    path: Option<PathBuf>,
    /// Use a datagram socket instead of a stream.
    #[arg(short, long)]
    datagram: bool,
    /// Speak with the programs scm_rights_send and scm_rights_recv of the book The Linux
    /// Programming Interface: their socket name, and the number 12345 as data.
    #[arg(long)]
    tlpi: bool,
}

#[derive(Debug, Args)]
struct RecvArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Stop after the first sender, or with -d after the first message.
    #[arg(long)]
    once: bool,
    /// Say what each descriptor is: its kind, its path, how it was opened, its offset.
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Args)]
struct SendArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// The data to send along with each descriptor, at least one byte.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "*",
        conflicts_with = "tlpi"
    )]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    payload: String,
    /// The files to open and pass, each in a message of its own; - passes the standard input.
    #[arg(value_name = "FILE", required = true, action = ArgAction::Append, value_parser = path())]
    files: Vec<PathBuf>,
}

/// A path that is not empty: the empty one would make the kernel choose a name.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|path| {
        if path.is_empty() {
            Err("a path cannot be empty")
        } else {
            Ok(PathBuf::from(path))
        }
    })
}

impl SocketArgs {
    fn check(self) -> demo::Socket {
        let usual = if self.tlpi { "scm_rights" } else { "fd.sock" };
        demo::Socket {
            path: self.path.unwrap_or_else(|| usual.into()),
            kind: if self.datagram {
                demo::Kind::Datagram
            } else {
                demo::Kind::Stream
            },
        }
    }
}

impl RecvArgs {
    fn check(self) -> demo::Receive {
        demo::Receive {
            tlpi: self.socket.tlpi,
            socket: self.socket.check(),
            once: self.once,
            verbose: self.verbose,
        }
    }
}

impl SendArgs {
    fn check(self) -> demo::Send {
        let payload = if self.socket.tlpi {
            demo::TLPI_NUMBER.to_ne_bytes().to_vec()
        } else {
            self.payload.into_bytes()
        };
        let files = self.files.into_iter().map(|file| {
            if file == OsStr::new("-") {
                demo::Source::Stdin
            } else {
                demo::Source::File(file)
            }
        });
        demo::Send {
            files: files.collect(),
            socket: self.socket.check(),
            payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Command, clap::Error> {
        let words = std::iter::once("batond").chain(words.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.command)
    }

    fn parse_serve(words: &str) -> Serve {
        match parse(words) {
            Ok(Command::Serve(args)) => args.check(),
            other => panic!("{words}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_service_may_stand_before_or_after_the_options() {
        let before = parse_serve("serve echo -l 127.0.0.1:0 -l [::1]:0 -w 2 --grace 5");
        let after = parse_serve("serve -l 127.0.0.1:0 -w 2 -l [::1]:0 --grace 5 echo");
        assert_eq!(before, after);
        assert_eq!(before.service, Service::Echo);
        assert_eq!(before.listen.len(), 2);
        assert_eq!(before.workers.get(), 2);
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

    #[test]
    fn a_wrong_word_is_named_in_the_first_line() {
        for (words, expected) in [
            ("serve -w 0", "expected a number from 1 to 10000"),
            ("serve -w -1", "'-1'"),
            ("serve -w 99999999", "expected a number from 1 to 10000"),
            ("serve -l localhost", "expected an IP address and a port"),
            ("serve --grace soon", "expected a whole number of seconds"),
            ("serve ftp", "'ftp'"),
            ("dance", "'dance'"),
            ("send-fd --tlpi --payload x f", "'--payload <TEXT>'"),
            ("send-fd", "FILE"),
        ] {
            let error = parse(words).expect_err(words);
            assert_eq!(error.exit_code(), 2, "{words}");
            let text = error.to_string();
            let head: Vec<_> = text.lines().take(2).collect();
            assert!(head.join("\n").contains(expected), "{words}: {text}");
        }
    }

    #[test]
    fn both_ends_of_the_demo_agree() {
        for words in ["", "-d", "--tlpi", "--tlpi -d -f x"] {
            let recv = match parse(&format!("recv-fd {words}")) {
                Ok(Command::RecvFd(args)) => args.check().socket,
                other => panic!("{other:?}"),
            };
            let send = match parse(&format!("send-fd {words} file")) {
                Ok(Command::SendFd(args)) => args.check().socket,
                other => panic!("{other:?}"),
            };
            assert_eq!(recv, send, "{words}");
        }
    }
}
