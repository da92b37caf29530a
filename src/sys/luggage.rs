//! Which descriptors a process takes from one that it does not trust, to keep them and to close
//! them some day. Nothing here sleeps, whatever the descriptor is.
//!
//! Calls on a file of a file system that does not answer sleep for ever (FUSE, NFS), close(2) among
//! them. Which file system a file is on is asked without it: statx(2) says which mount the
//! descriptor is of, and that alone does not go to the file system (the type of the file may, even
//! with AT_STATX_DONT_SYNC), and /proc says what is mounted there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, fcntl_get_seals, fcntl_getfl, open, statx,
};

/// The number of a mount that no other one has until the next boot (STATX_MNT_ID_UNIQUE, Linux
/// 6.8).
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// File systems that are of this machine, and answer.
const LOCAL: [&str; 24] = [
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfsplus", "iso9660",
    "jfs", "minix", "nilfs2", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs",
    "tmpfs", "udf", "vfat", "xfs", "zfs",
];

/// How many mounts are remembered, with what their file systems are.
const MOST_KNOWN: usize = 64;

/// Mounts by their unique numbers, and whether their file systems are [`LOCAL`]. That never changes
/// for a mount.
static KNOWN: Mutex<Vec<(u64, bool)>> = Mutex::new(Vec::new());

/// How much memory is given back at once: freeing it takes some hundred microseconds.
const LITTLE: u64 = 1 << 20;

/// Whether this can be read, and is a memory file or a plain file of this machine.
#[must_use]
pub fn is_acceptable(descriptor: impl AsFd) -> bool {
    is_readable(&descriptor) && (is_memory(&descriptor) || is_plain_local_file(&descriptor))
}

/// Whether to close one that [is acceptable](is_acceptable) for the last time takes no time. It
/// does if that gives back no more than a little memory, or nothing at all, because the file has a
/// name and was never written through this descriptor.
#[must_use]
pub fn is_quick_to_close(descriptor: impl AsFd) -> bool {
    let Some(file) = look(&descriptor, StatxFlags::empty()) else {
        return false;
    };
    let only_read = || fcntl_getfl(&descriptor).is_ok_and(|flags| !is_written(flags));
    if is_memory(&descriptor) {
        file.stx_blocks * 512 <= LITTLE
    } else {
        file.stx_nlink > 0 && only_read()
    }
}

/// A descriptor of the same file, to read, by an open of its own: the service manager does not keep
/// two of the same open (sd_pid_notify_with_fds(3)). Where this process may not open the file
/// again, or does not see /proc, it is a copy.
///
/// # Errors
/// What copying the descriptor fails with.
pub fn open_apart(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).or_else(|_| descriptor.try_clone_to_owned())
}

fn is_readable(descriptor: impl AsFd) -> bool {
    fcntl_getfl(descriptor).is_ok_and(|flags| {
        !flags.contains(OFlags::PATH) && flags & OFlags::RWMODE != OFlags::WRONLY
    })
}

fn is_written(flags: OFlags) -> bool {
    flags & OFlags::RWMODE != OFlags::RDONLY
}

/// Whether this is of memory: made by memfd_create(2), or on tmpfs.
fn is_memory(descriptor: impl AsFd) -> bool {
    fcntl_get_seals(descriptor).is_ok()
}

fn is_plain_local_file(descriptor: impl AsFd) -> bool {
    let Some(file) = look(&descriptor, StatxFlags::MNT_ID) else {
        return false;
    };
    // What the kernel says of the type without the file system's help is right for these.
    is_local_mount(&descriptor, file.stx_mnt_id)
        && FileType::from_raw_mode(file.stx_mode.into()) == FileType::RegularFile
}

/// Whether this is on a file system that is of this machine. It is known from then on, also in a
/// process that will not see /proc, and in its children (Linux 6.8).
#[must_use]
pub fn is_local(descriptor: impl AsFd) -> bool {
    look(&descriptor, StatxFlags::MNT_ID)
        .is_some_and(|file| is_local_mount(&descriptor, file.stx_mnt_id))
}

/// What the kernel knows of a file by itself.
fn look(descriptor: impl AsFd, wanted: StatxFlags) -> Option<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(descriptor, "", flags, wanted).ok()?;
    StatxFlags::from_bits_retain(found.stx_mask)
        .contains(wanted)
        .then_some(found)
}

/// Whether the file system of a descriptor is [`LOCAL`]; `mount` is the number that its mount has
/// as long as it exists.
fn is_local_mount(descriptor: impl AsFd, mount: u64) -> bool {
    let unique = look(descriptor, UNIQUE).map(|found| found.stx_mnt_id);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |(number, _): &&(u64, bool)| Some(*number) == unique;
    if let Some((_, local)) = known.iter().find(same) {
        return *local;
    }
    // One that is mounted elsewhere only, in a namespace of a worker's own say, is not in the list.
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let Some(kind) = file_system(&mounts, mount) else {
        return false;
    };
    let local = LOCAL.iter().any(|known| known.as_bytes() == kind);
    if let Some(unique) = unique {
        if known.len() == MOST_KNOWN {
            known.clear();
        }
        known.push((unique, local));
    }
    local
}

/// The type of the file system of a mount, in the text of /proc/self/mountinfo (proc(5)).
fn file_system(mounts: &[u8], mount: u64) -> Option<&[u8]> {
    let number = mount.to_string();
    let mut lines = mounts.split(|byte| *byte == b'\n');
    lines.find_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        if words.next()? != number.as_bytes() {
            return None;
        }
        // Spaces in paths are escaped, so the first lone dash ends the optional fields.
        words.skip_while(|word| word != b"-").nth(1)
    })
}

#[cfg(test)]
mod tests;
