//! The file that log lines go to, and how it is exchanged for another one under the same name.
//!
//! The master opens it before it forks, so each worker has it, whatever it gives up later. To rotate it, move it away
//! and tell the master, which then makes a new one. A worker that was there before looks for another file at the path
//! now and then, before it writes, and goes on there. One that cannot open the path any more, because of its user or
//! its chroot, keeps to the old file.
//!
//! The descriptor has the same number all its life: it is on the list of those that workers keep.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, fstat, stat};
use rustix::io::{DupFlags, dup3};

use super::{Role, role_now};
use crate::error::{Error, Result};

/// How long a worker may go on in a file that was moved away. It looks at most that often.
const LOOK: Duration = Duration::from_secs(1);

static FILE: Mutex<Option<LogFile>> = Mutex::new(None);

fn file() -> MutexGuard<'static, Option<LogFile>> {
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the file that [`Writer`] writes to from now on.
pub(super) fn open(path: &Path) -> Result<()> {
    let opened = LogFile::open(path)?;
    *file() = Some(opened);
    Ok(())
}

/// Opens the file at the same path again; nothing if there is no file.
pub(super) fn reopen() -> Result<()> {
    file().as_mut().map_or(Ok(()), LogFile::reopen)
}

/// Writes to the file.
pub(super) struct Writer;

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut file = file();
        let Some(file) = file.as_mut() else {
            return Ok(line.len());
        };
        if matches!(role_now(), Role::Worker { .. }) {
            file.follow(Instant::now());
        }
        file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    descriptor: OwnedFd,
    looked: Instant,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            descriptor: append_to(path, OFlags::CREATE)?,
            looked: Instant::now(),
        })
    }

    fn reopen(&mut self) -> Result<()> {
        let new = append_to(&self.path, OFlags::CREATE)?;
        self.replace(&new)
    }

    /// Goes on in another file, if there is one at the path. Only the master makes one: a worker's would be its
    /// user's.
    fn follow(&mut self, now: Instant) {
        if now.duration_since(self.looked) < LOOK {
            return;
        }
        self.looked = now;
        let (Ok(ours), Ok(there)) = (fstat(&self.descriptor), stat(&self.path)) else {
            return;
        };
        let moved = (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino);
        if moved
            && FileType::from_raw_mode(there.st_mode) == FileType::RegularFile
            && let Ok(new) = append_to(&self.path, OFlags::empty())
        {
            // If it fails, lines go on to the old file.
            let _ = self.replace(&new);
        }
    }

    fn replace(&mut self, new: &OwnedFd) -> Result<()> {
        dup3(new, &mut self.descriptor, DupFlags::CLOEXEC)
            .map_err(|error| Error::new(attempt(&self.path), error))
    }

    fn write(&self, line: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.descriptor, line)?)
    }
}

fn attempt(path: &Path) -> String {
    format!("log to {}", path.display())
}

/// Appending, so that the lines of several processes do not overwrite each other.
fn append_to(path: &Path, extra: OFlags) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY | extra;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))
        .map_err(|error| Error::new(attempt(path), error))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

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
        file.write(b"one\n").unwrap();
        fs::rename(&path, &old).unwrap();
        file.write(b"two\n").unwrap();
        file.reopen().unwrap();
        file.write(b"three\n").unwrap();
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
        file.write(b"one\n").unwrap();
        assert!(!path.exists());
        // What is no file is no log.
        symlink("/dev/null", &path).unwrap();
        file.follow(later(&file));
        file.write(b"two\n").unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        file.follow(file.looked);
        file.write(b"three\n").unwrap();
        assert_eq!(text(&old), "one\ntwo\nthree\n");
        file.follow(later(&file));
        file.write(b"four\n").unwrap();
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
        assert!(error.ends_with("log: Is a directory"), "{error}");
        file.write(b"on\n").unwrap();
        assert_eq!(text(&old), "on\n");
    }
}
