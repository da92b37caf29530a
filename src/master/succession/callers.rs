//! Processes that have connected to the control socket and have not said yet what they want.
//!
//! Most say so at once. One that says nothing is in nobody's way: it is no takeover, and when there
//! are many of them, the one that has been silent for the longest makes room.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::messages::FromNew;
use super::session::{Buffer, PATIENCE, Session, is_gone};
use crate::error::Plain;
use crate::master::events::epoll::{Epoll, EventFlags};
use crate::master::events::token::MasterEvent;
use crate::master::office::Office;
use crate::master::office::control_socket::Asking;
use crate::master::time::Time;

/// How many of them may be there at the same time.
const MOST: usize = 8;

/// How many are taken in at a time while this master serves: clients have something to say, too.
const BATCH: usize = 2 * MOST;

/// After what time it is tried again to take in who could not be.
const RETRY: Duration = Duration::from_millis(250);

/// For how long nobody may take over after one that was silent, while all clients waited. Else it
/// could be repeated without end, and they would hardly be served.
const PAUSE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub struct Callers {
    /// In the order in which they came.
    silent: VecDeque<Caller>,
    buffer: Buffer,
    /// When somebody may be waiting who makes no further event.
    retry: Option<Time>,
    /// Until when nobody may take over.
    paused_until: Option<Time>,
    /// The log has said that nobody can be taken in.
    failing: bool,
}

#[derive(Debug)]
struct Caller {
    session: Session,
    until: Time,
}

impl Callers {
    /// Takes in who has connected to the control socket, if somebody has.
    pub fn accept(&mut self, office: &Office, epoll: &Epoll, now: Time) {
        self.retry = None;
        for _ in 0..BATCH {
            let admitted = match office.accept() {
                Ok(Asking::Nobody) => {
                    self.failing = false;
                    return;
                }
                Ok(Asking::Stranger) => Ok(()),
                Ok(Asking::Process(socket)) => self.admit(socket, epoll, now),
                Err(error) => {
                    self.fail(&error);
                    self.retry = Some(now.after(RETRY));
                    return;
                }
            };
            match admitted {
                Ok(()) => self.failing = false,
                Err(error) => self.fail(&error),
            }
        }
        self.retry = Some(now);
    }

    /// Says once that nobody can be taken in.
    fn fail(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            log::error!("control socket: {}", Plain(error));
        }
    }

    /// Whether it is time to look again who is there.
    #[must_use]
    pub fn is_to_retry(&self, now: Time) -> bool {
        self.retry.is_some_and(|retry| retry <= now)
    }

    /// Waits for what a process wants that has just connected.
    ///
    /// # Errors
    /// What the calls fail with that set up a session and watch it.
    fn admit(&mut self, socket: OwnedFd, epoll: &Epoll, now: Time) -> io::Result<()> {
        if self.silent.len() >= MOST {
            self.dismiss(0, "too many others are waiting", epoll);
        }
        let session = Session::over(socket)?;
        epoll.add(&session, MasterEvent::Control, EventFlags::IN)?;
        let until = now.after(PATIENCE);
        self.silent.push_back(Caller { session, until });
        Ok(())
    }

    /// The next that wants to take over, and the version of the protocol in which it said so.
    pub fn next(&mut self, epoll: &Epoll) -> Option<(Session, u32)> {
        let mut index = 0;
        while let Some(caller) = self.silent.get(index) {
            match caller.session.recv_from_new(&mut self.buffer, None) {
                Ok(FromNew::Takeover(version)) => {
                    let session = self.forget(index, epoll)?;
                    log::info!(
                        "control socket: process {} asks to take over",
                        session.peer()
                    );
                    return Some((session, version));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => index += 1,
                Err(error) if is_gone(&error) => drop(self.forget(index, epoll)),
                Ok(_) => self.dismiss(index, "unexpected message", epoll),
                Err(error) => self.dismiss(index, &Plain(&error).to_string(), epoll),
            }
        }
        None
    }

    /// One of them has kept all clients waiting, and has not taken charge.
    pub fn pause(&mut self, now: Time) {
        self.paused_until = Some(now.after(PAUSE));
    }

    /// Why none of them can take over now.
    #[must_use]
    pub fn obstacle(&self, now: Time) -> Option<&'static str> {
        let paused = self.paused_until.is_some_and(|until| now < until);
        paused.then_some("another one has just kept all clients waiting: ask again in 10 s")
    }

    /// Closes what has been silent for too long.
    pub fn expire(&mut self, epoll: &Epoll, now: Time) {
        let late = |caller: &Caller| caller.until <= now;
        while self.silent.front().is_some_and(late) {
            let why = format!("it has said nothing for {} s", PATIENCE.as_secs());
            self.dismiss(0, &why, epoll);
        }
    }

    /// When something is to be done if nothing happens.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        let first = self.silent.front().map(|caller| caller.until);
        first.into_iter().chain(self.retry).min()
    }

    fn dismiss(&mut self, index: usize, why: &str, epoll: &Epoll) {
        if let Some(session) = self.forget(index, epoll) {
            let pid = session.peer();
            log::info!("control socket: dismissed process {pid}: {why}");
            session.refuse(why);
        }
    }

    fn forget(&mut self, index: usize, epoll: &Epoll) -> Option<Session> {
        let Caller { session, .. } = self.silent.remove(index)?;
        epoll.remove(&session);
        Some(session)
    }
}
