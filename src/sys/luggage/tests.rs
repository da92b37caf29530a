//! What a worker may send, and what it may not.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use nix::sys::eventfd::EventFd;
use rustix::fs::{MemfdFlags, Mode, ftruncate, memfd_create, open};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use tempfile::NamedTempFile;

use super::*;

fn memory() -> OwnedFd {
    memfd_create("test", MemfdFlags::CLOEXEC).unwrap()
}

/// A file with a name, opened so.
fn file(named: &NamedTempFile, options: &mut OpenOptions) -> File {
    options.open(named).unwrap()
}

#[test]
fn memory_files_and_plain_files_are_acceptable() {
    let named = NamedTempFile::new().unwrap();
    assert!(is_acceptable(memory()));
    assert!(is_acceptable(file(&named, File::options().read(true))));
    assert!(is_acceptable(tempfile::tempfile().unwrap()));
    // The second look is answered from what is known.
    assert!(is_acceptable(file(
        &named,
        File::options().read(true).append(true)
    )));
}

#[test]
fn one_that_is_opened_apart_is_the_same_file_by_another_open() {
    let named = NamedTempFile::new().unwrap();
    let opened = file(&named, File::options().read(true).write(true));
    for given in [OwnedFd::from(opened), memory()] {
        let apart = open_apart(given.as_fd()).unwrap();
        assert!(is_acceptable(&apart));
        let inode = |descriptor: &OwnedFd| rustix::fs::fstat(descriptor).unwrap().st_ino;
        assert_eq!(inode(&apart), inode(&given));
        rustix::fs::seek(&given, rustix::fs::SeekFrom::Start(7)).unwrap();
        assert_eq!(rustix::fs::tell(&apart).unwrap(), 0);
    }
    // Nobody may open this one again by that name, so it is a copy.
    let (socket, _other) = UnixStream::pair().unwrap();
    assert!(open_apart(socket.as_fd()).is_ok());
}

#[test]
fn nothing_else_is() {
    let named = NamedTempFile::new().unwrap();
    let flag = |flag: OFlags| open("/tmp", flag | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let path = OFlags::PATH.bits().cast_signed();
    let others: [(&str, OwnedFd); 11] = [
        (
            "only a path",
            file(&named, File::options().read(true).custom_flags(path)).into(),
        ),
        (
            "only written",
            file(&named, File::options().append(true)).into(),
        ),
        ("a directory", flag(OFlags::DIRECTORY)),
        ("a path to one", flag(OFlags::PATH)),
        ("a device", File::open("/dev/null").unwrap().into()),
        (
            "a file of /proc",
            File::open("/proc/self/stat").unwrap().into(),
        ),
        ("a pipe", rustix::pipe::pipe().unwrap().0),
        ("a socket", UnixStream::pair().unwrap().0.into()),
        ("an eventfd", EventFd::new().unwrap().into()),
        (
            "an epoll set",
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::empty()).unwrap(),
        ),
        (
            "a process",
            pidfd_open(getpid(), PidfdFlags::empty()).unwrap(),
        ),
    ];
    for (what, descriptor) in others {
        assert!(!is_acceptable(descriptor), "{what}");
    }
}

#[test]
fn what_gives_much_back_is_not_quick_to_close() {
    let named = NamedTempFile::new().unwrap();
    let small = memory();
    rustix::io::write(&small, b"some").unwrap();
    // A hole is no memory.
    ftruncate(&small, 1 << 30).unwrap();
    assert!(is_quick_to_close(small));
    let large = memory();
    assert_eq!(rustix::io::write(&large, &vec![1; 2 << 20]), Ok(2 << 20));
    assert!(!is_quick_to_close(large));
    assert!(is_quick_to_close(file(&named, File::options().read(true))));
    let written = file(&named, File::options().append(true).read(true));
    for file in [written, tempfile::tempfile().unwrap()] {
        // It is in memory where the directory is.
        assert_eq!(is_quick_to_close(&file), is_memory(&file));
    }
}

#[test]
fn the_type_of_a_file_system_is_found_by_the_number_of_its_mount() {
    let mounts = b"21 26 0:19 / /proc rw shared:5 - proc proc rw\n\
                   2 26 0:20 /a\\040-\\040b /x rw - ext4 /dev/x rw\n\
                   210 26 0:21 / /mnt rw master:1 propagate_from:2 - fuse.sshfs me@there: rw\n";
    for (number, kind) in [(21, "proc"), (2, "ext4"), (210, "fuse.sshfs")] {
        assert_eq!(file_system(mounts, number), Some(kind.as_bytes()));
    }
    for number in [1, 26, 0] {
        assert_eq!(file_system(mounts, number), None);
    }
    assert_eq!(file_system(b"7 1 0:1 / /x rw -", 7), None);
    let root = fs::read("/proc/self/mountinfo").unwrap();
    let looked = look(File::open("/proc").unwrap(), StatxFlags::MNT_ID).unwrap();
    assert_eq!(file_system(&root, looked.stx_mnt_id), Some(&b"proc"[..]));
}
