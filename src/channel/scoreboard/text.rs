//! A short message in shared memory.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

/// How many of them a board has.
#[cfg(not(loom))]
pub(super) const TEXTS: usize = 8;
#[cfg(loom)]
pub(super) const TEXTS: usize = 1;

#[cfg(not(loom))]
const WORDS: usize = 128;
#[cfg(loom)]
const WORDS: usize = 1;

/// The longest message that fits, in bytes.
pub const TEXT: usize = WORDS * 8;

/// See the module. Its words are read and written while another process may do so too; what that
/// makes of them is for the reader to judge.
#[derive(Debug)]
pub(super) struct Text([AtomicU64; WORDS]);

impl Default for Text {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Text {
    /// Stores parts of a message one behind the other. They must fit.
    pub(super) fn store(&self, parts: &[&[u8]]) {
        let mut words = self.0.iter();
        let (mut word, mut filled) = ([0; 8], 0);
        let mut next = |word: [u8; 8]| {
            if let Some(place) = words.next() {
                place.store(u64::from_ne_bytes(word), Ordering::Relaxed);
            }
        };
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                let count = rest.len().min(8 - filled);
                word[filled..filled + count].copy_from_slice(&rest[..count]);
                (rest, filled) = (&rest[count..], filled + count);
                if filled == 8 {
                    next(std::mem::take(&mut word));
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            next(word);
        }
    }

    /// Whether nothing is left of any message.
    #[cfg(all(test, not(loom)))]
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }

    /// Moves the first bytes out: what clients have sent stays no longer than it is needed.
    pub(super) fn take(&self, into: &mut [u8]) {
        for (bytes, word) in into.chunks_mut(8).zip(&self.0) {
            let found = word.load(Ordering::Relaxed).to_ne_bytes();
            bytes.copy_from_slice(&found[..bytes.len()]);
            word.store(0, Ordering::Relaxed);
        }
    }
}
