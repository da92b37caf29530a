//! Log lines on stderr or in a file: when, how bad, which process, what. What is worth a line is
//! each caller's business.
//!
//! ```text
//! 2026-11-22T17:45:00.123Z INFO  master[123]: listening on 127.0.0.1:8080
//! 2026-11-22T17:45:00.130Z WARN  worker 3[456]: no answer from the upstream
//! ```
//!
//! The level is info unless RUST_LOG says otherwise. No line makes a process wait: one that can't
//! be written at once (a pipe that nobody reads, a terminal that is stopped, a full disk) is
//! dropped and counted, and the log says how many there were as soon as it can. A panic is a line
//! too, because what the standard library writes of it would wait.

mod destination;
mod file;
pub(crate) mod filter;
mod line;
mod losses;
mod output;
mod role;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env::{self, VarError};
use std::panic::{self, PanicHookInfo};
use std::path::Path;
use std::time::{Duration, Instant};

use env_filter::Filter;
use log::{Level, Log, Metadata, Record};

use crate::error::Result;
pub(crate) use role::{Role, set_role};

/// Starts logging to stderr, for a process of this role. Again is the same as [`set_role`].
pub(crate) fn start(role: Role) {
    if destination::open(None).is_ok() {
        install(role, None);
    }
}

/// Starts logging of what `filter` lets pass (as in RUST_LOG, which wins over it), to the end of
/// this file if there is one. Workers inherit it.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) fn open(role: Role, filter: Option<&str>, file: Option<&Path>) -> Result<()> {
    destination::open(file)?;
    install(role, filter);
    Ok(())
}

/// Checks whether lines could go to this file, without a trace of it.
///
/// # Errors
/// Why it could not be opened.
pub(crate) fn check(file: &Path) -> Result<()> {
    file::LogFile::check(file)
}

/// SIGUSR1: somebody has moved the log file away. The master goes on in a new one, and says so, or
/// why not; workers see it by themselves.
pub(crate) fn obey_reopen() {
    match destination::reopen() {
        Ok(()) => log::info!("log file opened anew"),
        Err(error) => log::error!("{error}"),
    }
}

/// Says how many lines were lost, of all processes of this server, if some were and it can be said
/// now; when to call this again, if it can't. The next line says it in any case: this is for a
/// process that may not have one for a long time. It costs a look into memory while nothing is
/// lost.
pub(crate) fn report_losses(now: Instant) -> Option<Duration> {
    destination::report_losses(now)
}

/// Writes the last line of a process, why it failed, to stderr, and does not wait for ever for
/// somebody to read it.
pub(crate) fn write_last(text: &str) {
    destination::write_last(text);
}

struct Logger(Filter);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.0.matches(record) {
            destination::write(record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

fn install(role: Role, filter: Option<&str>) {
    set_role(role);
    let variable = match env::var("RUST_LOG") {
        Ok(text) => Some(Some(text)),
        Err(VarError::NotUnicode(_)) => Some(None),
        Err(VarError::NotPresent) => None,
    };
    let variable = variable.as_ref().map(Option::as_deref);
    let (filter, complaint) = filter::choose(variable, filter);
    let most = filter.filter();
    // An error says that a logger is installed already, which is what is wanted.
    if log::set_boxed_logger(Box::new(Logger(filter))).is_ok() {
        log::set_max_level(most);
        panic::set_hook(Box::new(log_panic));
        if let Some(complaint) = complaint {
            log::warn!("{complaint}");
        }
    }
}

/// A panic is said whatever the filter: it is an error of the program.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let reason = panic.payload_as_str().unwrap_or("it has no message");
    match panic.location() {
        Some(place) => {
            destination::write(Level::Error, &format_args!("panicked at {place}: {reason}"));
        }
        None => destination::write(Level::Error, &format_args!("panicked: {reason}")),
    }
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        for line in backtrace.to_string().lines() {
            destination::write(Level::Error, &format_args!("{line}"));
        }
    }
}
