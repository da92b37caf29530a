//! The command line: what may be asked for, and which part of the program does it.
//!
//! Whatever can be known to be wrong from the words alone is refused here, as a usage error with
//! exit code 2. So the commands receive settings, not words.

mod check;
mod config_source;
mod fd;
mod serve;
mod settings;
mod usage;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::Result;
use crate::fdtool;
use crate::logging::{self, Role};
use usage::UsageError;

/// The version, with the commit that it was built from where git could tell (src/build.rs).
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("BATOND_COMMIT"));

/// A pre-fork server that lends connections to its workers.
#[derive(Debug, Parser)]
#[command(name = "batond", version = VERSION, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients, over TCP or Unix sockets, with pools of worker processes.
    Serve(serve::ServeArgs),
    /// Say what serve would do with the same arguments, or what is wrong with them or the file.
    ///
    /// It looks at all that can be known without a trace: it binds no address, writes no file and
    /// starts no worker.
    Check(serve::ServeArgs),
    /// Wait for file descriptors on a Unix socket and show what is behind them.
    RecvFd(fd::RecvArgs),
    /// Open files and pass their descriptors to a waiting recv-fd.
    SendFd(fd::SendArgs),
}

/// Does what the arguments of this process ask for. The exit code is 0 when all went well, 1 when
/// something failed, 2 for a wrong command line.
pub(crate) fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In one piece, because another process may be writing there too.
            logging::write_last(&format!("batond: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line asks for.
///
/// # Errors
/// What went wrong, for one line on stderr.
fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(args) => serve::serve(args.check().unwrap_or_else(|e| refuse("serve", e))),
        Command::Check(args) => {
            let request = args.check().unwrap_or_else(|e| refuse("check", e));
            check::check(&request.config)
        }
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

/// Exits with code 2, after the reason and the usage of the command on stderr.
fn refuse<T>(command: &str, UsageError { kind, reason }: UsageError) -> T {
    let mut cli = Cli::command();
    // Only then do the commands know their full names.
    cli.build();
    let command = cli.find_subcommand_mut(command);
    command
        .expect("it was asked for")
        .error(kind, reason)
        .exit()
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
            ("serve -l 8080", "the host is missing"),
            (
                "serve -l http://localhost:80",
                "a scheme (http://) does not belong there",
            ),
            ("serve --grace soon", "expected a whole number of seconds"),
            ("serve ftp", "'ftp'"),
            ("dance", "'dance'"),
            (
                "serve --port 80",
                "say -l 127.0.0.1:80, or -l :80 for every address",
            ),
            ("serve -p 80 demo", "say -l 127.0.0.1:80"),
            ("serve ./www", "did you mean 'batond serve http ./www'?"),
            (
                "serve /srv/www",
                "did you mean 'batond serve http /srv/www'?",
            ),
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
    fn both_ends_agree_on_the_socket() {
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
