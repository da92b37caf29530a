//! The configuration of a server and of its pools, complete and consistent. Pure.

use std::fmt;
use std::path::PathBuf;

use crate::config::address::Address;
use crate::config::confinement::Confinement;
use crate::config::settings::Settings;

/// The longest name of a pool, in bytes, because most lines of the log contain it.
const LONGEST_NAME: usize = 64;

/// Says what was expected, if this cannot be the name of a pool.
pub(crate) fn name_fault(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let good = (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(fits);
    let allowed = "letters, digits, hyphens, underscores and dots";
    (!good).then(|| format!("expected 1 to {LONGEST_NAME} {allowed}"))
}

/// All that the command line and the file say about a server, with the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What is logged, and where.
    pub log: Log,
    /// The file in which the master writes its process id.
    pub pid_file: Option<PathBuf>,
    /// The Unix socket on which a new master asks to take over.
    pub control: Option<PathBuf>,
    /// At least one pool. No two have the same name or the same address.
    pub pools: Vec<PoolConfig>,
}

/// What is logged, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    /// The levels to log, in the syntax of the variable `RUST_LOG`, which takes precedence.
    pub filter: Option<String>,
    /// The file to which lines are appended; `None` stands for stderr.
    pub file: Option<PathBuf>,
}

/// A pool: the workers that run one service, and the addresses at which they are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// The pool's name in the log, and for a reload or a new master.
    pub name: String,
    /// At least one address to listen on, but for a pool to which others pass requests.
    pub listen: Vec<Address>,
    /// The service that the workers run.
    pub service: ServiceConfig,
    /// How many workers there are, how long they live, and how much clients may ask of them.
    pub settings: Settings,
    /// What the workers give up before they serve.
    pub confinement: Confinement,
}

/// One of the services that are built into batond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceConfig {
    /// Pages that show which worker has answered.
    Demo,
    /// Sends back what the client sends.
    Echo,
    /// Serves the files beneath a directory, over HTTP.
    Http {
        /// The directory to serve.
        root: PathBuf,
        /// The pool that answers what is no file.
        fallback: Option<String>,
    },
}

impl ServiceConfig {
    /// The pool to which the service passes requests, if there is one.
    #[must_use]
    pub fn fallback(&self) -> Option<&str> {
        match self {
            Self::Http { fallback, .. } => fallback.as_deref(),
            Self::Demo | Self::Echo => None,
        }
    }
}

impl fmt::Display for ServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demo => f.write_str("demo"),
            Self::Echo => f.write_str("echo"),
            Self::Http { root, fallback } => {
                write!(f, "http {}", root.display())?;
                let fallback = fallback.as_ref();
                fallback.map_or(Ok(()), |pool| write!(f, ", else pool {pool}"))
            }
        }
    }
}
