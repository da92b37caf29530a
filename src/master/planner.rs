//! The planner: a child of the master that asks the source for the plans of a reload first, with
//! all the look-ups that this takes, so that the master need not wait for any of them. Before that
//! it looks whether the files are there by which the master is found.
//!
//! It sends what it has seen of those, with the record of its look-ups or why there are no plans,
//! in one message. The master then asks the source again, because closures can't be sent, and
//! answers the look-ups from the record.

use std::fs::File;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{SigmaskHow, Signal, sigprocmask};
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::child::Child;
use super::events::epoll::{Epoll, EventFlags};
use super::events::token::MasterEvent;
use super::listen::bind;
use super::master_only::MasterOnly;
use super::office::{Lost, Office};
use super::plan::{Plan, PlanSource};
use super::time::Time;
use crate::config::Address;
use crate::error::{Error, Plain, Result};
use crate::fdpass::{self, MAX_DESCRIPTORS, Wait};
use crate::logging::{self, Role};
use crate::lookup::{self, Record};
use crate::sys;

/// How long a planner may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest message: a reason, because a record is in a file beside it.
const ROOM: usize = 8 * 1024;

const PLANNED: &[u8] = b"PLANNED";

/// See the module. It is killed when it is dropped.
#[derive(Debug)]
pub struct Planner {
    /// `None` when it has ended, and was reaped.
    child: Option<Child>,
    socket: OwnedFd,
    epoll: Epoll,
    until: Time,
}

/// What a planner has to say.
#[derive(Debug)]
pub struct Answer {
    /// The master's own files that are gone, as far as is known.
    pub lost: Lost,
    /// What all look-ups have found, or why there are no plans.
    pub plans: std::result::Result<Record, String>,
}

impl Answer {
    fn refused(why: impl Into<String>) -> Self {
        Self {
            lost: Lost::default(),
            plans: Err(why.into()),
        }
    }
}

impl Planner {
    /// Forks a planner. It keeps what workers keep, and these descriptors of the pools.
    ///
    /// # Errors
    /// What socketpair(2), epoll_ctl(2) and fork(2) fail with.
    pub fn start(
        source: &PlanSource<'_>,
        office: &Office,
        keep: impl Iterator<Item = i32>,
        only: &mut MasterOnly,
        epoll: &Epoll,
        now: Time,
    ) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let own = only.inherited.iter().copied().chain(keep);
        let keep: Vec<_> = own.chain([theirs.as_raw_fd()]).collect();
        let detach = || drop(only.signals.take());
        let pid = sys::process::with_signals_blocked(|before| {
            sys::process::spawn(&keep, detach, || {
                // Nobody else would end one that sleeps for ever.
                let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(before), None);
                logging::set_role(Role::Command("planner"));
                u8::from(answer(source, office, &theirs).is_err())
            })
        })?;
        let child = Child::new(pid);
        let planner = Self {
            child: Some(child),
            socket,
            epoll: epoll.clone(),
            until: now.after(PATIENCE),
        };
        epoll.add(&planner.socket, MasterEvent::Planner, EventFlags::IN)?;
        Ok(planner)
    }

    /// When it has taken too long.
    #[must_use]
    pub fn due(&self) -> Time {
        self.until
    }

    /// It has said something, or ended: the answer, if there is one.
    #[must_use]
    pub fn on_message(&self) -> Option<Answer> {
        let mut buffer = [0; ROOM];
        match fdpass::receive(&self.socket, &mut buffer, MAX_DESCRIPTORS, Wait::Dont) {
            Ok(message) if message.length == 0 => {
                // How it has ended is said by its exit status, which comes at once.
                self.epoll.remove(&self.socket);
                None
            }
            Ok(message) => {
                let plans = match &buffer[1..message.length] {
                    PLANNED => {
                        let record = read_record(message.descriptors);
                        record.map_err(|error| Plain(&error).to_string())
                    }
                    why => Err(String::from_utf8_lossy(why).into_owned()),
                };
                let lost = Lost::decode(buffer[0]);
                Some(Answer { lost, plans })
            }
            Err(error) if error.would_block() => None,
            Err(error) => Some(Answer::refused(error.to_string())),
        }
    }

    /// What counts as the answer when there was none in time.
    #[must_use]
    pub fn expire(&self, now: Time) -> Option<Answer> {
        let late = self.until <= now;
        late.then(|| {
            let limit = PATIENCE.as_secs();
            Answer::refused(format!("the configuration was not read within {limit} s"))
        })
    }

    /// Kills the planner, unless it has ended. It is the caller's to reap.
    #[must_use]
    pub fn end(&mut self) -> Option<Child> {
        let mut child = self.child.take()?;
        child.kill();
        Some(child)
    }

    /// A child of the master has ended. If it is this one, it has no more to say than what is
    /// there.
    #[must_use]
    pub fn on_exit(&mut self, pid: Pid, how: &str) -> Option<Answer> {
        self.child.take_if(|child| child.pid() == pid)?;
        let died = || Answer::refused(format!("the process that reads the configuration {how}"));
        Some(self.on_message().unwrap_or_else(died))
    }
}

impl Drop for Planner {
    fn drop(&mut self) {
        self.epoll.remove(&self.socket);
        if let Some(child) = &mut self.child {
            child.kill();
        }
    }
}

/// In the child: makes all look-ups, and sends what they have found.
fn answer(source: &PlanSource<'_>, office: &Office, socket: &OwnedFd) -> io::Result<()> {
    let lost = office.look();
    let (found, record) = lookup::record(|| source().and_then(|plans| look_up(&plans)));
    let passed_on = found.and_then(|()| {
        let sent = send_record(lost, record, socket);
        sent.map_err(|error| Error::new("pass on what the configuration says", error))
    });
    let Err(error) = passed_on else {
        return Ok(());
    };
    let mut why = error.to_string();
    why.truncate(why.floor_char_boundary(ROOM - 2));
    send(lost, why.as_bytes(), &[], socket)
}

fn send_record(lost: Lost, record: Record, socket: &OwnedFd) -> io::Result<()> {
    let (bytes, mut descriptors) = record.encode();
    let mut file = File::from(memfd_create("baton-plan", MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    descriptors.insert(0, file.into());
    send(lost, PLANNED, &descriptors, socket)
}

fn send(lost: Lost, text: &[u8], descriptors: &[OwnedFd], socket: &OwnedFd) -> io::Result<()> {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let lost = [lost.encode()];
    let parts = [IoSlice::new(&lost), IoSlice::new(text)];
    fdpass::send(socket, &parts, &descriptors, Wait::Block)?;
    Ok(())
}

/// Makes the look-ups that the master's own calls take for these plans.
fn look_up(plans: &[Plan<'_>]) -> Result<()> {
    for address in plans.iter().flat_map(|plan| &plan.listen) {
        match address {
            Address::Name(name, port) => drop(bind::resolve(name, *port)?),
            // Whether there is something or not: a file system that does not answer shows here.
            Address::Unix(path) => drop(path.symlink_metadata()),
            Address::Inet(_) | Address::Any(_) | Address::Inherited(_) => {}
        }
    }
    Ok(())
}

/// The record that a planner has sent: its bytes are in the first file, which is in memory.
fn read_record(mut descriptors: Vec<OwnedFd>) -> io::Result<Record> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed record");
    if descriptors.is_empty() {
        return Err(malformed());
    }
    let mut file = File::from(descriptors.remove(0));
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(lookup::LONGEST as u64).read_to_end(&mut bytes)?;
    Record::decode(&bytes, descriptors).ok_or_else(malformed)
}
