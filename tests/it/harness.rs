//! Starts the real binary, waits on what it says, and ends it.
//!
//! Rules that everything here keeps: a wait is for an event and has a deadline, nothing sleeps for
//! a guessed time; every server listens on a port that the kernel chose, in a directory of its own,
//! so that tests run side by side; every process is ended and reaped, also when the test fails; and
//! a test ends by asserting that the server logged no warning that the test did not expect.

pub mod client;
pub mod examples;
pub mod ledger;
pub mod load;
mod output;
pub mod process;
mod run;
pub mod session;
pub mod skip;
pub mod systemd;
pub mod upgrade;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

use output::{Output, matching};

pub use client::{Client, Endpoint, Reply};
pub use examples::example;
pub use ledger::{Counting, Ledger};
pub use load::{Clients, Habit, Tally, load};
pub use process::{
    DEADLINE, Watched, eventually, open_descriptors, wait_until_asleep, wait_until_idle,
};
pub use run::{BATOND, Finished, command, finish, refuse_call, run};

/// The value of `key=value` in a log line.
#[track_caller]
pub fn field(line: &str, key: &str) -> i32 {
    line.split(|c: char| c.is_whitespace() || c == ':' || c == ',')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("no {key}=NUMBER in the line {line:?}"))
}

/// How a server is to be started.
#[must_use]
pub struct Setup {
    program: PathBuf,
    arguments: Vec<OsString>,
    listeners: Vec<String>,
    /// How many addresses its file has; none is given as a flag then.
    in_file: Option<usize>,
    environment: Vec<(String, String)>,
    expected: Vec<String>,
    wrapper: Vec<OsString>,
    /// What systemd passes, with names; nothing if it is not systemd that starts the server.
    passed: Option<Vec<(String, OwnedFd)>>,
    directory: TempDir,
}

impl Setup {
    /// `batond serve` with these arguments. It listens on one port of 127.0.0.1 unless told.
    pub fn new(arguments: &[&str]) -> Self {
        Self::of(BATOND.into(), &[&["serve"], arguments].concat())
    }

    /// The same for a program of docs/examples, which knows `-l` and logs like `batond`.
    #[track_caller]
    pub fn example(name: &str, arguments: &[&str]) -> Self {
        Self::of(example(name), arguments)
    }

    fn of(program: PathBuf, arguments: &[&str]) -> Self {
        Self {
            program,
            arguments: arguments.iter().map(OsString::from).collect(),
            listeners: Vec::new(),
            in_file: None,
            environment: Vec::new(),
            expected: Vec::new(),
            wrapper: Vec::new(),
            passed: None,
            directory: TempDir::with_prefix("batond-test-").expect("a temporary directory"),
        }
    }

    /// Further arguments.
    pub fn also(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    /// The working directory of the server, removed at the end.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Listens on this address (and the others named so) instead of a port of 127.0.0.1.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listeners.push(address.into());
        self
    }

    /// Reads this as its file, which names so many addresses, and is given none otherwise.
    pub fn file(mut self, text: &str, addresses: usize) -> Self {
        std::fs::write(self.directory().join("batond.toml"), text).expect("a file");
        self.arguments
            .extend(["-c", "batond.toml"].map(OsString::from));
        self.in_file = Some(addresses);
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Warnings and errors with these words are part of the test.
    pub fn expect(mut self, pattern: &str) -> Self {
        self.expected.push(pattern.to_owned());
        self
    }

    /// Starts the server under another program, which must run it as its only child and end with
    /// it.
    #[track_caller]
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        skip::require_listed(wrapper[0]);
        self.wrapper = wrapper.iter().map(OsString::from).collect();
        self
    }

    /// Starts the server as systemd does: with variables that name its pid.
    pub fn managed(mut self) -> Self {
        self.passed.get_or_insert_default();
        self
    }

    /// Passes a descriptor to the server as systemd does.
    pub fn inherit(self, name: &str, descriptor: impl Into<OwnedFd>) -> Self {
        let mut managed = self.managed();
        let passed = managed.passed.get_or_insert_default();
        passed.push((name.to_owned(), descriptor.into()));
        managed
    }

    /// Starts the server with this hard limit of open files for the master and for each worker.
    pub fn descriptor_limit(self, count: usize) -> Self {
        // There is something behind the server, so that no shell takes it for its last command and
        // runs it in its own place.
        let script = format!("ulimit -n {count}; \"$@\"; exit $?");
        self.under(&["sh", "-c", &script, "sh"])
    }

    /// Starts the server where this system call fails, for all of its processes.
    #[track_caller]
    pub fn start_without(self, call: libc::c_long, errno: Errno) -> Server {
        let sandboxed = thread::spawn(move || {
            refuse_call(call, errno);
            self.start()
        });
        sandboxed.join().expect("the server starts")
    }

    /// Starts the server and waits until it listens.
    #[track_caller]
    pub fn start(self) -> Server {
        let mut words = self.wrapper.clone();
        if self.passed.is_some() {
            words.extend(systemd::TRAMPOLINE.map(OsString::from));
        }
        words.push(self.program.clone().into());
        let mut command = command(&words[0]);
        command.args(&words[1..]).args(&self.arguments);
        let default = ["127.0.0.1:0".to_owned()];
        let listeners = match (&self.listeners[..], self.in_file) {
            ([], None) => &default,
            (listeners, _) => listeners,
        };
        for listener in listeners {
            command.arg("-l").arg(listener);
        }
        command.current_dir(self.directory.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        systemd::pass(&mut command, self.passed.unwrap_or_default());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let process = Watched::new(Pid::from_raw(child.id().cast_signed()));
        let mut server = Server {
            stdout: Output::collect(child.stdout.take().expect("stdout is piped")),
            stderr: Output::collect(child.stderr.take().expect("stderr is piped")),
            child: Some(child),
            master: process.pid(),
            process,
            endpoints: Vec::new(),
            expected: self.expected,
            former: Vec::new(),
            status: None,
            directory: self.directory,
        };
        let count = self.in_file.unwrap_or(listeners.len());
        let lines = server.wait_for_lines("listening on ", count);
        let directory = server.directory.path();
        let endpoints = lines.iter().map(|line| endpoint(line).within(directory));
        server.endpoints = endpoints.collect();
        // Pools say so in the order in which they become ready, which is any.
        let is_unix = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Unix(_));
        server.endpoints.sort_by_key(is_unix);
        if !self.wrapper.is_empty() {
            let (children, _) = process::children(server.master);
            let [master] = children[..] else {
                panic!("the wrapper has the children {children:?} instead of one");
            };
            server.master = master;
        }
        server
    }
}

/// The address in a log line `listening on ADDRESS`.
#[track_caller]
fn endpoint(line: &str) -> Endpoint {
    let (_, rest) = line.split_once("listening on ").expect("the line has it");
    let word = rest.split_ascii_whitespace().next().unwrap_or_default();
    Endpoint::parse(word).unwrap_or_else(|| panic!("no address in {line:?}"))
}

/// A worker process as the log names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    pub slot: i32,
    pub pid: Pid,
}

impl Worker {
    #[track_caller]
    fn named_in(line: &str) -> Self {
        Self {
            slot: field(line, "slot"),
            pid: Pid::from_raw(field(line, "pid")),
        }
    }
}

/// Sends a request that takes `milliseconds`, and returns the worker that sleeps in it. No other
/// one may.
#[track_caller]
pub fn begin_sleep(client: &mut Client, milliseconds: u32, workers: &[Worker]) -> Worker {
    client.send_get(&format!("/sleep/{milliseconds}"));
    let mut busy = None;
    eventually("a worker is in the turn", || {
        busy = workers.iter().find(|worker| process::sleeps(worker.pid));
        busy.is_some()
    });
    *busy.expect("it was found")
}

/// A running server. When it goes out of scope it must stop in order, with status 0, no process
/// left, and no warning in its log that the test did not expect.
pub struct Server {
    /// What was started, if that is the process that is waited for now.
    child: Option<Child>,
    /// What is waited for: the master, or the program that it runs under.
    process: Watched,
    master: Pid,
    stdout: Output,
    stderr: Output,
    endpoints: Vec<Endpoint>,
    expected: Vec<String>,
    /// Masters that have handed over.
    former: Vec<upgrade::Former>,
    status: Option<ExitStatus>,
    directory: TempDir,
}

impl Server {
    /// `batond serve` with these arguments, on a port of 127.0.0.1.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        Setup::new(arguments).start()
    }

    /// Where it listens: the first address, if there are several.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoints[0]
    }

    /// All the addresses where it listens, TCP before Unix; those of one pool in their order.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    #[track_caller]
    pub fn connect(&self) -> Client {
        self.endpoint().connect()
    }

    #[track_caller]
    pub fn connect_all(&self, count: usize) -> Vec<Client> {
        (0..count).map(|_| self.connect()).collect()
    }

    /// One GET on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.connect().get(path)
    }

    /// The working directory of the server.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn master(&self) -> Pid {
        self.master
    }

    /// The workers that are ready, once there are `count` and no other child process of the master;
    /// by slot.
    #[track_caller]
    pub fn workers(&self, count: usize) -> Vec<Worker> {
        let mut workers = Vec::new();
        eventually(&format!("the server has {count} workers"), || {
            let (children, zombies) = process::children(self.master);
            workers = self
                .log_lines("worker ready")
                .iter()
                .map(|line| Worker::named_in(line))
                .filter(|worker| children.contains(&worker.pid))
                .collect();
            workers.len() == count && children.len() == count && zombies.is_empty()
        });
        workers.sort_unstable();
        workers
    }

    /// Kills a worker by a signal that it can't refuse, and waits until the master has seen it.
    #[track_caller]
    pub fn kill(&self, worker: Worker) {
        process::signal(worker.pid, Signal::SIGKILL);
        let line = self.wait_for_word("worker died slot=", worker);
        assert!(line.contains("killed by SIGKILL"), "{line}");
    }

    /// Waits for a log line with these words about this worker. (Its generation may stand there
    /// too.)
    #[track_caller]
    pub fn wait_for_word(&self, pattern: &str, worker: Worker) -> String {
        let line = self.stderr.wait(|output| {
            let mut lines = matching(&output.lines, pattern).into_iter();
            lines.find(|line| Worker::named_in(line) == worker)
        });
        line.unwrap_or_else(|| panic!("the server did not say {pattern:?} of {worker:?}"))
    }

    /// The worker that is ready in this slot, once it is another one than before.
    #[track_caller]
    pub fn replacement(&self, dead: Worker) -> Worker {
        let mut found = None;
        eventually(&format!("{dead:?} is replaced in its slot"), || {
            let lines = self.log_lines("worker ready");
            let mut workers = lines.iter().map(|line| Worker::named_in(line));
            found = workers.rfind(|worker| worker.slot == dead.slot && worker.pid != dead.pid);
            found.is_some_and(|worker| process::is_alive(worker.pid))
        });
        found.expect("it was found")
    }

    /// What the server has logged so far.
    pub fn log(&self) -> Vec<String> {
        self.stderr.lines()
    }

    pub fn log_lines(&self, pattern: &str) -> Vec<String> {
        matching(&self.stderr.lock().lines, pattern)
    }

    pub fn log_contains(&self, pattern: &str) -> bool {
        !self.log_lines(pattern).is_empty()
    }

    /// Waits for a log line with these words.
    #[track_caller]
    pub fn wait_for_log(&self, pattern: &str) -> String {
        self.wait_for_lines(pattern, 1).remove(0)
    }

    /// Checks that no log line with these words comes for so long.
    #[track_caller]
    pub fn never_says(&self, pattern: &str, limit: Duration) {
        let said = self.stderr.wait_within(limit, |output| {
            matching(&output.lines, pattern).into_iter().next()
        });
        assert_eq!(said, None);
    }

    /// Waits for `count` log lines with these words.
    #[track_caller]
    pub fn wait_for_lines(&self, pattern: &str, count: usize) -> Vec<String> {
        let lines = self.stderr.wait(|output| {
            let lines = matching(&output.lines, pattern);
            (lines.len() >= count).then_some(lines)
        });
        lines.unwrap_or_else(|| panic!("the server did not say {pattern:?} {count} times"))
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        process::signal(self.master, signal);
    }

    /// Stops the server in order and waits until it and all its workers are gone.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.stop_by(Signal::SIGTERM)
    }

    #[track_caller]
    pub fn stop_by(&mut self, signal: Signal) -> ExitStatus {
        self.wait_for_former();
        self.signal(signal);
        self.wait()
    }

    /// Waits until the server has ended, and checks that no process of its own is left.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let children = self.descendants();
        let status = self.wait_for_master();
        for child in &children {
            let pid = child.pid();
            assert!(
                child.wait(Duration::ZERO) && process::stat(pid).is_none(),
                "process {pid} is left after the end of its master: {:?}",
                process::stat(pid)
            );
        }
        assert!(
            self.stderr.wait_for_end() && self.stdout.wait_for_end(),
            "the server has ended, but some process still has its stdout or stderr"
        );
        status
    }

    /// Waits until the started process itself has ended, whatever becomes of its workers.
    #[track_caller]
    pub fn wait_for_master(&mut self) -> ExitStatus {
        assert!(
            self.process.wait(DEADLINE),
            "the server has not ended after {DEADLINE:?}"
        );
        self.wait_for_former();
        let status = match &mut self.child {
            Some(child) => child.wait().expect("it is our child"),
            None => upgrade::reap(&self.process),
        };
        self.status = Some(status);
        status
    }

    /// All living processes below the one that was started, also those that have lost their master
    /// and so become children of this process.
    fn descendants(&self) -> Vec<Watched> {
        let (mut pids, _) = process::children(self.master);
        if self.master != self.process.pid() {
            pids.push(self.master);
        }
        for former in &self.former {
            pids.extend(process::children(former.pid()).0);
        }
        let (own, _) = process::children(Pid::this());
        let mut started = self.log_lines("worker ready");
        started.extend(self.log_lines(upgrade::STARTED));
        let started = started.iter().map(|line| Pid::from_raw(field(line, "pid")));
        pids.extend(started.filter(|pid| own.contains(pid)));
        pids.retain(|pid| *pid != self.process.pid());
        pids.into_iter().map(Watched::new).collect()
    }

    fn destroy(&mut self) {
        let descendants = self.descendants();
        if self.status.is_none() {
            self.process.destroy();
            if let Some(child) = &mut self.child {
                let _ = child.wait();
            }
        }
        for former in &mut self.former {
            former.destroy();
        }
        for process in descendants {
            process.destroy();
        }
    }

    fn print(&self) {
        eprintln!(
            "--- stdout of the server\n{}\n--- stderr of the server\n{}\n---",
            self.stdout.text(),
            self.stderr.text()
        );
    }

    #[track_caller]
    fn assert_clean_end(&mut self) {
        if self.status.is_none() {
            let status = self.stop();
            assert!(status.success(), "the server ended with {status}");
        }
        let unexpected: Vec<String> = self
            .log()
            .into_iter()
            .filter(|line| !is_harmless(line))
            .filter(|line| !self.expected.iter().any(|pattern| line.contains(pattern)))
            .collect();
        assert!(
            unexpected.is_empty(),
            "the server said what the test did not expect:\n{}",
            unexpected.join("\n")
        );
    }
}

/// Whether a line of the log reports the course of things: not a warning, an error, or a panic.
fn is_harmless(line: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphabetic())
        .any(|word| ["INFO", "DEBUG", "TRACE"].contains(&word))
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            self.destroy();
            self.print();
            return;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.assert_clean_end())) {
            self.destroy();
            self.print();
            resume_unwind(panic);
        }
    }
}
