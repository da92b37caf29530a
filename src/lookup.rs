//! Look-ups that can take as long as somebody else likes: a name server, a user database, the file
//! system.
//!
//! A master that serves must not wait for them. So at a reload a child process makes all of them
//! first and keeps a [`Record`] of what they found; the master then plans from the record alone.
//! What the look-up is of is in its key: `directory /srv/www`. The record can't be handed through
//! to where the look-ups are made, because between them and the master there is a closure of the
//! program that uses this library. It belongs to the thread, of which a master has one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::error::{Error, Result};

/// The longest record that is taken from another process, in bytes: a configuration file, and more
/// than enough for the rest.
pub const LONGEST: usize = 4 << 20;

/// What look-ups have found, by their keys.
#[derive(Debug, Default)]
pub struct Record {
    values: BTreeMap<String, Vec<u8>>,
    descriptors: BTreeMap<String, OwnedFd>,
}

/// What becomes of a look-up.
#[derive(Debug)]
enum Mode {
    /// It is made: nobody is served yet.
    Direct,
    /// It is made the first time, and recorded.
    Recording(Record),
    /// It was made, and is answered from the record.
    Replaying(Record),
}

thread_local! {
    static MODE: RefCell<Mode> = const { RefCell::new(Mode::Direct) };
}

/// Puts things back when it is dropped, whether `run` has panicked or not.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        MODE.set(Mode::Direct);
    }
}

/// Makes all look-ups of `run`, each of them once, and keeps a record of what they find.
pub fn record<T>(run: impl FnOnce() -> T) -> (T, Record) {
    let _restore = Restore;
    MODE.set(Mode::Recording(Record::default()));
    let result = run();
    match MODE.replace(Mode::Direct) {
        Mode::Recording(record) => (result, record),
        Mode::Direct | Mode::Replaying(_) => (result, Record::default()),
    }
}

/// Answers all look-ups of `run` from a record. One that is not there fails.
pub fn replay<T>(record: Record, run: impl FnOnce() -> T) -> T {
    let _restore = Restore;
    MODE.set(Mode::Replaying(record));
    run()
}

/// Whether a server runs already, which is to go over to what is being looked up.
#[must_use]
pub fn is_for_reload() -> bool {
    MODE.with_borrow(|mode| !matches!(mode, Mode::Direct))
}

/// Whether look-ups are answered from a record.
#[must_use]
pub fn is_replay() -> bool {
    MODE.with_borrow(|mode| matches!(mode, Mode::Replaying(_)))
}

/// A look-up that finds bytes.
///
/// # Errors
/// Those of `find`; and when there is a record, and this look-up is not in it.
pub fn value(key: &str, find: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    if let Some(known) = known(key, |record| record.values.get(key).cloned()) {
        return known;
    }
    let found = find()?;
    MODE.with_borrow_mut(|mode| {
        if let Mode::Recording(record) = mode {
            record.values.insert(key.to_owned(), found.clone());
        }
    });
    Ok(found)
}

/// A look-up that opens something.
///
/// # Errors
/// Those of `open`, of [`value`], and what a copy of a descriptor fails with.
pub fn descriptor(key: &str, open: impl FnOnce() -> Result<OwnedFd>) -> Result<OwnedFd> {
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|error| Error::new(key, error));
    if let Some(known) = known(key, |record| record.descriptors.get(key).map(copy)) {
        return known?;
    }
    let found = open()?;
    MODE.with_borrow_mut(|mode| {
        if let Mode::Recording(record) = mode {
            record.descriptors.insert(key.to_owned(), copy(&found)?);
        }
        Ok(found)
    })
}

/// What is not to be looked up, because the record has it or has to have it.
fn known<T>(key: &str, recorded: impl FnOnce(&Record) -> Option<T>) -> Option<Result<T>> {
    MODE.with_borrow(|mode| match mode {
        Mode::Direct => None,
        Mode::Recording(record) => recorded(record).map(Ok),
        Mode::Replaying(record) => Some(recorded(record).ok_or_else(|| {
            let reason = "the configuration has changed while it was read; reload again";
            Error::because(format!("use {key}"), reason)
        })),
    })
}

impl Record {
    /// The record as bytes, and the descriptors in it, to be sent to another process.
    #[must_use]
    pub fn encode(self) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut bytes = Vec::new();
        let mut put = |part: &[u8]| {
            bytes.extend_from_slice(&(part.len() as u64).to_ne_bytes());
            bytes.extend_from_slice(part);
        };
        let (names, descriptors): (Vec<_>, Vec<_>) = self.descriptors.into_iter().unzip();
        put(names.join("\0").as_bytes());
        for (key, value) in &self.values {
            put(key.as_bytes());
            put(value);
        }
        (bytes, descriptors)
    }

    /// The record that another process has sent; `None` if it is malformed.
    #[must_use]
    pub fn decode(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut rest = bytes;
        let mut take = || -> Option<&[u8]> {
            let (length, others) = rest.split_first_chunk()?;
            let length = usize::try_from(u64::from_ne_bytes(*length)).ok()?;
            let (part, others) = others.split_at_checked(length)?;
            rest = others;
            Some(part)
        };
        let text = |part: &[u8]| String::from_utf8(part.to_vec()).ok();
        let names = text(take()?)?;
        let names = names.split('\0').filter(|name| !name.is_empty());
        let names: Vec<_> = names.map(ToOwned::to_owned).collect();
        if names.len() != descriptors.len() {
            return None;
        }
        let mut values = BTreeMap::new();
        while let Some(key) = take() {
            values.insert(text(key)?, take()?.to_vec());
        }
        let descriptors = names.into_iter().zip(descriptors).collect();
        rest.is_empty().then_some(Self {
            values,
            descriptors,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn never<T>() -> Result<T> {
        panic!("it is in the record")
    }

    #[test]
    fn what_was_recorded_is_answered_without_a_look_up() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let look_up = || value("name a", || Ok(b"1".to_vec()));
        let open = || descriptor("directory b", || Ok(ours.try_clone().unwrap().into()));
        assert_eq!(look_up().unwrap(), b"1");
        let ((), record) = record(|| {
            assert!(is_for_reload() && !is_replay());
            assert_eq!(look_up().unwrap(), b"1");
            open().unwrap();
            assert_eq!(value("name a", never).unwrap(), b"1");
            descriptor("directory b", never).unwrap();
        });
        let (bytes, descriptors) = record.encode();
        assert!(Record::decode(&bytes, Vec::new()).is_none());
        let record = Record::decode(&bytes, descriptors).unwrap();
        replay(record, || {
            assert_eq!(value("name a", never).unwrap(), b"1");
            descriptor("directory b", never).unwrap();
            descriptor("directory b", never).unwrap();
            let error = value("name c", never).unwrap_err().to_string();
            assert!(error.starts_with("cannot use name c: "), "{error}");
            assert!(descriptor("directory c", never).is_err());
        });
        assert!(!is_for_reload());
    }

    #[test]
    fn a_panic_ends_a_replay() {
        let run = || replay(Record::default(), || panic!("the test panics on purpose"));
        assert!(std::panic::catch_unwind(run).is_err());
        assert!(!is_for_reload());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes, Vec::new());
        }
    }
}
