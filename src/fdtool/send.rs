//! `send-fd`: opens each file and passes its descriptor, one message for each, on one connection.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, retry_on_intr};

use super::{SEND_TIMEOUT, Socket};
use crate::error::{Error, Result};
use crate::fdpass::{self, Wait};

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
    let socket = settings.socket.connect()?;
    for (file, source) in opened.iter().zip(&settings.files) {
        let descriptor = file.as_ref().map_or(stdin.as_fd(), AsFd::as_fd);
        pass(&socket, &settings.payload, descriptor).map_err(|error| {
            let attempt = format!(
                "pass {} on {}",
                source.name(),
                settings.socket.path.display()
            );
            let reason = if error.would_block() {
                format!(
                    "the receiver took nothing for {} seconds",
                    SEND_TIMEOUT.as_secs()
                )
            } else {
                error.to_string()
            };
            Error::because(attempt, reason)
        })?;
    }
    Ok(())
}

fn pass(socket: &OwnedFd, payload: &[u8], file: BorrowedFd<'_>) -> Result<(), fdpass::Error> {
    let mut sent = fdpass::send(socket, &[IoSlice::new(payload)], &[file], Wait::Block)?;
    // A stream may take a long payload in pieces. The descriptor went with the first.
    while sent < payload.len() {
        sent += fdpass::send(socket, &[IoSlice::new(&payload[sent..])], &[], Wait::Block)?;
    }
    Ok(())
}

impl Source {
    fn name(&self) -> std::path::Display<'_> {
        match self {
            Self::File(path) => path.display(),
            Self::Stdin => std::path::Path::new("standard input").display(),
        }
    }

    /// The file opened for reading; nothing for the standard input, which is open.
    fn open(&self) -> Result<Option<OwnedFd>> {
        let Self::File(path) = self else {
            return Ok(None);
        };
        let open = || -> Result<OwnedFd, Errno> {
            // Without O_NONBLOCK, to open a FIFO that nobody writes to would wait for a writer for
            // ever (fifo(7)). It is taken back before anyone shares the open file.
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
