//! The program that this process runs, and starting a program that outlives its parent.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, execve, getpid, getppid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::descriptors::close_all_but;
use super::process::spawn;

/// How long two forks may take. Only a machine without memory comes near that.
const FORK_LIMIT: Duration = Duration::from_secs(5);

/// The path that this process was started with, as the kernel was given it (getauxval(3),
/// AT_EXECFN). Unlike the name among the arguments, which is whatever the caller wanted, it has led
/// to the program. It may be relative, and lead elsewhere by now.
#[must_use]
pub fn executed_path() -> Option<PathBuf> {
    // SAFETY: it reads a vector that the kernel has made for this process.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) };
    if address == 0 {
        return None;
    }
    // SAFETY: it is the address of a text that ends with a NUL, and lives as long as the process.
    let path = unsafe { CStr::from_ptr(address as *const libc::c_char) };
    let path = OsStr::from_bytes(path.to_bytes());
    (!path.is_empty()).then(|| path.into())
}

/// Executes a program in place of this one, with no signal blocked or ignored that its own programs
/// would not expect so. It returns only if that fails. A file that is no program is not given to a
/// shell, as execvp(3) would.
pub fn execute(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    // SAFETY: the default action needs no handler. (Rust's runtime has ignored it at the start.)
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let unblocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    let executed: nix::Result<Infallible> =
        unblocked.and_then(|()| execve(program, arguments, environment));
    match executed {
        Err(error) => error.into(),
    }
}

/// A process that was started by [`launch`].
#[derive(Debug)]
pub struct Launched {
    /// The process itself.
    pub pid: Pid,
    /// Its parent, and a child of this process: the launcher. When it ends, the process becomes the
    /// child of the nearest reaper above, which is a service manager or process 1.
    pub launcher: Pid,
    /// Where the launcher says how the process has ended; see [`read_end`].
    pub report: OwnedFd,
}

/// Starts a process through another one in between, the launcher, which waits for it. So it can be
/// given another parent while it runs, by ending the launcher. As long as the launcher is there,
/// how the process ends is known here. The launcher is killed when this process ends.
///
/// `keep`, `detach` and `main` are as for [`spawn`]. All signals must be blocked.
///
/// # Errors
/// What fork(2) and pipe(2) fail with; and `TimedOut` after [`FORK_LIMIT`]. A launcher that has
/// been started is killed, and the caller reaps it like any child.
pub fn launch(
    keep: &[RawFd],
    detach: impl FnOnce(),
    main: impl FnOnce() -> u8,
) -> io::Result<Launched> {
    let (report, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let parent = getpid();
    let with_report: Vec<_> = keep.iter().copied().chain([write.as_raw_fd()]).collect();
    let between = || launcher(parent, keep, File::from(write), main);
    let launcher = spawn(&with_report, detach, between)?;
    match read_pid(&report) {
        Ok(pid) => Ok(Launched {
            pid,
            launcher,
            report,
        }),
        Err(error) => {
            let _ = nix::sys::signal::kill(launcher, Signal::SIGKILL);
            Err(error)
        }
    }
}

/// The main function of the launcher.
fn launcher(parent: Pid, keep: &[RawFd], mut report: File, main: impl FnOnce() -> u8) -> u8 {
    let pid = match spawn(keep, || {}, main) {
        Ok(pid) => pid,
        Err(error) => {
            let number = error.raw_os_error().unwrap_or(libc::EAGAIN);
            let _ = report.write_all(&(-number).to_ne_bytes());
            return 1;
        }
    };
    // What the new process has closed must be closed here too: else a connection would have no end.
    if close_all_but(&[report.as_raw_fd()]).is_err() {
        return 1;
    }
    let _ = set_pdeathsig(Signal::SIGKILL);
    if getppid() != parent || report.write_all(&pid.as_raw().to_ne_bytes()).is_err() {
        return 1;
    }
    let (kind, number) = loop {
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, status)) => break (0, status),
            Ok(WaitStatus::Signaled(_, signal, _)) => break (1, signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return 1,
        }
    };
    let mut message = [kind; 5];
    message[1..].copy_from_slice(&i32::to_ne_bytes(number));
    let _ = report.write_all(&message);
    0
}

fn read_pid(report: &OwnedFd) -> io::Result<Pid> {
    let timeout = Timespec::try_from(FORK_LIMIT).map_err(io::Error::other)?;
    let mut readable = [PollFd::new(report, PollFlags::IN)];
    if poll(&mut readable, Some(&timeout))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut number = [0; 4];
    File::from(report.try_clone()?).read_exact(&mut number)?;
    match i32::from_ne_bytes(number) {
        pid @ 1.. => Ok(Pid::from_raw(pid)),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// How a launched process has ended, once its launcher has ended; `None` if the launcher was killed
/// before.
#[must_use]
pub fn read_end(launched: Pid, report: OwnedFd) -> Option<WaitStatus> {
    let mut message = [0; 5];
    File::from(report).read_exact(&mut message).ok()?;
    let [kind, number @ ..] = message;
    let number = i32::from_ne_bytes(number);
    match kind {
        0 => Some(WaitStatus::Exited(launched, number)),
        _ => Some(WaitStatus::Signaled(
            launched,
            Signal::try_from(number).ok()?,
            false,
        )),
    }
}
