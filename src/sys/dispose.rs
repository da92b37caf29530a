//! Closing descriptors by other processes, because close(2) can take any time: the last one of a
//! socket waits for its client (socket(7), SO_LINGER), that of a file without a name frees its
//! blocks, and each one asks a file system that is a process (FUSE), which may not answer.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::pipe::{PipeFlags, pipe_with};

use super::process::{exit_now, spawn, with_signals_blocked};

/// Has a child process close these descriptors for the last time, while this one goes on: they are
/// files of which each close but the last takes no time.
///
/// # Errors
/// What pipe2(2) and fork(2) fail with, and `Unsupported` if this process has other threads. The
/// descriptors come back then: without a child, they are to stay open.
pub fn close_elsewhere(descriptors: Vec<OwnedFd>) -> Result<(), (io::Error, Vec<OwnedFd>)> {
    match fork_closer(&descriptors) {
        Ok(release) => {
            // The child has them still, so that this is not the last time.
            drop(descriptors);
            drop(release);
            Ok(())
        }
        Err(error) => Err((error, descriptors)),
    }
}

/// A child that has copies of these until the descriptor which is returned is closed.
fn fork_closer(descriptors: &[OwnedFd]) -> io::Result<OwnedFd> {
    let (until, release) = pipe_with(PipeFlags::CLOEXEC)?;
    let keep = descriptors.iter().chain([&until]);
    let keep: Vec<_> = keep.map(AsRawFd::as_raw_fd).collect();
    let wait = || {
        while rustix::io::read(&until, &mut [0; 1]) == Err(rustix::io::Errno::INTR) {}
        0
    };
    with_signals_blocked(|_| spawn(&keep, || {}, wait))?;
    Ok(release)
}

/// Has other processes close descriptors of which nothing is known, each close of them: that of a
/// file may sleep, whoever else has it. That of a socket or a pipe does so for the last time only.
///
/// # Errors
/// What pipe2(2), fork(2) and clone(2) fail with, and `Unsupported` if this process has other
/// threads. What is to stay open comes back then.
pub fn close_unknown(descriptors: Vec<OwnedFd>) -> Result<(), (io::Error, Vec<OwnedFd>)> {
    let (streams, files): (Vec<_>, Vec<_>) = descriptors.into_iter().partition(is_stream);
    let streams = match streams.is_empty() {
        true => Ok(()),
        false => close_elsewhere(streams),
    };
    let files = match files.is_empty() {
        true => Ok(()),
        false => close_in_stead(files),
    };
    match (streams, files) {
        (Err((error, mut left)), Err((_, mut more))) => {
            left.append(&mut more);
            Err((error, left))
        }
        (Err(one), Ok(())) | (Ok(()), Err(one)) => Err(one),
        (Ok(()), Ok(())) => Ok(()),
    }
}

/// Whether this is a socket or a pipe. To ask does not go to a file system.
fn is_stream(descriptor: &OwnedFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(descriptor, "", flags, StatxFlags::empty());
    stat.is_ok_and(|stat| {
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        matches!(kind, FileType::Socket | FileType::Fifo)
    })
}

/// Has child processes close these descriptors in the stead of this one, each by one of them. They
/// share its table of descriptors, and nothing else. While one sleeps in close(2), it has that
/// table still, should this process end meanwhile.
///
/// # Errors
/// What clone(2) fails with. The descriptors come back then.
fn close_in_stead(descriptors: Vec<OwnedFd>) -> Result<(), (io::Error, Vec<OwnedFd>)> {
    let numbers: Vec<RawFd> = descriptors
        .into_iter()
        .map(IntoRawFd::into_raw_fd)
        .collect();
    // The stacks are made before, because the child allocates nothing.
    let mut stacks = (Stack::new(), Stack::new());
    let started = with_signals_blocked(|_| {
        clone_with_table(&mut stacks.0, &mut || {
            let (last, others) = numbers.split_last().unwrap_or((&-1, &[]));
            for number in others {
                let close = &mut || close(*number);
                if clone_with_table(&mut stacks.1, close).is_err() {
                    close();
                }
            }
            close(*last);
        })
    });
    started.map_err(|error| {
        // SAFETY: these were owned a moment ago, and no child has closed them.
        let again = |number: &RawFd| unsafe { OwnedFd::from_raw_fd(*number) };
        (error, numbers.iter().map(again).collect())
    })
}

fn close(number: RawFd) {
    // SAFETY: whoever has started this process has given the descriptor up to it.
    unsafe { libc::close(number) };
}

/// The memory that a new process runs on.
struct Stack(Vec<u128>);

impl Stack {
    fn new() -> Self {
        Self(vec![0; 64 * 1024 / size_of::<u128>()])
    }
}

/// Starts a process that runs `main` and ends. It shares the table of descriptors with this one,
/// and has a copy of its memory, of which other threads may have locked anything: `main` makes
/// system calls, and does nothing else.
fn clone_with_table<F: FnMut()>(stack: &mut Stack, main: &mut F) -> io::Result<()> {
    extern "C" fn begin<F: FnMut()>(main: *mut libc::c_void) -> libc::c_int {
        // SAFETY: it is the `main` of the call of clone(2), in this process's copy of the memory.
        unsafe { (*main.cast::<F>())() };
        exit_now(0)
    }
    let top = stack.0.as_mut_ptr_range().end;
    let main: *mut F = main;
    // SAFETY: without CLONE_VM the child has a copy of all memory, the stack and what `main` refers
    // to included; the stack is aligned for any architecture, and grows downwards from its end.
    let child = unsafe {
        libc::clone(
            begin::<F>,
            top.cast(),
            libc::CLONE_FILES | libc::SIGCHLD,
            main.cast(),
        )
    };
    match child {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use rustix::net::sockopt;

    use super::*;

    #[test]
    fn others_close_what_this_process_would_sleep_on() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut reader = listener.accept().unwrap().0;
        slow.set_nonblocking(true).unwrap();
        while slow.write(&[b'x'; 65536]).is_ok() {}
        slow.set_nonblocking(false).unwrap();
        sockopt::set_socket_linger(&slow, Some(Duration::from_secs(60))).unwrap();
        let pipes = [(); 3].map(|()| rustix::pipe::pipe().unwrap());
        let begin = Instant::now();
        let (mut readers, mut writers) = (Vec::new(), vec![slow.into()]);
        for (read, write) in pipes {
            readers.push(read);
            writers.push(write);
        }
        close_in_stead(writers).unwrap();
        // The first one sleeps, and the others do not wait for it.
        for pipe in readers {
            assert_eq!(rustix::io::read(&pipe, &mut [0; 1]), Ok(0));
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "it slept");
        reader
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        reader.read_to_end(&mut Vec::new()).unwrap();
    }
}
