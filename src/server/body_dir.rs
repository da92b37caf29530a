//! The directory for what is too much for memory: found in the master, opened in the worker.
//!
//! A worker opens it as the user that it runs as, and after its root directory has changed: a
//! descriptor from outside of that would be a way out.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::lookup;
use crate::service::Keeping;
use crate::sys::luggage::is_local;
use crate::sys::unlinked::Directory;

/// Why a directory is of no use whose file system can make this process wait, or may.
const STRANGE: &str = "its file system is not known to be of this machine";

/// The directory of the workers of a pool.
#[derive(Debug)]
pub(super) struct BodyDir {
    /// The path as the workers see it; `None` if they are to use the one for temporary files.
    seen: Option<PathBuf>,
    /// The root directory of the workers, if they get one of their own.
    root: Option<PathBuf>,
}

impl BodyDir {
    /// Looks for the directory that was asked for.
    ///
    /// # Errors
    /// When it is none, is outside of the root directory of the workers, is on a file system of
    /// another machine, or this process may not write to it.
    pub(super) fn find(asked: Option<&Path>, root: Option<&Path>) -> Result<Self> {
        let seen = match asked {
            None => None,
            Some(path) => Some(find(path, root)?),
        };
        let root = root.map(Path::to_owned);
        Ok(Self { seen, root })
    }

    fn seen(&self) -> PathBuf {
        self.seen.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// Learns what it takes to tell which files can travel with connections: those in this
    /// directory, and beneath those that the worker keeps. To be called in the worker, before it is
    /// confined: it may not see /proc any more afterwards.
    pub(super) fn prepare(&self, kept: &[Rc<dyn AsFd + '_>]) {
        let Some(root) = &self.root else {
            return;
        };
        let seen = self.seen();
        let path = root.join(seen.strip_prefix("/").unwrap_or(&seen));
        let _ = Directory::open(&path).is_ok_and(|directory| directory.is_local());
        for owner in kept {
            let _ = is_local(owner.as_fd());
        }
    }

    /// What a worker keeps for slow clients, and where. To be called in the worker, when it is
    /// confined; it holds as long as the process.
    pub(super) fn open(&self, slot: u32, (max_body, max_spool): (u64, u64)) -> &'static Keeping {
        let directory = open(&self.seen());
        if let Err(error) = &directory {
            // All workers of a pool are alike, so that one says it.
            let level = match slot {
                0 => log::Level::Warn,
                _ => log::Level::Debug,
            };
            log::log!(
                level,
                "keeping in memory what slow clients send, or do not take: {error}"
            );
        }
        Box::leak(Box::new(Keeping {
            directory: directory.ok(),
            max_body,
            max_spool,
        }))
    }
}

/// The path of a directory as workers see it that have this root directory.
fn find(path: &Path, root: Option<&Path>) -> Result<PathBuf> {
    let failed = |error: io::Error| Error::new(using(path), error);
    let key = match root {
        Some(root) => format!("body-dir {} in {}", path.display(), root.display()),
        None => format!("body-dir {}", path.display()),
    };
    let seen = lookup::value(&key, || {
        let real = path.canonicalize().map_err(failed)?;
        open(path)?;
        let seen = match root {
            None => real,
            Some(root) => below(&real, root, path)?,
        };
        Ok(seen.into_os_string().into_vec())
    })?;
    Ok(OsString::from_vec(seen).into())
}

fn open(path: &Path) -> Result<Directory> {
    let directory = Directory::open(path).map_err(|error| Error::new(using(path), error))?;
    match directory.is_local() {
        true => Ok(directory),
        false => Err(Error::because(using(path), STRANGE)),
    }
}

/// What processes whose root directory is `root` call a directory that `path` stands for.
fn below(real: &Path, root: &Path, path: &Path) -> Result<PathBuf> {
    let outer = root.canonicalize();
    let outer = outer.map_err(|error| Error::new(using(path), error))?;
    match real.strip_prefix(outer) {
        Ok(below) => Ok(Path::new("/").join(below)),
        Err(_) => {
            let root = root.display();
            let reason = format!("workers do not see it from their root directory {root}");
            Err(Error::because(using(path), reason))
        }
    }
}

fn using(path: &Path) -> String {
    format!("use body-dir {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_path_is_the_one_that_the_workers_see() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let (jail, spool) = (place.join("jail"), place.join("jail/spool"));
        fs::create_dir_all(&spool).unwrap();
        symlink("jail/spool", place.join("link")).unwrap();
        let found = |path: &str, root: Option<&Path>| {
            find(&place.join(path), root).map_err(|error| {
                let text = error.to_string();
                text.replace(&place.display().to_string(), "")
            })
        };
        assert_eq!(found("link", None), Ok(spool.clone()));
        assert_eq!(found("link", Some(&jail)), Ok("/spool".into()));
        assert_eq!(found("jail", Some(&jail)), Ok("/".into()));
        let outside = "cannot use body-dir /jail: workers do not see it from their root directory \
                       /jail/spool";
        assert_eq!(found("jail", Some(&spool)), Err(outside.to_owned()));
        let gone = "cannot use body-dir /gone: No such file or directory";
        assert_eq!(found("gone", None), Err(gone.to_owned()));
    }
}
