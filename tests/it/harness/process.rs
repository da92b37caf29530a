//! What the kernel says about processes, and waiting for them with a deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

/// How long any wait may last. Generous, for it is only ever used up by a failure.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What the test process itself needs, done once: room for many connections, and to become the
/// parent of workers whose master is gone, so that it can see how they ended and leaves no zombie.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("setrlimit");
        nix::sys::prctl::set_child_subreaper(true).expect("prctl");
    });
}

/// Panics unless this process and a server that it starts may have `count` descriptors.
#[track_caller]
pub fn require_descriptors(count: u64) {
    prepare();
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    assert!(
        soft >= count,
        "this test needs RLIMIT_NOFILE of at least {count}, the hard limit is {soft}"
    );
}

/// Room for descriptors in this process, for as long as it is held.
pub struct Reserved(u64);

/// Waits until this test may have `count` descriptors beside the other tests that have reserved
/// some, which all run in this process. Only for those that need thousands.
#[track_caller]
pub fn reserve_descriptors(count: u64) -> Reserved {
    /// What all the tests may have that reserve nothing.
    const OTHERS: u64 = 1500;
    require_descriptors(count + OTHERS);
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    let (taken, changed) = &RESERVED;
    let mut taken = taken.lock().unwrap();
    while *taken + count + OTHERS > soft {
        // Whoever has them is a test, and ends by itself.
        taken = changed.wait(taken).unwrap();
    }
    *taken += count;
    Reserved(count)
}

static RESERVED: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());

impl Drop for Reserved {
    fn drop(&mut self) {
        *RESERVED.0.lock().unwrap() -= self.0;
        RESERVED.1.notify_all();
    }
}

/// Waits until `condition` holds. Only for states that nothing announces, such as what /proc says:
/// this is the one place of the tests that looks again and again.
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(
        eventually_within(DEADLINE, condition),
        "waited {DEADLINE:?} in vain until {what}"
    );
}

/// Like [`eventually`], with its own deadline, and says whether the condition came to hold.
pub fn eventually_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A line of /proc/PID/stat, as far as the tests need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub state: char,
    pub parent: Pid,
}

/// The state of a process; nothing when there is no such process any more.
pub fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = Pid::from_raw(fields.next()?.parse().ok()?);
    Some(Stat { state, parent })
}

/// Whether the process is there and not a zombie.
pub fn is_alive(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z')
}

/// The living children of a process, and its zombies.
pub fn children(parent: Pid) -> (Vec<Pid>, Vec<Pid>) {
    let mut all: Vec<(Pid, Stat)> = pids()
        .map(Pid::from_raw)
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .filter(|(_, stat)| stat.parent == parent)
        .collect();
    all.sort_by_key(|(pid, _)| *pid);
    let (zombies, alive): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(_, stat)| stat.state == 'Z');
    let pids = |list: Vec<(Pid, Stat)>| list.into_iter().map(|(pid, _)| pid).collect();
    (pids(alive), pids(zombies))
}

/// Sees a process's children as soon as they are born.
pub struct Births {
    parent: Pid,
    /// All processes that have been looked at.
    seen: BTreeSet<i32>,
}

impl Births {
    /// Of a parent, from now on.
    pub fn watch(parent: Pid) -> Self {
        let seen = pids().collect();
        Self { parent, seen }
    }

    /// The next one; nothing if there is none within this time. It looks without a pause, for a
    /// child that is to be caught at its birth does not wait.
    pub fn next_within(&mut self, limit: Duration) -> Option<Pid> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            for pid in pids() {
                let child = Pid::from_raw(pid);
                if self.seen.insert(pid)
                    && stat(child).is_some_and(|stat| stat.parent == self.parent)
                {
                    return Some(child);
                }
            }
        }
        None
    }
}

/// All processes.
fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").expect("/proc is readable");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Every open descriptor of a process: its number, and what it refers to.
#[track_caller]
pub fn open_descriptors(pid: Pid) -> BTreeMap<i32, String> {
    let directory = format!("/proc/{pid}/fd");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) => panic!("cannot read {directory}: {error}"),
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((number, target.display().to_string()))
        })
        .collect()
}

/// Whether O_NONBLOCK is set on a descriptor of a process.
#[track_caller]
pub fn is_nonblocking(pid: Pid, descriptor: i32) -> bool {
    let path = format!("/proc/{pid}/fdinfo/{descriptor}");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.unwrap_or_else(|| panic!("{path} has no flags")) & libc::O_NONBLOCK != 0
}

/// What /proc/PID/status says after this key: `Uid`, or `CapEff`.
#[track_caller]
pub fn status(pid: Pid, key: &str) -> String {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("{path} has no {key}"))
        .trim()
        .to_owned()
}

/// A number in /proc/PID/status: `Threads`, or `VmRSS` in KiB.
#[track_caller]
pub fn status_number(pid: Pid, key: &str) -> u64 {
    let value = status(pid, key);
    let number = value.split_ascii_whitespace().next();
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{key} of {pid} is {value:?}, not a number"))
}

/// How long a process has been on a processor, its threads included; in steps of 10 ms.
#[track_caller]
pub fn cpu_time(pid: Pid) -> Duration {
    /// utime and stime in proc_pid_stat(5) are the 14th and 15th field; the state is the 3rd.
    const AFTER_STATE: usize = 11;
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let fields = &text[text.rfind(')').map_or(0, |at| at + 1)..];
    let fields = fields.split_ascii_whitespace().skip(AFTER_STATE).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every architecture that Rust runs on with Linux.
    Duration::from_millis(ticks * 10)
}

/// The memory of a process in bytes, where what it shares with others counts in part (PSS).
#[track_caller]
pub fn proportional_memory(pid: Pid) -> u64 {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let kibibytes = text.lines().find_map(|line| {
        let value = line.strip_prefix("Pss:")?;
        value.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    kibibytes.unwrap_or_else(|| panic!("{path} has no PSS")) * 1024
}

/// How many threads of a process are in the handler of `/sleep/MS`.
pub fn sleeping_threads(pid: Pid) -> usize {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("syscall")).ok())
        .filter(|text| is_call(text, libc::SYS_clock_nanosleep))
        .count()
}

/// Waits until a worker sleeps in the handler of `/sleep/MS`: its turn has begun for certain.
#[track_caller]
pub fn wait_until_asleep(pid: Pid) {
    eventually(&format!("process {pid} sleeps in a turn"), || sleeps(pid));
}

/// Waits until a worker waits for its next turn, having reported the one before. That the client
/// has its answer does not say so yet, nor that the worker sleeps: it may stay with its connection.
#[track_caller]
pub fn wait_until_idle(pid: Pid) {
    eventually(&format!("process {pid} waits for a turn"), || is_idle(pid));
}

/// Whether a worker waits for its next turn.
pub fn is_idle(pid: Pid) -> bool {
    calls(pid, libc::SYS_recvmsg)
}

/// Whether a process is in clock_nanosleep(2), which is what [`std::thread::sleep`] calls.
pub fn sleeps(pid: Pid) -> bool {
    calls(pid, libc::SYS_clock_nanosleep)
}

/// Whether a process sleeps in this system call.
fn calls(pid: Pid, number: libc::c_long) -> bool {
    let path = format!("/proc/{pid}/syscall");
    is_call(&fs::read_to_string(path).unwrap_or_default(), number)
}

/// Whether this line of /proc/PID/syscall names this system call.
fn is_call(line: &str, number: libc::c_long) -> bool {
    let word = line.split_ascii_whitespace().next();
    word.and_then(|word| word.parse().ok()) == Some(number)
}

/// Sends a signal to a process that is there.
#[track_caller]
pub fn signal(pid: Pid, signal: Signal) {
    kill(pid, signal).unwrap_or_else(|error| panic!("cannot send {signal} to {pid}: {error}"));
}

/// A process that can be waited for, whosever child it is, and whose pid cannot come to mean
/// another process meanwhile.
pub struct Watched {
    pid: Pid,
    /// Nothing when the process was gone before.
    handle: Option<OwnedFd>,
}

impl Watched {
    pub fn new(pid: Pid) -> Self {
        let raw = rustix::process::Pid::from_raw(pid.as_raw()).expect("a pid is not 0");
        let handle = pidfd_open(raw, PidfdFlags::empty()).ok();
        Self { pid, handle }
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until the process has ended; false at the deadline.
    pub fn wait(&self, limit: Duration) -> bool {
        let Some(handle) = &self.handle else {
            return true;
        };
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).expect("a deadline is short");
            match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("poll on process {}: {error}", self.pid),
            }
        }
    }

    /// How an orphan ended that has become a child of this process; waits for its end.
    #[track_caller]
    pub fn reap_orphan(&self) -> WaitStatus {
        assert!(
            self.wait(DEADLINE),
            "process {} is still there after {DEADLINE:?}",
            self.pid
        );
        waitpid(self.pid, None).unwrap_or_else(|error| panic!("waitpid {}: {error}", self.pid))
    }

    /// Ends the process if it is still there, whatever state it is in, and reaps it if it is ours.
    pub fn destroy(&self) {
        if self.handle.is_some() && !self.wait(Duration::ZERO) {
            let _ = kill(self.pid, Signal::SIGKILL);
            self.wait(DEADLINE);
        }
        let _ = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
    }
}
