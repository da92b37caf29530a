//! SIGUSR2: the new program is started by the old master, with its arguments, its directory and its
//! standard streams.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use rustix::io::FdFlags;
use rustix::net::SocketType;

use super::messages::{OLDEST_VERSION, VERSION};
use super::session::Session;
use crate::error::{Error, Plain, Result};
use crate::master::child::{self, Child, Descendant, Exit, LAST_CHANCE};
use crate::master::master_only::MasterOnly;
use crate::master::office::service_manager::ServiceManager;
use crate::master::time::Time;
use crate::sys::program::Launched;
use crate::sys::{self, environment as passed};

/// How the new program learns where the old master is: `DESCRIPTOR PARENT`.
const VARIABLE: &str = "BATOND_TAKEOVER";

/// How it learns which version of the protocol the old master speaks: `PARENT VERSION`. A program
/// that does not know this variable speaks version 1, and may leave it to the programs that it
/// starts itself. So it names the master which it is about.
const VERSION_VARIABLE: &str = "BATOND_TAKEOVER_VERSION";

/// The exit status of a process that could not execute a program, as shells have it.
const NOT_EXECUTED: u8 = 127;

/// What is started at an upgrade.
#[derive(Debug)]
pub struct Launch {
    /// `None` if this process can't tell which program it runs.
    program: Option<PathBuf>,
    /// The name first.
    arguments: Vec<OsString>,
}

impl Launch {
    /// This program, with its arguments. Call it at the start: the path of a program that is
    /// replaced later must still mean the place, not the old file.
    #[must_use]
    pub fn of_this_program() -> Self {
        Self {
            program: this_program(),
            arguments: std::env::args_os().collect(),
        }
    }

    /// Starts the program again; `theirs` is its end of the session. It gets the descriptors in
    /// `keep` and the `variables` as well, and `detach` drops what of the master's must not live on
    /// in it.
    ///
    /// # Errors
    /// What fork(2) fails with, and `NotFound` if the program is not known.
    pub fn start(
        &self,
        theirs: &OwnedFd,
        keep: &[RawFd],
        variables: Vec<(&'static str, OsString)>,
        detach: impl FnOnce(),
    ) -> io::Result<NewMaster> {
        let program = self.program.as_ref().ok_or_else(unknown_program)?;
        let program = c_string(program.as_os_str())?;
        let arguments: Vec<_> = self
            .arguments
            .iter()
            .map(c_string)
            .collect::<io::Result<_>>()?;
        let descriptor = theirs.as_raw_fd();
        let parent = std::process::id();
        let session = [
            (VARIABLE, format!("{descriptor} {parent}").into()),
            (VERSION_VARIABLE, format!("{parent} {VERSION}").into()),
        ];
        let environment = environment(session.into_iter().chain(variables))?;
        let keep: Vec<_> = keep.iter().copied().chain([descriptor]).collect();
        let execute = || {
            let inherited = rustix::io::fcntl_setfd(theirs.as_fd(), FdFlags::empty());
            let error = match inherited {
                Ok(()) => sys::program::execute(&program, &arguments, &environment),
                Err(error) => error.into(),
            };
            log::error!("cannot execute {self}: {}", Plain(&error));
            NOT_EXECUTED
        };
        let launch = |_: &_| sys::program::launch(&keep, detach, execute);
        Ok(NewMaster::new(sys::process::with_signals_blocked(launch)?))
    }
}

impl std::fmt::Display for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.program {
            Some(program) => program.display().fmt(f),
            None => f.write_str("this program"),
        }
    }
}

fn unknown_program() -> io::Error {
    let reason = "its path is not known, because /proc is not there";
    io::Error::new(io::ErrorKind::NotFound, reason)
}

fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    Ok(CString::new(text.as_ref().as_bytes())?)
}

/// The environment of this process, with these variables.
fn environment(
    variables: impl Iterator<Item = (&'static str, OsString)>,
) -> io::Result<Vec<CString>> {
    let mut all: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    all.extend(variables.map(|(name, value)| (name.into(), value)));
    let entry = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        c_string(name)
    };
    all.into_iter().map(entry).collect()
}

/// The path of the program that this process runs. The name among the arguments does not count,
/// because whoever starts a program can choose any.
fn this_program() -> Option<PathBuf> {
    let path = sys::program::executed_path().and_then(|path| std::path::absolute(path).ok());
    // A program that was started through a descriptor has a path that means nothing later.
    let path = path.filter(|path| !path.starts_with("/dev/fd") && !path.starts_with("/proc"));
    let Ok(running) = Path::new(RUNNING).metadata() else {
        // Without /proc it can't be checked that the path leads to this program.
        return path;
    };
    let is_running = |path: &PathBuf| {
        let identity = |file: &Metadata| (file.dev(), file.ino());
        path.metadata()
            .is_ok_and(|file| identity(&file) == identity(&running))
    };
    // The path as it was given comes first, so that a symbolic link in it is followed anew.
    path.filter(is_running).or_else(|| {
        let path = std::fs::read_link(RUNNING).ok()?;
        let bytes = path.as_os_str().as_bytes();
        // It was replaced since it was started.
        let place = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
        Some(OsStr::from_bytes(place).into())
    })
}

/// The file that this process runs, whatever its path is by now (proc(5)).
const RUNNING: &str = "/proc/self/exe";

/// Why a master that is process 1 of its PID namespace can't be replaced by a process there.
const PROCESS_1: &str = "this master is process 1 of its container, which ends with it: run an init \
                         as process 1, or start the new master with --takeover in another container";

/// Why this process can't hand over to another one in its PID namespace, if it can't.
#[must_use]
pub fn obstacle() -> Option<&'static str> {
    (std::process::id() == 1).then_some(PROCESS_1)
}

/// A new master that this one has started.
///
/// It is not this master's child, but the child of a launcher between them. A service manager waits
/// for the main process of a service only if that is its own child, so the new master must become
/// that before the manager hears of it. It does when the launcher ends. Until then the launcher
/// waits for the new master, so that this one learns how it ends.
#[derive(Debug)]
pub struct NewMaster {
    pid: Pid,
    /// Means this process even when another one has got its number; `None` if it has ended already.
    process: Option<Descendant>,
    /// `None` once the new master is on its own.
    launcher: Option<Launcher>,
    kill_at: Option<Time>,
}

#[derive(Debug)]
struct Launcher {
    child: Child,
    report: OwnedFd,
}

impl NewMaster {
    fn new(launched: Launched) -> Self {
        let Launched {
            pid,
            launcher,
            report,
        } = launched;
        let process = Descendant::by_pid(pid);
        let child = Child::new(launcher);
        Self {
            pid,
            process,
            launcher: Some(Launcher { child, report }),
            kill_at: None,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether a child of this master is the launcher.
    #[must_use]
    pub fn is_launched_by(&self, child: Pid) -> bool {
        let launcher = self.launcher.as_ref();
        launcher.is_some_and(|launcher| launcher.child.pid() == child)
    }

    /// Whether its launcher will say how it ends.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.launcher.is_some()
    }

    /// How the new master has ended, when its launcher has; `None` if it may still run, because the
    /// launcher was killed.
    pub fn end_of_launcher(&mut self) -> Option<Exit> {
        let launcher = self.launcher.take()?;
        match sys::program::read_end(self.pid, launcher.report)? {
            WaitStatus::Exited(_, status) => Some(Exit::Exited(status)),
            WaitStatus::Signaled(_, signal, _) => Some(Exit::Killed(signal)),
            _ => None,
        }
    }

    /// Leaves the new master to the reaper above this one, for good, which is the service manager
    /// or process 1. From now on it is not known here how it ends.
    pub fn set_free(&mut self) {
        if let Some(Launcher { mut child, .. }) = self.launcher.take() {
            child.kill();
            child::reap(&[child]);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }
}

/// The programs that this master starts to take over from it.
#[derive(Debug)]
pub struct Upgrades {
    launch: Launch,
    /// Those that failed, and are to end.
    failed: Vec<NewMaster>,
}

impl Upgrades {
    /// No upgrade yet. Later ones start this program again.
    #[must_use]
    pub fn of_this_program() -> Self {
        Self {
            launch: Launch::of_this_program(),
            failed: Vec::new(),
        }
    }

    /// What is started.
    #[must_use]
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Starts the program again, which then knows the service manager that this master has.
    ///
    /// # Errors
    /// What socketpair(2) and fork(2) fail with, and `NotFound` if the program is not known.
    pub fn start(
        &self,
        only: &mut MasterOnly,
        manager: &ServiceManager,
    ) -> io::Result<(Session, NewMaster)> {
        let (ours, theirs) = Session::pair()?;
        let MasterOnly { signals, inherited } = only;
        let detach = || drop(signals.take());
        let variables = manager.variables();
        let new = self.launch.start(&theirs, inherited, variables, detach)?;
        Ok((ours, new))
    }

    /// Ends a new master that failed: with its workers, which one that is killed would leave
    /// behind.
    pub fn end(&mut self, new: Option<NewMaster>, now: Time) {
        if let Some(mut new) = new {
            new.signal(Signal::SIGQUIT);
            new.kill_at = Some(now.after(LAST_CHANCE));
            self.failed.push(new);
        }
    }

    /// A child of this master has ended.
    pub fn forget(&mut self, pid: Pid) {
        self.failed.retain(|new| !new.is_launched_by(pid));
    }

    /// Kills what has not ended in time.
    pub fn escalate(&mut self, now: Time) {
        let is_due = |new: &mut NewMaster| new.kill_at.is_some_and(|at| at <= now);
        for new in self.failed.extract_if(.., is_due) {
            new.signal(Signal::SIGKILL);
        }
    }

    /// This master ends: what it has started is on its own from now on.
    pub fn set_free(&mut self) {
        self.failed.iter_mut().for_each(NewMaster::set_free);
    }

    /// The next time that something is to be killed.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        self.failed.iter().filter_map(|new| new.kill_at).min()
    }
}

/// The socket to the master that has started this program to take over from it.
#[derive(Debug)]
pub struct OfferedSession {
    /// This program's end.
    pub socket: OwnedFd,
    /// The newest version of the protocol that the old master speaks.
    pub version: u32,
}

/// The session that the master has offered which has started this program, if one has. To be called
/// once, before there are threads.
///
/// # Errors
/// When the environment can't be changed any more.
pub fn inherited_session() -> Result<Option<OfferedSession>> {
    // No worker, and nothing that one starts, is to find it.
    let values = passed::take([VARIABLE, VERSION_VARIABLE]);
    let [value, version] = values
        .map_err(|error| Error::new(format!("take {VARIABLE} out of the environment"), error))?;
    let Some(name) = value.as_ref().and_then(|value| value.to_str()) else {
        return Ok(None);
    };
    let version = version.as_ref().and_then(|version| version.to_str());
    Ok(session_named(name).map(|socket| OfferedSession {
        socket,
        version: version_of(name, version),
    }))
}

/// The version that the master of a session speaks, by what the two variables say.
fn version_of(name: &str, version: Option<&str>) -> u32 {
    let parent = name.split_once(' ').map(|(_, parent)| parent);
    let said = version.and_then(|text| text.split_once(' '));
    let said = said.filter(|(about, _)| Some(*about) == parent);
    said.and_then(|(_, version)| version.parse().ok())
        .unwrap_or(OLDEST_VERSION)
}

/// The socket of this name, if it is one whose other end that master has made. The name may have
/// come from anywhere, and the number mean something that is none of this program's business.
fn session_named(name: &str) -> Option<OwnedFd> {
    let (descriptor, parent) = name.split_once(' ')?;
    let parent: i32 = parent.parse().ok()?;
    let descriptor: RawFd = descriptor.parse().ok().filter(|number| *number > 2)?;
    let session = sys::process::claim(descriptor)?;
    let kind = rustix::net::sockopt::socket_type(&session).ok();
    let maker = getsockopt(&session, PeerCredentials).ok();
    if kind != Some(SocketType::SEQPACKET) || maker.map(|maker| maker.pid()) != Some(parent) {
        // It is something else, and somebody else's.
        std::mem::forget(session);
        return None;
    }
    let _ = rustix::io::fcntl_setfd(&session, FdFlags::CLOEXEC);
    Some(session)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn only_a_socket_of_the_master_that_is_named_is_a_session() {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let family = rustix::net::AddressFamily::UNIX;
        let pair = |kind| rustix::net::socketpair(family, kind, flags, None).unwrap();
        let own = std::process::id();
        let (stream, _other_end) = pair(SocketType::STREAM);
        let (session, other) = pair(SocketType::SEQPACKET);
        let (stream, session) = (stream.as_raw_fd(), session.into_raw_fd());
        for name in [
            String::new(),
            "4".to_owned(),
            "4 x".to_owned(),
            format!("-1 {own}"),
            format!("0 {own}"),
            format!("1048575 {own}"),
            format!("{stream} {own}"),
            format!("{session} {}", own + 1),
            format!("{session} {own} "),
        ] {
            assert!(session_named(&name).is_none(), "{name:?}");
        }
        let session = session_named(&format!("{session} {own}"));
        drop(session.expect("it is one"));
        let gone = rustix::net::send(&other, b"x", rustix::net::SendFlags::NOSIGNAL);
        assert_eq!(gone, Err(rustix::io::Errno::PIPE));
    }

    #[test]
    fn only_the_master_that_offers_the_session_says_its_version() {
        assert_eq!(version_of("7 100", Some("100 2")), 2);
        assert_eq!(version_of("7 100", None), 1);
        // Left behind by a master that did not know the variable.
        assert_eq!(version_of("7 100", Some("99 2")), 1);
        assert_eq!(version_of("7 100", Some("100")), 1);
        assert_eq!(version_of("7 100", Some("100 x")), 1);
    }

    #[test]
    fn the_program_is_the_one_that_runs() {
        let program = this_program().expect("/proc is there");
        assert_eq!(program, std::env::current_exe().unwrap());
    }
}
