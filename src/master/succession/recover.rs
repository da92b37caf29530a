//! What a master that was killed has left with the service manager, and what becomes of it.
//!
//! Its parked connections are adopted as they stood. What it had lent is looked at when the last of its workers has
//! ended (its life line is at its end), as after any other death of a worker: until then one of them may be answering.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, fstat};
use rustix::net::{AddressFamily, Shutdown, getpeername, shutdown, sockopt};

use crate::config::Address;
use crate::error::{Error, Plain, Result};
use crate::master::Master;
use crate::master::connection::held::Held;
use crate::master::dispatch::{Interest, Standing, Verdict};
use crate::master::events::token::{Subject, Token};
use crate::master::listen::listener::Listener;
use crate::master::pool::Pool;
use crate::master::store::ledger::{Ledger, Record, Stage, hash};
use crate::master::store::names::{self, Meaning};
use crate::master::store::{Store, monotonic, name_of};
use crate::master::time::Time;
use crate::service::Peer;
use crate::sys::memfile::MemoryFile;
use crate::systemd::Inherited;

/// See the module. As it was passed to this process, not looked into yet.
#[derive(Debug, Default)]
pub struct Legacy {
    /// By their marks.
    states: BTreeMap<u64, Vec<OwnedFd>>,
    connections: Vec<OwnedFd>,
    /// The names of the listeners.
    listeners: BTreeSet<String>,
    /// The names of those that are of no use.
    useless: BTreeSet<String>,
}

/// Connections that were lent when their master was killed, while some worker of it may still be there.
#[derive(Debug)]
pub struct Orphans {
    /// What the masters' life lines are, and their names.
    states: Vec<(u64, Option<OwnedFd>)>,
    connections: Vec<Orphan>,
    /// When it is no longer waited for the workers.
    until: Time,
}

#[derive(Debug)]
struct Orphan {
    record: Record<'static>,
    socket: OwnedFd,
    peer: Peer,
}

impl Legacy {
    /// Takes what is a master's out of what was passed. Listeners are ready to be used.
    pub fn claim(passed: &mut Vec<Inherited>) -> (Self, Vec<Listener>) {
        let mut legacy = Self::default();
        let mut listeners = Vec::new();
        for one in std::mem::take(passed) {
            match Meaning::of(&one.name) {
                None => passed.push(one),
                Some(Meaning::State(mark)) => {
                    legacy.states.entry(mark).or_default().push(one.fd);
                }
                Some(Meaning::Connection) => legacy.connections.push(one.fd),
                Some(Meaning::Listener(asked)) => match adopted(one.fd, asked) {
                    Ok(listener) => {
                        legacy.listeners.insert(one.name);
                        listeners.push(listener);
                    }
                    Err(error) => {
                        log::warn!("{error}; a stored listener is of no use");
                        legacy.useless.insert(one.name);
                    }
                },
            }
        }
        (legacy, listeners)
    }

    /// A master that lives has offered its listeners.
    pub fn of_predecessor(listeners: &[Listener]) -> Self {
        Self {
            listeners: listeners.iter().filter_map(name_of).collect(),
            ..Self::default()
        }
    }

    /// Its descriptors.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let states = self.states.values().flatten();
        states.chain(&self.connections).map(AsFd::as_fd)
    }
}

/// A listener that a killed master had, with the file of its Unix socket.
fn adopted(socket: OwnedFd, asked: Address) -> Result<Listener> {
    let unix = matches!(asked, Address::Unix(_));
    let mut listener = Listener::adopt(socket, asked, true)?;
    if unix && !listener.has_file() {
        let attempt = format!("listen on {listener}");
        return Err(Error::because(attempt, "its file is gone"));
    }
    listener.own();
    Ok(listener)
}

/// What the ledgers say of all connections, and the life lines of their masters.
#[derive(Default)]
struct Notes {
    records: HashMap<u64, Record<'static>>,
    lives: Vec<(u64, Option<OwnedFd>)>,
}

impl Notes {
    fn read(states: BTreeMap<u64, Vec<OwnedFd>>) -> Self {
        let mut notes = Self::default();
        let mut ledgers = Vec::new();
        for (mark, descriptors) in states {
            let is_pipe = |fd: &OwnedFd| {
                fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
            };
            let (mut lives, files): (Vec<_>, Vec<_>) = descriptors.into_iter().partition(is_pipe);
            notes.lives.push((mark, lives.pop()));
            for file in files {
                let ledger = MemoryFile::open(file).map_err(|error| Plain(&error).to_string());
                let ledger =
                    ledger.and_then(|file| Ledger::read(file).map_err(|why| why.to_string()));
                match ledger {
                    Ok(ledger) => ledgers.push(ledger),
                    Err(why) => log::error!(
                        "cannot read the ledger of a master that was killed: {why}; \
                         closing the connections in it"
                    ),
                }
            }
        }
        // The later one is right, where a connection is in several.
        ledgers.sort_by_key(Ledger::since);
        for ledger in &ledgers {
            notes.take(ledger);
        }
        notes
    }

    fn take(&mut self, ledger: &Ledger<MemoryFile>) {
        let mut malformed = 0;
        for place in 0..ledger.capacity() as u32 {
            match ledger.entry(place) {
                Ok(Some(record)) => {
                    self.records.insert(record.cookie, record);
                }
                Ok(None) => {}
                Err(_) => malformed += 1,
            }
        }
        if malformed > 0 {
            log::warn!(
                "the ledger of a master that was killed has {malformed} malformed entries; \
                 closing their connections"
            );
        }
    }
}

impl<'a> Master<'a> {
    /// Takes over from a master that was killed.
    pub(in crate::master) fn inherit(&mut self, legacy: Legacy, now: Time) {
        let Some(store) = self.store.clone() else {
            return;
        };
        let kept = legacy.listeners.difference(&legacy.useless);
        store.know_listeners(kept.cloned().collect());
        for name in legacy.useless {
            store.remove(name);
        }
        if legacy.states.is_empty() && legacy.connections.is_empty() {
            return;
        }
        let clock = monotonic().unwrap_or_default();
        let Notes { mut records, lives } = Notes::read(legacy.states);
        let limits = self.pools.iter().flatten();
        let grace = limits.map(|pool| pool.plan.settings.grace).max();
        let mut orphans = Orphans {
            states: lives,
            connections: Vec::new(),
            until: now.after(grace.unwrap_or_default()),
        };
        let (mut adopted, mut closed) = (0, 0);
        for socket in legacy.connections {
            let cookie = sockopt::socket_cookie(&socket).ok();
            let record = cookie.and_then(|cookie| records.remove(&cookie));
            let (Some(record), Some(peer)) = (record, peer(&socket)) else {
                closed += 1;
                end(&socket);
                continue;
            };
            let orphan = Orphan {
                record,
                socket,
                peer,
            };
            let ready = match orphan.record.stage {
                Stage::Lent => {
                    orphans.connections.push(orphan);
                    continue;
                }
                Stage::Ending => {
                    end(&orphan.socket);
                    continue;
                }
                Stage::Ready => true,
                Stage::Parked => false,
            };
            let standing = orphan.record.standing(ready, clock);
            match self.pool_of(&orphan.record) {
                Some(pool) => {
                    pool.take_in(orphan, &standing, &store, now);
                    adopted += 1;
                }
                None => {
                    closed += 1;
                    end(&orphan.socket);
                }
            }
        }
        let lent = orphans.connections.len();
        log::info!(
            "took over from a master that was killed: {adopted} connections, and {lent} that were lent"
        );
        if closed > 0 {
            log::warn!("closed {closed} stored connections of which nothing is known");
        }
        for life in orphans.states.iter().filter_map(|(_, life)| life.as_ref()) {
            let data = EventData::new_u64(Token::own(Subject::Orphans).encode());
            if let Err(error) = epoll::add(&*self.own.epoll, life, data, EventFlags::empty()) {
                log::error!("cannot watch the workers of a master that was killed: {error}");
            }
        }
        self.orphans = Some(orphans);
        self.advance_orphans(now);
    }

    /// The workers of the killed master may have ended, or have had their time.
    pub(in crate::master) fn advance_orphans(&mut self, now: Time) {
        let in_time = self.orphans.as_ref().is_some_and(|one| one.until > now);
        let (Some(orphans), Some(store)) = (&self.orphans, self.store.clone()) else {
            return;
        };
        if in_time && orphans.may_be_served() {
            return;
        }
        let Some(orphans) = self.orphans.take() else {
            return;
        };
        let served = orphans.may_be_served();
        for (mark, life) in orphans.states {
            if let Some(life) = life {
                // The manager has it too: closing it would not end the watching (epoll(7)).
                let _ = epoll::delete(&*self.own.epoll, &life);
            }
            store.remove(names::of_state(mark));
        }
        if served && !orphans.connections.is_empty() {
            log::warn!("workers of a master that was killed do not end: closing what they have");
        }
        for orphan in orphans.connections {
            match self.pool_of(&orphan.record).filter(|_| !served) {
                Some(pool) => pool.settle_orphan(orphan, &store, now),
                None => end(&orphan.socket),
            }
        }
    }

    /// When it is no longer waited for the workers of the killed master.
    pub(in crate::master) fn orphans_due(&self) -> Option<Time> {
        self.orphans.as_ref().map(|orphans| orphans.until)
    }

    fn pool_of(&mut self, record: &Record<'_>) -> Option<&mut Pool<'a>> {
        self.pools()
            .find(|pool| hash(&pool.plan.name) == record.pool)
    }
}

impl Pool<'_> {
    fn take_in(&mut self, orphan: Orphan, standing: &Standing, store: &Store, now: Time) {
        let (interest, stage) = (orphan.record.interest, orphan.record.stage);
        let held = self.hold(orphan, store);
        held.note_standing(stage, standing, now);
        let interest = match interest {
            Interest::Output => Interest::Output,
            Interest::Input | Interest::NewInput => Interest::Input,
        };
        self.dispatcher.adopt(held, standing, interest, now);
    }

    fn hold(&mut self, orphan: Orphan, store: &Store) -> Held {
        let Orphan {
            record,
            socket,
            peer,
        } = orphan;
        let mut held = Held::adopted(socket, peer, &record.carry, record.total);
        held.copied(store.keep_stored(record.cookie, &self.plan.name));
        // It was counted by the killed master, and is not refused now.
        let _ = self.clients.enter(peer);
        held
    }

    /// Looks what came of a turn whose worker died with its master.
    fn settle_orphan(&mut self, orphan: Orphan, store: &Store, now: Time) {
        let (turns, peer) = (orphan.record.turns, orphan.peer);
        let mut held = self.hold(orphan, store);
        let consequence = match held.examine(None, None) {
            Verdict::Untouched => {
                let standing = Standing {
                    ready: held.has_input(),
                    left: self.plan.settings.idle_timeout,
                    ..Standing::before(turns + 1)
                };
                held.note_standing(Stage::Lent, &standing, now);
                self.dispatcher.adopt(held, &standing, Interest::Input, now);
                "nothing was read, so it goes on"
            }
            Verdict::Consumed => {
                held.enter(Stage::Ending);
                self.dispatcher.adopt_crashed(held, now);
                "nothing was sent, so the client gets an error reply"
            }
            Verdict::Sent | Verdict::Served(_) | Verdict::Unknown => {
                self.clients.leave(peer);
                "something was sent, so it is closed"
            }
        };
        let turn = turns + 1;
        log::info!("the master was killed in turn {turn} of {peer}: {consequence}");
    }
}

impl Orphans {
    /// Whether some worker may still have one of the connections.
    fn may_be_served(&self) -> bool {
        let is_open = |life: &OwnedFd| {
            let mut poll = [PollFd::new(life, PollFlags::empty())];
            let ended = event::poll(&mut poll, Some(&Timespec::default()));
            ended == Ok(0)
        };
        let mut lives = self.states.iter().filter_map(|(_, life)| life.as_ref());
        !self.connections.is_empty() && lives.any(is_open)
    }

    /// Closes what is left.
    pub fn end(self, store: &Store) {
        for (mark, _) in self.states {
            store.remove(names::of_state(mark));
        }
        for orphan in self.connections {
            end(&orphan.socket);
        }
    }
}

/// Ends a connection, for its client and for the manager.
fn end(socket: &OwnedFd) {
    // ENOTCONN: the client has ended it already.
    let _ = shutdown(socket, Shutdown::Both);
}

/// The client at the other end; nothing when it is gone.
fn peer(socket: &OwnedFd) -> Option<Peer> {
    match sockopt::socket_domain(socket).ok()? {
        AddressFamily::UNIX => Some(Peer::Unix),
        _ => {
            let address = getpeername(socket).ok()??;
            SocketAddr::try_from(address).ok().map(Peer::Inet)
        }
    }
}
