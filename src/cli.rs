//! The command line: what may be asked for, and which part of the program does it.
//!
//! Whatever can be known to be wrong from the words alone is refused here, as a usage error with
//! exit code 2. So the commands receive settings, not words.

mod check;
mod serve;
mod settings;
mod source;

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

use crate::error::{Error, Result};
use crate::fdtool;
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
    Serve(serve::ServeArgs),
    /// Say what serve would do with the same arguments, or what is wrong with them or the file.
    Check(serve::ServeArgs),
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
        Command::Serve(args) => serve::serve(&args.check()),
        Command::Check(args) => check::check(&args.check()),
        Command::RecvFd(args) => {
            logging::start(Role::Command("recv-fd"));
            fdtool::receive(&args.check())
        }
        Command::SendFd(args) => {
            logging::start(Role::Command("send-fd"));
            fdtool::send(&args.check())
        }
    }
}

/// Says on stderr what went wrong, in one piece, because another process may be writing there too.
pub fn complain(error: &Error) {
    logging::write_last(&format!("batond: {error}\n"));
}

/// A usage error that clap cannot see by itself: one clear line, the usage, exit code 2.
fn refuse(kind: ErrorKind, reason: impl std::fmt::Display) -> ! {
    Cli::command().error(kind, reason).exit()
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
    fn check(self) -> fdtool::Socket {
        let usual = if self.tlpi { "scm_rights" } else { "fd.sock" };
        fdtool::Socket {
            path: self.path.unwrap_or_else(|| usual.into()),
            kind: if self.datagram {
                fdtool::Kind::Datagram
            } else {
                fdtool::Kind::Stream
            },
        }
    }
}

impl RecvArgs {
    fn check(self) -> fdtool::Receive {
        fdtool::Receive {
            tlpi: self.socket.tlpi,
            socket: self.socket.check(),
            once: self.once,
            verbose: self.verbose,
        }
    }
}

impl SendArgs {
    fn check(self) -> fdtool::Send {
        let payload = if self.socket.tlpi {
            fdtool::TLPI_NUMBER.to_ne_bytes().to_vec()
        } else {
            self.payload.into_bytes()
        };
        let files = self.files.into_iter().map(|file| {
            if file == OsStr::new("-") {
                fdtool::Source::Stdin
            } else {
                fdtool::Source::File(file)
            }
        });
        fdtool::Send {
            files: files.collect(),
            socket: self.socket.check(),
            payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn parse(words: &str) -> Result<Command, clap::Error> {
        let words = std::iter::once("batond").chain(words.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_word_is_named_in_the_first_line() {
        for (words, expected) in [
            ("serve -w 0", "expected a number from 1 to 10000"),
            ("serve -w -1", "'-1'"),
            ("serve -w 99999999", "expected a number from 1 to 10000"),
            ("serve -l localhost", "the port is missing"),
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
