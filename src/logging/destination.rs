//! Where this process's lines go: one at a time, and with the count of those that were lost.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use log::Level;

use super::file::LogFile;
use super::line;
use super::losses::Losses;
use super::output::Output;
use super::role::{Role, role};
use crate::error::Result;

/// How often it is tried to say that lines were lost.
const RETRY: Duration = Duration::from_millis(100);

/// How long the last line of a process may wait for its reader.
const LAST_WAIT: Duration = Duration::from_secs(1);

static DESTINATION: Mutex<Option<Destination>> = Mutex::new(None);

fn destination() -> MutexGuard<'static, Option<Destination>> {
    DESTINATION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lines go to the end of this file from now on, or to stderr.
///
/// # Errors
/// When the file can't be opened.
pub(super) fn open(path: Option<&Path>) -> Result<()> {
    let file = path.map(LogFile::open).transpose()?;
    // The memory that is shared with the workers comes before the first of them.
    let losses = Losses::shared();
    *destination() = Some(Destination::new(file, losses));
    Ok(())
}

/// Opens the file at the same path again; nothing if there is no file.
///
/// # Errors
/// When that can't be done. Lines go on to the old one.
pub(super) fn reopen() -> Result<()> {
    match destination().as_mut() {
        Some(destination) => destination.reopen(),
        None => Ok(()),
    }
}

/// Writes a record, or counts it as lost.
pub(super) fn write(level: Level, message: &fmt::Arguments<'_>) {
    // What is in a message may panic when it is put into words, and that is a line too.
    let text = line::text(message);
    within(|destination| destination.write(level, &text));
}

/// Says how many lines were lost, if some were and it can be said now; when that is to be tried
/// again, if it can't.
pub(super) fn report_losses(now: Instant) -> Option<Duration> {
    if !Losses::shared().any() {
        return None;
    }
    within(|destination| destination.retry(now)).unwrap_or(Some(RETRY))
}

/// Writes a line to stderr as it is, when this process is about to end: so it may wait a little for
/// a reader, and not for ever.
pub(super) fn write_last(text: &str) {
    let stderr = io::stderr();
    let mut output = Output::shared(stderr.as_fd());
    let losses = Losses::new();
    if output.write(stderr.as_fd(), text, &losses).is_err() {
        output.wait(stderr.as_fd(), LAST_WAIT);
        // The exit code says that something is wrong, in any case.
        let _ = output.write(stderr.as_fd(), text, &losses);
    }
}

thread_local! {
    /// This thread is doing something with the destination.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Ends the time in which this thread does something with the destination, by a panic too.
struct Inside;

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

/// Does something with the destination, unless this thread is doing something with it already: that
/// could be a panic in the middle of it.
fn within<T>(act: impl FnOnce(&mut Destination) -> T) -> Option<T> {
    if INSIDE.replace(true) {
        return None;
    }
    let _inside = Inside;
    destination().as_mut().map(act)
}

#[derive(Debug)]
struct Destination {
    /// `None` is stderr.
    file: Option<LogFile>,
    output: Output,
    losses: &'static Losses,
    /// When it was last tried to say how many were lost.
    tried: Option<Instant>,
}

impl Destination {
    fn new(file: Option<LogFile>, losses: &'static Losses) -> Self {
        Self {
            output: match &file {
                Some(file) => Output::own(file.as_fd()),
                None => Output::shared(io::stderr().as_fd()),
            },
            file,
            losses,
            tried: None,
        }
    }

    fn reopen(&mut self) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.reopen()?;
            self.output = Output::own(file.as_fd());
            // What is there of a line is in the old file.
            self.losses.take_torn();
        }
        Ok(())
    }

    fn write(&mut self, level: Level, text: &str) {
        if let Some(file) = &mut self.file
            && matches!(role(), Role::Worker { .. })
            && file.follow(Instant::now())
        {
            self.output = Output::own(file.as_fd());
        }
        // In their order: after a gap comes the word that there is one.
        let written = self
            .report_losses()
            .and_then(|()| self.write_lines(level, text));
        if let Err(error) = written {
            self.losses.add(1, &error);
        }
    }

    fn retry(&mut self, now: Instant) -> Option<Duration> {
        let since = self.tried.map(|tried| now.saturating_duration_since(tried));
        if let Some(left) = since.and_then(|since| RETRY.checked_sub(since))
            && !left.is_zero()
        {
            return Some(left);
        }
        self.tried = Some(now);
        self.report_losses().is_err().then_some(RETRY)
    }

    /// Says how many lines were lost, if there is something to say.
    fn report_losses(&mut self) -> io::Result<()> {
        let Some((count, text)) = self.losses.any().then(|| self.losses.take()).flatten() else {
            return Ok(());
        };
        let said = self.write_lines(Level::Warn, &text);
        said.inspect_err(|error| self.losses.add(count, error))
    }

    fn write_lines(&mut self, level: Level, text: &str) -> io::Result<()> {
        let time = format!("{:.3}", Timestamp::now());
        let lines = line::format(&time, level, role(), text, self.output.longest());
        let stderr = io::stderr();
        let descriptor: BorrowedFd<'_> = match &self.file {
            Some(file) => file.as_fd(),
            None => stderr.as_fd(),
        };
        let (output, losses) = (&mut self.output, self.losses);
        lines
            .iter()
            .try_for_each(|line| output.write(descriptor, line, losses))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::catch_unwind;

    use super::*;

    /// A message of which nothing comes but a panic, after a line of its own.
    struct Bad;

    impl fmt::Display for Bad {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            write(Level::Error, &format_args!("of the panic"));
            panic!("the test does it on purpose");
        }
    }

    #[test]
    fn a_panic_is_said_wherever_it_comes_from_and_silences_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        open(Some(&path)).unwrap();
        catch_unwind(|| write(Level::Info, &format_args!("{Bad}"))).unwrap_err();
        catch_unwind(|| within(|_| panic!("the test does it on purpose"))).unwrap_err();
        write(Level::Info, &format_args!("after it"));
        *destination() = None;
        let text = fs::read_to_string(path).unwrap();
        let messages: Vec<_> = text
            .lines()
            .filter_map(|line| line.split_once("]: "))
            .collect();
        let messages: Vec<_> = messages.iter().map(|(_, message)| *message).collect();
        assert_eq!(messages, ["of the panic", "after it"]);
    }
}
