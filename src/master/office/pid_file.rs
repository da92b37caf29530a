//! The file that names the master's process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Plain, Result};

/// A file with this process's id and a newline. It is removed on drop, if it still names this
/// process: after an upgrade it names the new master. (A worker process drops nothing of the
/// master's.)
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Where it is until it is published.
    beside: PathBuf,
}

impl PidFile {
    /// Writes it beside the path. Nobody is to find it before this process is in charge.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn prepare(path: &Path) -> Result<Self> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let file = Self {
            path: path.to_owned(),
            beside: beside.into(),
        };
        let written = match path.is_dir() {
            true => Err(io::ErrorKind::IsADirectory.into()),
            false => fs::write(&file.beside, content()),
        };
        written.map_err(|error| failed(path, error))?;
        Ok(file)
    }

    /// Moves it to its place, over one that is there: whoever reads it finds the old one or the new
    /// one, never half of it.
    ///
    /// # Errors
    /// What rename(2) fails with.
    pub fn publish(&self) -> Result<()> {
        fs::rename(&self.beside, &self.path).map_err(|error| failed(&self.path, error))
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::new(format!("write pid file {}", path.display()), error)
}

fn content() -> String {
    format!("{}\n", std::process::id())
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Not there, unless it was never published.
        let _ = fs::remove_file(&self.beside);
        let ours = fs::read_to_string(&self.path).is_ok_and(|text| text == content());
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {}", self.path.display(), Plain(&error));
        }
    }
}
