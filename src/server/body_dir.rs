//! The directory for what is too much for memory: found in the master, opened in the worker.
//!
//! A worker opens it as the user that it runs as, and after its root directory has changed: a
//! descriptor from outside of that would be a way out.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::lookup;
use crate::service::Keeping;
use crate::sys::unlinked::Directory;

/// The path of the directory as the workers see it; `None` if they are to use the one for temporary
/// files.
///
/// # Errors
/// When the directory that was asked for is none, is outside of the root directory of the workers,
/// or this process may not write to it.
pub(super) fn find(asked: Option<&Path>, chroot: Option<&Path>) -> Result<Option<PathBuf>> {
    let Some(path) = asked else {
        return Ok(None);
    };
    let failed = |error: io::Error| Error::new(using(path), error);
    let key = match chroot {
        Some(root) => format!("body-dir {} in {}", path.display(), root.display()),
        None => format!("body-dir {}", path.display()),
    };
    let seen = lookup::value(&key, || {
        let real = path.canonicalize().map_err(failed)?;
        Directory::open(&real).map_err(failed)?;
        let seen = match chroot {
            None => real,
            Some(root) => below(&real, root, path)?,
        };
        Ok(seen.into_os_string().into_vec())
    })?;
    Ok(Some(OsString::from_vec(seen).into()))
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

/// What a worker keeps for slow clients, and where. To be called in the worker, when it is
/// confined; it holds as long as the process.
pub(super) fn open(path: Option<&Path>, slot: u32, limits: (u64, u64)) -> &'static Keeping {
    let path = path.map_or_else(std::env::temp_dir, Path::to_owned);
    let directory = Directory::open(&path).map_err(|error| Error::new(using(&path), error));
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
    let (max_body, max_spool) = limits;
    Box::leak(Box::new(Keeping {
        directory: directory.ok(),
        max_body,
        max_spool,
    }))
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
            find(Some(&place.join(path)), root).map_err(|error| {
                let text = error.to_string();
                text.replace(&place.display().to_string(), "")
            })
        };
        assert_eq!(find(None, Some(&jail)).unwrap(), None);
        assert_eq!(found("link", None), Ok(Some(spool.clone())));
        assert_eq!(found("link", Some(&jail)), Ok(Some("/spool".into())));
        assert_eq!(found("jail", Some(&jail)), Ok(Some("/".into())));
        let outside = "cannot use body-dir /jail: workers do not see it from their root directory \
                       /jail/spool";
        assert_eq!(found("jail", Some(&spool)), Err(outside.to_owned()));
        let gone = "cannot use body-dir /gone: No such file or directory";
        assert_eq!(found("gone", None), Err(gone.to_owned()));
    }
}
