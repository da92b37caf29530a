//! Small files in memory, each worker's own, so that a request need not open, read and close one.
//!
//! A cached file is what it held when it was opened beneath the directory, and the [`Identity`]
//! that it had then. It is sent only while its path leads to that very identity: each request asks
//! the file system. So it does not matter how the path leads there, and every change (writing,
//! truncating, replacing, another mode) moves at least the change time, after which the file is
//! opened again.
//!
//! Two changes do not show in an identity. Time stamps are coarse: a file that changed just before
//! it was read could change again and look the same, so it is not kept (git's racily clean
//! entries). And a write through a mapping may leave the time stamps alone, as does a move of a
//! directory above the file: hence nothing is sent for longer than [`TRUSTED`] after it was read.
//!
//! Caching a file that is not asked for again within that time costs more than it saves, so a file
//! is admitted when it is opened for the second time within it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Stat;

/// The largest file that is cached, in bytes.
pub(super) const MAX_FILE: u64 = 16 * 1024;

/// The most memory that a cache takes, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The memory that a file takes beside its bytes and its path; rounded up, because the sum is to be
/// an upper bound.
const OVERHEAD: usize = 256;

/// How long before it is read a file must have changed last to be admitted, because the coarsest
/// time stamps in use (FAT's) are two seconds apart.
const SETTLED: Duration = Duration::from_secs(2);

/// How long after it was read a file is sent from memory.
const TRUSTED: Duration = Duration::from_secs(1);

/// How many opened files are remembered, by their inodes.
const OPENED: usize = 1024;

/// What tells one state of one file from any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: i64,
    modified: SystemTime,
    changed: SystemTime,
}

impl Identity {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: time(stat.st_mtime, stat.st_mtime_nsec),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Whether every change from now on would show.
    fn is_settled(&self, now: SystemTime) -> bool {
        let age = |time| now.duration_since(time).unwrap_or(Duration::ZERO);
        age(self.modified) >= SETTLED && age(self.changed) >= SETTLED
    }
}

/// A time stamp of a file; one before 1970 counts as 1970.
pub(super) fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

/// A whole file in memory.
pub(super) struct CachedFile {
    pub(super) identity: Identity,
    /// Taken before the identity, and so before the bytes.
    pub(super) read_at: SystemTime,
    pub(super) metadata: Metadata,
    pub(super) body: Box<[u8]>,
}

/// What a response says of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    /// The time of the last modification, in whole seconds.
    pub(super) modified: SystemTime,
    /// That time as HTTP writes it.
    pub(super) date: String,
    /// The header fields of a 200, as they are sent.
    pub(super) fields: Vec<u8>,
}

/// Whether what was read at `then` may still be sent. It may not when the clock was set back,
/// because then its age is unknown.
fn is_trusted(then: SystemTime, now: SystemTime) -> bool {
    now.duration_since(then).is_ok_and(|age| age < TRUSTED)
}

impl CachedFile {
    fn cost(&self, path: &[u8]) -> usize {
        let metadata = self.metadata.date.capacity() + self.metadata.fields.capacity();
        OVERHEAD + path.len() + metadata + self.body.len()
    }
}

impl fmt::Debug for CachedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedFile")
            .field("identity", &self.identity)
            .field("read_at", &self.read_at)
            .finish_non_exhaustive()
    }
}

/// Files by the path that led to them, in two generations. A file that is used moves to the young
/// one; when that has taken half of the memory, it becomes the old one, and the old one is
/// forgotten.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    young: Generation,
    old: Generation,
    /// Inodes, each at the index that is its remainder, and when they were last opened. Two files
    /// may share an index: this is only a hint.
    opened: Box<[(u64, SystemTime)]>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            young: Generation::default(),
            old: Generation::default(),
            opened: vec![(0, UNIX_EPOCH); OPENED].into(),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Generation {
    files: HashMap<Box<[u8]>, Arc<CachedFile>>,
    bytes: usize,
}

impl Generation {
    fn remove(&mut self, path: &[u8]) -> Option<(Box<[u8]>, Arc<CachedFile>)> {
        let (path, kept) = self.files.remove_entry(path)?;
        self.bytes -= kept.cost(&path);
        Some((path, kept))
    }
}

impl Cache {
    /// The file that is cached for `path`, if it may still be sent. `look` finds which file the
    /// path leads to now; it is called at most once, and not for a file that is too old anyway.
    pub(super) fn get(
        &mut self,
        path: &[u8],
        now: SystemTime,
        look: impl FnOnce() -> Option<Identity>,
    ) -> Option<Arc<CachedFile>> {
        let kept = match self.young.files.get(path) {
            Some(kept) => Arc::clone(kept),
            None => {
                let (path, kept) = self.old.remove(path)?;
                self.insert(path, Arc::clone(&kept));
                kept
            }
        };
        if is_trusted(kept.read_at, now) && look() == Some(kept.identity) {
            return Some(kept);
        }
        self.young.remove(path);
        None
    }

    /// Whether to cache a file that was just opened: it will pay, and a later change would show.
    pub(super) fn admits(&mut self, identity: &Identity, now: SystemTime) -> bool {
        let place = &mut self.opened[identity.inode as usize % OPENED];
        let (inode, opened) = std::mem::replace(place, (identity.inode, now));
        inode == identity.inode && is_trusted(opened, now) && identity.is_settled(now)
    }

    /// Caches a file that `path` has led to.
    pub(super) fn keep(&mut self, path: &[u8], kept: Arc<CachedFile>) {
        self.old.remove(path);
        self.young.remove(path);
        self.insert(path.into(), kept);
    }

    /// Adds a file that is in neither generation.
    fn insert(&mut self, path: Box<[u8]>, kept: Arc<CachedFile>) {
        let cost = kept.cost(&path);
        if self.young.bytes + cost > MAX_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.bytes += cost;
        self.young.files.insert(path, kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = UNIX_EPOCH;

    fn identity(inode: u64) -> Identity {
        Identity {
            device: 1,
            inode,
            size: 3,
            modified: NOW,
            changed: NOW,
        }
    }

    fn kept(inode: u64, length: usize) -> Arc<CachedFile> {
        Arc::new(CachedFile {
            identity: identity(inode),
            read_at: NOW,
            metadata: Metadata {
                modified: NOW,
                date: String::new(),
                fields: vec![b'f'; 50],
            },
            body: vec![b'x'; length].into(),
        })
    }

    fn is_kept(cache: &mut Cache, path: &[u8], inode: u64) -> bool {
        cache.get(path, NOW, || Some(identity(inode))).is_some()
    }

    /// What the cache takes, counted anew.
    fn bytes(cache: &Cache) -> usize {
        let bytes = |generation: &Generation| {
            let files = generation.files.iter();
            let bytes = files.map(|(path, kept)| kept.cost(path)).sum();
            assert_eq!(generation.bytes, bytes);
            bytes
        };
        bytes(&cache.young) + bytes(&cache.old)
    }

    #[test]
    fn a_hit_looks_once() {
        let mut cache = Cache::default();
        cache.keep(b"a", kept(1, 10));
        let mut looks = 0;
        for now in [NOW, NOW + TRUSTED - Duration::from_nanos(1)] {
            let look = || {
                looks += 1;
                Some(identity(1))
            };
            assert!(cache.get(b"a", now, look).is_some());
        }
        assert_eq!(looks, 2);
    }

    #[test]
    fn what_is_unknown_or_aged_is_not_looked_at() {
        for (path, now) in [
            (&b"b"[..], NOW),
            (b"a", NOW + TRUSTED),
            (b"a", NOW - Duration::from_nanos(1)),
        ] {
            let mut cache = Cache::default();
            cache.keep(b"a", kept(1, 10));
            assert!(cache.get(path, now, || panic!("looked")).is_none());
        }
    }

    #[test]
    fn another_identity_is_a_miss_and_is_forgotten() {
        let base = identity(1);
        let later = NOW + Duration::from_nanos(1);
        for look in [
            None,
            Some(Identity { device: 2, ..base }),
            Some(Identity { inode: 2, ..base }),
            Some(Identity { size: 4, ..base }),
            Some(Identity {
                modified: later,
                ..base
            }),
            Some(Identity {
                changed: later,
                ..base
            }),
        ] {
            let mut cache = Cache::default();
            cache.keep(b"a", kept(1, 10));
            assert!(cache.get(b"a", NOW, || look).is_none(), "{look:?}");
            assert_eq!(bytes(&cache), 0);
        }
    }

    #[test]
    fn memory_is_bounded_and_counted() {
        let mut cache = Cache::default();
        let mut most = 0;
        for inode in 0..5_000_u64 {
            let path = format!("{inode}{}", "x".repeat((inode % 4000) as usize));
            cache.keep(
                path.as_bytes(),
                kept(inode, (inode * 7919) as usize % 16_385),
            );
            most = most.max(cache.young.bytes + cache.old.bytes);
        }
        assert_eq!(bytes(&cache), cache.young.bytes + cache.old.bytes);
        assert!(most <= MAX_BYTES, "{most}");
        assert!(most > MAX_BYTES / 4 * 3, "{most}: the memory is used");
    }

    #[test]
    fn the_number_of_files_is_bounded() {
        let mut cache = Cache::default();
        for inode in 0..100_000_u64 {
            cache.keep(&inode.to_ne_bytes(), kept(inode, 0));
        }
        let files = cache.young.files.len() + cache.old.files.len();
        assert!(files <= MAX_BYTES / OVERHEAD, "{files}");
    }

    #[test]
    fn what_is_used_stays_and_what_is_not_goes() {
        let mut cache = Cache::default();
        cache.keep(b"used", kept(0, 10));
        cache.keep(b"unused", kept(0, 10));
        for inode in 1..2000_u64 {
            cache.keep(&inode.to_ne_bytes(), kept(inode, 16_384));
            assert!(is_kept(&mut cache, b"used", 0), "after {inode}");
        }
        assert!(!is_kept(&mut cache, b"unused", 0));
        assert!(!is_kept(&mut cache, &1_u64.to_ne_bytes(), 1));
        assert!(is_kept(&mut cache, &1999_u64.to_ne_bytes(), 1999));
    }

    #[test]
    fn the_same_path_again_takes_no_more() {
        let mut cache = Cache::default();
        cache.keep(b"a", kept(1, 10));
        let before = bytes(&cache);
        cache.keep(b"a", kept(2, 10));
        assert_eq!(bytes(&cache), before);
        assert!(is_kept(&mut cache, b"a", 2));
    }

    #[test]
    fn a_file_is_wanted_when_it_is_opened_again_soon() {
        let mut cache = Cache::default();
        let start = NOW + SETTLED;
        let soon = TRUSTED - Duration::from_nanos(1);
        for (inode, now, wanted) in [
            (1, start, false),
            (2, start, false),
            (1, start + soon, true),
            (1, start + soon + TRUSTED, false),
            (1, start + soon, false),
            (1, start + soon, true),
            (1 + OPENED as u64, start + soon, false),
            (1, start + soon, false),
            (2, NOW, false),
            (2, NOW, false),
        ] {
            assert_eq!(
                cache.admits(&identity(inode), now),
                wanted,
                "{inode} {now:?}"
            );
        }
    }

    #[test]
    fn a_file_settles_two_seconds_after_its_last_change() {
        let base = identity(1);
        let second = Duration::from_secs(1);
        assert!(base.is_settled(NOW + SETTLED));
        assert!(!base.is_settled(NOW + SETTLED - Duration::from_nanos(1)));
        for stamp in [NOW + second, NOW + 60 * second] {
            let modified = Identity {
                modified: stamp,
                ..base
            };
            let changed = Identity {
                changed: stamp,
                ..base
            };
            assert!(!modified.is_settled(NOW + SETTLED));
            assert!(!changed.is_settled(NOW + SETTLED));
        }
    }
}
