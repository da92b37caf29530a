//! What a service has written and its client has not taken, until the turn is over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, pread, pwrite};

use super::record::{Next, Record, Segment};
use super::transmit::{Fault, Line, Sent};
use crate::service::keeping::{Keeping, MAX_IN_MEMORY};
use crate::sys::luggage;

/// So much of it, in bytes, is kept in this process, and travels in front of the carry.
pub const IN_MEMORY: usize = 16 * 1024;

/// The longest file, in bytes, that is copied because the master would not take it.
const SOON_COPIED: u64 = 1024 * 1024;

/// How much of a file is copied at a time, in bytes.
const BLOCK: usize = 64 * 1024;

/// Which file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One that was made for this, in memory or on disk: more can be written to its end.
    Memory,
    Disk,
    /// The service's.
    Foreign,
}

/// See the module.
#[derive(Debug)]
pub struct Kept {
    /// How much there is, and where.
    record: Record,
    /// The front, then the back.
    carried: Vec<u8>,
    file: Option<(OwnedFd, Kind)>,
}

/// Where it may be kept.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub keeping: &'static Keeping,
    /// A file can travel with the connection: the service has no luggage of its own.
    pub files: bool,
}

/// Why more cannot be kept.
#[derive(Debug)]
pub enum Full {
    /// It would be more than the limit.
    TooMuch(u64),
    /// The service has luggage of its own, and only one file travels with a connection.
    Luggage,
    /// It is a long file of a file system that may not answer.
    Strange,
    /// It cannot be written to a file.
    File(io::Error),
}

impl From<Errno> for Full {
    fn from(error: Errno) -> Self {
        Self::File(error.into())
    }
}

impl Kept {
    pub fn new() -> Self {
        Self {
            record: Record::EMPTY,
            carried: Vec::new(),
            file: None,
        }
    }

    /// How many bytes are kept.
    pub fn length(&self) -> u64 {
        self.record.remaining()
    }

    /// The parts: how much there is and where, what stands in front of the carry, and the file.
    pub fn into_parts(self) -> (Record, Vec<u8>, Option<OwnedFd>) {
        (self.record, self.carried, self.file.map(|(file, _)| file))
    }

    /// What stands in front of the carry, in bytes.
    pub fn carried(&self) -> usize {
        self.carried.len()
    }

    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The kernel has no room for the client.
    pub fn note_full(&mut self) {
        self.record.full = self.record.full.max(1);
    }

    /// Sends as much of it as goes.
    pub fn send(&mut self, line: &mut Line<'_>) -> Result<Sent, Fault> {
        let mut gone = 0;
        let file = self.file.as_ref().map(|(file, _)| file.as_fd());
        let sent = line.send(&mut self.record, (&self.carried, &mut gone), file, u64::MAX);
        self.carried.drain(..gone);
        if let Ok(Sent::Full) = sent {
            self.note_full();
            self.shrink();
        }
        sent
    }

    /// Takes what is left of its own file into memory if it is short, so that the file, which only
    /// grows, is given back.
    fn shrink(&mut self) {
        let Some((file, Kind::Memory | Kind::Disk)) = &self.file else {
            return;
        };
        let (offset, length) = (self.record.segment.offset, self.record.segment.length);
        if length > IN_MEMORY as u64 {
            return;
        }
        let mut rest = vec![0; length as usize];
        if read_exactly(file.as_fd(), &mut rest, offset).is_ok() {
            self.carried = rest;
            self.file = None;
            self.record.front = length as u32;
            (self.record.has_file, self.record.segment) = (false, Segment::default());
        }
    }

    /// Keeps bytes behind all that is kept already: all of them, or none.
    pub fn add(&mut self, bytes: &[u8], room: Room) -> Result<(), Full> {
        let own = matches!(self.file, Some((_, Kind::Memory | Kind::Disk)));
        let most = room.keeping.max_spool.min(IN_MEMORY as u64) as usize;
        if !own && self.carried.len() + bytes.len() <= most {
            self.carried.extend_from_slice(bytes);
            match self.file {
                None => self.record.front += bytes.len() as u32,
                Some(_) => self.record.back += bytes.len() as u32,
            }
            return Ok(());
        }
        self.spool(bytes.len() as u64, room)?;
        let end = self.record.segment.offset + self.record.segment.length;
        if let Some((file, _)) = &self.file {
            write_all(file, bytes, end)?;
        }
        self.record.segment.length += bytes.len() as u64;
        Ok(())
    }

    /// Keeps a part of a file behind all that is kept already: the file itself, or a copy if there
    /// is one already. One that the master would not take is copied only if that is soon done.
    pub fn add_file(
        &mut self,
        file: BorrowedFd<'_>,
        segment: Segment,
        room: Room,
    ) -> Result<(), Full> {
        let acceptable = luggage::is_acceptable(file);
        if acceptable && self.file.is_none() && room.files {
            let file = luggage::open_apart(file).map_err(Full::File)?;
            self.record.has_file = true;
            self.record.segment = segment;
            self.file = Some((file, Kind::Foreign));
            return Ok(());
        }
        if !acceptable && segment.length > SOON_COPIED {
            return Err(Full::Strange);
        }
        self.copy(file, segment, room)
    }

    /// Keeps a copy of a part of a file: all of it, or nothing.
    pub fn copy(&mut self, file: BorrowedFd<'_>, part: Segment, room: Room) -> Result<(), Full> {
        let all = self.length().saturating_add(part.length);
        if all > room.keeping.max_spool {
            return Err(Full::TooMuch(room.keeping.max_spool));
        }
        let before = self.record;
        let mut block = vec![0; BLOCK.min(part.length as usize)];
        let mut source = Record::of_file(part);
        while let Next::File { offset, length } = source.next() {
            let block = &mut block[..BLOCK.min(length as usize)];
            let copied = read_exactly(file, block, offset).map_err(Full::File);
            if let Err(full) = copied.and_then(|()| self.add(block, room)) {
                self.take_back(before);
                return Err(full);
            }
            let _ = source.advance(block.len() as u64);
        }
        Ok(())
    }

    /// Forgets what was added since, which is the end of what is kept now.
    fn take_back(&mut self, before: Record) {
        let added = self.length() - before.remaining();
        match self.file {
            // Whatever was in memory then is in the file now, in front of the rest.
            Some((_, Kind::Memory | Kind::Disk)) => self.record.segment.length -= added,
            _ => {
                let length = self.carried.len() - added as usize;
                self.carried.truncate(length);
                (self.record.front, self.record.back) = (before.front, before.back);
            }
        }
    }

    /// Has all that is kept in a file of its own, with room for so much more.
    pub fn spool(&mut self, more: u64, room: Room) -> Result<(), Full> {
        let keeping = room.keeping;
        let Segment { offset, length, .. } = self.record.segment;
        let long = |length: u64| length > MAX_IN_MEMORY && keeping.directory.is_some();
        let end = offset.saturating_add(length).saturating_add(more);
        match self.file {
            Some((_, Kind::Memory)) if long(end) => {}
            // What was sent is still in the file.
            Some((_, Kind::Memory | Kind::Disk)) if end > keeping.max_spool => {
                return Err(Full::TooMuch(keeping.max_spool));
            }
            Some((_, Kind::Memory | Kind::Disk)) => return Ok(()),
            Some((_, Kind::Foreign)) | None => {}
        }
        if !room.files {
            return Err(Full::Luggage);
        }
        let all = self.length();
        if all.saturating_add(more) > keeping.max_spool {
            return Err(Full::TooMuch(keeping.max_spool));
        }
        let (file, kind) = match long(all + more) {
            true => (keeping.unlinked_file(), Kind::Disk),
            false => (Keeping::memory_file(), Kind::Memory),
        };
        let file = match file.map_err(Full::File)? {
            file if luggage::is_acceptable(&file) => file,
            // The master would not take it: closing a file of that file system may sleep.
            _ => Keeping::memory_file().map_err(Full::File)?,
        };
        self.pour_into(&file)?;
        self.carried.clear();
        self.file = Some((file, kind));
        self.record = Record {
            front: 0,
            has_file: true,
            segment: Segment {
                offset: 0,
                length: all,
                period: 0,
            },
            back: 0,
            ..self.record
        };
        Ok(())
    }

    /// Writes all that is kept to the start of a file.
    fn pour_into(&self, to: &OwnedFd) -> Result<(), Full> {
        let (front, back) = self.carried.split_at(self.record.front as usize);
        write_all(to, front, 0)?;
        let mut at = front.len() as u64;
        if let Some((file, _)) = &self.file {
            let mut source = Record::of_file(self.record.segment);
            let mut block = vec![0; BLOCK];
            while let Next::File { offset, length } = source.next() {
                let block = &mut block[..BLOCK.min(length as usize)];
                read_exactly(file.as_fd(), block, offset).map_err(Full::File)?;
                write_all(to, block, at)?;
                at += block.len() as u64;
                let _ = source.advance(block.len() as u64);
            }
        }
        Ok(write_all(to, back, at)?)
    }
}

pub fn write_all(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_exactly(file: BorrowedFd<'_>, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        match pread(file, &mut *into, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                into = &mut into[count..];
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
