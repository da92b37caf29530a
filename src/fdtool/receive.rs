//! `recv-fd`: waits for senders and prints what they pass, until a signal ends it.
//!
//! The main thread waits for signals and accepts; each sender has a thread of its own, so that a
//! silent one, or one whose descriptor has nothing to read, keeps nobody else waiting. Datagrams
//! come in one queue, in order, and have one thread.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use log::{info, warn};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, retry_on_intr};
use rustix::net::{SocketFlags, accept_with};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::show::Block;
use super::{Bound, Kind, Socket};
use crate::error::{Error, Result};
use crate::fdpass::{self, MAX_DESCRIPTORS, Message, Wait};

/// More senders than this at the same time are turned away.
const MOST_SENDERS: usize = 256;

/// How long to wait when no further sender can be accepted for want of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest data of one message. No datagram that a sender can send by default is longer than
/// some 200 KiB.
const MOST_DATA: usize = 256 * 1024;

/// What recv-fd was asked to do.
#[derive(Debug)]
pub(crate) struct Receive {
    pub(crate) socket: Socket,
    /// Stop after the first sender.
    pub(crate) once: bool,
    /// Say what each descriptor is.
    pub(crate) verbose: bool,
    /// The data is one native int.
    pub(crate) tlpi: bool,
}

/// Receives and prints until SIGINT, SIGTERM, the end of whoever reads the output, or the end of
/// the first sender.
pub(crate) fn receive(settings: &Receive) -> Result<()> {
    let failed = |error: io::Error| Error::new("prepare for signals", error);
    let (events, wake) = UnixStream::pair().map_err(failed)?;
    for signal in [SIGINT, SIGTERM] {
        let wake = wake.try_clone().map_err(failed)?;
        pipe::register(signal, wake).map_err(failed)?;
    }
    let bound = settings.socket.listen()?;
    let announce = || info!("listening on {}", settings.socket.path.display());
    let printer = Arc::new(Printer {
        verbose: settings.verbose,
        tlpi: settings.tlpi,
        escape: io::stdout().is_terminal(),
        once: settings.once,
        result: Mutex::new(Ok(())),
        wake,
    });
    match settings.socket.kind {
        Kind::Stream => {
            announce();
            accept_senders(&bound, &events, &printer)
        }
        Kind::Datagram => {
            let printer = Arc::clone(&printer);
            let socket = bound.socket.try_clone().map_err(failed)?;
            announce();
            thread::spawn(move || printer.print_datagrams(&socket));
            wait(&events, None, None)?;
            Ok(())
        }
    }?;
    printer.take_result()
}

/// Why [`wait`] returned.
#[derive(PartialEq, Eq)]
enum Event {
    Stop,
    Sender,
    Timeout,
}

/// Waits until there is a reason to stop, a sender at the `listener`, or the end of the time.
fn wait(
    events: &UnixStream,
    listener: Option<&OwnedFd>,
    timeout: Option<Duration>,
) -> Result<Event> {
    let stdout = io::stdout();
    // Nothing is asked of the output, so only errors are reported: a pipe whose reader is gone, a
    // terminal that hung up.
    let mut descriptors = vec![
        PollFd::new(events, PollFlags::IN),
        PollFd::new(&stdout, PollFlags::empty()),
    ];
    descriptors.extend(listener.map(|socket| PollFd::new(socket, PollFlags::IN)));
    let timeout = timeout.map(|time| Timespec {
        tv_sec: time.as_secs().cast_signed(),
        tv_nsec: time.subsec_nanos().into(),
    });
    retry_on_intr(|| poll(&mut descriptors, timeout.as_ref()))
        .map_err(|errno| Error::new("wait for senders", errno))?;
    let happened = |index: usize| {
        descriptors
            .get(index)
            .is_some_and(|descriptor| !descriptor.revents().is_empty())
    };
    Ok(if happened(0) || happened(1) {
        Event::Stop
    } else if happened(2) {
        Event::Sender
    } else {
        Event::Timeout
    })
}

fn accept_senders(bound: &Bound, events: &UnixStream, printer: &Arc<Printer>) -> Result<()> {
    // This open file description is nobody else's. A sender that gives up between poll and accept
    // must not hold us.
    ioctl_fionbio(&bound.socket, true).map_err(|errno| Error::new("prepare to accept", errno))?;
    let mut listener = Some(&bound.socket);
    loop {
        match wait(events, listener, None)? {
            Event::Stop => return Ok(()),
            Event::Timeout => continue,
            Event::Sender => {}
        }
        let sender = match accept_with(&bound.socket, SocketFlags::CLOEXEC) {
            Ok(sender) => sender,
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                warn!("cannot accept a sender for now: {errno}");
                if wait(events, None, Some(PAUSE))? == Event::Stop {
                    return Ok(());
                }
                continue;
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => continue,
            Err(errno) => return Err(Error::new("accept a sender", errno)),
        };
        if Arc::strong_count(printer) > MOST_SENDERS {
            warn!("turned a sender away: {MOST_SENDERS} others are connected");
            continue;
        }
        let own = Arc::clone(printer);
        match thread::Builder::new().spawn(move || own.print_sender(&sender)) {
            Ok(_) if printer.once => listener = None,
            Ok(_) => {}
            Err(error) => warn!("turned a sender away: {error}"),
        }
    }
}

/// Turns messages into output, for all threads.
struct Printer {
    verbose: bool,
    tlpi: bool,
    /// The output is a terminal: let no control character through.
    escape: bool,
    once: bool,
    /// How recv-fd ends, once something but a signal has ended it.
    result: Mutex<Result<()>>,
    wake: UnixStream,
}

/// Why the messages of a sender are at an end.
enum End {
    /// It was an error of the sender, or with it.
    Sender(Error),
    /// There is no output any more.
    Output(io::Error),
}

impl Printer {
    /// Prints the messages of one connection.
    fn print_sender(&self, sender: &OwnedFd) {
        let mut buffer = self.buffer();
        let end = loop {
            match fdpass::receive(sender, &mut buffer, MAX_DESCRIPTORS, Wait::Block) {
                Ok(message) if message.length == 0 => break Ok(()),
                Ok(message) => {
                    if let Err(end) = self.print(&buffer, message) {
                        break Err(end);
                    }
                }
                Err(error) => break Err(End::Sender(bad_message(Some(sender), &error))),
            }
        };
        self.over(end);
    }

    /// Prints the messages of everybody.
    fn print_datagrams(&self, socket: &OwnedFd) {
        let mut buffer = self.buffer();
        loop {
            let end = fdpass::receive(socket, &mut buffer, MAX_DESCRIPTORS, Wait::Block)
                .map_err(|error| End::Sender(bad_message(None, &error)))
                .and_then(|message| self.print(&buffer, message));
            if self.over(end) {
                return;
            }
        }
    }

    fn buffer(&self) -> Vec<u8> {
        let size = if self.tlpi {
            size_of::<i32>()
        } else {
            MOST_DATA
        };
        vec![0; size]
    }

    fn print(&self, buffer: &[u8], message: Message) -> Result<(), End> {
        let mut block = Block::new(self.escape);
        let data = &buffer[..message.length];
        if self.tlpi {
            let number = data.try_into().map(i32::from_ne_bytes).map_err(|_| {
                let reason = format!("{} bytes are not a number", data.len());
                End::Sender(Error::because("understand a message", reason))
            })?;
            block.number(number);
        } else {
            block.data(data);
        }
        block.descriptors(message.descriptors, self.verbose);
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(block.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(End::Output)
    }

    /// A sender, or a datagram, is dealt with. Says whether recv-fd is over with it.
    fn over(&self, end: Result<(), End>) -> bool {
        let result = match end {
            Err(End::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(End::Output(error)) => Err(Error::new("write to the standard output", error)),
            Err(End::Sender(error)) if self.once => Err(error),
            Err(End::Sender(error)) => {
                warn!("{error}");
                return false;
            }
            Ok(()) if self.once => Ok(()),
            Ok(()) => return false,
        };
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = result;
        // If it cannot be written, the main thread has ended already, or has other news to read.
        let _ = (&self.wake).write(b".");
        true
    }

    fn take_result(&self) -> Result<()> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut result, Ok(()))
    }
}

fn bad_message(sender: Option<&OwnedFd>, error: &fdpass::Error) -> Error {
    let pid = sender.and_then(|sender| getsockopt(&sender.as_fd(), PeerCredentials).ok());
    let from = pid.map_or_else(String::new, |peer| format!(" from process {}", peer.pid()));
    Error::because(format!("receive a message{from}"), error.to_string())
}
