//! The log holds nobody: not when nobody reads it, not when its disk is full, and not when what is
//! at its path can't be opened. What is lost is counted, and said.

mod filter;
mod path;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::termios::{FlowArg, tcflow};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use crate::harness::process::{children, cpu_time, signal};
use crate::harness::skip::lacks_root;
use crate::harness::{BATOND, Client, DEADLINE, Endpoint, Setup, Watched, command, eventually};

/// A server whose stderr is not the harness's. It listens on a Unix socket in its directory.
pub struct Bare {
    child: Child,
    master: Watched,
    endpoint: Endpoint,
    directory: TempDir,
}

impl Bare {
    /// `batond serve` with these arguments, once it serves. `wrapper` is what it runs under: the
    /// server takes its place, or is its only child.
    #[track_caller]
    pub fn start(wrapper: &[&str], arguments: &[&str], stderr: impl Into<Stdio>) -> Self {
        let directory = TempDir::with_prefix("batond-test-").expect("a temporary directory");
        let words = [wrapper, &[BATOND, "serve"], arguments, &["-l", "unix:s"]].concat();
        let mut command = command(words[0]);
        command.args(&words[1..]).stderr(stderr.into());
        Self::spawn(command, directory)
    }

    #[track_caller]
    fn spawn(mut command: Command, directory: TempDir) -> Self {
        command.current_dir(directory.path()).stdout(Stdio::null());
        let child = command.spawn().expect("it can be started");
        drop(command);
        let endpoint = Endpoint::Unix(directory.path().join("s"));
        let mut bare = Self {
            master: Watched::new(Pid::from_raw(child.id().cast_signed())),
            child,
            endpoint,
            directory,
        };
        eventually("it listens", || bare.endpoint.try_connect().is_ok());
        let is_wrapper = |pid: Pid| {
            let program = fs::read_link(format!("/proc/{pid}/exe"));
            program.is_ok_and(|program| program != Path::new(BATOND))
        };
        while is_wrapper(bare.master.pid()) {
            let child = children(bare.master.pid()).0[0];
            bare.master = Watched::new(child);
        }
        bare
    }

    fn connect(&self) -> Client {
        self.endpoint.connect()
    }

    pub fn signal(&self, which: Signal) {
        signal(self.master.pid(), which);
    }

    /// Waits until so many workers are there.
    #[track_caller]
    fn wait_for_workers(&self, count: usize) {
        eventually(&format!("{count} workers are there"), || {
            children(self.master.pid()).0.len() == count
        });
    }

    /// Makes it say something, so many times: a worker more, a worker less. Each time somebody is
    /// served, before and after.
    #[track_caller]
    fn make_it_talk(&self, rounds: usize) {
        let mut client = self.connect();
        for _ in 0..rounds {
            self.signal(Signal::SIGTTIN);
            self.wait_for_workers(3);
            assert_eq!(client.get("/").status, 200);
            self.signal(Signal::SIGTTOU);
            self.wait_for_workers(2);
            assert_eq!(self.connect().get("/").status, 200);
        }
    }

    /// Stops it in order.
    #[track_caller]
    fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        assert!(self.master.wait(DEADLINE), "it has not stopped");
        self.child.wait().expect("it is our child")
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let (workers, _) = children(self.master.pid());
        let workers: Vec<_> = workers.into_iter().map(Watched::new).collect();
        self.master.destroy();
        workers.iter().for_each(Watched::destroy);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a log goes into, and the other end of it.
pub struct Sink {
    write: OwnedFd,
    read: OwnedFd,
    text: String,
}

impl Sink {
    pub fn pipe() -> Self {
        let (read, write) = io::pipe().expect("a pipe");
        Self::new(write.into(), read.into())
    }

    fn fifo(directory: &Path) -> Self {
        let path = directory.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let mut options = fs::OpenOptions::new();
        let read = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        let write = fs::OpenOptions::new().write(true).open(&path);
        Self::new(
            write.expect("it has a reader").into(),
            read.expect("a FIFO").into(),
        )
    }

    fn socket() -> Self {
        let (read, write) = UnixStream::pair().expect("a socketpair");
        Self::new(write.into(), read.into())
    }

    fn terminal() -> Self {
        let ends = openpty(None, None).expect("a terminal");
        Self::new(ends.slave, ends.master)
    }

    fn new(write: OwnedFd, read: OwnedFd) -> Self {
        Self {
            write,
            read,
            text: String::new(),
        }
    }

    pub fn writer(&self) -> OwnedFd {
        self.write.try_clone().expect("a descriptor")
    }

    /// Writes until nothing goes in any more, through a description of its own.
    fn fill(&self) {
        let path = format!("/proc/self/fd/{}", self.write.as_raw_fd());
        let mut options = fs::OpenOptions::new();
        let own = options
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        let write = |bytes: &[u8]| match &own {
            Ok(own) => rustix::io::write(own, bytes),
            // It is a socket.
            Err(_) => rustix::net::send(&self.write, bytes, rustix::net::SendFlags::DONTWAIT),
        };
        for size in [4096, 1] {
            while write(&vec![b'.'; size]).is_ok() {}
        }
    }

    /// Reads until these words have come, and returns the line that has them.
    #[track_caller]
    pub fn read_until(&mut self, words: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let mut lines = self.text.split_inclusive('\n');
            if let Some(line) = lines.find(|line| line.ends_with('\n') && line.contains(words)) {
                return line.to_owned();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(self.read_within(left), "no {words:?} in {}", self.text);
        }
    }

    /// Reads until nobody can write any more, and returns all that came.
    #[track_caller]
    pub fn read_to_end(mut self) -> String {
        let unused = io::pipe().expect("a pipe").1;
        self.write = unused.into();
        while self.read_within(DEADLINE) {}
        self.text
    }

    /// Reads what is there, or comes within a time; false if nothing does.
    fn read_within(&mut self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).expect("it is short");
        let mut waits = [PollFd::new(&self.read, PollFlags::IN)];
        if !poll(&mut waits, Some(&limit)).is_ok_and(|count| count > 0) {
            return false;
        }
        let mut bytes = [0; 65536];
        let count = rustix::io::read(&self.read, &mut bytes[..]).unwrap_or(0);
        self.text += &String::from_utf8_lossy(&bytes[..count]);
        count > 0
    }
}

/// The number in `17 lines were lost`.
#[track_caller]
fn lost(line: &str) -> usize {
    let (before, _) = line.split_once(" lines were lost").expect("it says so");
    let number = before.rsplit(' ').next().and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("no number in {line:?}"))
}

/// Starts a server with this stderr, has it talk while nobody reads, and stops it.
#[track_caller]
fn talks_to_nobody(mut sink: Sink, stick: fn(&Sink), unstick: fn(&Sink), wrapper: &[&str]) {
    let server = Bare::start(wrapper, &["demo", "-w", "2"], sink.writer());
    server.wait_for_workers(2);
    sink.read_until("listening on ");
    // What is shared with others is as they have left it.
    let flags = |descriptor: &OwnedFd| fcntl(descriptor, FcntlArg::F_GETFL).expect("it is open");
    let before = flags(&sink.write);
    stick(&sink);
    server.make_it_talk(10);
    unstick(&sink);
    while sink.read_within(Duration::ZERO) {}
    server.signal(Signal::SIGTTIN);
    let line = sink.read_until(" lines were lost: they were not read");
    // Each round has four lines: two sizes, a worker that is ready, one that retires.
    assert!((35..=45).contains(&lost(&line)), "{line}");
    assert!(line.contains(" WARN  "), "{line}");
    assert_eq!(flags(&sink.write), before);
    // With nobody reading, it stops all the same.
    stick(&sink);
    assert!(server.stop().success());
}

#[test]
fn a_pipe_that_nobody_reads_holds_no_one() {
    talks_to_nobody(Sink::pipe(), Sink::fill, |_| (), &[]);
}

#[test]
fn a_fifo_that_nobody_reads_holds_no_one() {
    let place = TempDir::new().expect("a temporary directory");
    talks_to_nobody(Sink::fifo(place.path()), Sink::fill, |_| (), &[]);
}

#[test]
fn a_socket_that_nobody_reads_holds_no_one() {
    talks_to_nobody(Sink::socket(), Sink::fill, |_| (), &[]);
}

#[test]
fn a_terminal_that_is_stopped_holds_no_one() {
    talks_to_nobody(
        Sink::terminal(),
        |sink| tcflow(sink.write.as_fd(), FlowArg::TCOOFF).expect("a terminal"),
        |sink| tcflow(sink.write.as_fd(), FlowArg::TCOON).expect("a terminal"),
        &[],
    );
}

/// What a process sees that has no /proc; only root can have it so.
const WITHOUT_PROC: &[&str] = &[
    "unshare",
    "-m",
    "sh",
    "-c",
    "mount -t tmpfs none /proc && exec \"$@\"",
    "sh",
];

#[test]
fn without_proc_a_log_that_is_stuck_holds_no_one_either() {
    if lacks_root() {
        return;
    }
    talks_to_nobody(Sink::pipe(), Sink::fill, |_| (), WITHOUT_PROC);
    // Nothing but a timer ends a write into a FIFO there.
    let place = TempDir::new().expect("a temporary directory");
    talks_to_nobody(Sink::fifo(place.path()), Sink::fill, |_| (), WITHOUT_PROC);
    talks_to_nobody(
        Sink::terminal(),
        |sink| tcflow(sink.write.as_fd(), FlowArg::TCOOFF).expect("a terminal"),
        |sink| tcflow(sink.write.as_fd(), FlowArg::TCOON).expect("a terminal"),
        WITHOUT_PROC,
    );
}

#[test]
fn a_terminal_that_stops_the_background_does_not_keep_the_master_busy() {
    let mut sink = Sink::terminal();
    let script = "stty tostop; set -m; \"$@\" & wait";
    let directory = TempDir::with_prefix("batond-test-").expect("a temporary directory");
    let mut command = command("setsid");
    command.args([
        "-c", "sh", "-c", script, "sh", BATOND, "serve", "demo", "-w", "2",
    ]);
    command
        .args(["-l", "unix:s"])
        .stdin(sink.writer())
        .stderr(sink.writer());
    let server = Bare::spawn(command, directory);
    sink.read_until("listening on ");
    server.wait_for_workers(2);
    let before = cpu_time(server.master.pid());
    server.make_it_talk(3);
    sink.read_until("worker retired ");
    assert!(cpu_time(server.master.pid()) - before < Duration::from_secs(1));
    server.signal(Signal::SIGTERM);
    assert!(server.master.wait(DEADLINE));
}

#[test]
fn a_log_that_has_lost_its_reader_holds_no_one() {
    for sink in [Sink::pipe(), Sink::socket(), Sink::terminal()] {
        let server = Bare::start(&[], &["demo", "-w", "2"], sink.writer());
        server.wait_for_workers(2);
        drop(sink);
        let before = cpu_time(server.master.pid());
        server.make_it_talk(5);
        assert!(cpu_time(server.master.pid()) - before < Duration::from_secs(1));
        assert!(server.stop().success());
    }
    // Nor does one that was never there.
    let server = Bare::start(
        &["sh", "-c", "exec \"$@\" 2>&-", "sh"],
        &["demo", "-w", "2"],
        Stdio::null(),
    );
    server.wait_for_workers(2);
    server.make_it_talk(2);
    assert!(server.stop().success());
}

#[test]
fn a_server_that_fails_ends_although_nobody_reads_why() {
    let sink = Sink::pipe();
    sink.fill();
    let mut command = command(BATOND);
    command.args(["serve", "-l", "unix:/no/such/directory/s"]);
    let child = command.stderr(sink.writer()).spawn();
    let mut child = child.expect("it can be started");
    let ended = Watched::new(Pid::from_raw(child.id().cast_signed())).wait(DEADLINE);
    let _ = child.kill();
    let status = child.wait().expect("it is our child");
    assert!(ended && status.code() == Some(1), "{status}");
}

#[test]
fn a_worker_that_has_something_to_say_goes_on_too() {
    let mut sink = Sink::pipe();
    let directory = TempDir::with_prefix("batond-test-").expect("a temporary directory");
    let mut command = command(BATOND);
    command.args(["serve", "demo", "-w", "1", "-l", "unix:s"]);
    command.env("RUST_LOG", "batond::worker=debug,batond::logging=info");
    let server = Bare::spawn(
        {
            command.stderr(sink.writer());
            command
        },
        directory,
    );
    // Its client goes in the middle of a body: the worker says so at level debug.
    let break_off = || {
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n");
        assert_eq!(server.connect().get("/").status, 200);
    };
    break_off();
    sink.read_until("DEBUG worker 0[");
    sink.fill();
    for _ in 0..10 {
        break_off();
    }
    while sink.read_within(Duration::ZERO) {}
    break_off();
    // It is the only one that talks, so it says what was lost.
    let line = sink.read_until(" lines were lost");
    assert!(line.contains(" WARN  worker 0["), "{line}");
    assert!(server.stop().success());
}

#[test]
fn the_lines_of_several_processes_are_each_whole() {
    // All of them write at the same time, into a pipe that is read all the time.
    let server = Setup::new(&["demo", "-w", "8"])
        .environment("RUST_LOG", "trace")
        .expect("")
        .start();
    let mut clients = server.connect_all(16);
    for _ in 0..20 {
        for client in &mut clients {
            client.send("NONSENSE\r\n\r\n");
            client.read_until_close();
            *client = server.connect();
        }
    }
    for line in server.log() {
        let head = line.split(' ').nth(1).unwrap_or_default();
        let levels = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
        assert!(levels.contains(&head) && line.starts_with("20"), "{line:?}");
        assert_eq!(line.matches("[").count(), 1, "{line:?}");
    }
    assert!(!server.log_contains("lost"));
}
