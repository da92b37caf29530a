//! Writing to the client: at once as far as that goes without sleeping. The rest is kept until the
//! turn is over.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{ReadWriteFlags, pwritev2, retry_on_intr, writev};

use super::{Connection, WriteAhead, slept_too_long};
use crate::service::outgoing::complaints::warn_of_wait;
use crate::service::outgoing::kept::{Full, Kept, Room};
use crate::service::outgoing::record::{Record, Segment};
use crate::service::outgoing::transmit::{Line, Sent};
use crate::service::outgoing::{AT_ONCE, HELD, pattern};
use crate::service::turn::Turn;
use crate::sys::luggage;
use crate::wire::{Extras, Outcome};

impl Connection {
    /// Sends as many of `bytes` as the kernel takes without sleeping, and returns how many these
    /// were; 0 means that there is no room now. Nothing is kept: this is for a service that keeps
    /// the rest itself, and ends its turn with [`Turn::ParkForWriting`].
    ///
    /// # Errors
    /// Any error of send(2), most often `BrokenPipe`.
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        if self.kept.is_some() && self.send_kept()? == Sent::Full {
            return Ok(0);
        }
        let before = self.traffic.written;
        self.line(false).send_bytes(bytes, false)?;
        Ok((self.traffic.written - before) as usize)
    }

    /// Sends all of `bytes`, as the last act of a turn: the service must then return `then` without
    /// reading or writing any more.
    ///
    /// This is [`Write::write_all`]; if the connection ends, its last packet waits for the end. In
    /// addition, if the worker is killed before it can report, the master can tell whether
    /// everything was sent, and if so the client notices nothing.
    ///
    /// # Errors
    /// Any error of send(2), and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn write_last(&mut self, bytes: &[u8], then: Turn) -> io::Result<()> {
        if let Some(pending_report) = self.pending_report
            && self.may_be_foreseen()
        {
            let mut traffic = self.traffic;
            traffic.written += (self.buffer.held.len() + bytes.len()) as u64;
            pending_report.write_ahead(self.id, then.outcome(), traffic);
        }
        self.put(bytes, matches!(then, Turn::Close | Turn::Linger))
    }

    /// Sets where reports are written ahead of the last call of a turn.
    pub(crate) fn set_write_ahead(&mut self, pending_report: &'static dyn WriteAhead) {
        self.pending_report = Some(pending_report);
    }

    /// Writes the report of the turn ahead, as the connection stands now, if it is one that can be.
    pub(crate) fn write_ahead(&self, outcome: Outcome) {
        if let Some(pending_report) = self.pending_report
            && self.may_be_foreseen()
        {
            pending_report.write_ahead(self.id, outcome, self.traffic);
        }
    }

    /// Whether the report can be told from the outcome and the counters alone, since nothing
    /// travels with the connection that was not there before.
    fn may_be_foreseen(&self) -> bool {
        self.buffer().is_empty()
            && self.kept.is_none()
            && self.baggage.extras() == Extras::default()
    }

    /// Sends all of `bytes`, and says that more follows at once: the file after a head
    /// ([`Connection::send_file`]), or the end of the connection after its last bytes
    /// ([`Turn::Close`], [`Turn::Linger`]). They are held back until that comes, or the next read
    /// that sleeps, [`Write::flush`], or the end of the turn.
    ///
    /// # Errors
    /// Any error of send(2), and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn write_more(&mut self, bytes: &[u8]) -> io::Result<()> {
        let fits = self.buffer.held.len() + bytes.len() <= HELD;
        if fits && self.may_keep() && self.kept.is_none() {
            self.buffer.held.extend_from_slice(bytes);
            return Ok(());
        }
        self.put(bytes, true)
    }

    /// Sends `length` bytes of `file`, from `offset` on. The file must not be changed before all is
    /// sent, which may be long after the turn.
    ///
    /// # Errors
    /// Any error of pread(2) and send(2); [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) when the
    /// file is shorter, if that is seen in this turn.
    pub fn send_file(&mut self, file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
        let segment = Segment {
            offset,
            length,
            period: 0,
        };
        if length == 0 {
            return Ok(());
        }
        let whole = (self.buffer.held.len() as u64).saturating_add(length);
        let first = self.is_kept_first(whole) && luggage::is_acceptable(&file);
        self.put_segment(file, segment, first)
    }

    /// Sends `pattern` again and again, up to `length` bytes.
    ///
    /// # Errors
    /// Those of [`Write::write_all`].
    pub(crate) fn send_repeated(&mut self, pattern: &'static [u8], length: u64) -> io::Result<()> {
        let whole = (self.buffer.held.len() as u64).saturating_add(length);
        if self.is_kept_first(whole)
            && let Ok((file, period)) = pattern::file(pattern)
        {
            let segment = Segment {
                offset: 0,
                length,
                period,
            };
            return self.put_segment(file, segment, true);
        }
        let block = pattern::block(pattern);
        let mut left = length;
        while left > 0 {
            let count = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
            left -= count as u64;
            self.put(&block[..count], left > 0)?;
        }
        Ok(())
    }

    /// Whether the client has yet to take something that was written in this turn, so that the
    /// kernel has no room for more. What is written all the same is kept, too, up to the limit
    /// `max-spool`; a service that can go on later had better end its turn.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.kept.is_some()
    }

    /// Whether what the client does not take can be kept at all.
    pub(crate) fn may_keep(&self) -> bool {
        self.keeping.max_spool > 0
    }

    /// Whether so much is kept before its first byte is sent.
    fn is_kept_first(&self, length: u64) -> bool {
        length > AT_ONCE && self.may_keep() && self.baggage.luggage().is_none()
    }

    /// Sends, or keeps. `more` follows at once.
    pub(super) fn put(&mut self, bytes: &[u8], more: bool) -> io::Result<()> {
        if self.kept.is_some() {
            self.send_kept()?;
        }
        let whole = (self.buffer.held.len() + bytes.len()) as u64;
        if self.kept.is_none() && !self.is_kept_first(whole) {
            self.send_held(!bytes.is_empty() || more)?;
            if self.kept.is_none() {
                let before = self.traffic.written;
                let waits = !self.may_keep();
                let sent = self.line(waits).send_bytes(bytes, more);
                let count = (self.traffic.written - before) as usize;
                return match sent.map_err(|error| self.broken(error))? {
                    Sent::All => Ok(()),
                    Sent::Full => self.keep_rest(&bytes[count..]),
                };
            }
        }
        self.keep_held()?;
        self.keep(bytes)
    }

    /// Sends what is held back. `more` follows at once.
    fn send_held(&mut self, more: bool) -> io::Result<()> {
        if self.buffer.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut self.buffer.held);
        let before = self.traffic.written;
        let sent = self.line(!self.may_keep()).send_bytes(&held, more);
        let count = (self.traffic.written - before) as usize;
        let result = match sent {
            Ok(Sent::All) => Ok(()),
            Ok(Sent::Full) => self.keep_rest(&held[count..]),
            Err(error) => Err(self.broken(error)),
        };
        self.buffer.held = held;
        self.buffer.held.clear();
        result
    }

    fn put_segment(&mut self, file: impl AsFd, whole: Segment, first: bool) -> io::Result<()> {
        let file = file.as_fd();
        if self.kept.is_some() {
            self.send_kept()?;
        }
        let mut rest = whole;
        if self.kept.is_none() && !first {
            self.send_held(true)?;
            if self.kept.is_none() {
                let mut record = Record::of_file(whole);
                let sent = self.line(!self.may_keep()).send_record(&mut record, file);
                rest = record.segment;
                match sent.map_err(|fault| self.broken(fault.into()))? {
                    Sent::All => return Ok(()),
                    Sent::Full => self.kept_mut().note_full(),
                }
            }
        }
        self.keep_held()?;
        let (room, kept) = (self.room(), self.kept_mut());
        let added = match rest.length <= AT_ONCE && rest.period == 0 {
            // So much is soon copied, and the file can be closed.
            true => kept.copy(file, rest, room),
            false => kept.add_file(file, rest, room),
        };
        match added {
            Ok(()) => Ok(()),
            Err(full) => {
                self.wait_for_client(&full)?;
                let sent = self
                    .line(true)
                    .send_record(&mut Record::of_file(rest), file);
                sent.map(|_| ()).map_err(|fault| self.broken(fault.into()))
            }
        }
    }

    /// Sends or keeps the parts, without the first `skipped` bytes.
    #[cold]
    fn put_parts(&mut self, parts: &[IoSlice<'_>], mut skipped: usize) -> io::Result<()> {
        let whole: usize = parts.iter().map(|part| part.len()).sum();
        let first = self.kept.is_some() || self.is_kept_first((whole - skipped) as u64);
        for part in parts {
            let rest = &part[skipped.min(part.len())..];
            skipped -= part.len() - rest.len();
            match first {
                true => self.keep(rest)?,
                false => self.put(rest, true)?,
            }
        }
        Ok(())
    }

    fn transmit(
        &mut self,
        call: impl Fn(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        let count = retry_on_intr(|| call(&self.socket))?;
        self.traffic.written += count as u64;
        Ok(count)
    }

    // ---- what is kept ---------------------------------------------------------------------------

    pub(super) fn room(&self) -> Room {
        Room {
            keeping: self.keeping,
            files: self.baggage.luggage().is_none(),
        }
    }

    fn kept_mut(&mut self) -> &mut Kept {
        self.kept.get_or_insert_with(|| Box::new(Kept::new()))
    }

    /// Keeps what the kernel had no room for.
    #[cold]
    fn keep_rest(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.kept_mut().note_full();
        self.keep(bytes)
    }

    fn keep_held(&mut self) -> io::Result<()> {
        if self.buffer.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut self.buffer.held);
        let kept = self.keep(&held);
        self.buffer.held = held;
        self.buffer.held.clear();
        kept
    }

    /// Keeps bytes behind what is kept already. If that cannot be, it is sent first, sleeping.
    #[cold]
    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = self.room();
        let Err(full) = self.kept_mut().add(bytes, room) else {
            return Ok(());
        };
        self.wait_for_client(&full)?;
        let sent = self.line(true).send_bytes(bytes, false);
        sent.map(|_| ()).map_err(|error| self.broken(error))
    }

    /// Sends what is kept as far as that goes without sleeping.
    pub(super) fn send_kept(&mut self) -> io::Result<Sent> {
        self.send_kept_with(false)
    }

    fn send_kept_with(&mut self, sleeps: bool) -> io::Result<Sent> {
        let Some(mut kept) = self.kept.take() else {
            return Ok(Sent::All);
        };
        match kept.send(&mut self.line(sleeps)) {
            Ok(Sent::All) => Ok(Sent::All),
            Ok(Sent::Full) => {
                self.kept = Some(kept);
                Ok(Sent::Full)
            }
            Err(fault) => Err(self.broken(fault.into())),
        }
    }

    /// Sends all that is kept, and says that the worker waits for it.
    #[cold]
    fn wait_for_client(&mut self, full: &Full) -> io::Result<()> {
        warn_of_wait(self.peer, full);
        self.send_kept_with(true).map(|_| ())
    }

    /// Sends all that was held back and kept, sleeping for the client: before something else
    /// sleeps for it, that may wait for just that.
    pub(super) fn send_all(&mut self) -> io::Result<()> {
        self.send_held(false)?;
        self.send_kept_with(true).map(|_| ())
    }

    /// The client cannot be written to: what is kept is of no use.
    #[cold]
    fn broken(&mut self, error: io::Error) -> io::Error {
        self.kept = None;
        self.buffer.held.clear();
        slept_too_long(error)
    }

    pub(super) fn line(&mut self, sleeps: bool) -> Line<'_> {
        Line {
            socket: &self.socket,
            sleeps,
            written: &mut self.traffic.written,
            block: &mut self.buffer.block,
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes, false)?;
        Ok(bytes.len())
    }

    /// Sends the parts as one piece, for example a head and a body in one packet, without copying
    /// them together.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let whole = parts.iter().map(|part| part.len()).sum();
        if !self.may_keep() {
            // writev(2) has no flag against SIGPIPE, but a Rust program ignores that signal.
            let count = self.transmit(|socket| writev(socket, parts));
            return count.map_err(slept_too_long);
        }
        self.flush()?;
        let mut sent = 0;
        if self.kept.is_none() && !self.is_kept_first(whole as u64) {
            // At this offset it is the call without one, which has no flags.
            let at_end = u64::MAX;
            let flags = ReadWriteFlags::NOWAIT;
            match self.transmit(|socket| pwritev2(socket, parts, at_end, flags)) {
                Ok(count) if count == whole => return Ok(whole),
                Ok(count) => sent = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The kernel is older than such calls on sockets.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.put_parts(parts, 0)?;
                    return Ok(whole);
                }
                Err(error) => return Err(self.broken(error)),
            }
            self.kept_mut().note_full();
        }
        self.put_parts(parts, sent)?;
        Ok(whole)
    }

    /// Sends what [`Connection::write_more`] has held back.
    fn flush(&mut self) -> io::Result<()> {
        match self.buffer.held.is_empty() {
            true => Ok(()),
            false => self.put(&[], false),
        }
    }
}
