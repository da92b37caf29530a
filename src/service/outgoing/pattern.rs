//! Bytes that are sent again and again, as files in memory: each is made once in a process.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::MemfdFlags;

use super::kept::write_all;
use crate::sys::unlinked::memory_file;

/// For how many there are files. The bytes are a program's constants, and few.
const MOST: usize = 64;

/// The files. They last as long as the process.
static FILES: Mutex<Vec<Made>> = Mutex::new(Vec::new());

#[derive(Clone, Copy)]
struct Made {
    /// Where the bytes are in memory, and how many.
    place: usize,
    length: usize,
    /// How long the file is.
    period: u64,
    file: &'static OwnedFd,
}

/// How much of a file is sent at a time, at the least, in bytes.
const BLOCK: usize = 64 * 1024;

/// The bytes again and again, as often as fits into a block, but once at the least.
pub fn block(bytes: &'static [u8]) -> Cow<'static, [u8]> {
    match BLOCK / bytes.len().max(1) {
        0 | 1 => bytes.into(),
        times => bytes.repeat(times).into(),
    }
}

/// The file that has a [`block`] of these bytes, and how long that is.
///
/// # Errors
/// What making it fails with; `QuotaExceeded` when there are too many.
pub fn file(bytes: &'static [u8]) -> io::Result<(BorrowedFd<'static>, u64)> {
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let (place, length) = (bytes.as_ptr() as usize, bytes.len());
    let known = |made: &&Made| (made.place, made.length) == (place, length);
    if let Some(made) = files.iter().find(known) {
        return Ok((made.file.as_fd(), made.period));
    }
    if files.len() >= MOST {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    let block = block(bytes);
    let made = Made {
        place,
        length,
        period: block.len() as u64,
        file: Box::leak(Box::new(memory_file(
            "batond-pattern",
            MemfdFlags::empty(),
        )?)),
    };
    write_all(made.file, &block, 0)?;
    files.push(made);
    Ok((made.file.as_fd(), made.period))
}
