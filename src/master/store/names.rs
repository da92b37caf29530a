//! What the things are called that a master leaves with the service manager. Pure.
//!
//! A listener is called by its address, so that its name is the same whichever master has it. All else has a name that
//! no other master gives: each begins with a number of its own, its *mark*.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::config::{Address, is_descriptor_name};

const LISTENER: &str = "baton-listen-";
const STATE: &str = "baton-state-";
const CONNECTION: &str = "baton-conn-";

/// What may not be in a name, or means something in it.
const ESCAPED: &AsciiSet = &CONTROLS.add(b':').add(b'%');

/// A stored connection's name: the mark of the master that stored it first, and a number that it gave only once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionName {
    /// The master's mark.
    pub mark: u64,
    /// Its number.
    pub serial: u64,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// A listener, by the address that was asked for.
    Listener(Address),
    /// What a master with this mark notes of its connections, and its life line.
    State(u64),
    /// A connection.
    Connection(ConnectionName),
}

/// The name of a listener; nothing when its address does not fit into one, or when it is the manager's own.
#[must_use]
pub fn of_listener(asked: &Address) -> Option<String> {
    if matches!(asked, Address::Inherited(_)) {
        return None;
    }
    let asked = asked.to_string();
    let name = format!("{LISTENER}{}", utf8_percent_encode(&asked, ESCAPED));
    is_descriptor_name(&name).then_some(name)
}

/// The name of what a master with this mark notes.
#[must_use]
pub fn of_state(mark: u64) -> String {
    format!("{STATE}{mark:016x}")
}

impl std::fmt::Display for ConnectionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{CONNECTION}{:016x}-{:x}", self.mark, self.serial)
    }
}

impl Meaning {
    /// What a name stands for, if it is one that a master gives.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        if let Some(asked) = name.strip_prefix(LISTENER) {
            let asked = percent_decode_str(asked).decode_utf8().ok()?;
            asked.parse().ok().map(Self::Listener)
        } else if let Some(mark) = name.strip_prefix(STATE) {
            number(mark).map(Self::State)
        } else {
            let (mark, serial) = name.strip_prefix(CONNECTION)?.split_once('-')?;
            let (mark, serial) = (number(mark)?, number(serial)?);
            Some(Self::Connection(ConnectionName { mark, serial }))
        }
    }
}

fn number(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_understood_again() {
        for asked in [
            "127.0.0.1:0",
            ":8080",
            "[::1]:80",
            "localhost:80",
            "unix:/a b%:ü",
        ] {
            let asked: Address = asked.parse().unwrap();
            let name = of_listener(&asked).unwrap();
            assert!(is_descriptor_name(&name), "{name}");
            assert_eq!(Meaning::of(&name), Some(Meaning::Listener(asked)));
        }
        let name = ConnectionName {
            mark: u64::MAX,
            serial: u64::MAX,
        };
        let text = name.to_string();
        assert!(is_descriptor_name(&text));
        assert_eq!(Meaning::of(&text), Some(Meaning::Connection(name)));
        assert_eq!(Meaning::of(&of_state(7)), Some(Meaning::State(7)));
    }

    #[test]
    fn what_is_no_name_means_nothing() {
        for name in [
            "web",
            "baton-conn-1",
            "baton-conn-x-1",
            "baton-state-",
            "baton-listen-",
        ] {
            assert_eq!(Meaning::of(name), None, "{name}");
        }
        assert_eq!(of_listener(&"fd:web".parse().unwrap()), None);
        let long = format!("unix:/{}", ":".repeat(100));
        assert_eq!(of_listener(&long.parse().unwrap()), None);
    }
}
