//! Memory that stays shared across a fork.

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

use nix::libc::c_void;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// A value in memory of its own that a process forked from this one shares, not copies. It is
/// unmapped on drop; the other process keeps its mapping.
#[derive(Debug)]
pub struct Shared<T> {
    place: NonNull<T>,
    owns: PhantomData<T>,
}

// SAFETY: a `Shared` owns its value like a `Box`, and gives out shared references only.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T: Sync> Shared<T> {
    /// Moves a value into shared memory. It must be one that several processes can use at once, so
    /// atomics and plain data, without destructor.
    ///
    /// # Errors
    /// What mmap(2) fails with: ENOMEM.
    pub fn new(value: T) -> io::Result<Self> {
        // Under loom, the atomics are models of themselves, and nothing is shared.
        const {
            assert!(!std::mem::needs_drop::<T>() || cfg!(loom));
            assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096);
        };
        let length = NonZeroUsize::new(size_of::<T>()).expect("checked above");
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that
        // exists.
        let place = unsafe {
            mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
            )
        }?
        .cast::<T>();
        // SAFETY: the mapping is large enough, writable, page-aligned, and nobody else knows of it
        // yet.
        unsafe { place.write(value) };
        Ok(Self {
            place,
            owns: PhantomData,
        })
    }

    /// Processes that are forked from now on do not have it.
    ///
    /// # Errors
    /// What madvise(2) fails with.
    pub fn keep_from_children(&self) -> io::Result<()> {
        // SAFETY: the range is this value's mapping; a child that has no such mapping never uses
        // this value, for it is the parent's.
        Ok(unsafe { madvise(self.memory(), size_of::<T>(), MmapAdvise::MADV_DONTFORK) }?)
    }

    fn memory(&self) -> NonNull<c_void> {
        self.place.cast()
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping lives as long as `self`, and the value was written by `new`. It is
        // `Sync`, so that the other process changing it through atomics is no data race.
        unsafe { self.place.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference to it outlives `self`. It can't
        // fail.
        let _ = unsafe { munmap(self.place.cast(), size_of::<T>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_shared_value_is_used_like_any_other() {
        let shared = Shared::new([const { AtomicU32::new(7) }; 2000]).unwrap();
        shared[1999].fetch_add(1, Ordering::Relaxed);
        assert_eq!(shared[1999].load(Ordering::Relaxed), 8);
        shared.keep_from_children().unwrap();
    }
}
