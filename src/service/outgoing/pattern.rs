//! Bytes that are sent again and again, as files in memory: each is made once in a process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use super::kept::write_all;
use crate::service::keeping::Keeping;

/// For how many there are files. The bytes are a program's constants, and few.
const MOST: usize = 64;

/// The files, with the places of the bytes in memory. They last as long as the process.
static FILES: Mutex<Vec<(usize, usize, &'static OwnedFd)>> = Mutex::new(Vec::new());

/// The file that has these bytes.
///
/// # Errors
/// What making it fails with; `QuotaExceeded` when there are too many.
pub fn file(bytes: &'static [u8]) -> io::Result<BorrowedFd<'static>> {
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let (place, length) = (bytes.as_ptr() as usize, bytes.len());
    let known = |file: &&(usize, usize, &'static OwnedFd)| (file.0, file.1) == (place, length);
    if let Some(&(_, _, file)) = files.iter().find(known) {
        return Ok(file.as_fd());
    }
    if files.len() >= MOST {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    let file = Keeping::memory_file()?;
    write_all(&file, bytes, 0)?;
    let file: &'static OwnedFd = Box::leak(Box::new(file));
    files.push((place, length, file));
    Ok(file.as_fd())
}
