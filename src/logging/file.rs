//! The file that log lines go to, and how it is exchanged for another one under the same name.
//!
//! The master opens it before it forks, so each worker has it, whatever it gives up later. To
//! rotate it, move it away and tell the master, which then makes a new one. A worker that was there
//! before looks for another file at the path now and then, before it writes, and goes on there. One
//! that cannot open the path any more, because of its user or its chroot, keeps to the old file.
//!
//! The descriptor has the same number all its life: it is on the list of those that workers keep.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, Stat, accessat, fstat, stat};
use rustix::io::{DupFlags, Errno, dup3};

use crate::error::{Error, Plain, Result};
use crate::sys::descriptors::out_of_the_way;
use crate::sys::directory;

/// How long a worker may go on in a file that was moved away. It looks at most that often.
const LOOK: Duration = Duration::from_secs(1);

/// A file that is open for lines to be appended.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    descriptor: OwnedFd,
    looked: Instant,
}

impl LogFile {
    /// Opens the file at this path, or makes one.
    ///
    /// # Errors
    /// When there can be none, or what is there is no place for a log.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let descriptor = append_to(path, OFlags::CREATE).map_err(|e| failed(path, &e, ""))?;
        Ok(Self {
            path: path.to_owned(),
            descriptor: out_of_the_way(descriptor),
            looked: Instant::now(),
        })
    }

    /// Checks whether there could be a log at this path. It opens nothing, because a FIFO's reader
    /// would notice.
    ///
    /// # Errors
    /// As [`LogFile::open`], but for a FIFO that nobody reads.
    pub(super) fn check(path: &Path) -> Result<()> {
        let usable = || -> io::Result<()> {
            match look(path)? {
                Some(_) => Ok(accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)?),
                None => directory::check(&end_of_links(path)),
            }
        };
        usable().map_err(|error| failed(path, &error, ""))
    }

    /// Goes on in the file that is at the path now.
    ///
    /// # Errors
    /// As [`LogFile::open`]. The old file is still open then.
    pub(super) fn reopen(&mut self) -> Result<()> {
        append_to(&self.path, OFlags::CREATE)
            .and_then(|new| self.replace(&new))
            .map_err(|error| failed(&self.path, &error, "; lines go on to what was open before"))
    }

    /// Goes on in another file, if there is one at the path: true then. Only the master makes one,
    /// because a worker's would be its user's.
    pub(super) fn follow(&mut self, now: Instant) -> bool {
        if now.duration_since(self.looked) < LOOK {
            return false;
        }
        self.looked = now;
        let (Ok(ours), Ok(there)) = (fstat(&self.descriptor), stat(&self.path)) else {
            return false;
        };
        let moved = (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino);
        moved
            && is_regular(&there)
            && append_to(&self.path, OFlags::empty()).is_ok_and(|new| {
                // If it fails, lines go on to the old file.
                fstat(&new).is_ok_and(|new| is_regular(&new)) && self.replace(&new).is_ok()
            })
    }

    fn replace(&mut self, new: &OwnedFd) -> io::Result<()> {
        Ok(dup3(new, &mut self.descriptor, DupFlags::CLOEXEC)?)
    }
}

impl AsFd for LogFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn failed(path: &Path, error: &io::Error, consequence: &str) -> Error {
    let attempt = format!("log to {}", path.display());
    Error::because(attempt, format!("{}{consequence}", Plain(error)))
}

/// Appending, so that the lines of several processes do not overwrite each other. It does not
/// sleep, whatever is at the path, unless the file system does.
fn append_to(path: &Path, extra: OFlags) -> io::Result<OwnedFd> {
    // To open some things already does something to them.
    look(path)?;
    // A FIFO would wait for a reader, a serial line for a carrier. And a terminal is not to become
    // the one that controls this process.
    let waits_for_nothing = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | waits_for_nothing | extra;
    let opened = rustix::fs::open(path, flags, Mode::from_raw_mode(0o640)).map_err(|error| {
        match stat(path).map(|there| FileType::from_raw_mode(there.st_mode)) {
            Ok(FileType::Fifo) if error == Errno::NXIO => {
                io::Error::other("it is a FIFO that nobody reads")
            }
            _ => error.into(),
        }
    })?;
    // Something else may have come to the path meanwhile.
    check_kind(&fstat(&opened)?)?;
    Ok(opened)
}

/// Looks at what is at the path, if anything is.
///
/// # Errors
/// When it is no place for a log, or is not to be seen.
fn look(path: &Path) -> io::Result<Option<Stat>> {
    match stat(path) {
        Ok(there) => check_kind(&there).map(|()| Some(there)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The path at which a file is made: where a symbolic link to nothing leads.
fn end_of_links(path: &Path) -> PathBuf {
    /// The kernel follows no more (path_resolution(7)).
    const MOST: u32 = 40;
    let mut end = path.to_owned();
    for _ in 0..MOST {
        match fs::read_link(&end) {
            Ok(target) => end = directory::of(&end).join(target),
            Err(_) => break,
        }
    }
    end
}

/// A log can be a file, a FIFO, or a device that takes characters, such as a terminal or /dev/null.
fn check_kind(stat: &Stat) -> io::Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Err(Errno::ISDIR.into()),
        FileType::BlockDevice => Err(io::Error::other("it is a block device")),
        FileType::Socket => Err(io::Error::other("it is a socket")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn write(file: &LogFile, line: &[u8]) {
        assert_eq!(rustix::io::write(file, line), Ok(line.len()));
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn what_was_moved_away_is_made_anew_under_the_same_number() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("old"));
        fs::write(&path, "before\n").unwrap();
        let mut file = LogFile::open(&path).unwrap();
        let number = file.descriptor.as_raw_fd();
        write(&file, b"one\n");
        fs::rename(&path, &old).unwrap();
        write(&file, b"two\n");
        file.reopen().unwrap();
        write(&file, b"three\n");
        assert_eq!(text(&old), "before\none\ntwo\n");
        assert_eq!(text(&path), "three\n");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
        assert_eq!(file.descriptor.as_raw_fd(), number);
        let flags = rustix::io::fcntl_getfd(&file.descriptor).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_worker_follows_a_new_file_and_makes_none() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("old"));
        let mut file = LogFile::open(&path).unwrap();
        let later = |file: &LogFile| file.looked + LOOK;
        fs::rename(&path, &old).unwrap();
        file.follow(later(&file));
        write(&file, b"one\n");
        assert!(!path.exists());
        // What is no file is no log.
        symlink("/dev/null", &path).unwrap();
        file.follow(later(&file));
        write(&file, b"two\n");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        file.follow(file.looked);
        write(&file, b"three\n");
        assert_eq!(text(&old), "one\ntwo\nthree\n");
        file.follow(later(&file));
        write(&file, b"four\n");
        assert_eq!(text(&path), "four\n");
        assert_eq!(text(&old), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_leaves_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("old"));
        let mut file = LogFile::open(&path).unwrap();
        fs::rename(&path, &old).unwrap();
        fs::create_dir(&path).unwrap();
        let error = file.reopen().unwrap_err().to_string();
        let reason = "log: Is a directory; lines go on to what was open before";
        assert!(error.ends_with(reason), "{error}");
        write(&file, b"on\n");
        assert_eq!(text(&old), "on\n");
    }
}
