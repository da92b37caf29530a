//! Where a server's configuration comes from: a file, the command line, or both. A reload asks it
//! again.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::config::flags::Flags;
use crate::config::{self, Address, Config, Settings};
use crate::error::{Error, Result};
use crate::lookup;
use crate::sys::{directory, processors};

/// The most bytes that a configuration file may have, because something that has no end (/dev/zero)
/// must not be read to its end.
const LONGEST: u64 = 1 << 20;

/// A file, flags, or both.
#[derive(Debug, Clone)]
pub(super) struct ConfigSource {
    /// The configuration file; `None` if the flags say all.
    pub(super) file: Option<PathBuf>,
    /// What the command line said, which wins over the file.
    pub(super) flags: Flags,
}

impl ConfigSource {
    /// The configuration as it is now: the file is read each time.
    ///
    /// # Errors
    /// When the file cannot be read, or something is wrong with it or with what the flags make of
    /// it.
    pub(super) fn load(&self) -> Result<Config> {
        let defaults = Settings::for_processors(processors::available());
        let config = match &self.file {
            Some(file) => config::parse(&read(file)?, file, &self.flags, &defaults)?,
            None => config::without_file(&self.flags, &defaults)
                .map_err(|reason| Error::because(self.attempt(), reason))?,
        };
        // At a reload the planner has looked; the master is not to wait for a file system.
        if !lookup::is_replay()
            && let Some([one, other]) = shared_path(&config)
        {
            let reason = format!("{one} and {other} are the same file");
            return Err(Error::because(self.attempt(), reason));
        }
        Ok(config)
    }

    fn attempt(&self) -> String {
        match &self.file {
            Some(file) => format!("read {}", file.display()),
            None => "use the command line".to_owned(),
        }
    }
}

/// Two keys with the same path, however it is written: what is made there last would take the place
/// of what was there, and a log would go on in a file that has no name.
fn shared_path(config: &Config) -> Option<[String; 2]> {
    let keys = [
        ("log.file", &config.log.file),
        ("pid-file", &config.pid_file),
        ("control", &config.control),
    ];
    let keys = keys.into_iter().filter_map(|(key, path)| {
        let path = path.as_deref()?;
        Some((format!("{key} {}", path.display()), path))
    });
    let listeners = config.pools.iter().flat_map(|pool| &pool.listen);
    let sockets = listeners.filter_map(|address| match address {
        Address::Unix(path) => Some((address.to_string(), path.as_path())),
        _ => None,
    });
    let mut seen = HashMap::new();
    keys.chain(sockets).find_map(|(text, path)| {
        let former = seen.insert(directory::place(path)?, text.clone())?;
        Some([former, text])
    })
}

/// The text of a configuration file. The first time it may be anything that has an end, a pipe too
/// (`-c <(...)`). For a reload it must be a regular file: nothing else can be read again, and some
/// (FIFOs) would be waited for.
fn read(path: &Path) -> Result<String> {
    let attempt = || format!("read {}", path.display());
    let text = lookup::value(&format!("file {}", path.display()), || {
        let mut text = Vec::new();
        let mut options = OpenOptions::new();
        options.read(true);
        if lookup::is_for_reload() {
            options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        }
        let failed = |error: io::Error| Error::new(attempt(), error);
        let file = options.open(path).map_err(failed)?;
        if lookup::is_for_reload() && !file.metadata().map_err(failed)?.is_file() {
            let reason = "it is not a regular file, and can be read at the start only";
            return Err(Error::because(attempt(), reason));
        }
        file.take(LONGEST + 1)
            .read_to_end(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > LONGEST {
            let reason = format!("it has more than {LONGEST} bytes");
            return Err(Error::because(attempt(), reason));
        }
        Ok(text)
    })?;
    String::from_utf8(text).map_err(|_| Error::because(attempt(), "the text is not UTF-8"))
}
