//! What the workers of a pool may do: as whom they run, where, and with how much of the machine. Pure.

use std::path::PathBuf;

/// What a worker gives up before it serves. The default gives up nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confinement {
    /// Runs as this user: a name or a number.
    pub user: Option<String>,
    /// Runs as this group, a name or a number; the user's own, unless told.
    pub group: Option<String>,
    /// The supplementary groups, names or numbers; those of the user, unless told.
    pub groups: Option<Vec<String>>,
    /// Sees this directory as its root.
    pub chroot: Option<PathBuf>,
    /// Can gain no privileges by executing anything (prctl(2), PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
    /// The permissions that files it makes do not get.
    pub umask: Option<u32>,
    /// Limits (setrlimit(2)), soft and hard the same.
    pub limits: Vec<(Resource, u64)>,
    /// The processors that it may run on, from 0.
    pub processors: Option<Vec<usize>>,
}

/// A resource that can be limited. The names are those of setrlimit(2), without `RLIMIT_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Bytes of address space.
    As,
    /// Bytes of a core file.
    Core,
    /// Seconds of processor time.
    Cpu,
    /// Bytes of the data segment.
    Data,
    /// Bytes of a file that it writes.
    Fsize,
    /// Bytes locked in memory.
    Memlock,
    /// Open descriptors.
    Nofile,
    /// Processes of its user.
    Nproc,
    /// Bytes of stack.
    Stack,
}
