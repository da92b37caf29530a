//! SIGUSR2: the new program is started by the old master, with its arguments, its directory and its
//! standard streams.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use rustix::io::FdFlags;
use rustix::net::SocketType;

use super::messages::{OLDEST_VERSION, VERSION};
use super::session::Session;
use crate::error::{Error, Plain, Result};
use crate::master::child::Child;
use crate::master::master_only::MasterOnly;
use crate::master::office::service_manager::ServiceManager;
use crate::master::time::Time;
use crate::sys::{self, environment};

/// How the new program learns where the old master is: `DESCRIPTOR PARENT`.
const VARIABLE: &str = "BATOND_TAKEOVER";

/// How it learns which version of the protocol the old master speaks: `PARENT VERSION`. A program
/// that does not know this variable speaks version 1, and may leave it to the programs that it
/// starts itself. So it names the master which it is about.
const VERSION_VARIABLE: &str = "BATOND_TAKEOVER_VERSION";

/// The exit status of a process that could not execute a program, as shells have it.
const NOT_EXECUTED: u8 = 127;

/// How this program was started.
#[derive(Debug)]
pub struct Launch {
    program: PathBuf,
    /// The name first.
    arguments: Vec<OsString>,
}

impl Launch {
    /// Remembers it. To be called at the start: the name of a program that is replaced later must
    /// still mean the place, not the old file.
    #[must_use]
    pub fn of_this_program() -> Self {
        let arguments: Vec<_> = std::env::args_os().collect();
        let name = PathBuf::from(arguments.first().cloned().unwrap_or_default());
        let program = locate(&name).or_else(|| std::env::current_exe().ok());
        Self {
            program: program.unwrap_or(name),
            arguments,
        }
    }

    /// Starts the program again; `theirs` is its end of the session. `keep` are the descriptors
    /// that it has besides, `introduce` adds to its environment, and `detach` drops what of the
    /// master's must not live on.
    ///
    /// # Errors
    /// What fork(2) fails with.
    pub fn start(
        &self,
        theirs: &OwnedFd,
        keep: &[RawFd],
        introduce: impl FnOnce(&mut Command),
        detach: impl FnOnce(),
    ) -> io::Result<Child> {
        let descriptor = theirs.as_raw_fd();
        let keep: Vec<_> = keep.iter().copied().chain([descriptor]).collect();
        let parent = std::process::id();
        let mut command = Command::new(&self.program);
        if let [name, arguments @ ..] = &self.arguments[..] {
            command.arg0(name).args(arguments);
        }
        command.env(VARIABLE, format!("{descriptor} {parent}"));
        command.env(VERSION_VARIABLE, format!("{parent} {VERSION}"));
        introduce(&mut command);
        // As for a worker: no signal may reach the child while it still has the master's handlers,
        // which are gone when it executes the program. What is blocked then stays blocked.
        let mut before = SigSet::empty();
        let all = SigSet::all();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), Some(&mut before))?;
        let pid = sys::process::spawn(&keep, detach, || {
            let inherited = rustix::io::fcntl_setfd(theirs.as_fd(), FdFlags::empty());
            let unblocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
            let ready = inherited.map_err(io::Error::from);
            let ready = ready.and_then(|()| Ok(unblocked?));
            let error = ready.map_or_else(|error| error, |()| command.exec());
            log::error!(
                "cannot execute {}: {}",
                self.program.display(),
                Plain(&error)
            );
            NOT_EXECUTED
        });
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        Ok(Child::new(pid?))
    }
}

/// The programs that this master starts to take over from it.
#[derive(Debug)]
pub struct Upgrades {
    launch: Launch,
    /// Those that failed, and are to end.
    failed: Vec<Child>,
}

impl Upgrades {
    /// No upgrade yet, and later ones from this program's place.
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

    /// Starts the program again, as a child which knows the manager that this one has.
    ///
    /// # Errors
    /// What socketpair(2) and fork(2) fail with.
    pub fn start(
        &self,
        only: &mut MasterOnly,
        manager: &ServiceManager,
    ) -> io::Result<(Session, Child)> {
        let (ours, theirs) = Session::pair()?;
        let introduce = |command: &mut Command| manager.introduce(command);
        let MasterOnly { signals, inherited } = only;
        let detach = || drop(signals.take());
        let child = self.launch.start(&theirs, inherited, introduce, detach)?;
        Ok((ours, child))
    }

    /// Ends a program that failed: with its workers, which a killed one would leave behind.
    pub fn end(&mut self, child: Option<Child>, now: Time) {
        if let Some(mut child) = child {
            child.end(Signal::SIGQUIT, now);
            self.failed.push(child);
        }
    }

    /// A process has ended.
    pub fn forget(&mut self, pid: Pid) {
        self.failed.retain(|child| child.pid() != pid);
    }

    /// Kills what has not ended in time.
    pub fn escalate(&mut self, now: Time) {
        self.failed.iter_mut().for_each(|child| child.escalate(now));
    }

    /// When something is to be killed.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        self.failed.iter().filter_map(Child::due).min()
    }
}

impl std::fmt::Display for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.program.display().fmt(f)
    }
}

/// Where a program of this name is, as execvp(3) would find it.
fn locate(name: &Path) -> Option<PathBuf> {
    if name.as_os_str().is_empty() {
        return None;
    }
    if name.components().count() > 1 {
        return std::path::absolute(name).ok();
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
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
    let values = environment::take([VARIABLE, VERSION_VARIABLE]);
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
    fn a_name_with_a_slash_is_a_place_and_another_is_searched_for() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(locate(Path::new("./bin/x")), Some(here.join("bin/x")));
        assert_eq!(locate(Path::new("/bin/x")), Some("/bin/x".into()));
        assert_eq!(locate(Path::new("")), None);
        assert_eq!(locate(Path::new("no-such-program-at-all")), None);
        assert!(is_program(&locate(Path::new("sh")).unwrap()));
        assert!(!is_program(Path::new("/")));
    }
}
