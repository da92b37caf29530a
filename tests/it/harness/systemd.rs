//! Plays systemd: passes sockets to a server, collects what the server says to it, and keeps what
//! the server stores.

use std::io::IoSlice;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use batond::fdpass::{self, MAX_DESCRIPTORS, Wait};
use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use tempfile::TempDir;

use super::{DEADLINE, Setup};

/// Goes before the words of a command. The variables name the pid of who they are meant for, which
/// only the new process knows before it becomes the program.
pub const TRAMPOLINE: [&str; 4] = [
    "sh",
    "-c",
    "export LISTEN_PID=$$ WATCHDOG_PID=$$; exec \"$@\"",
    "sh",
];

/// Passes descriptors to a command that begins with [`TRAMPOLINE`], from number 3 on, with their
/// names.
pub fn pass(command: &mut Command, descriptors: Vec<(String, OwnedFd)>) {
    if descriptors.is_empty() {
        return;
    }
    let (names, descriptors): (Vec<_>, Vec<_>) = descriptors.into_iter().unzip();
    command.env("LISTEN_FDS", names.len().to_string());
    command.env("LISTEN_FDNAMES", names.join(":"));
    let mapping = |(parent_fd, child_fd)| FdMapping {
        parent_fd,
        child_fd,
    };
    let mappings = descriptors.into_iter().zip(3..).map(mapping).collect();
    command
        .fd_mappings(mappings)
        .expect("each number is there once");
}

/// A service manager. It ends with its thread when it goes out of scope.
pub struct Manager {
    path: PathBuf,
    socket: UnixDatagram,
    shared: Arc<(Mutex<Received>, Condvar)>,
    collector: Option<JoinHandle<()>>,
    store_limit: usize,
    _directory: TempDir,
}

#[derive(Default)]
struct Received {
    messages: Vec<String>,
    store: Vec<Stored>,
    /// The number of the last barrier.
    barrier: u64,
}

/// What the manager says to itself, to see how far it has come with what it was told.
const BARRIER: &str = "BARRIER=";

struct Stored {
    name: String,
    descriptor: OwnedFd,
    /// It stays when its other end is gone.
    always: bool,
}

impl Manager {
    /// A manager that keeps up to `store_limit` descriptors.
    #[track_caller]
    pub fn new(store_limit: usize) -> Self {
        let directory = TempDir::with_prefix("batond-test-").expect("a temporary directory");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let shared = Arc::<(Mutex<Received>, Condvar)>::default();
        let (theirs, receiver) = (
            Arc::clone(&shared),
            socket.try_clone().expect("a descriptor"),
        );
        let collector = thread::spawn(move || collect(&receiver, &theirs, store_limit));
        Self {
            path,
            socket,
            shared,
            collector: Some(collector),
            store_limit,
            _directory: directory,
        }
    }

    /// Where it wants to be told (NOTIFY_SOCKET).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets a server be started by this manager. What the manager stores is passed to it.
    pub fn manage(&self, setup: Setup) -> Setup {
        let path = self.path.to_str().expect("a temporary path is text");
        let setup = setup
            .environment("NOTIFY_SOCKET", path)
            .environment("FDSTORE", &self.store_limit.to_string())
            .managed();
        let stored = self.stored();
        stored
            .into_iter()
            .fold(setup, |setup, (name, fd)| setup.inherit(&name, fd))
    }

    /// All messages that have been sent so far.
    pub fn messages(&self) -> Vec<String> {
        self.catch_up();
        self.shared.0.lock().unwrap().messages.clone()
    }

    /// Waits for a message with this line; returns the whole message.
    #[track_caller]
    pub fn wait_for(&self, line: &str) -> String {
        self.wait_for_messages(line, 1).remove(0)
    }

    /// Waits for `count` messages with this line.
    #[track_caller]
    pub fn wait_for_messages(&self, line: &str, count: usize) -> Vec<String> {
        let found = self.wait(|received| {
            let with_line = |message: &&String| message.lines().any(|one| one == line);
            let found: Vec<_> = received.messages.iter().filter(with_line).collect();
            (found.len() >= count).then(|| found.into_iter().cloned().collect())
        });
        found.unwrap_or_else(|| {
            let messages = self.messages();
            panic!("the manager was not told {line:?} {count} times, but {messages:?}")
        })
    }

    /// What is stored: copies, with their names. Whatever has been sent so far counts, as it does
    /// with systemd, which reads its queue to the end before it sees that a service has died.
    pub fn stored(&self) -> Vec<(String, OwnedFd)> {
        self.catch_up();
        let mut received = self.shared.0.lock().unwrap();
        received.drop_hung_up();
        let copy = |stored: &Stored| {
            let descriptor = stored.descriptor.try_clone().expect("a descriptor");
            (stored.name.clone(), descriptor)
        };
        received.store.iter().map(copy).collect()
    }

    /// Waits until `count` descriptors are stored under a name; copies of them.
    #[track_caller]
    pub fn wait_for_stored(&self, name: &str, count: usize) -> Vec<OwnedFd> {
        let found = self.wait(|received| {
            received.drop_hung_up();
            let named = received.store.iter().filter(|stored| stored.name == name);
            (named.count() == count).then_some(())
        });
        let stored = self.stored();
        let names: Vec<_> = stored.iter().map(|(name, _)| name.clone()).collect();
        assert!(
            found.is_some(),
            "not {count} {name:?} are stored, but {names:?}"
        );
        let named = stored.into_iter().filter(|(other, _)| other == name);
        named.map(|(_, descriptor)| descriptor).collect()
    }

    /// Waits until all is received that has been sent so far.
    fn catch_up(&self) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        tell(&self.path, &format!("{BARRIER}{number}"), &[]);
        let passed = self.wait(|received| (received.barrier >= number).then_some(()));
        assert!(passed.is_some(), "the manager hears nothing any more");
    }

    /// Waits until `found` finds something in what was received; nothing at the deadline.
    fn wait<T>(&self, mut found: impl FnMut(&mut Received) -> Option<T>) -> Option<T> {
        let end = Instant::now() + DEADLINE;
        let (received, changed) = &*self.shared;
        let mut received = received.lock().unwrap();
        loop {
            if let Some(value) = found(&mut received) {
                return Some(value);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            (received, _) = changed.wait_timeout(received, left).unwrap();
        }
    }
}

/// Whether they are of the same open, as systemd sees it (its same_fd, by kcmp(2)). Another open of
/// the same file is not: what is set for the one is not for the other.
fn are_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let [first, second] = [one, other].map(|descriptor| fstat(descriptor).expect("it is open"));
    if (first.st_dev, first.st_ino) != (second.st_dev, second.st_ino) {
        return false;
    }
    // There is one open of each socket. On a plain file, this flag has no effect.
    FileType::from_raw_mode(first.st_mode) != FileType::RegularFile || {
        let flags = |descriptor| fcntl_getfl(descriptor).expect("it is open");
        let (before, theirs) = (flags(one), flags(other));
        fcntl_setfl(one, before ^ OFlags::NONBLOCK).expect("it is open");
        let changed = flags(other) != theirs;
        fcntl_setfl(one, before).expect("it is open");
        changed
    }
}

impl Received {
    fn take(&mut self, message: String, descriptors: Vec<OwnedFd>, store_limit: usize) {
        if let Some(number) = message.strip_prefix(BARRIER) {
            let number = number.parse().expect("it is a number");
            self.barrier = self.barrier.max(number);
            return;
        }
        let has = |line: &str| message.lines().any(|one| one == line);
        let name = message
            .lines()
            .find_map(|line| line.strip_prefix("FDNAME="));
        if has("FDSTOREREMOVE=1") {
            self.store.retain(|stored| Some(&*stored.name) != name);
        }
        if has("FDSTORE=1") {
            self.drop_hung_up();
            let room = store_limit.saturating_sub(self.store.len());
            // What it has already, it does not take again, whatever the name.
            let known = self.store.len();
            let mut new = descriptors;
            new.retain(|descriptor| {
                let mut known = self.store[..known].iter();
                !known.any(|stored| are_same(&stored.descriptor, descriptor))
            });
            for descriptor in new.into_iter().take(room) {
                self.store.push(Stored {
                    name: name.unwrap_or("stored").to_owned(),
                    descriptor,
                    always: has("FDPOLL=0"),
                });
            }
        }
        self.messages.push(message);
    }

    fn drop_hung_up(&mut self) {
        self.store
            .retain(|stored| stored.always || !is_hung_up(stored.descriptor.as_fd()));
    }
}

fn is_hung_up(descriptor: BorrowedFd<'_>) -> bool {
    let mut descriptor = [PollFd::from_borrowed_fd(descriptor, PollFlags::empty())];
    poll(&mut descriptor, Some(&Timespec::default())).expect("poll");
    descriptor[0]
        .revents()
        .intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Receives until the socket is shut down.
fn collect(socket: &UnixDatagram, shared: &(Mutex<Received>, Condvar), store_limit: usize) {
    let mut buffer = [0; 4096];
    loop {
        let message = fdpass::receive(socket, &mut buffer, MAX_DESCRIPTORS, Wait::Block);
        let message = message.expect("a message");
        if message.length == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&buffer[..message.length]).into_owned();
        let (received, changed) = shared;
        let mut received = received.lock().unwrap();
        received.take(text, message.descriptors, store_limit);
        drop(received);
        changed.notify_all();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(collector) = mem::take(&mut self.collector) {
            let ended = collector.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the manager received what it should not"
            );
        }
    }
}

/// Says something to a manager as a service would, with descriptors.
#[track_caller]
pub fn tell(manager: &Path, text: &str, descriptors: &[BorrowedFd<'_>]) {
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.connect(manager).expect("the manager is there");
    let data = &[IoSlice::new(text.as_bytes())];
    fdpass::send(&socket, data, descriptors, Wait::Block).expect("it takes the message");
}
