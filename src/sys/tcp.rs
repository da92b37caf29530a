//! TCP socket options and counters that neither nix nor rustix has.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// So many bytes are with any client at once, whatever it has read: less than the smallest window
/// that a connection begins with.
pub const SURE_TO_ARRIVE: u64 = 1024;

/// Lets the kernel keep a new connection to itself until the client has sent something, for about
/// `wait`; then it is accepted all the same (tcp(7), TCP_DEFER_ACCEPT).
///
/// # Errors
/// What setsockopt(2) fails with.
pub fn defer_accept(listener: impl AsFd, wait: Duration) -> io::Result<()> {
    let seconds = libc::c_int::try_from(wait.as_secs()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option takes one int, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    checked(result)
}

/// How much has gone through a TCP connection since it began, as its processes see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were read from it.
    pub read: u64,
    /// Bytes that were written to it.
    pub written: u64,
}

/// Asks the kernel how much has gone through a TCP connection. The counters belong to the
/// connection, so this sees what other processes did with it.
///
/// # Errors
/// What getsockopt(2) and ioctl(2) fail with: EOPNOTSUPP or ENOPROTOOPT when it is no TCP
/// connection; `WouldBlock` when it did not stand still for long enough to be counted.
pub fn progress(socket: impl AsFd) -> io::Result<Progress> {
    // One call does not tell all, and the client goes on meanwhile: the counts belong together only
    // if nothing has come in between the first call and the last.
    let mut before = tcp_info(&socket)?;
    for _ in 0..ATTEMPTS {
        let unread = rustix::io::ioctl_fionread(&socket)?;
        let unacknowledged = unacknowledged(&socket)?;
        let after = tcp_info(&socket)?;
        if after.received_as_much_as(&before) {
            return Ok(after.progress(unread, unacknowledged));
        }
        before = after;
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// How often [`progress`] tries to count.
const ATTEMPTS: u32 = 100;

/// The part of the kernel's `struct tcp_info` (linux/tcp.h) up to the last field used here. The
/// kernel only ever appends to it, and fills as much as it is given room for.
#[repr(C)]
struct TcpInfo {
    state: u8,
    bytes: [u8; 7],
    words: [u32; 24],
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
}

impl TcpInfo {
    fn received_as_much_as(&self, other: &Self) -> bool {
        let counts = |info: &Self| (info.state, info.bytes_received, info.bytes_acked);
        counts(self) == counts(other)
    }

    fn progress(&self, unread: u64, unacknowledged: u64) -> Progress {
        // The kernel counts the client's FIN as one byte received, but not as one to be read.
        let fin = match self.state {
            CLOSE_WAIT | LAST_ACK | CLOSING | TIME_WAIT => 1,
            _ => 0,
        };
        Progress {
            read: self.bytes_received.saturating_sub(unread + fin),
            written: self.bytes_acked + unacknowledged,
        }
    }
}

// enum in linux/tcp_states.h
const TIME_WAIT: u8 = 6;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let mut info = MaybeUninit::<TcpInfo>::zeroed();
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    checked(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    if (length as usize) < size_of::<TcpInfo>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: the kernel has filled all of it, and every bit pattern is a value of it.
    Ok(unsafe { info.assume_init() })
}

/// How many connections wait in the backlog of a TCP listener.
///
/// # Errors
/// What getsockopt(2) fails with: EOPNOTSUPP or ENOPROTOOPT when it is no TCP socket.
pub fn backlog(listener: impl AsFd) -> io::Result<usize> {
    Ok(tcp_info(listener)?.words[UNACKED] as usize)
}

/// Where `tcpi_unacked` is among the words: for a listener, the length of its backlog (tcp_get_info
/// in the kernel).
const UNACKED: usize = 4;

/// Bytes written that the client has not acknowledged, the unsent ones included (tcp(7), SIOCOUTQ).
///
/// # Errors
/// What ioctl(2) fails with.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int, which lives across the call.
    checked(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) })?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Lets the kernel take so many bytes at the most that it cannot send yet (tcp(7),
/// TCP_NOTSENT_LOWAT); `None` is what the system's administrator has said.
///
/// # Errors
/// What setsockopt(2) fails with.
pub fn limit_unsent(socket: impl AsFd, most: Option<u32>) -> io::Result<()> {
    let most = most.unwrap_or(0);
    // SAFETY: the option takes one int, which lives across the call.
    checked(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const most).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    #[test]
    fn the_kernel_counts_what_was_read_and_written() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let counted = |read, written| Progress { read, written };
        assert_eq!(progress(&server).unwrap(), counted(0, 0));
        client.write_all(b"twelve bytes").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(progress(&server).unwrap(), counted(5, 0));
        server.write_all(b"four").unwrap();
        assert_eq!(progress(&server).unwrap(), counted(5, 4));
        client.read_exact(&mut [0; 4]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        server.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(progress(&server).unwrap(), counted(12, 4));
    }

    #[test]
    fn a_listener_tells_how_many_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(backlog(&listener).unwrap(), 0);
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _clients = [connect(), connect(), connect()];
        // The last packet of a handshake may be a moment on its way.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while backlog(&listener).unwrap() < 3 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(backlog(&listener).unwrap(), 3);
        let _server = listener.accept().unwrap();
        assert_eq!(backlog(&listener).unwrap(), 2);
        let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(backlog(&unix).is_err());
    }

    #[test]
    fn a_client_that_goes_on_sending_and_receiving_changes_no_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"read").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        // More than a send buffer takes at once, so that it is acknowledged bit by bit.
        server.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(count) = server.write(&[0; 65536]) {
            written += count as u64;
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.set_nonblocking(true).unwrap();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = client.write(b"!");
                    let _ = client.read(&mut [0; 1500]);
                }
            });
            let counted: Vec<_> = (0..5_000).map(|_| progress(&server)).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            for count in counted {
                match count {
                    Ok(now) => assert_eq!(now, Progress { read: 4, written }),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        });
    }

    #[test]
    fn no_counters_without_tcp() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(progress(&one).is_err());
    }
}
