//! What the workers of a pool give up before they serve. Pure.

use std::path::PathBuf;

/// What a worker gives up before it serves. The default gives up nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confinement {
    /// The user to run as: a name or a number.
    pub user: Option<String>,
    /// The group to run as: a name or a number. `None` stands for the user's own group.
    pub group: Option<String>,
    /// The supplementary groups: names or numbers. `None` stands for those of the user.
    pub groups: Option<Vec<String>>,
    /// The directory that the worker sees as its root (chroot(2)).
    pub chroot: Option<PathBuf>,
    /// Whether nothing that the worker executes can gain privileges (prctl(2),
    /// PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
    /// The permission bits that files created by the worker do not get (umask(2)).
    pub umask: Option<u32>,
    /// Limits of resources (setrlimit(2)). Each is set as the soft and as the hard limit.
    pub limits: Vec<(Resource, u64)>,
    /// The processors that the worker may run on, numbered from 0 (sched_setaffinity(2)).
    pub processors: Option<Vec<usize>>,
}

/// A resource that can be limited. The names are those of setrlimit(2), without `RLIMIT_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// The address space, in bytes.
    As,
    /// A core file, in bytes.
    Core,
    /// Processor time, in seconds.
    Cpu,
    /// The data segment, in bytes.
    Data,
    /// A file that the worker writes, in bytes.
    Fsize,
    /// Memory locked into RAM, in bytes.
    Memlock,
    /// The number of open descriptors.
    Nofile,
    /// The number of processes and threads of the worker's user.
    Nproc,
    /// The stack, in bytes.
    Stack,
}
