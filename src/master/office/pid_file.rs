//! The file that names the master's process.
//!
//! A new file is written beside the path, under a name that nobody can guess, and moved there. So
//! whoever reads the path finds a whole number, and no link that somebody has planted is followed.
//! The master holds a lock (flock(2)) on its file, which the kernel drops when the master ends,
//! however it ends. By that lock a second server with the same path is told from a file that was
//! left behind. In a takeover the new master makes a file and a lock of its own, so nothing is
//! passed on.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use rustix::fs::{
    CWD, FlockOperation, Mode, OFlags, RenameFlags, fchmod, flock, openat, renameat_with,
};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Error, Result};
use crate::master::removal::{self, Identity, identity};
use crate::sys::directory;

/// No pid file is longer.
const LONGEST: u64 = 32;

/// Everybody may read it.
const MODE: Mode = Mode::from_raw_mode(0o644);

/// A file may be replaced while it is looked at; not more often than this.
const ATTEMPTS: u32 = 10;

/// A file with this process's id and a newline. It is removed on drop, if it is at the path still:
/// after an upgrade another one is. (A worker drops nothing of the master's.)
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    place: Place,
}

/// A file beside the path, under a name that nobody can guess. It is removed on drop.
#[derive(Debug)]
struct Beside {
    path: PathBuf,
    file: File,
}

/// Where the file is.
#[derive(Debug)]
enum Place {
    /// Beside the path. The file that is there is to be replaced, and locked until then, so that no
    /// other server does the same.
    Beside { new: Beside, old: Option<File> },
    /// At the path, and locked.
    Published { _lock: File, own: Identity },
    /// Nowhere: it could not be moved.
    Lost,
}

impl PidFile {
    /// Checks whether the file can be written when the server that may have one there has ended.
    ///
    /// # Errors
    /// When something else than a pid file is at the path, or its directory can't be used.
    pub fn check(path: &Path) -> Result<()> {
        let checked = find(path, Holder::Anybody).and_then(|_| directory::check(path));
        checked.map_err(|error| failed(path, error))
    }

    /// Writes the file beside the path, because nobody is to find it before this process is in
    /// charge. The file at the path may be that of the `other` master, which hands over.
    ///
    /// # Errors
    /// When it can't be written, something else than a pid file is at the path, or the pid file of
    /// another server.
    pub fn prepare(path: &Path, other: Option<Pid>) -> Result<Self> {
        let prepared = || -> io::Result<Place> {
            let old = find(path, other.map_or(Holder::Nobody, Holder::Process))?;
            let new = write_beside(path)?;
            Ok(Place::Beside { new, old })
        };
        let place = prepared().map_err(|error| failed(path, error))?;
        let path = path.to_owned();
        Ok(Self { path, place })
    }

    /// Moves the file to its path.
    ///
    /// # Errors
    /// What rename(2) fails with; a file that has come to the path meanwhile.
    pub fn publish(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Beside { new, old } => {
                let moved = new.move_to(&self.path, old.is_some());
                let (_lock, own) = moved.map_err(|error| failed(&self.path, error))?;
                self.place = Place::Published { _lock, own };
            }
            place @ (Place::Published { .. } | Place::Lost) => self.place = place,
        }
        Ok(())
    }

    /// Whether the file is not, or no longer, at its path.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match &self.place {
            Place::Beside { .. } => false,
            Place::Published { own, .. } => !is_at(&self.path, *own),
            Place::Lost => true,
        }
    }
}

/// Who may have a pid file's lock, other than this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// This master.
    Process(Pid),
    Anybody,
}

/// The file that is at the path, if there is one. It is locked, unless somebody has the lock who
/// may.
///
/// # Errors
/// When it is not a pid file, or another server has the lock.
fn find(path: &Path, holder: Holder) -> io::Result<Option<File>> {
    for _ in 0..ATTEMPTS {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(metadata) if !metadata.is_file() => {
                return Err(io::Error::other(
                    "the path exists and is not a regular file",
                ));
            }
            Ok(_) => {}
        }
        // What has taken the path in the meantime must not be followed, nor waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(CWD, path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let pid = content(&file)?;
        let may_be_locked = match holder {
            Holder::Nobody => false,
            // One in another namespace has no number here (pid_namespaces(7)).
            Holder::Process(other) => other.as_raw() == 0 || pid == other.to_string(),
            Holder::Anybody => true,
        };
        if !may_be_locked && lock(&file) == Err(Errno::WOULDBLOCK) {
            let reason = format!("the server with pid {pid} has it");
            return Err(io::Error::other(reason));
        }
        if is_at(path, identity(&file.metadata()?)) {
            return Ok(Some(file));
        }
    }
    Err(io::Error::other("the file is replaced all the time"))
}

/// The number in a pid file, as text.
///
/// # Errors
/// When there is something else: somebody's file must not be replaced by mistake.
fn content(file: &File) -> io::Result<String> {
    let mut text = String::new();
    let read = file.take(LONGEST + 1).read_to_string(&mut text);
    let is_pid = text.trim_end().bytes().all(|byte| byte.is_ascii_digit());
    match read {
        Ok(length) if length as u64 <= LONGEST && is_pid => Ok(text.trim_end().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::InvalidData => Err(error),
        Ok(_) | Err(_) => Err(io::Error::other("the path exists and is not a pid file")),
    }
}

fn write_beside(path: &Path) -> io::Result<Beside> {
    let directory = directory::of(path);
    let everybody_may_write = |metadata: Metadata| metadata.mode() & 0o1002 == 0o0002;
    if fs::metadata(directory).is_ok_and(everybody_may_write) {
        log::warn!(
            "pid file {}: anybody can replace it, because {} is writable for all and not sticky",
            path.display(),
            directory.display()
        );
    }
    let mut new = Beside::create(path)?;
    writeln!(new.file, "{}", std::process::id())?;
    // Nobody else has it yet. Where there are no locks (some network file systems), a second server
    // is not noticed.
    let _ = lock(&new.file);
    Ok(new)
}

impl Beside {
    fn create(path: &Path) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{:016x}", u64::from_ne_bytes(random)));
        let path = PathBuf::from(beside);
        // O_EXCL follows no link, and takes no file that is there already.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, MODE)?;
        let beside = Self {
            path,
            file: File::from(file),
        };
        // Whatever the umask is: it is there to be read by others.
        fchmod(&beside.file, MODE)?;
        Ok(beside)
    }

    /// Moves the file. With `replace`, in place of one that is there.
    fn move_to(self, path: &Path, replace: bool) -> io::Result<(File, Identity)> {
        let flags = match replace {
            true => RenameFlags::empty(),
            false => RenameFlags::NOREPLACE,
        };
        match renameat_with(CWD, &self.path, CWD, path, flags) {
            // The file system has no such flag. A link fails as well where something is already.
            Err(Errno::INVAL) if !replace => fs::hard_link(&self.path, path)?,
            moved => moved?,
        }
        Ok((self.file.try_clone()?, identity(&self.file.metadata()?)))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Not there, if it was moved.
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(file: &File) -> Result<(), Errno> {
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Whether this is the file at the path.
fn is_at(path: &Path, own: Identity) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| identity(&there) == own)
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::new(format!("write pid file {}", path.display()), error)
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Place::Published { own, .. } = self.place {
            removal::remove(&self.path, own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn published(path: &Path) -> PidFile {
        let mut file = PidFile::prepare(path, None).unwrap();
        file.publish().unwrap();
        file
    }

    #[track_caller]
    fn refused(path: &Path) -> String {
        let error = PidFile::prepare(path, None).unwrap_err().to_string();
        let prefix = format!("cannot write pid file {}: ", path.display());
        error
            .strip_prefix(&prefix)
            .expect("it names the file")
            .to_owned()
    }

    #[test]
    fn a_second_server_is_refused_and_a_file_that_was_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let own = std::process::id();
        let file = published(&path);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{own}\n"));
        assert_eq!(refused(&path), format!("the server with pid {own} has it"));
        drop(file);
        assert!(!path.exists());
        for left in ["", "1\n", "99999999"] {
            fs::write(&path, left).unwrap();
            assert!(!published(&path).is_lost(), "{left:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_master_that_takes_over_has_a_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let old = published(&path);
        let strange = PidFile::prepare(&path, Some(Pid::from_raw(1))).unwrap_err();
        let has_it = format!("the server with pid {} has it", Pid::this());
        assert!(strange.to_string().ends_with(&has_it), "{strange}");
        let mut new = PidFile::prepare(&path, Some(Pid::this())).unwrap();
        assert!(!old.is_lost());
        new.publish().unwrap();
        assert!(old.is_lost() && !new.is_lost());
        drop(old);
        assert!(path.exists());
        refused(&path);
        fs::remove_file(&path).unwrap();
        assert!(new.is_lost());
    }

    #[test]
    fn what_is_no_pid_file_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("text"), "precious\n").unwrap();
        fs::write(at("bytes"), [0xff; 8]).unwrap();
        fs::write(at("long"), "1".repeat(100)).unwrap();
        symlink(at("text"), at("link")).unwrap();
        for name in ["text", "bytes", "long"] {
            assert_eq!(refused(&at(name)), "the path exists and is not a pid file");
        }
        for path in [at("link"), "/dev/null".into()] {
            let reason = "the path exists and is not a regular file";
            assert_eq!(refused(&path), reason);
        }
        assert_eq!(refused(directory.path()), "is a directory");
        assert_eq!(fs::read(at("text")).unwrap(), b"precious\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    }

    #[test]
    fn of_two_that_start_at_the_same_time_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let mut one = PidFile::prepare(&path, None).unwrap();
        let mut other = PidFile::prepare(&path, None).unwrap();
        one.publish().unwrap();
        assert!(other.publish().is_err());
        drop(other);
        assert!(!one.is_lost());
    }
}
