//! `batond recv-fd` and `batond send-fd`: what their command lines can say.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args};

use super::usage::path;
use crate::fdtool;

/// Where the two commands meet, and how: what both of them must agree on.
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
pub(super) struct RecvArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Stop after the first sender that sends something, or with -d after the first message.
    #[arg(long)]
    once: bool,
    /// Say what each descriptor is: its kind, its path, how it was opened, its offset.
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Args)]
pub(super) struct SendArgs {
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
    pub(super) fn check(self) -> fdtool::Receive {
        fdtool::Receive {
            tlpi: self.socket.tlpi,
            socket: self.socket.check(),
            once: self.once,
            verbose: self.verbose,
        }
    }
}

impl SendArgs {
    pub(super) fn check(self) -> fdtool::Send {
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
