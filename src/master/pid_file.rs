//! The file that names the master's process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Plain, Result};

/// A file with this process's id and a newline. It is removed on drop, if it still names this process: after an
/// upgrade it names the new master. (A worker process drops nothing of the master's.)
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes it, over one that is there. Whoever reads it finds the old one or the new one, never half of it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(path: &Path) -> Result<Self> {
        let beside = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
        let written = || -> io::Result<()> {
            fs::write(&beside, content())?;
            fs::rename(&beside, path)
        };
        written().map_err(|error| {
            let _ = fs::remove_file(&beside);
            Error::new(format!("write pid file {}", path.display()), error)
        })?;
        Ok(Self {
            path: path.to_owned(),
        })
    }
}

fn content() -> String {
    format!("{}\n", std::process::id())
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let ours = fs::read_to_string(&self.path).is_ok_and(|text| text == content());
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {}", self.path.display(), Plain(&error));
        }
    }
}
