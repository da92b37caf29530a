//! Unix socket options that neither nix nor rustix has.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

/// SO_PASSRIGHTS (linux/socket.h of Linux 6.16), on the architectures that share most numbers.
#[cfg(not(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "sparc",
    target_arch = "sparc64"
)))]
const SO_PASSRIGHTS: Option<libc::c_int> = Some(83);
#[cfg(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "sparc",
    target_arch = "sparc64"
))]
const SO_PASSRIGHTS: Option<libc::c_int> = None;

/// From now on nobody can send descriptors to this socket: whoever tries gets EPERM. Of a socket
/// that listens, those that it accepts inherit this. False where the kernel is older than Linux
/// 6.16.
///
/// # Errors
/// What setsockopt(2) fails with.
pub fn refuse_descriptors(socket: impl AsFd) -> io::Result<bool> {
    pass_rights(socket, false)
}

/// Takes that back.
///
/// # Errors
/// What setsockopt(2) fails with.
pub fn accept_descriptors(socket: impl AsFd) -> io::Result<bool> {
    pass_rights(socket, true)
}

fn pass_rights(socket: impl AsFd, pass: bool) -> io::Result<bool> {
    let Some(option) = SO_PASSRIGHTS else {
        return Ok(false);
    };
    let value = libc::c_int::from(pass);
    // SAFETY: the option takes one int, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if result == 0 => Ok(true),
        Some(libc::ENOPROTOOPT) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdpass::{Wait, receive, send};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::IoSlice;

    #[test]
    fn a_socket_that_refuses_descriptors_gets_none_and_can_send_them() {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        if !refuse_descriptors(&ours).unwrap() {
            // Not by a print macro, whose output the test runner keeps back.
            let line = "skipped: this kernel can't refuse descriptors\n";
            return io::Write::write_all(&mut io::stderr(), line.as_bytes()).unwrap();
        }
        let data = [IoSlice::new(b"*")];
        let refused = send(&theirs, &data, &[theirs.as_fd()], Wait::Dont).unwrap_err();
        let refused = io::Error::from(refused).raw_os_error();
        assert_eq!(refused, Some(libc::EPERM));
        send(&theirs, &data, &[], Wait::Dont).unwrap();
        send(&ours, &data, &[ours.as_fd()], Wait::Dont).unwrap();
        let message = receive(&theirs, &mut [0; 1], 1, Wait::Dont).unwrap();
        assert_eq!(message.descriptors.len(), 1);
    }
}
