//! Log lines on stderr or in a file: when, how bad, which process, what. Owns the line format, the
//! process's role, and the file; what is worth a line is each caller's business.
//!
//! ```text
//! 2026-11-22T17:45:00.123Z INFO  master[123]: listening on 127.0.0.1:8080
//! 2026-11-22T17:45:00.130Z WARN  worker 3[456]: no answer from the upstream
//! ```
//!
//! The level is info unless RUST_LOG says otherwise. A line that cannot be written is dropped: a
//! full disk or a closed terminal must not take a server down.

mod file;

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use env_logger::{Builder, Env, Target, WriteStyle};
use log::Level;

use crate::error::Result;

/// What this process is, at the head of each of its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Owns the listeners and the connections.
    Master,
    /// Serves turns.
    Worker {
        /// Its place in the pool, from 0. A replacement gets the slot of the worker it replaces.
        slot: u32,
    },
    /// A command that is neither, by its name: `recv-fd`.
    Command(&'static str),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Worker { slot } => write!(f, "worker {slot}"),
            Self::Command(name) => f.write_str(name),
        }
    }
}

static ROLE: RwLock<Role> = RwLock::new(Role::Master);

/// Starts logging to stderr, for a process of this role. Again is the same as [`set_role`].
pub(crate) fn start(role: Role) {
    install(role, None, Target::Stderr);
}

/// Starts logging of what `filter` lets pass (as in RUST_LOG, which wins over it), to the end of this file if there is
/// one. Workers inherit it.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) fn open(role: Role, filter: Option<&str>, file: Option<&Path>) -> Result<()> {
    let target = match file {
        None => Target::Stderr,
        Some(path) => {
            file::open(path)?;
            Target::Pipe(Box::new(file::Writer))
        }
    };
    install(role, filter, target);
    Ok(())
}

/// Goes on in a new file if the old one was moved away: for the master, when it is told so. Workers see it by
/// themselves.
///
/// # Errors
/// When the file cannot be opened. Lines go on to the old one.
pub(crate) fn reopen() -> Result<()> {
    file::reopen()
}

fn install(role: Role, filter: Option<&str>, target: Target) {
    set_role(role);
    // An error says that a logger is installed already, which is what is wanted.
    let _ = Builder::from_env(Env::default().default_filter_or(filter.unwrap_or("info")))
        .target(target)
        .write_style(WriteStyle::Never)
        .format(|out, record| {
            let time = out.timestamp_millis();
            write_line(out, &time, record.level(), role_now(), record.args())
        })
        .try_init();
}

/// What this process has become: for the child, after a fork.
pub(crate) fn set_role(role: Role) {
    *ROLE.write().unwrap_or_else(PoisonError::into_inner) = role;
}

fn role_now() -> Role {
    *ROLE.read().unwrap_or_else(PoisonError::into_inner)
}

/// One record, one line: control characters (a newline in a path, an escape from a peer) are
/// written as `\n`, `\u{1b}`.
fn write_line(
    out: &mut impl Write,
    time: &dyn fmt::Display,
    level: Level,
    role: Role,
    message: &fmt::Arguments<'_>,
) -> io::Result<()> {
    // The pid is asked for anew each time: a fork changes it.
    let pid = std::process::id();
    let mut line = String::new();
    let mut escaped = Escaping(&mut line);
    write!(escaped, "{time} {level:<5} {role}[{pid}]: {message}").map_err(io::Error::other)?;
    line.push('\n');
    out.write_all(line.as_bytes())
}

/// Passes text on with its control characters escaped.
struct Escaping<'a>(&'a mut String);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            if char.is_control() {
                self.0.extend(char.escape_default());
            } else {
                self.0.push(char);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, role: Role, message: fmt::Arguments<'_>) -> String {
        let mut out = Vec::new();
        write_line(&mut out, &"2026-11-22T17:45:00.123Z", level, role, &message).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_says_when_how_bad_who_and_what() {
        let pid = std::process::id();
        for (level, role, expected) in [
            (Level::Info, Role::Master, format!("INFO  master[{pid}]")),
            (
                Level::Error,
                Role::Worker { slot: 3 },
                format!("ERROR worker 3[{pid}]"),
            ),
            (
                Level::Warn,
                Role::Command("recv-fd"),
                format!("WARN  recv-fd[{pid}]"),
            ),
        ] {
            assert_eq!(
                line(level, role, format_args!("listening on {}", "fd.sock")),
                format!("2026-11-22T17:45:00.123Z {expected}: listening on fd.sock\n")
            );
        }
    }

    #[test]
    fn a_record_is_one_line_without_control_characters() {
        let line = line(
            Level::Info,
            Role::Master,
            format_args!("{}", "größe\nfake\x1b[2J\u{9b}1m"),
        );
        assert!(
            line.ends_with(": größe\\nfake\\u{1b}[2J\\u{9b}1m\n"),
            "{line:?}"
        );
        assert_eq!(line.matches(char::is_control).count(), 1);
    }
}
