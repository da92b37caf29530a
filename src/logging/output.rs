//! Where lines go, and writing one there without sleeping.
//!
//! What is written to may be shared with anybody: stderr is the shell's, and that of every child.
//! So O_NONBLOCK must not be set on it, because it belongs to the open file description (fcntl(2)).
//! And poll(2) is no promise: another process may fill the pipe between the answer and the write,
//! and the rest of a terminal's buffer may be too small for the line. What there is instead:
//!
//! | what it is | how it is written to |
//! | --- | --- |
//! | a file | as it is: it makes nobody wait but for its disk |
//! | a socket | MSG_DONTWAIT |
//! | a pipe, a terminal | with O_NONBLOCK, by a description of our own from /proc/self/fd |
//! | a pipe that can't be opened so: no /proc, another user's | RWF_NOWAIT, since Linux 6.4 |
//! | whatever is left | a timer interrupts the write |

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fstat, major, openat};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use rustix::net::{SendFlags, send};

use super::losses::Losses;
use crate::sys::bounded::interrupted_after;
use crate::sys::descriptors::out_of_the_way;

/// How long a write may sleep where nothing but a timer can end it.
const LONGEST_SLEEP: Duration = Duration::from_millis(2);

/// For how long nothing is written there after a write had to be interrupted: it must not cost
/// [`LONGEST_SLEEP`] for each line.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest line that is written whole or not at all, whatever else goes into the same pipe
/// (pipe(7)).
const PIPE_BUF: usize = libc::PIPE_BUF;

/// The device numbers of /dev/null, /dev/full and others that take or refuse everything at once.
const MEMORY_DEVICES: u32 = 1;

/// How it is made sure that a write does not sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It does not by itself.
    Plain,
    Socket,
    NoWait,
    /// The time before which nothing is written.
    Timer(Option<Instant>),
}

/// How lines are written to one descriptor.
#[derive(Debug)]
pub(super) struct Output {
    way: Way,
    /// What is written to instead of the descriptor.
    reopened: Option<OwnedFd>,
    is_terminal: bool,
    longest: usize,
}

impl Output {
    /// For a descriptor that others may have too.
    pub(super) fn shared(descriptor: BorrowedFd<'_>) -> Self {
        let (kind, device) = kind(descriptor);
        match kind {
            FileType::RegularFile | FileType::BlockDevice => Self::plain(usize::MAX),
            FileType::Socket => Self {
                way: Way::Socket,
                ..Self::plain(PIPE_BUF)
            },
            FileType::CharacterDevice if device == MEMORY_DEVICES => Self::plain(PIPE_BUF),
            _ => {
                let reopened = reopen(descriptor).ok();
                Self {
                    way: match (&reopened, kind) {
                        (Some(_), _) => Way::Plain,
                        (None, FileType::Fifo) => Way::NoWait,
                        (None, _) => Way::Timer(None),
                    },
                    reopened,
                    is_terminal: kind == FileType::CharacterDevice,
                    longest: PIPE_BUF,
                }
            }
        }
    }

    /// For a descriptor that was opened with O_NONBLOCK by this server.
    pub(super) fn own(descriptor: BorrowedFd<'_>) -> Self {
        match kind(descriptor) {
            (FileType::RegularFile, _) => Self::plain(usize::MAX),
            (kind, _) => Self {
                is_terminal: kind == FileType::CharacterDevice,
                ..Self::plain(PIPE_BUF)
            },
        }
    }

    const fn plain(longest: usize) -> Self {
        Self {
            way: Way::Plain,
            reopened: None,
            is_terminal: false,
            longest,
        }
    }

    /// How many bytes a line should have at most, to be written as a whole.
    pub(super) fn longest(&self) -> usize {
        // One byte may be needed to end what is there of another line.
        self.longest - 1
    }

    /// Writes a line. `descriptor` is the one that this output was made for.
    ///
    /// # Errors
    /// When the line is not there, or not as a whole; `WouldBlock` when nobody reads.
    pub(super) fn write(
        &mut self,
        descriptor: BorrowedFd<'_>,
        line: &str,
        losses: &Losses,
    ) -> io::Result<()> {
        let torn = losses.take_torn();
        let ended = torn.then(|| format!("\n{line}"));
        let bytes = ended.as_deref().unwrap_or(line).as_bytes();
        let mut written = 0;
        let error = loop {
            match self.write_once(descriptor, &bytes[written..]) {
                Ok(count) => written += count,
                Err(error) => break error,
            }
            if written == bytes.len() {
                return Ok(());
            }
            // The rest of a line goes to a file at once, or never: then the next write says why.
            if self.longest != usize::MAX {
                break Errno::AGAIN;
            }
        };
        // The next line has to end what is there of this one.
        if written > usize::from(torn) || torn && written == 0 {
            losses.tear();
        }
        Err(error.into())
    }

    /// Waits until more can be written, or this long.
    pub(super) fn wait(&self, descriptor: BorrowedFd<'_>, limit: Duration) {
        let descriptor = self.reopened.as_ref().map_or(descriptor, AsFd::as_fd);
        takes_more(descriptor, limit);
    }

    fn write_once(&mut self, descriptor: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
        let descriptor = self.reopened.as_ref().map_or(descriptor, AsFd::as_fd);
        // A terminal that wants it so (stty tostop) stops a process of the background that writes,
        // by SIGTTOU. The master has a handler for it, so the write would begin anew for ever.
        // While it is blocked, the write goes on (tcsetpgrp(3) says the same of itself).
        let _blocked = self.is_terminal.then(Blocked::by_terminal);
        loop {
            match self.way.write(descriptor, bytes, self.is_terminal) {
                Err(Errno::INTR) if !matches!(self.way, Way::Timer(_)) => {}
                // This kernel, or this pipe, does not know how.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if self.way == Way::NoWait => {
                    self.way = Way::Timer(None);
                }
                result => return result,
            }
        }
    }
}

impl Way {
    fn write(
        &mut self,
        descriptor: BorrowedFd<'_>,
        bytes: &[u8],
        is_terminal: bool,
    ) -> Result<usize, Errno> {
        match self {
            Self::Plain => rustix::io::write(descriptor, bytes),
            Self::Socket => send(descriptor, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Self::NoWait => {
                let bytes = [io::IoSlice::new(bytes)];
                // At the present position, which is all that a pipe has.
                pwritev2(descriptor, &bytes, u64::MAX, ReadWriteFlags::NOWAIT)
            }
            Self::Timer(until) => {
                let now = Instant::now();
                let pauses = until.is_some_and(|until| now < until);
                let ready = || takes_more(descriptor, Duration::ZERO);
                // A pipe that is ready has room for a whole line, and one that is not may have
                // some. A terminal that is ready may have too little, and one that is not has none.
                let try_it = match is_terminal {
                    true => !pauses && ready(),
                    false => !pauses || ready(),
                };
                if !try_it {
                    return Err(Errno::AGAIN);
                }
                *until = None;
                let write = || rustix::io::write(descriptor, bytes);
                let written = interrupted_after(LONGEST_SLEEP, write).unwrap_or(Err(Errno::AGAIN));
                let whole = written.is_ok_and(|count| count == bytes.len());
                if !whole && now.elapsed() >= LONGEST_SLEEP {
                    *until = Some(now + PAUSE);
                }
                match written {
                    Err(Errno::INTR) => Err(Errno::AGAIN),
                    written => written,
                }
            }
        }
    }
}

/// What a descriptor refers to, and which kind of device if it is one.
fn kind(descriptor: BorrowedFd<'_>) -> (FileType, u32) {
    match fstat(descriptor) {
        Ok(stat) => (FileType::from_raw_mode(stat.st_mode), major(stat.st_rdev)),
        // It is not open: a write fails at once.
        Err(_) => (FileType::RegularFile, 0),
    }
}

/// The same pipe or device once more, through a description of our own that never sleeps.
fn reopen(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let same = |one: &rustix::fs::Stat, other: &rustix::fs::Stat| {
        (one.st_dev, one.st_ino, one.st_rdev) == (other.st_dev, other.st_ino, other.st_rdev)
    };
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty())?;
    // /proc may be something else altogether.
    if !same(&fstat(descriptor)?, &fstat(&opened)?)
        || !fcntl_getfl(&opened)?.contains(OFlags::NONBLOCK)
    {
        return Err(Errno::NXIO);
    }
    Ok(out_of_the_way(opened))
}

/// Whether more can be written, now or within a time.
fn takes_more(descriptor: BorrowedFd<'_>, limit: Duration) -> bool {
    let mut waits = [PollFd::new(&descriptor, PollFlags::OUT)];
    let limit = Timespec::try_from(limit).ok();
    // An error or a hang-up is something that a write says.
    poll(&mut waits, limit.as_ref()).is_ok_and(|count| count > 0)
}

/// Signals that are blocked in this thread for a while.
struct Blocked(Option<SigSet>);

impl Blocked {
    fn by_terminal() -> Self {
        let mut before = SigSet::empty();
        let signals = SigSet::from(Signal::SIGTTOU);
        let blocked = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before));
        Self(blocked.is_ok().then_some(before))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // What succeeded a moment ago.
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(before), None);
        }
    }
}
