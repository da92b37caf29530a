//! What a worker gives up before it serves: looked up and checked in the master, carried out in the
//! child.
//!
//! Owns the order of the calls. docs/privileges.md says why it is this one, and what it protects.

mod identity;
mod means;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::resource::{Resource as Rlimit, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, chdir, chroot};
use rustix::thread::CapabilitySet;

use crate::config::{Confinement, Resource};
use crate::error::{Error, Result};
use crate::lookup;
use crate::sys::descriptors::{is_directory, left_open, open_descriptors};
use identity::Identity;
use means::Means;

/// How many descriptors a worker has for itself: the standard streams, its inbox and a copy for the
/// signal handler, its doorbell, a log, a directory to serve, and one for what slow clients send.
const OWN_DESCRIPTORS: usize = 9;

/// How many descriptors each of its threads has: the connection, its luggage, another file that is
/// to be that, and a file to send.
const TURN_DESCRIPTORS: usize = 4;

/// Why a call that succeeded is no success.
const UNCHANGED: &str = "the call succeeded, and the kernel says that nothing has changed";

const RUN_ON: &str = "run on the processors that were named";

/// A confinement of which everything is known: no name has to be looked up any more, so that it can
/// be carried out where there is no user database, and in every later child as in the first.
#[derive(Debug, Clone)]
pub struct Plan {
    processors: Option<CpuSet>,
    limits: Vec<(Resource, u64)>,
    umask: Option<Mode>,
    root: Option<PathBuf>,
    identity: Option<Identity>,
    no_new_privs: bool,
}

impl Plan {
    /// Looks up and checks what can be checked before there is a worker. `threads` is how many
    /// turns a worker serves at the same time. Says in the log what is allowed and yet no
    /// protection.
    ///
    /// # Errors
    /// When there is no such user, group, directory or processor, when a limit can't be set or
    /// lived with, and when this process lacks the privileges.
    pub fn new(wanted: &Confinement, threads: usize) -> Result<Self> {
        let means = Means::own().map_err(|error| Error::new("ask who this process is", error))?;
        let plan = Self::with(wanted, threads, &means)?;
        // At a reload, the process that makes the look-ups has said it.
        if !lookup::is_replay() {
            plan.warn_of_ways_out();
        }
        Ok(plan)
    }

    fn with(wanted: &Confinement, threads: usize, means: &Means) -> Result<Self> {
        check_limits(&wanted.limits, threads, means)?;
        Ok(Self {
            processors: wanted.processors.as_deref().map(processors).transpose()?,
            limits: wanted.limits.clone(),
            umask: wanted.umask.map(permissions).transpose()?,
            root: match &wanted.chroot {
                Some(path) => Some(directory(path, means)?),
                None => None,
            },
            identity: Identity::resolve(wanted, means)?,
            no_new_privs: wanted.no_new_privs,
        })
    }

    /// Confines this process: the child, before it has a thread and before there is anything of the
    /// service's. After an error it is confined in part, and good for nothing.
    ///
    /// Each step is proved after it is done, because a sandbox can let a call do nothing and
    /// succeed all the same (seccomp(2)).
    ///
    /// # Errors
    /// What the calls fail with; also when they succeed, and it is not as it should be.
    pub fn apply(&self) -> Result<()> {
        // What takes privileges comes before they go.
        if let Some(processors) = &self.processors {
            run_on(processors)?;
        }
        for (resource, limit) in &self.limits {
            set_limit(*resource, *limit)?;
        }
        if let Some(mask) = self.umask {
            umask(mask);
            // The call cannot fail, and returns what was there before.
            if umask(mask) != mask {
                return Err(Error::because(masking(mask.bits()), UNCHANGED));
            }
        }
        if let Some(root) = &self.root {
            change_root(root)?;
        }
        if let Some(identity) = &self.identity {
            identity.assume()?;
        }
        if self.no_new_privs {
            let attempt = "do without new privileges";
            prctl::set_no_new_privs().map_err(|errno| Error::new(attempt, errno))?;
            if !prctl::get_no_new_privs().map_err(|errno| Error::new(attempt, errno))? {
                return Err(Error::because(attempt, UNCHANGED));
            }
        }
        Ok(())
    }

    fn warn_of_ways_out(&self) {
        let is_other = self.identity.as_ref().is_some_and(|one| !one.is_root());
        let left = match is_other || self.root.is_some() {
            true => left_open(),
            false => Vec::new(),
        };
        if !left.is_empty() {
            let named: Vec<_> = left
                .iter()
                .map(|fd| format!("{fd} ({})", target(*fd)))
                .collect();
            log::warn!(
                "workers have descriptors that the server was started with: {}",
                named.join(", ")
            );
        }
        let Some(root) = &self.root else {
            return;
        };
        if self.identity.as_ref().is_none_or(Identity::is_root) {
            log::warn!(
                "a worker can leave {}: it keeps the master's privileges, unless it gets a user",
                root.display()
            );
        }
        for (number, directory) in directories_outside(root) {
            log::warn!(
                "a worker can leave {}: descriptor {number}, which it keeps, is {directory}",
                root.display(),
            );
        }
    }
}

/// What a descriptor is, as /proc says it.
fn target(fd: RawFd) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{fd}"));
    link.map_or_else(|_| "unknown".to_owned(), |path| path.display().to_string())
}

fn confining(root: &Path) -> String {
    format!("confine workers to {}", root.display())
}

/// The real path of a directory that is to become the root of the workers. They get there by its
/// name, not by a descriptor: one that they kept would be a way back.
fn directory(path: &Path, means: &Means) -> Result<PathBuf> {
    let failed = |error: io::Error| Error::new(confining(path), error);
    let found = lookup::value(&format!("root directory {}", path.display()), || {
        let root = path.canonicalize().map_err(failed)?;
        if !fs::metadata(&root).map_err(failed)?.is_dir() {
            return Err(failed(Errno::ENOTDIR.into()));
        }
        Ok(root.into_os_string().into_vec())
    })?;
    let root = PathBuf::from(OsString::from_vec(found));
    if !means.may(CapabilitySet::SYS_CHROOT) {
        let reason = "it takes root, or CAP_SYS_CHROOT";
        return Err(Error::because(confining(path), reason));
    }
    Ok(root)
}

/// The open directories that are not at or below `root`, or may be elsewhere. A process that has
/// one can walk from there to anywhere.
fn directories_outside(root: &Path) -> Vec<(RawFd, String)> {
    let outside = |fd: &RawFd| {
        if !is_directory(*fd) {
            return None;
        }
        // Where it is, is known to /proc only.
        match fs::read_link(format!("/proc/self/fd/{fd}")) {
            Ok(path) if path.starts_with(root) => None,
            Ok(path) => Some((*fd, format!("the directory {}", path.display()))),
            Err(_) => Some((*fd, "a directory".to_owned())),
        }
    };
    open_descriptors().iter().filter_map(outside).collect()
}

fn masking(mask: u32) -> String {
    format!("give workers the umask {mask:o}")
}

fn permissions(mask: u32) -> Result<Mode> {
    let all = Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO;
    Mode::from_bits(mask)
        .filter(|mask| all.contains(*mask))
        .ok_or_else(|| Error::because(masking(mask), "it has more than the bits of 777"))
}

/// The set of these processors, each of which this process itself may run on.
fn processors(numbers: &[usize]) -> Result<CpuSet> {
    if numbers.is_empty() {
        let reason = "none is named";
        return Err(Error::because("choose the processors of workers", reason));
    }
    let own = sched_getaffinity(Pid::from_raw(0))
        .map_err(|errno| Error::new("ask which processors there are", errno))?;
    let mut chosen = CpuSet::new();
    for number in numbers {
        // Beyond the end of the set is not there either.
        if !own.is_set(*number).unwrap_or(false) || chosen.set(*number).is_err() {
            let attempt = format!("run workers on processor {number}");
            let reason = "it is not among those that the master may run on";
            return Err(Error::because(attempt, reason));
        }
    }
    Ok(chosen)
}

fn run_on(processors: &CpuSet) -> Result<()> {
    let failed = |errno| Error::new(RUN_ON, errno);
    sched_setaffinity(Pid::from_raw(0), processors).map_err(failed)?;
    let now = sched_getaffinity(Pid::from_raw(0)).map_err(failed)?;
    // The kernel leaves out those that its cpuset has lost since.
    let allowed = |number| now.is_set(number) != Ok(true) || processors.is_set(number) == Ok(true);
    match (0..CpuSet::count()).all(allowed) {
        true => Ok(()),
        false => Err(Error::because(RUN_ON, UNCHANGED)),
    }
}

fn set_limit(resource: Resource, limit: u64) -> Result<()> {
    let failed = |errno| Error::new(limiting(resource, limit), errno);
    setrlimit(rlimit(resource), limit, limit).map_err(failed)?;
    match getrlimit(rlimit(resource)).map_err(failed)? == (limit, limit) {
        true => Ok(()),
        false => Err(Error::because(limiting(resource, limit), UNCHANGED)),
    }
}

/// Makes `root` the root directory. The working directory goes along: one outside would be a way
/// out.
fn change_root(root: &Path) -> Result<()> {
    let failed = |error: io::Error| Error::new(confining(root), error);
    let place = |path: &Path| {
        let file = fs::metadata(path).map_err(failed)?;
        Ok((file.dev(), file.ino()))
    };
    let wanted = place(root)?;
    chroot(root).map_err(|errno| failed(errno.into()))?;
    chdir("/").map_err(|errno| failed(errno.into()))?;
    for path in ["/", "."] {
        if place(Path::new(path))? != wanted {
            return Err(Error::because(confining(root), UNCHANGED));
        }
    }
    Ok(())
}

fn check_limits(limits: &[(Resource, u64)], threads: usize, means: &Means) -> Result<()> {
    for (index, (resource, limit)) in limits.iter().enumerate() {
        let refused = |reason: String| Err(Error::because(limiting(*resource, *limit), reason));
        if limits[..index].iter().any(|(other, _)| other == resource) {
            return refused("it has a limit already".to_owned());
        }
        let (_, hard) = getrlimit(rlimit(*resource))
            .map_err(|errno| Error::new(limiting(*resource, *limit), errno))?;
        if *limit > hard && !means.may(CapabilitySet::SYS_RESOURCE) {
            return refused(format!("the hard limit is {hard}"));
        }
        if *resource == Resource::Nofile {
            let needed = OWN_DESCRIPTORS + threads * TURN_DESCRIPTORS;
            if *limit < needed as u64 {
                return refused(format!("a worker needs {needed} to serve anyone"));
            }
        }
    }
    Ok(())
}

fn limiting(resource: Resource, limit: u64) -> String {
    let name = match resource {
        Resource::As => "as",
        Resource::Core => "core",
        Resource::Cpu => "cpu",
        Resource::Data => "data",
        Resource::Fsize => "fsize",
        Resource::Memlock => "memlock",
        Resource::Nofile => "nofile",
        Resource::Nproc => "nproc",
        Resource::Stack => "stack",
    };
    format!("limit {name} of workers to {limit}")
}

fn rlimit(resource: Resource) -> Rlimit {
    match resource {
        Resource::As => Rlimit::RLIMIT_AS,
        Resource::Core => Rlimit::RLIMIT_CORE,
        Resource::Cpu => Rlimit::RLIMIT_CPU,
        Resource::Data => Rlimit::RLIMIT_DATA,
        Resource::Fsize => Rlimit::RLIMIT_FSIZE,
        Resource::Memlock => Rlimit::RLIMIT_MEMLOCK,
        Resource::Nofile => Rlimit::RLIMIT_NOFILE,
        Resource::Nproc => Rlimit::RLIMIT_NPROC,
        Resource::Stack => Rlimit::RLIMIT_STACK,
    }
}
