//! Connects send-fd to its receiver. Where that fails, looks at what stands at the path, so that
//! the reason given is what was found there and not a guess.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, connect as connect_to, sockopt};

use super::socket::{Kind, Socket, not_a_socket};
use crate::error::{Error, Plain, Result};
use crate::sys::socket_path::{address, probe};

/// Connects to the receiver; waits at most this long until it has room for one more.
pub(super) fn connect(to: &Socket, patience: Duration) -> Result<OwnedFd> {
    let attempt = || format!("connect to {}", to.path.display());
    let failed = |errno: Errno| Error::new(attempt(), errno);
    let address = address(&to.path).map_err(|error| Error::new(attempt(), error))?;
    let socket = to.open().map_err(failed)?;
    let wait = |time| sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, time);
    let start = Instant::now();
    loop {
        let remaining = patience.saturating_sub(start.elapsed());
        // Zero would mean no limit.
        wait(Some(remaining.max(Duration::from_millis(1)))).map_err(failed)?;
        match connect_to(&socket, &address) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let seconds = start.elapsed().as_secs();
                let reason = format!("the receiver accepted no connection for {seconds} seconds");
                return Err(Error::because(attempt(), reason));
            }
            Err(errno) => {
                return Err(match reason(to, &address, errno) {
                    Some(reason) => {
                        let cause = errno.into();
                        Error::because(attempt(), format!("{} ({reason})", Plain(&cause)))
                    }
                    None => failed(errno),
                });
            }
        }
    }
    Ok(socket)
}

/// Why the receiver cannot be reached, from what is at the path now; nothing if the error says it
/// all.
fn reason(to: &Socket, address: &SocketAddrUnix, errno: Errno) -> Option<String> {
    let path = to.path.as_path();
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return missing(path),
        Err(_) => return None,
    };
    if let Some(what) = not_a_socket(meta.file_type()) {
        return Some(format!("it is {what}, not a socket"));
    }
    match (errno, to.kind) {
        (Errno::CONNREFUSED, kind) => Some(match probe(address) {
            Err(Errno::CONNREFUSED) => "no process has this socket open; start recv-fd".into(),
            Err(Errno::PROTOTYPE) if kind == Kind::Stream => {
                "a process has it open, but does not listen on it".into()
            }
            _ => return None,
        }),
        (Errno::PROTOTYPE, Kind::Datagram) => {
            Some("it is not a datagram socket; leave out -d".into())
        }
        (Errno::PROTOTYPE, Kind::Stream) => Some(match probe(address) {
            Ok(()) | Err(Errno::PERM) => "it is a datagram socket; add -d".into(),
            Err(Errno::PROTOTYPE) => {
                "it is a SEQPACKET socket, which send-fd does not speak with".into()
            }
            Err(_) => return None,
        }),
        (Errno::ACCESS, _) => Some(format!(
            "it belongs to user {} and has mode {:04o}",
            meta.uid(),
            meta.mode() & 0o7777
        )),
        _ => None,
    }
}

/// What is missing where nothing is at the path.
fn missing(path: &Path) -> Option<String> {
    if let Ok(target) = fs::read_link(path) {
        let target = target.display();
        return Some(format!(
            "it is a symbolic link to {target}, which is not there"
        ));
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    match parent.map(|parent| (parent, fs::metadata(parent))) {
        Some((parent, Err(error))) if error.kind() == io::ErrorKind::NotFound => {
            Some(format!("there is no directory {}", parent.display()))
        }
        _ => Some("is recv-fd running?".into()),
    }
}
