//! `recv-fd` and `send-fd` as their users see them: with each other, with Python and with C on the
//! other side. This file has what the tests in its folder share.

mod hold;
mod output;
mod page;
mod pass;
mod peers;
mod socket;
mod words;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use batond::fdpass::{self, Wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use crate::harness::eventually;
use crate::harness::skip::{lacks, lacks_root, skip};

/// No wait is longer than this. It is far above what is needed, for a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A process with its output. Killed and reaped on drop.
pub struct Running {
    name: String,
    child: Child,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
}

#[derive(Default)]
struct Stream {
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Stream {
    fn collect(mut from: impl Read + Send + 'static) -> Arc<Self> {
        let stream = Arc::new(Self::default());
        let own = Arc::clone(&stream);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let count = from.read(&mut chunk).unwrap_or(0);
                let mut state = own.state.lock().unwrap();
                state.0.extend_from_slice(&chunk[..count]);
                state.1 = count == 0;
                own.changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        stream
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.state.lock().unwrap().0).into_owned()
    }

    /// Waits until this much has come, or everything.
    fn wait(&self, enough: impl Fn(&str) -> bool) -> Option<String> {
        let state = self.state.lock().unwrap();
        let missing = |(bytes, over): &mut (Vec<u8>, bool)| {
            !*over && !enough(&String::from_utf8_lossy(bytes))
        };
        let (state, _) = self
            .changed
            .wait_timeout_while(state, DEADLINE, missing)
            .unwrap();
        let text = String::from_utf8_lossy(&state.0).into_owned();
        (enough(&text)).then_some(text)
    }

    fn wait_for_end(&self) {
        let state = self.state.lock().unwrap();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, DEADLINE, |state| !state.1)
            .unwrap();
        assert!(state.1, "the output has no end");
    }
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let stdout = Stream::collect(child.stdout.take().unwrap());
        let stderr = Stream::collect(child.stderr.take().unwrap());
        Self {
            name,
            child,
            stdout,
            stderr,
        }
    }

    #[track_caller]
    pub fn wait_for_stdout(&self, what: &str) -> String {
        let text = self.stdout.wait(|text| text.contains(what));
        text.unwrap_or_else(|| panic!("no {what:?} from {self}"))
    }

    #[track_caller]
    pub fn wait_for_stderr(&self, what: &str) -> String {
        self.wait_for_stderr_times(what, 1)
    }

    #[track_caller]
    pub fn wait_for_stderr_times(&self, what: &str, times: usize) -> String {
        let text = self.stderr.wait(|text| text.matches(what).count() >= times);
        text.unwrap_or_else(|| panic!("no {what:?}, {times} times, from {self}"))
    }

    #[track_caller]
    pub fn wait_until(&self, enough: impl Fn(&str) -> bool) -> String {
        let text = self.stdout.wait(enough);
        text.unwrap_or_else(|| panic!("not enough from {self}"))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// The receivers that recv-fd has now.
    pub fn receivers(&self) -> Vec<Pid> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let pids = children.unwrap_or_default();
        let pids = pids.split_whitespace().map(|pid| pid.parse().unwrap());
        pids.filter_map(Pid::from_raw).collect()
    }

    /// Waits until recv-fd has so many receivers.
    #[track_caller]
    fn wait_for_receivers(&self, count: usize) -> Vec<Pid> {
        let mut receivers = Vec::new();
        eventually(&format!("there are {count} receivers: {self}"), || {
            receivers = self.receivers();
            receivers.len() == count
        });
        receivers
    }

    /// Waits for the end: the exit status, the standard output, the standard error.
    #[track_caller]
    pub fn end(mut self) -> (ExitStatus, String, String) {
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let time = Timespec {
            tv_sec: DEADLINE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time)).unwrap();
        assert!(ended == 1, "no end of {self}");
        let status = self.child.wait().unwrap();
        self.stdout.wait_for_end();
        self.stderr.wait_for_end();
        (status, self.stdout.text(), self.stderr.text())
    }

    /// Ends it by SIGTERM, which is a success; gives the standard output and error.
    #[track_caller]
    pub fn stop(self) -> (String, String) {
        self.signal(Signal::TERM);
        let name = self.name.clone();
        let (status, stdout, stderr) = self.end();
        assert!(status.success(), "{name}: {status}\n{stdout}\n{stderr}");
        assert!(!stderr.contains("panicked"), "{name}: {stderr}");
        (stdout, stderr)
    }

    /// Waits for the end, which must be a success without a word on stderr; gives the standard
    /// output.
    #[track_caller]
    pub fn succeed(self) -> String {
        let name = self.name.clone();
        let (status, stdout, stderr) = self.end();
        assert!(
            status.success() && stderr.is_empty(),
            "{name}: {status}\n{stdout}\n{stderr}"
        );
        stdout
    }
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            stdout,
            stderr,
            ..
        } = self;
        write!(
            f,
            "{name}\nstdout:\n{}\nstderr:\n{}",
            stdout.text(),
            stderr.text()
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn batond(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batond"));
    command
        .current_dir(dir)
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// A recv-fd that is ready for senders.
#[track_caller]
pub fn recv_fd(dir: &Path, arguments: &[&str]) -> Running {
    let running = Running::start(batond(dir, &["recv-fd"]).args(arguments));
    running.wait_for_stderr("listening on ");
    running
}

#[track_caller]
fn send_fd(dir: &Path, arguments: &[&str]) {
    let stdout = Running::start(batond(dir, &["send-fd"]).args(arguments)).succeed();
    assert_eq!(stdout, "");
}

/// A run that fails: its one line on stderr.
#[track_caller]
fn failure(dir: &Path, arguments: &[&str]) -> String {
    let (status, stdout, stderr) = Running::start(&mut batond(dir, arguments)).end();
    assert_eq!((status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("batond: cannot "), "{stderr}");
    stderr
}

pub fn python(dir: &Path, script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command
        .current_dir(dir)
        .args(["-u", "-c", script])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

pub fn directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("hello"), "hello\n").unwrap();
    fs::write(dir.path().join("long"), "x".repeat(1200)).unwrap();
    dir
}

/// The text with the numbers of descriptors as N: which are free is nobody's business.
fn unnumbered(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let ours = ["Received fd ", "reading fd ", "fd "];
        match ours.iter().find(|head| line.starts_with(**head)) {
            Some(head) => {
                out.push_str(head);
                out.push('N');
                out.push_str(line[head.len()..].trim_start_matches(|c: char| c.is_ascii_digit()));
            }
            None => out.push_str(line),
        }
    }
    out
}

fn block(data: &str, reads: &[&str]) -> String {
    let mut text = format!("{data}\n");
    for read in reads {
        text.push_str(&format!("Received fd N\nreading fd N...\n{read}\n"));
    }
    text
}
