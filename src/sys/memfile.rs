//! Memory that outlives its process: the words of a memory file, for whoever has its descriptor.

use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use nix::libc::c_void;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat,
    ftruncate,
};
use rustix::io::Errno;

use crate::sys::unlinked::memory_file;

const WORD: usize = size_of::<u64>();

/// A file whose size can change no more, so that no access to its memory can fail.
const SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// A memory file, mapped. Pages that were never written take no memory. Processes that are forked
/// from this one do not have the mapping.
#[derive(Debug)]
pub struct MemoryFile {
    file: OwnedFd,
    place: NonNull<AtomicU64>,
    count: usize,
}

impl MemoryFile {
    /// A file of so many words, all zero. Its name is for /proc only.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2), fcntl(2) and mmap(2) fail with.
    pub fn create(name: &str, count: usize) -> io::Result<Self> {
        let file = memory_file(name, MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, (count * WORD) as u64)?;
        fcntl_add_seals(&file, SIZE)?;
        Self::open(file)
    }

    /// A file that another process has made so.
    ///
    /// # Errors
    /// `InvalidData` when it is something else; what fcntl(2), fstat(2) and mmap(2) fail with.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        match fcntl_get_seals(&file) {
            Ok(seals) if seals.contains(SIZE) => {}
            Ok(_) => return Err(wrong("its size may change")),
            Err(Errno::INVAL) => return Err(wrong("it is no memory file")),
            Err(error) => return Err(error.into()),
        }
        let size = usize::try_from(fstat(&file)?.st_size).unwrap_or(0);
        let length = NonZeroUsize::new(size).ok_or_else(|| wrong("it is empty"))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let place = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) }?;
        let mapped = Self {
            file,
            place: place.cast(),
            count: size / WORD,
        };
        // SAFETY: the range is this value's mapping; a child that has no such mapping never uses
        // this value, for it is the parent's.
        unsafe { madvise(place, size, MmapAdvise::MADV_DONTFORK) }?;
        Ok(mapped)
    }

    /// Makes some words zero, and gives their memory back: that of the whole pages among them.
    pub fn forget(&self, words: Range<usize>) {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (begin, length) = (words.start * WORD, words.len() * WORD);
        if fallocate(&self.file, how, begin as u64, length as u64).is_err() {
            // The pages stay in use then. What was in them does not.
            self[words].iter().for_each(|word| word.store(0, Relaxed));
        }
    }
}

impl Deref for MemoryFile {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, holds at least `count` words, lives as long as
        // `self`, and can't lose its pages, for the size of the file is sealed. Any bits are an
        // AtomicU64, and other processes that change them do it no other way.
        unsafe { std::slice::from_raw_parts(self.place.as_ptr(), self.count) }
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let place: NonNull<c_void> = self.place.cast();
        // SAFETY: the mapping is this value's own, and no reference to it outlives `self`. It can't
        // fail; the kernel rounds the length up to the whole page.
        let _ = unsafe { munmap(place, self.count * WORD) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::memfd_create;

    #[test]
    fn what_was_written_is_there_for_whoever_has_the_file() {
        let mine = MemoryFile::create("test", 100_000).unwrap();
        assert_eq!(mine.len(), 100_000);
        mine[99_999].store(7, Relaxed);
        let file = mine.as_fd().try_clone_to_owned().unwrap();
        drop(mine);
        let again = MemoryFile::open(file).unwrap();
        assert_eq!(again.len(), 100_000);
        assert_eq!(again[99_999].load(Relaxed), 7);
        again.forget(0..100_000);
        assert_eq!(again[99_999].load(Relaxed), 0);
    }

    #[test]
    fn what_is_forgotten_is_zero_though_the_kernel_refuses() {
        let words = MemoryFile::create("test", 1000).unwrap();
        words.iter().for_each(|word| word.store(7, Relaxed));
        fcntl_add_seals(&words, SealFlags::FUTURE_WRITE).unwrap();
        words.forget(1..999);
        let left: Vec<_> = words.iter().map(|word| word.load(Relaxed)).collect();
        assert_eq!((left[0], left[999]), (7, 7));
        assert!(left[1..999].iter().all(|word| *word == 0));
    }

    #[test]
    fn only_a_sealed_memory_file_is_opened() {
        let reason = |file| MemoryFile::open(file).unwrap_err().to_string();
        let (pipe, _write) = rustix::pipe::pipe().unwrap();
        assert_eq!(reason(pipe), "it is no memory file");
        let open = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&open, 4096).unwrap();
        assert_eq!(reason(open), "its size may change");
        let empty = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        fcntl_add_seals(&empty, SIZE).unwrap();
        assert_eq!(reason(empty), "it is empty");
    }
}
