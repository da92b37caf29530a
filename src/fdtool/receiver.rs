//! A receiver: the process that takes one sender's messages, or all datagrams.
//!
//! It is a process and not a thread because a call on a received descriptor may never return: not
//! even SIGKILL ends a read or a close that waits for a FUSE file system, before that answers.
//! recv-fd can leave such a process behind when it ends, and could not leave a thread. So received
//! descriptors exist here only, and each step is reported to recv-fd.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use signal_hook::SigId;
use signal_hook::low_level::unregister;

use super::report::{self, Report};
use super::show::{Block, Style};
use super::socket::Kind;
use crate::error::{Error, Result};
use crate::fdpass::{self, MAX_DESCRIPTORS, Message, Wait};
use crate::sys::process;

/// The longest data of one message. No datagram that a sender can send by default is longer than
/// some 200 KiB.
const MOST_DATA: usize = 256 * 1024;

/// Starts a receiver for what comes on `socket`. Gives its process id, and where its reports come.
/// `actions` are those of recv-fd's signals.
pub(super) fn start(
    socket: &OwnedFd,
    kind: Kind,
    style: Style,
    actions: &[SigId],
) -> Result<(Pid, OwnedFd)> {
    let failed = |error| Error::new("start a receiver", error);
    let (ours, theirs) = report::pair().map_err(|errno| failed(errno.into()))?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(failed)?;
    let keep = [0, 1, 2, socket.as_raw_fd(), theirs.as_raw_fd()];
    let detach = || {
        // These actions write to descriptors, and those numbers will soon stand for something else.
        // A Ctrl-C is meant for recv-fd, which ends this process in its turn.
        for action in actions {
            unregister(*action);
        }
        // The numbers of the standard descriptors stay occupied, lest a received descriptor get
        // one. The output itself must not stay open here: a receiver that cannot be killed would
        // keep a reader of recv-fd's output waiting for the end.
        let replaced = dup2_stdin(&null)
            .and(dup2_stdout(&null))
            .and(dup2_stderr(&null));
        if replaced.is_err() {
            process::exit_now(1);
        }
    };
    let main = || {
        let receiver = Receiver {
            socket,
            reports: &theirs,
            kind,
            style,
        };
        // An error means that recv-fd is gone, and there is nothing left to report to.
        u8::from(receiver.run().is_err())
    };
    let pid = process::spawn(&keep, detach, main).map_err(failed)?;
    Ok((pid, ours))
}

/// The process id of a stream's sender, for the log.
pub(super) fn sender_of(connection: &OwnedFd) -> Option<i32> {
    let peer = getsockopt(&connection.as_fd(), PeerCredentials).ok()?;
    // A process of a pid namespace that is not seen from here has 0.
    Some(peer.pid()).filter(|pid| *pid > 0)
}

struct Receiver<'a> {
    socket: &'a OwnedFd,
    reports: &'a OwnedFd,
    kind: Kind,
    style: Style,
}

impl Receiver<'_> {
    fn run(&self) -> Result<(), Errno> {
        block_sigttin();
        let size = if self.style.tlpi {
            size_of::<i32>()
        } else {
            MOST_DATA
        };
        let mut buffer = vec![0; size];
        loop {
            self.wait()?;
            match fdpass::receive(self.socket, &mut buffer, MAX_DESCRIPTORS, Wait::Dont) {
                Ok(message) if message.length == 0 && self.kind == Kind::Stream => return Ok(()),
                Ok(message) => self.show(&buffer[..message.length], message)?,
                Err(error) if error.would_block() => {}
                Err(error) => {
                    let from = match self.kind {
                        Kind::Stream => sender_of(self.socket),
                        Kind::Datagram => None,
                    };
                    let from = from.map_or_else(String::new, |pid| format!(" from process {pid}"));
                    self.fault(format!("receive a message{from}"), error.to_string())?;
                    if self.kind == Kind::Stream {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits for a message. An error is the end of recv-fd.
    fn wait(&self) -> Result<(), Errno> {
        let mut descriptors = [
            PollFd::new(self.socket, PollFlags::IN),
            PollFd::new(self.reports, PollFlags::empty()),
        ];
        retry_on_intr(|| poll(&mut descriptors, None))?;
        match descriptors[1].revents().is_empty() {
            true => Ok(()),
            false => Err(Errno::PIPE),
        }
    }

    fn show(&self, data: &[u8], message: Message) -> Result<(), Errno> {
        let tell = |report: &Report| report::send(self.reports, report);
        tell(&Report::Busy)?;
        let mut block = Block::new(self.style, |text| tell(&Report::Text(text)));
        if self.style.tlpi {
            let Ok(number) = data.try_into().map(i32::from_ne_bytes) else {
                drop(message);
                let reason = format!("{} bytes are not a number", data.len());
                self.fault("understand a message".into(), reason)?;
                return match self.kind {
                    Kind::Stream => Err(Errno::BADMSG),
                    Kind::Datagram => Ok(()),
                };
            };
            block.number(number)?;
        } else {
            block.data(data)?;
        }
        block.descriptors(&message.descriptors)?;
        tell(&Report::Show)?;
        // To close is a call that may not return, too.
        tell(&Report::Busy)?;
        drop(message);
        tell(&Report::Idle)
    }

    fn fault(&self, attempt: String, reason: String) -> Result<(), Errno> {
        report::send(self.reports, &Report::Fault { attempt, reason })?;
        report::send(self.reports, &Report::Idle)
    }
}

/// A terminal that is read from the background must not stop this process (SIGTTIN): the read fails
/// with EIO instead.
fn block_sigttin() {
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTTIN);
    // The call does not fail with constants as its arguments.
    let _ = blocked.thread_block();
}
