//! The descriptors that are open in this process: which they are, and how to be rid of them.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::io::fcntl_dupfd_cloexec;

/// Without /proc, each number below this one is tried. It is what the kernel allows unless the
/// system is told otherwise (proc_sys_fs(5), nr_open).
const MOST_TRIED: RawFd = 1 << 20;

/// Closes every descriptor but those in `keep`, which is sorted. Only in a fresh child, which owns
/// all its descriptors and uses none but those it was given.
///
/// # Errors
/// When one of the others is open all the same, or may be.
pub(super) fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    // A sandbox can make a call fail, and also do nothing and say that it succeeded (seccomp(2)).
    // So the proof is a descriptor that must be gone.
    let witness = witness(keep);
    let closed = close_gaps(keep);
    if closed.is_ok() && witness.is_some_and(|witness| !is_open(witness)) {
        return Ok(());
    }
    let unwanted = |fd: &RawFd| keep.binary_search(fd).is_err();
    match listed()? {
        Some(open) => close_each(open.into_iter().filter(unwanted)),
        None => close_each((0..tried()?).filter(unwanted)),
    }
}

/// A descriptor that is open and not to be kept. Some number near the beginning is one: it follows
/// the standard streams, or those that are kept are in its place.
fn witness(keep: &[RawFd]) -> Option<RawFd> {
    let beginning = RawFd::try_from(keep.len()).ok()? + 1024;
    (0..beginning).find(|fd| is_open(*fd) && keep.binary_search(fd).is_err())
}

/// By ranges, so that it takes a few calls however many there are.
fn close_gaps(keep: &[RawFd]) -> io::Result<()> {
    let mut next: libc::c_uint = 0;
    for fd in keep {
        let fd = fd.cast_unsigned();
        if fd > next {
            close_range(next, fd - 1)?;
        }
        next = next.max(fd + 1);
    }
    close_range(next, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: only called in a fresh child, which owns all its descriptors and uses none but those
    // it was given.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One after the other, for a kernel or a sandbox that has no close_range(2).
fn close_each(unwanted: impl Iterator<Item = RawFd>) -> io::Result<()> {
    for fd in unwanted {
        // SAFETY: as in `close_range`.
        let closed = Errno::result(unsafe { libc::close(fd) });
        // Most errors come after the descriptor is gone (close(2)), so it is asked whether it is.
        if is_open(fd) {
            let reason = closed.map_or_else(Errno::desc, |_| "it is open after close(2)");
            return Err(io::Error::other(format!("descriptor {fd}: {reason}")));
        }
    }
    Ok(())
}

/// Up to which number descriptors can be open.
///
/// # Errors
/// When that are too many to try each.
fn tried() -> io::Result<RawFd> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    RawFd::try_from(soft.max(hard))
        .ok()
        .filter(|limit| *limit <= MOST_TRIED)
        .ok_or_else(|| {
            io::Error::other(format!(
                "there is neither close_range(2) nor /proc, and the limit of open files is too \
                 high to try each number, which takes {MOST_TRIED} or less"
            ))
        })
}

/// The numbers of all descriptors that are open in this process. Where /proc is not there, each
/// number up to the limit of open files is tried, the first million at most.
#[must_use]
pub fn open_descriptors() -> Vec<RawFd> {
    match listed() {
        Ok(Some(open)) => open.into_iter().filter(|fd| is_open(*fd)).collect(),
        _ => (0..tried().unwrap_or(MOST_TRIED))
            .filter(|fd| is_open(*fd))
            .collect(),
    }
}

/// The descriptors behind the standard streams that whoever started this process left open for it
/// without saying so: they stay open in a program that is executed, which is not so for those that
/// Rust opens, or that this process has taken over.
#[must_use]
pub fn left_open() -> Vec<RawFd> {
    let mut open = open_descriptors();
    let stays = |fd: RawFd| flags(fd).is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0);
    open.retain(|fd| *fd > libc::STDERR_FILENO && stays(*fd));
    open
}

/// Whether a descriptor is that of a directory, as far as the kernel lets it be known: when it does
/// not say what it is, it may be one.
#[must_use]
pub fn is_directory(fd: RawFd) -> bool {
    // SAFETY: a zeroed `stat` is a valid one, for the kernel to fill.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: it only asks; a number that is not open gives EBADF.
    match Errno::result(unsafe { libc::fstat(fd, &raw mut stat) }) {
        Ok(_) => stat.st_mode & libc::S_IFMT == libc::S_IFDIR,
        Err(errno) => errno != Errno::EBADF,
    }
}

/// Gives a descriptor a number that nobody expects. The low ones are those that a process is told
/// of when it is started (LISTEN_FDS), and a wrong word of one must not mean this descriptor.
#[must_use]
pub fn out_of_the_way(descriptor: OwnedFd) -> OwnedFd {
    // The limit of open files may leave no room there.
    let raised = [100, 10]
        .into_iter()
        .find_map(|least| fcntl_dupfd_cloexec(&descriptor, least).ok());
    raised.unwrap_or(descriptor)
}

const LISTING: &CStr = c"/proc/self/fd";

/// What /proc lists; `None` where that is not there, or is no list of this process's descriptors.
/// Those that it was read through are in it.
///
/// # Errors
/// When it begins, and can't be read to its end.
fn listed() -> io::Result<Option<BTreeSet<RawFd>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = openat(CWD, LISTING, flags, Mode::empty()) else {
        return Ok(None);
    };
    let mut numbers = BTreeSet::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_str().ok();
        numbers.extend(name.and_then(|name| name.parse::<RawFd>().ok()));
    }
    Ok(numbers.contains(&directory.as_raw_fd()).then_some(numbers))
}

/// Whether a descriptor has this number, as far as the kernel lets it be known: an answer other
/// than "there is none" counts as one that is open.
fn is_open(fd: RawFd) -> bool {
    flags(fd) != Err(Errno::EBADF)
}

/// Whether a descriptor has this number, for sure.
pub(super) fn is_surely_open(fd: RawFd) -> bool {
    flags(fd).is_ok()
}

fn flags(fd: RawFd) -> Result<libc::c_int, Errno> {
    // SAFETY: F_GETFD only asks; a number that is not open gives EBADF.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFD) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_descriptors_has_those_that_are_open_and_no_others() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let open = open_descriptors();
        for fd in [0, 1, 2, read.as_raw_fd(), write.as_raw_fd()] {
            assert_eq!(open.contains(&fd), is_open(fd), "{fd}");
        }
        assert!(is_open(read.as_raw_fd()));
        assert!(!open.contains(&MOST_TRIED));
    }
}
