//! What the command line says about a configuration. Pure.

use std::path::PathBuf;

use crate::config::address::Address;
use crate::config::keys::Choice;
use crate::config::server::ServiceConfig;
use crate::config::unix_access::UnixAccess;

/// The flags that were given. They take precedence over the file; a flag that was not given leaves
/// the file's value alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    /// Replaces the addresses of a single pool.
    pub(crate) listen: Vec<Address>,
    /// Replaces the service of a single pool.
    pub(crate) service: Option<ServiceConfig>,
    /// Settings that apply to every pool.
    pub(crate) choices: Vec<Choice>,
    /// The directory in which the workers of every pool keep what is too much for memory.
    pub(crate) body_dir: Option<PathBuf>,
    /// The user that the workers of every pool run as.
    pub(crate) user: Option<String>,
    /// The group that the workers of every pool run as.
    pub(crate) group: Option<String>,
    /// Who may connect to the Unix sockets of every pool.
    pub(crate) unix: UnixAccess,
    /// The file to which log lines are appended.
    pub(crate) log_file: Option<PathBuf>,
    /// The file in which the master writes its process id.
    pub(crate) pid_file: Option<PathBuf>,
    /// The Unix socket on which a new master asks to take over.
    pub(crate) control: Option<PathBuf>,
}

impl Flags {
    /// The first of the flags that can apply to one pool only, by the name that a message gives it.
    pub(crate) fn for_single_pool(&self) -> Option<&'static str> {
        match (&self.listen[..], &self.service) {
            ([_, ..], _) => Some("--listen"),
            ([], Some(_)) => Some("a service on the command line"),
            ([], None) => None,
        }
    }
}
