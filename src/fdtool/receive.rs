//! `recv-fd`: waits for senders and prints what they pass, until a signal ends it.
//!
//! This process accepts, prints, and never has a received descriptor. Each sender has a receiver, a
//! process of its own, so that one that is silent, or passes what cannot be read, keeps no other
//! waiting. Datagrams come in one queue, in order, and have one receiver.

use std::io::{self, IsTerminal, Read};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::{info, warn};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, retry_on_intr, write};
use rustix::net::{SocketFlags, accept_with};
use signal_hook::SigId;
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::receiver;
use super::report::{self, Received, Report};
use super::sender::{LIMIT, Sender};
use super::show::Style;
use super::socket::{Bound, Kind, Socket};
use crate::error::{Error, Plain, Result};

/// With this many senders connected, the one that was silent longest gives way to a new one.
const MOST_SENDERS: usize = 256;

/// How long to wait when no further sender can be accepted for want of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// How long to wait at the end for receivers that were killed.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// What recv-fd was asked to do.
#[derive(Debug)]
pub(crate) struct Receive {
    pub(crate) socket: Socket,
    /// Stop after the first sender that sends something.
    pub(crate) once: bool,
    /// Say what each descriptor is.
    pub(crate) verbose: bool,
    /// The data is one native int.
    pub(crate) tlpi: bool,
}

/// Receives and prints until SIGINT, SIGTERM, the end of the output's reader, or with --once the
/// end of the first sender that has sent something.
pub(crate) fn receive(settings: &Receive) -> Result<()> {
    let mut actions = Vec::new();
    let stop = signal_pipe(&[SIGINT, SIGTERM], &mut actions)?;
    let ended = signal_pipe(&[SIGCHLD], &mut actions)?;
    let bound = settings.socket.listen()?;
    // No other process has this open file description yet. A sender that gives up between poll and
    // accept must not hold this one.
    ioctl_fionbio(bound.socket(), true).map_err(|errno| Error::new("prepare to accept", errno))?;
    let mut reception = Reception {
        once: settings.once,
        kind: settings.socket.kind,
        style: Style {
            escape: io::stdout().is_terminal(),
            verbose: settings.verbose,
            tlpi: settings.tlpi,
        },
        bound,
        stop,
        ended,
        actions,
        accept_at: None,
        senders: Vec::new(),
        children: 0,
    };
    match reception.kind {
        Kind::Stream => reception.accept_at = Some(Instant::now()),
        Kind::Datagram => reception.start_datagram_receiver()?,
    }
    info!("listening on {}", settings.socket.path.display());
    let result = reception.run();
    reception.end_receivers();
    result
}

/// A socket that becomes readable when one of these signals comes. Adds what the signals do to
/// `actions`.
fn signal_pipe(signals: &[i32], actions: &mut Vec<SigId>) -> Result<UnixStream> {
    let failed = |error: io::Error| Error::new("prepare for signals", error);
    let (read, write) = UnixStream::pair().map_err(failed)?;
    read.set_nonblocking(true).map_err(failed)?;
    for signal in signals {
        let write = write.try_clone().map_err(failed)?;
        actions.push(pipe::register(*signal, write).map_err(failed)?);
    }
    Ok(read)
}

/// Goes on, or ends recv-fd with this result.
type Step = ControlFlow<Result<()>>;

/// Everything that recv-fd has.
struct Reception {
    once: bool,
    kind: Kind,
    style: Style,
    bound: Bound,
    stop: UnixStream,
    ended: UnixStream,
    /// What the signals do here, and must not do in a receiver.
    actions: Vec<SigId>,
    /// When the next sender may be accepted, if one may at all.
    accept_at: Option<Instant>,
    senders: Vec<Sender>,
    /// Receivers that were started and not yet reaped.
    children: usize,
}

/// What a wait was ended by; several may be true.
struct Ready {
    stop: bool,
    ended: bool,
    listener: bool,
}

impl Reception {
    fn run(&mut self) -> Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.stop {
                return Ok(());
            }
            if ready.ended {
                self.reap();
            }
            if let ControlFlow::Break(result) = self.hear_all() {
                return result;
            }
            if ready.listener {
                self.accept()?;
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Result<Ready> {
        let now = Instant::now();
        let stdout = io::stdout();
        // Nothing is asked of the output, so only errors are reported: a pipe whose reader is gone,
        // a terminal that hung up.
        let mut descriptors = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.ended, PollFlags::IN),
            PollFd::new(&stdout, PollFlags::empty()),
        ];
        let reports = self.senders.iter().map(|sender| &sender.reports);
        descriptors.extend(reports.map(|reports| PollFd::new(reports, PollFlags::IN)));
        let accepts = self.accept_at.is_some_and(|time| time <= now);
        if accepts {
            descriptors.push(PollFd::new(self.bound.socket(), PollFlags::IN));
        }
        let limits = self.senders.iter().filter_map(Sender::limit);
        let next = limits.chain(self.accept_at.filter(|_| !accepts)).min();
        let timeout = next.map(|time| time.saturating_duration_since(now));
        let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
        // Once more after a signal: it has made one of the descriptors ready.
        retry_on_intr(|| poll(&mut descriptors, timeout.as_ref()))
            .map_err(|errno| Error::new("wait for senders", errno))?;
        let happened = |at: usize| !descriptors[at].revents().is_empty();
        Ok(Ready {
            stop: happened(0) || happened(2),
            ended: happened(1),
            listener: accepts && happened(descriptors.len() - 1),
        })
    }

    fn accept(&mut self) -> Result<()> {
        if self.senders.len() >= MOST_SENDERS && !self.dismiss_the_most_silent() {
            self.accept_at = Some(Instant::now() + PAUSE);
            return Ok(());
        }
        let connection = match accept_with(self.bound.socket(), SocketFlags::CLOEXEC) {
            Ok(connection) => connection,
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                let (cause, pause) = (errno.into(), PAUSE.as_secs());
                warn!(
                    "cannot accept a sender, next try in {pause} s: {}",
                    Plain(&cause)
                );
                self.accept_at = Some(Instant::now() + PAUSE);
                return Ok(());
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(()),
            Err(errno) => return Err(Error::new("accept a sender", errno)),
        };
        let pid = receiver::sender_of(&connection);
        let from = pid.map_or_else(String::new, |pid| format!(" from process {pid}"));
        match receiver::start(&connection, Kind::Stream, self.style, &self.actions) {
            Ok(receiver) => self.add(receiver, from),
            Err(error) => warn!("turned a sender away: {error}"),
        }
        Ok(())
    }

    fn start_datagram_receiver(&mut self) -> Result<()> {
        let (socket, kind) = (self.bound.socket(), Kind::Datagram);
        let receiver = receiver::start(socket, kind, self.style, &self.actions)?;
        self.add(receiver, String::new());
        Ok(())
    }

    fn add(&mut self, (receiver, reports): (Pid, OwnedFd), from: String) {
        self.children += 1;
        self.senders.push(Sender::new(receiver, reports, from));
    }

    /// Makes room for one more sender, if one of them has nothing under way.
    fn dismiss_the_most_silent(&mut self) -> bool {
        let idle = self.senders.iter().enumerate();
        let idle = idle.filter(|(_, sender)| sender.busy_since.is_none());
        let Some((at, _)) = idle.min_by_key(|(_, sender)| sender.silent_since) else {
            return false;
        };
        let sender = self.senders.swap_remove(at);
        sender.kill();
        let (from, seconds) = (&sender.from, sender.silent_since.elapsed().as_secs());
        warn!(
            "closed the connection{from}, silent for {seconds} s, to make room: \
             {MOST_SENDERS} senders are connected"
        );
        true
    }

    /// Deals with what the receivers have reported, and with those that have been at work for too
    /// long.
    fn hear_all(&mut self) -> Step {
        /// So many reports of one receiver, then it is the next one's turn.
        const ROUND: usize = 64;
        let mut at = 0;
        let mut heard = 0;
        while at < self.senders.len() {
            match report::receive(&self.senders[at].reports) {
                Received::Report(report) => {
                    self.heard(&mut at, report)?;
                    heard += 1;
                    if heard < ROUND {
                        continue;
                    }
                    at += 1;
                }
                Received::End => {
                    let sender = self.senders.swap_remove(at);
                    self.is_over(&sender)?;
                }
                Received::Nothing if self.senders[at].is_stuck() => self.give_up(at)?,
                Received::Nothing => at += 1,
            }
            heard = 0;
        }
        ControlFlow::Continue(())
    }

    /// Deals with one report of the sender at this place, which may change.
    fn heard(&mut self, at: &mut usize, report: Report) -> Step {
        let sender = &mut self.senders[*at];
        match report {
            Report::Busy => {
                sender.busy_since = Some(Instant::now());
                let first = self.once && !sender.spoke;
                sender.spoke = true;
                if first {
                    self.dismiss_all_but(*at);
                    *at = 0;
                }
            }
            Report::Text(text) => sender.text.extend_from_slice(&text),
            Report::Show => {
                let text = std::mem::take(&mut sender.text);
                self.print(&text)?;
                if self.once && self.kind == Kind::Datagram {
                    return ControlFlow::Break(Ok(()));
                }
            }
            Report::Idle => {
                sender.busy_since = None;
                sender.silent_since = Instant::now();
            }
            Report::Fault { attempt, reason } => {
                sender.text.clear();
                self.complain(Error::because(attempt, reason))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// With --once, the first sender that says something is the one; those that were silent so far
    /// do not count.
    fn dismiss_all_but(&mut self, at: usize) {
        let chosen = self.senders.swap_remove(at);
        for other in std::mem::replace(&mut self.senders, vec![chosen]) {
            other.kill();
        }
        self.accept_at = None;
    }

    /// A sender has closed its connection, or its receiver has died.
    fn is_over(&mut self, sender: &Sender) -> Step {
        if sender.busy_since.is_some() {
            let attempt = format!("finish with a message{}", sender.from);
            self.complain(Error::because(attempt, "the process that received it died"))?;
        }
        match self.kind {
            // One that has said nothing was not the first.
            Kind::Stream if self.once && sender.spoke => ControlFlow::Break(Ok(())),
            Kind::Stream => ControlFlow::Continue(()),
            Kind::Datagram if sender.spoke => self.replace_datagram_receiver(),
            // One that had nothing to do with a message would only die again.
            Kind::Datagram => {
                let reason = "the process for it died";
                ControlFlow::Break(Err(Error::because("receive datagrams", reason)))
            }
        }
    }

    fn replace_datagram_receiver(&mut self) -> Step {
        match self.start_datagram_receiver() {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Err(error)),
        }
    }

    /// A call on a descriptor that this sender passed does not return: what is known of the message
    /// is shown, and its receiver left to its fate.
    fn give_up(&mut self, at: usize) -> Step {
        let mut sender = self.senders.swap_remove(at);
        sender.kill();
        let seconds = LIMIT.as_secs();
        let shown = sender.text.is_empty();
        if !shown {
            let text = match sender.text.ends_with(b"...\n") {
                true => format!("read: no answer for {seconds} seconds\n"),
                false => format!("no answer for {seconds} seconds\n"),
            };
            sender.text.extend_from_slice(text.as_bytes());
            self.print(&sender.text)?;
        }
        let attempt = match shown {
            true => format!("close what came with a message{}", sender.from),
            false => format!("read what came with a message{}", sender.from),
        };
        let reason = format!("a call did not return within {seconds} seconds; gave up");
        self.complain(Error::because(attempt, reason))?;
        match self.kind {
            Kind::Stream => ControlFlow::Continue(()),
            Kind::Datagram => self.replace_datagram_receiver(),
        }
    }

    /// A line for the log, or with --once the end.
    fn complain(&self, error: Error) -> Step {
        if self.once {
            return ControlFlow::Break(Err(error));
        }
        warn!("{error}");
        ControlFlow::Continue(())
    }

    /// Writes to the standard output. A reader that has stopped reading holds this process, but a
    /// signal still ends it.
    fn print(&mut self, text: &[u8]) -> Step {
        /// A pipe or a terminal that is ready takes this much without sleeping (PIPE_BUF).
        const PIECE: usize = 4096;
        let start = Instant::now();
        let stdout = io::stdout();
        let mut rest = text;
        while !rest.is_empty() {
            let mut descriptors = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(&stdout, PollFlags::OUT),
            ];
            if retry_on_intr(|| poll(&mut descriptors, None)).is_ok()
                && !descriptors[0].revents().is_empty()
            {
                return ControlFlow::Break(Ok(()));
            }
            match write(&stdout, &rest[..rest.len().min(PIECE)]) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::PIPE) => return ControlFlow::Break(Ok(())),
                Err(errno) => {
                    let error = Error::new("write to the standard output", errno);
                    return ControlFlow::Break(Err(error));
                }
            }
        }
        // The receivers could not report in the meantime; that is not their fault.
        for sender in &mut self.senders {
            sender.busy_since = sender.busy_since.map(|since| since + start.elapsed());
        }
        ControlFlow::Continue(())
    }

    /// Takes note of receivers that have ended.
    fn reap(&mut self) {
        // How many signals there were does not matter.
        while matches!((&self.ended).read(&mut [0; 64]), Ok(1..)) {}
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else {
                return;
            };
            self.children = self.children.saturating_sub(1);
            let mut senders = self.senders.iter_mut();
            if let Some(sender) = senders.find(|sender| sender.receiver == Some(pid)) {
                sender.receiver = None;
            }
        }
    }

    /// Kills the receivers, and waits for them, but not for one that cannot be killed.
    fn end_receivers(&mut self) {
        for sender in self.senders.drain(..) {
            sender.kill();
        }
        let deadline = Instant::now() + LAST_WAIT;
        self.reap();
        while self.children > 0 {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(remaining).ok();
            let mut descriptors = [PollFd::new(&self.ended, PollFlags::IN)];
            match poll(&mut descriptors, timeout.as_ref()) {
                Ok(0) => return,
                _ => self.reap(),
            }
        }
    }
}
