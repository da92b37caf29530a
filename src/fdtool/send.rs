//! `send-fd`: opens each file and passes its descriptor, one message for each, on one connection.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, retry_on_intr};

use super::connect::connect;
use super::socket::Socket;
use crate::error::{Error, Result};
use crate::fdpass::{self, Wait};

/// What scm_rights_send sends along with its descriptor, as a native int.
pub(crate) const TLPI_NUMBER: i32 = 12345;

/// How long to wait for a receiver that takes nothing at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// What send-fd was asked to do.
#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) socket: Socket,
    pub(crate) files: Vec<Source>,
    /// The data of each message, at least one byte.
    pub(crate) payload: Vec<u8>,
}

/// Where a descriptor to pass comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file to open for reading.
    File(PathBuf),
    /// This process's own standard input, as it is.
    Stdin,
}

/// Passes what was asked for. Nothing is sent unless all files can be opened.
pub(crate) fn send(settings: &Send) -> Result<()> {
    let opened: Vec<_> = settings
        .files
        .iter()
        .map(Source::open)
        .collect::<Result<_>>()?;
    let stdin = std::io::stdin();
    let socket = connect(&settings.socket, PATIENCE)?;
    for (file, source) in opened.iter().zip(&settings.files) {
        let descriptor = file.as_ref().map_or(stdin.as_fd(), AsFd::as_fd);
        pass(&socket, &settings.payload, descriptor).map_err(|reason| {
            let socket = settings.socket.path.display();
            Error::because(format!("pass {} on {socket}", source.name()), reason)
        })?;
    }
    Ok(())
}

/// Passes one descriptor with the payload. An error says why not.
fn pass(socket: &OwnedFd, payload: &[u8], file: BorrowedFd<'_>) -> Result<(), String> {
    // A stream may take a long payload in pieces. The descriptor goes with the first.
    let mut sent = 0;
    let mut progress = Instant::now();
    while sent < payload.len() {
        let descriptors = if sent == 0 { &[file][..] } else { &[] };
        let data = [IoSlice::new(&payload[sent..])];
        match fdpass::send(socket, &data, descriptors, Wait::Dont) {
            Ok(count) => {
                sent += count;
                progress = Instant::now();
            }
            Err(error) if error.would_block() => {
                let waited = progress.elapsed();
                if waited >= PATIENCE {
                    let (seconds, all) = (waited.as_secs(), payload.len());
                    return Err(match sent {
                        0 => format!("the receiver took nothing for {seconds} seconds"),
                        _ => format!(
                            "{sent} of {all} bytes were sent, and the receiver took nothing for \
                             {seconds} seconds"
                        ),
                    });
                }
                wait_for_room(socket, PATIENCE - waited).map_err(|errno| errno.to_string())?;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

/// Waits until the socket may take more, or for this long.
fn wait_for_room(socket: &OwnedFd, time: Duration) -> Result<(), Errno> {
    let timeout = Timespec::try_from(time).ok();
    let mut descriptors = [PollFd::new(socket, PollFlags::OUT)];
    retry_on_intr(|| poll(&mut descriptors, timeout.as_ref()))?;
    Ok(())
}

impl Source {
    fn name(&self) -> std::path::Display<'_> {
        match self {
            Self::File(path) => path.display(),
            Self::Stdin => Path::new("standard input").display(),
        }
    }

    /// The file opened for reading; nothing for the standard input, which is open.
    fn open(&self) -> Result<Option<OwnedFd>> {
        let Self::File(path) = self else {
            return Ok(None);
        };
        let open = || -> Result<OwnedFd, Errno> {
            // Without O_NONBLOCK, the open of a FIFO that has no writer would wait for one for ever
            // (fifo(7)). The flag is taken back before another process shares the open file.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file = retry_on_intr(|| open(path, flags, Mode::empty()))?;
            let flags = fcntl_getfl(&file)?;
            fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
            Ok(file)
        };
        open()
            .map(Some)
            .map_err(|errno| Error::new(format!("open {}", path.display()), errno))
    }
}
