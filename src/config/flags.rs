//! What a command line says of a configuration. Pure.

use std::path::PathBuf;

use super::keys::Choice;
use super::{Address, ServiceConfig};

/// What was said, and nothing of what was not. It wins over what a file says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    /// Instead of the addresses of the only pool.
    pub(crate) listen: Vec<Address>,
    /// Instead of the service of the only pool.
    pub(crate) service: Option<ServiceConfig>,
    /// For every pool.
    pub(crate) choices: Vec<Choice>,
    /// As whom the workers of every pool run.
    pub(crate) user: Option<String>,
    /// As which group.
    pub(crate) group: Option<String>,
    /// Where log lines go.
    pub(crate) log_file: Option<PathBuf>,
    /// The file that names the master's process.
    pub(crate) pid_file: Option<PathBuf>,
    /// The socket over which a new master takes over.
    pub(crate) control: Option<PathBuf>,
}

impl Flags {
    /// What was said that only one pool can obey.
    pub(crate) fn for_one_pool(&self) -> Option<&'static str> {
        match (&self.listen[..], &self.service) {
            ([_, ..], _) => Some("--listen"),
            ([], Some(_)) => Some("a service on the command line"),
            ([], None) => None,
        }
    }
}
