//! What a process writes to stdout or stderr, and waiting for it.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::DEADLINE;

/// The lines that a process has written so far, and whether it can still write more.
#[derive(Clone, Default)]
pub(super) struct Output {
    shared: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Default)]
pub(super) struct Lines {
    pub(super) lines: Vec<String>,
    /// How many pipes they come from.
    open: usize,
    /// Every process that had the other end has closed it.
    pub(super) ended: bool,
}

impl Output {
    /// Collects what comes through a pipe, in a thread that ends with it.
    pub(super) fn collect(pipe: impl Read + Send + 'static) -> Self {
        let output = Self::default();
        output.follow(pipe);
        output
    }

    /// Collects what comes through another pipe too.
    pub(super) fn follow(&self, pipe: impl Read + Send + 'static) {
        let ours = self.clone();
        ours.lock().open += 1;
        thread::spawn(move || {
            let (lines, changed) = &*ours.shared;
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(count) if count > 0) {
                let text = String::from_utf8_lossy(&line);
                let text = text.strip_suffix('\n').unwrap_or(&text);
                lines.lock().unwrap().lines.push(text.to_owned());
                changed.notify_all();
                line.clear();
            }
            let mut lines = lines.lock().unwrap();
            lines.open -= 1;
            lines.ended = lines.open == 0;
            drop(lines);
            changed.notify_all();
        });
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Lines> {
        self.shared.0.lock().unwrap()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    pub(super) fn text(&self) -> String {
        self.lock().lines.join("\n")
    }

    /// Waits until `found` finds something in the lines; nothing at the deadline, or at the end.
    pub(super) fn wait<T>(&self, found: impl FnMut(&Lines) -> Option<T>) -> Option<T> {
        self.wait_within(DEADLINE, found)
    }

    /// Like [`wait`](Self::wait), with its own deadline.
    pub(super) fn wait_within<T>(
        &self,
        limit: Duration,
        mut found: impl FnMut(&Lines) -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + limit;
        let mut lines = self.lock();
        loop {
            if let Some(value) = found(&lines) {
                return Some(value);
            }
            let left = end.saturating_duration_since(Instant::now());
            if lines.ended || left.is_zero() {
                return None;
            }
            (lines, _) = self.shared.1.wait_timeout(lines, left).unwrap();
        }
    }

    /// Waits for the end; false at the deadline.
    pub(super) fn wait_for_end(&self) -> bool {
        self.wait(|lines| lines.ended.then_some(())).is_some() || self.lock().ended
    }
}

/// The lines with these words, in order.
pub(super) fn matching(lines: &[String], pattern: &str) -> Vec<String> {
    let matches = lines.iter().filter(|line| line.contains(pattern));
    matches.cloned().collect()
}
