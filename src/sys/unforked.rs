//! Bytes of clients that stay with this process: memory that a forked child finds empty, and that
//! is overwritten when it is given back.
//!
//! An [`Unforked`] is a short array of bytes out of an arena. The arena's memory is marked
//! MADV_WIPEONFORK (madvise(2)): a child has zeros in its place, and none of its pages. The sizes
//! are powers of two. What is given back is overwritten, then kept for the next array of its size,
//! or returned to the kernel if it is large.

use std::alloc::{Layout, handle_alloc_error};
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use nix::libc::c_void;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

use crate::error::{Error, Result};

/// How much memory the arena takes from the kernel at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// The size of the smallest array.
const SMALLEST: usize = 128;

/// From this size on, memory that is not used goes back to the kernel. A smaller array may have no
/// page to itself.
const RETURNED: usize = 8 * 1024;

/// The largest array.
const LARGEST: usize = 128 * 1024;

/// The sizes from `SMALLEST` to `LARGEST`, each twice the one before.
const SIZES: usize = (LARGEST / SMALLEST).ilog2() as usize + 1;

static ARENA: Mutex<Arena> = Mutex::new(Arena {
    chunk: None,
    left: 0,
    unused: [const { Vec::new() }; SIZES],
});

struct Arena {
    /// What is left of the last chunk.
    chunk: Option<Block>,
    /// How many bytes that is.
    left: usize,
    /// Arrays that were given back, by size.
    unused: [Vec<Block>; SIZES],
}

/// An array that nobody else has.
#[derive(Debug)]
struct Block(NonNull<u8>);

// SAFETY: whoever has the block is the only one who uses its memory.
unsafe impl Send for Block {}

/// See the module. Up to 128 KiB long.
#[derive(Debug, Default)]
pub struct Unforked {
    /// None when it is empty.
    block: Option<Block>,
    length: usize,
}

/// The place of the size that so many bytes take.
fn size_of_length(length: usize) -> usize {
    length.div_ceil(SMALLEST).next_power_of_two().ilog2() as usize
}

impl Unforked {
    /// An array of zeros. If there is no memory for it, the process ends, as with any allocation.
    ///
    /// # Panics
    /// If it is longer than 128 KiB.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        assert!(length <= LARGEST, "{length} bytes are too many");
        if length == 0 {
            return Self::default();
        }
        let mut arena = ARENA.lock().unwrap_or_else(PoisonError::into_inner);
        let block = Some(arena.take(size_of_length(length)));
        Self { block, length }
    }
}

/// Gets the first memory of the arena. Where the kernel has no such memory, no later call could go
/// on: so call this before anybody is served.
///
/// # Errors
/// What mmap(2) and madvise(2) fail with.
pub fn prepare() -> Result<()> {
    let mut arena = ARENA.lock().unwrap_or_else(PoisonError::into_inner);
    if arena.chunk.is_none() {
        let attempt = "have memory that forked processes find empty (madvise(2), MADV_WIPEONFORK)";
        arena.chunk = Some(map_chunk().map_err(|errno| Error::new(attempt, errno))?);
        arena.left = CHUNK;
    }
    Ok(())
}

impl Arena {
    /// A block of this size, all zero.
    fn take(&mut self, size: usize) -> Block {
        if let Some(block) = self.unused[size].pop() {
            return block;
        }
        let length = SMALLEST << size;
        let (chunk, left) = match self.chunk.take().filter(|_| self.left >= length) {
            Some(chunk) => (chunk, self.left),
            // The rest of the old chunk is given up: less than the largest array takes.
            None => match map_chunk() {
                Ok(chunk) => (chunk, CHUNK),
                Err(_) => handle_alloc_error(Layout::new::<[u8; CHUNK]>()),
            },
        };
        self.left = left - length;
        // SAFETY: the chunk is longer than the block, or ends with it.
        self.chunk = Some(Block(unsafe { chunk.0.add(length) }));
        chunk
    }
}

fn map_chunk() -> nix::Result<Block> {
    let length = NonZeroUsize::new(CHUNK).expect("it is not zero");
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that
    // exists; the advice is for that mapping.
    unsafe {
        mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE).and_then(|place| {
            madvise(place, CHUNK, MmapAdvise::MADV_WIPEONFORK)?;
            Ok(Block(place.cast()))
        })
    }
}

impl From<&[u8]> for Unforked {
    fn from(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.copy_from_slice(bytes);
        copy
    }
}

impl Clone for Unforked {
    fn clone(&self) -> Self {
        (&**self).into()
    }
}

impl PartialEq for Unforked {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Unforked {}

impl Deref for Unforked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.block {
            // SAFETY: the block has room for `length` bytes, initialized by the kernel, and only
            // this value uses them.
            Some(block) => unsafe { std::slice::from_raw_parts(block.0.as_ptr(), self.length) },
            None => &[],
        }
    }
}

impl DerefMut for Unforked {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &self.block {
            // SAFETY: as above, and this value is borrowed mutably.
            Some(block) => unsafe { std::slice::from_raw_parts_mut(block.0.as_ptr(), self.length) },
            None => &mut [],
        }
    }
}

impl Drop for Unforked {
    fn drop(&mut self) {
        // Behind its length, nobody has written to the block. The compiler can't leave this out,
        // because the next owner reads the zeros.
        self.fill(0);
        let Some(block) = self.block.take() else {
            return;
        };
        let size = size_of_length(self.length);
        let length = SMALLEST << size;
        if length >= RETURNED {
            // The pages that lie within the block.
            let page = rustix::param::page_size();
            let begin = block.0.as_ptr().align_offset(page);
            let pages = length.saturating_sub(begin) / page * page;
            // SAFETY: the range lies within the block if it is not empty, and reads as zeros
            // afterwards, as the block does already.
            let _ = unsafe {
                let place: NonNull<c_void> = block.0.add(begin.min(length)).cast();
                madvise(place, pages, MmapAdvise::MADV_DONTNEED)
            };
        }
        let mut arena = ARENA.lock().unwrap_or_else(PoisonError::into_inner);
        arena.unused[size].push(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_given_out_is_zero_and_nobody_else_s(
            steps in proptest::collection::vec((0usize..LARGEST, any::<u8>()), 1..60),
        ) {
            let mut taken: Vec<(Unforked, u8)> = Vec::new();
            for (length, byte) in steps {
                if length.is_multiple_of(3) && !taken.is_empty() {
                    taken.swap_remove(length % taken.len());
                }
                // Most are short.
                let length = if byte % 4 == 0 { length } else { length % 2000 };
                let mut one = Unforked::zeroed(length);
                prop_assert!(one.iter().all(|byte| *byte == 0));
                one.fill(byte);
                taken.push((one, byte));
                for (bytes, byte) in &taken {
                    prop_assert!(bytes.iter().all(|at| at == byte));
                }
            }
        }
    }

    #[test]
    fn sizes_are_powers_of_two() {
        let room = |length| SMALLEST << size_of_length(length);
        for (length, size) in [(1, 128), (128, 128), (129, 256), (65_728, 131_072)] {
            assert_eq!(room(length), size);
        }
        assert_eq!(room(LARGEST), LARGEST);
        assert_eq!(size_of_length(LARGEST), SIZES - 1);
        assert_eq!(&*Unforked::from(&b"carry"[..]), b"carry");
        assert!(Unforked::default().is_empty());
    }
}
