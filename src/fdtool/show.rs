//! What recv-fd prints for one message: the data, each descriptor, and what can be read from it.
//!
//! The sender still has the open file that a received descriptor stands for, and everything but the
//! number is shared with it: so nothing here changes a flag, and nothing waits for longer than a
//! second in all.

use std::io::{IoSliceMut, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, tell};
use rustix::io::{Errno, ReadWriteFlags, preadv2, read, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrAny, SocketAddrUnix, SocketType, getpeername, getsockname,
    recv, sockopt,
};

use crate::error::Plain;

/// How many bytes to read from a descriptor.
const MOST_CONTENT: usize = 1000;

/// How long the descriptors of one message may take until there is something to read.
const PATIENCE: Duration = Duration::from_secs(1);

/// The output for one message.
pub(super) struct Block {
    bytes: Vec<u8>,
    /// The output is a terminal: let no control character of a file through.
    escape: bool,
}

/// What reading a descriptor gave.
enum Content {
    Bytes(Vec<u8>),
    End,
    NothingYet,
    Failed(String),
}

impl Block {
    pub(super) fn new(escape: bool) -> Self {
        let bytes = Vec::new();
        Self { bytes, escape }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The data of a message. It is a line of text to a reader, so nothing in it may start another
    /// one.
    pub(super) fn data(&mut self, data: &[u8]) {
        let text = escaped(data, |_| false);
        self.line(format_args!("received {} bytes: {text}", data.len()));
    }

    /// The data of a message from TLPI's scm_rights_send.
    pub(super) fn number(&mut self, number: i32) {
        self.line(format_args!("Received data = {number}"));
    }

    /// Shows each descriptor and closes it.
    pub(super) fn descriptors(&mut self, descriptors: Vec<OwnedFd>, verbose: bool) {
        let deadline = Instant::now() + PATIENCE;
        if descriptors.is_empty() {
            self.line(format_args!("Received no fd"));
        }
        for descriptor in descriptors {
            let number = descriptor.as_raw_fd();
            self.line(format_args!("Received fd {number}"));
            if verbose {
                let description = describe(&descriptor);
                self.line(format_args!("fd {number} is {description}"));
            }
            self.line(format_args!("reading fd {number}..."));
            match content(&descriptor, deadline) {
                Content::Bytes(bytes) => self.content(&bytes),
                Content::End => self.line(format_args!("read: eof")),
                Content::NothingYet => self.line(format_args!("read: nothing to read yet")),
                Content::Failed(reason) => self.line(format_args!("read: {reason}")),
            }
        }
    }

    fn content(&mut self, bytes: &[u8]) {
        let head = format!("read {} bytes: ", bytes.len());
        self.bytes.extend_from_slice(head.as_bytes());
        if self.escape {
            let text = escaped(bytes, |char| matches!(char, '\n' | '\t'));
            self.bytes.extend_from_slice(text.as_bytes());
        } else {
            self.bytes.extend_from_slice(bytes);
        }
        if self.bytes.last() != Some(&b'\n') {
            self.bytes.push(b'\n');
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.bytes, "{line}").expect("a vector takes what it is given");
    }
}

/// Text as it is, but control characters and what is not UTF-8 as escapes, so that a terminal only
/// ever shows it.
fn escaped(bytes: &[u8], keep: impl Fn(char) -> bool) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() && !keep(char) {
                text.extend(char.escape_default());
            } else {
                text.push(char);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Reads once from where the descriptor stands, without waiting past the deadline.
fn content(descriptor: &OwnedFd, deadline: Instant) -> Content {
    let failed = |errno: Errno| Content::Failed(Plain(&errno.into()).to_string());
    // A write-only descriptor never becomes readable: say what it is rather than wait.
    match fcntl_getfl(descriptor) {
        Ok(flags) if flags.contains(OFlags::PATH) => {
            return Content::Failed("it only names the file (O_PATH)".into());
        }
        Ok(flags) if flags & OFlags::RWMODE == OFlags::WRONLY => {
            return Content::Failed("it is open for writing only".into());
        }
        _ => {}
    }
    match readable(descriptor, deadline) {
        Ok(true) => {}
        Ok(false) => return Content::NothingYet,
        Err(errno) => return failed(errno),
    }
    let mut buffer = vec![0; MOST_CONTENT];
    match retry_on_intr(|| read_now(descriptor, &mut buffer)) {
        Ok(0) => Content::End,
        Ok(count) => {
            buffer.truncate(count);
            Content::Bytes(buffer)
        }
        Err(Errno::AGAIN) => Content::NothingYet,
        Err(errno) => failed(errno),
    }
}

/// Waits until a read would not sleep. Regular files are always ready.
fn readable(descriptor: &OwnedFd, deadline: Instant) -> Result<bool, Errno> {
    retry_on_intr(|| {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut descriptors = [PollFd::new(descriptor, PollFlags::IN)];
        poll(&mut descriptors, Some(&timeout)).map(|ready| ready > 0)
    })
}

/// Reads without sleeping, even if another process was faster: O_NONBLOCK would change the open
/// file for its sender too, so ask for it in the call, where the kind of file allows it.
fn read_now(descriptor: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    /// Stands for the file's own offset in preadv2(2).
    const CURRENT: u64 = u64::MAX;
    match FileType::from_raw_mode(fstat(descriptor)?.st_mode) {
        FileType::Socket => recv(descriptor, buffer, RecvFlags::DONTWAIT).map(|(count, _)| count),
        // "Would sleep" would also mean that the file is on the disk and not in memory.
        FileType::RegularFile | FileType::Directory | FileType::BlockDevice => {
            read(descriptor, buffer)
        }
        _ => {
            let slices = &mut [IoSliceMut::new(buffer)];
            match preadv2(descriptor, slices, CURRENT, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => read(descriptor, buffer),
                other => other,
            }
        }
    }
}

/// What a descriptor is: its kind and name, how it was opened, and its offset if it has one.
fn describe(descriptor: &OwnedFd) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    let link = link.unwrap_or_default();
    let name = name(&link);
    let kind = fstat(descriptor).map(|stat| FileType::from_raw_mode(stat.st_mode));
    let kind = kind.unwrap_or(FileType::Unknown);
    let what = match kind {
        _ if name.starts_with("anon_inode:") => format!("an anonymous file, {name}"),
        FileType::RegularFile => format!("a regular file, {name}"),
        FileType::Directory => format!("a directory, {name}"),
        FileType::Fifo if name.starts_with("pipe:") => format!("a pipe, {name}"),
        FileType::Fifo => format!("a FIFO, {name}"),
        FileType::CharacterDevice => format!("a character device, {name}"),
        FileType::BlockDevice => format!("a block device, {name}"),
        FileType::Symlink => format!("a symbolic link, {name}"),
        FileType::Socket => describe_socket(descriptor),
        FileType::Unknown => format!("of an unknown kind, {name}"),
    };
    let mode = match fcntl_getfl(descriptor) {
        Ok(flags) if flags.contains(OFlags::PATH) => ", not open for reading or writing (O_PATH)",
        Ok(flags) if flags & OFlags::RWMODE == OFlags::RDONLY => ", open for reading",
        Ok(flags) if flags & OFlags::RWMODE == OFlags::WRONLY => ", open for writing",
        Ok(_) => ", open for reading and writing",
        Err(_) => "",
    };
    let has_offset = matches!(
        kind,
        FileType::RegularFile | FileType::Directory | FileType::BlockDevice
    );
    match tell(descriptor) {
        Ok(offset) if has_offset => format!("{what}{mode}, at offset {offset}"),
        _ => format!("{what}{mode}"),
    }
}

fn name(path: &Path) -> String {
    escaped(path.as_os_str().as_encoded_bytes(), |_| false)
}

fn describe_socket(socket: &OwnedFd) -> String {
    let kind = sockopt::socket_type(socket).ok();
    let (family, is_unix) = match sockopt::socket_domain(socket) {
        Ok(AddressFamily::UNIX) => ("Unix", true),
        Ok(AddressFamily::INET | AddressFamily::INET6) => ("", false),
        _ => ("other", false),
    };
    let kind = match (family, kind) {
        ("", Some(SocketType::STREAM)) => "a TCP socket".into(),
        ("", Some(SocketType::DGRAM)) => "a UDP socket".into(),
        (_, Some(SocketType::STREAM)) => format!("a {family} stream socket"),
        (_, Some(SocketType::DGRAM)) => format!("a {family} datagram socket"),
        (_, Some(SocketType::SEQPACKET)) => format!("a {family} seqpacket socket"),
        _ => format!("a {family} socket"),
    };
    let address = |address: SocketAddrAny| {
        if is_unix {
            unix_name(address)
        } else {
            SocketAddr::try_from(address).map_or_else(|_| "?".into(), |it| it.to_string())
        }
    };
    let own = getsockname(socket).map_or_else(|_| "?".into(), address);
    if sockopt::socket_acceptconn(socket) == Ok(true) {
        return format!("{kind}, listening on {own}");
    }
    match getpeername(socket) {
        Ok(Some(peer)) => format!("{kind}, {own} connected to {}", address(peer)),
        Ok(None) if is_unix => format!("{kind}, {own} connected to (unnamed)"),
        _ => format!("{kind}, {own}, not connected"),
    }
}

fn unix_name(address: SocketAddrAny) -> String {
    let Ok(address) = SocketAddrUnix::try_from(address) else {
        return "(unnamed)".into();
    };
    match (address.path_bytes(), address.abstract_name()) {
        (Some(path), _) if !path.is_empty() => escaped(path, |_| false),
        (_, Some(name)) if !name.is_empty() => format!("@{}", escaped(name, |_| false)),
        _ => "(unnamed)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let hostile =
            b"ok\ttab\nbell\x07 clear\x1b[2J c1:\xc2\x9b raw:\x9b \xff gr\xc3\xbc\xc3\x9f";
        let text = escaped(hostile, |char| matches!(char, '\n' | '\t'));
        assert_eq!(
            text,
            "ok\ttab\nbell\\u{7} clear\\u{1b}[2J c1:\\u{9b} raw:\\x9b \\xff grüß"
        );
    }

    #[test]
    fn data_stays_on_its_line() {
        let mut block = Block::new(false);
        block.data(b"a\nread: eof");
        assert_eq!(block.as_bytes(), b"received 11 bytes: a\\nread: eof\n");
    }
}
