//! One read from a received descriptor.
//!
//! The sender still has the open file that the descriptor stands for, and everything but the number
//! is shared with it: so nothing here changes a flag, and a wait for data ends at a deadline. A
//! call that sleeps in spite of that is ended from outside, with the process.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::unistd::{getpgrp, tcgetpgrp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, major, minor};
use rustix::io::{Errno, ReadWriteFlags, preadv2, read, retry_on_intr};
use rustix::net::{RecvFlags, SocketType, recv, sockopt};

use crate::error::Plain;

/// How many bytes to read from a descriptor.
const MOST_CONTENT: usize = 1000;

/// The device number of /dev/ptmx (pts(4)).
const PSEUDO_TERMINAL_MASTER: (u32, u32) = (5, 2);

/// What reading a descriptor gave.
pub(super) enum Content {
    Bytes(Vec<u8>),
    End,
    /// A message without a byte, which is no end, because the socket keeps messages apart.
    Empty,
    NothingYet,
    /// A clause that says why there is nothing.
    Failed(String),
}

/// Reads once from where the descriptor stands, without waiting for data past the deadline.
pub(super) fn content(descriptor: &OwnedFd, deadline: Instant) -> Content {
    let failed = |errno: Errno| Content::Failed(Plain(&errno.into()).to_string());
    // A write-only descriptor never becomes readable: say what it is rather than wait.
    match fcntl_getfl(descriptor) {
        Ok(flags) if flags.contains(OFlags::PATH) => {
            return Content::Failed("it only names the file (O_PATH)".into());
        }
        Ok(flags) if flags & OFlags::RWMODE == OFlags::WRONLY => {
            return Content::Failed("it is open for writing only".into());
        }
        _ => {}
    }
    match readable(descriptor, deadline) {
        Ok(true) => {}
        Ok(false) => return Content::NothingYet,
        Err(errno) => return failed(errno),
    }
    let mut buffer = vec![0; MOST_CONTENT];
    match retry_on_intr(|| read_now(descriptor, &mut buffer)) {
        Ok(0) if keeps_messages_apart(descriptor) => Content::Empty,
        Ok(0) => Content::End,
        Ok(count) => {
            buffer.truncate(count);
            Content::Bytes(buffer)
        }
        Err(Errno::AGAIN) => Content::NothingYet,
        // With SIGTTIN blocked, a terminal says this to a process in its background.
        Err(Errno::IO) => match terminal_of_others(descriptor) {
            Some(reason) => Content::Failed(reason),
            None => failed(Errno::IO),
        },
        Err(errno) => failed(errno),
    }
}

/// Says so if the descriptor is a terminal in whose background this process is.
fn terminal_of_others(descriptor: &OwnedFd) -> Option<String> {
    // The other end of a pseudo-terminal tells the foreground of this one, and stops no reader.
    let device = fstat(descriptor).ok()?.st_rdev;
    if (major(device), minor(device)) == PSEUDO_TERMINAL_MASTER {
        return None;
    }
    let foreground = tcgetpgrp(descriptor).ok()?;
    (foreground != getpgrp()).then(|| {
        format!("it is a terminal whose foreground is process group {foreground}, not this one")
    })
}

/// Waits until a read would not sleep. Regular files are always ready.
fn readable(descriptor: &OwnedFd, deadline: Instant) -> Result<bool, Errno> {
    retry_on_intr(|| {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(remaining).ok();
        let mut descriptors = [PollFd::new(descriptor, PollFlags::IN)];
        poll(&mut descriptors, timeout.as_ref()).map(|ready| ready > 0)
    })
}

/// Reads without sleeping, even if another process was faster: O_NONBLOCK would change the open
/// file for its sender too, so ask for it in the call, where the kind of file allows it.
fn read_now(descriptor: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    /// Stands for the file's own offset in preadv2(2).
    const CURRENT: u64 = u64::MAX;
    match FileType::from_raw_mode(fstat(descriptor)?.st_mode) {
        FileType::Socket => recv(descriptor, buffer, RecvFlags::DONTWAIT).map(|(count, _)| count),
        // "Would sleep" would also mean that the file is on the disk and not in memory.
        FileType::RegularFile | FileType::Directory | FileType::BlockDevice => {
            read(descriptor, buffer)
        }
        _ => {
            let slices = &mut [IoSliceMut::new(buffer)];
            match preadv2(descriptor, slices, CURRENT, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => read(descriptor, buffer),
                other => other,
            }
        }
    }
}

/// Whether a read of 0 bytes is a message rather than the end. (On a SEQPACKET socket it may be
/// either, and there is no telling which.)
fn keeps_messages_apart(descriptor: &OwnedFd) -> bool {
    sockopt::socket_type(descriptor) == Ok(SocketType::DGRAM)
}
