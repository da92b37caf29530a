//! What the things are called that a master leaves with the service manager. Pure.
//!
//! A listener is called by its address, so that its name is the same whichever master has it. With
//! that of a Unix socket goes the file that was made for it: somebody else may have a socket at the
//! path by now, and no other file gets its inode while the socket is open. What a master notes has
//! a random number in its name, the master's *instance*. All connections have the same name, and a
//! short one: the manager passes all names in one variable, and the kernel starts no program with
//! one of more than 128 KiB (execve(2)). Which is which, the kernel says: each socket has a number
//! of its own for as long as the machine runs, its *cookie*. Luggage has that of its connection in
//! its name, because it is to be removed alone.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::config::{Address, is_descriptor_name};

const LISTENER: &str = "baton-listen-";
const STATE: &str = "baton-state-";
/// What is between the address of a listener and its file. It can't be in an address: there, `%`
/// begins an escape.
const FILE: &str = "%@";
/// The name of each connection.
pub const CONNECTION: &str = "baton";

/// What the name of luggage begins with.
const LUGGAGE: &str = "baton-bag-";

/// As much of that variable as the name of a piece of luggage takes, so many connections take.
pub const LUGGAGE_TAKES: usize = (LUGGAGE.len() + 16 + 1).div_ceil(CONNECTION.len() + 1);

/// How many connections can be stored at the most, for the sake of that variable; listeners need
/// some room too.
pub const MOST: usize = 110 * 1024 / (CONNECTION.len() + 1);

/// What may not be in a name, or means something in it.
const ESCAPED: &AsciiSet = &CONTROLS.add(b':').add(b'%');

/// The device and the inode of a Unix socket's file.
pub type File = (u64, u64);

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// A listener, by the address that was asked for, and its file.
    Listener(Address, Option<File>),
    /// What a master with this instance notes of its connections, and its life line.
    State(u64),
    /// A connection.
    Connection,
    /// The luggage of the connection with this cookie.
    Luggage(u64),
}

/// The name of a listener; nothing when its address does not fit into one, or when it is the
/// manager's own.
#[must_use]
pub fn of_listener(asked: &Address, file: Option<File>) -> Option<String> {
    if matches!(asked, Address::Inherited(_)) {
        return None;
    }
    let asked = asked.to_string();
    let mut name = format!("{LISTENER}{}", utf8_percent_encode(&asked, ESCAPED));
    if let Some((device, inode)) = file {
        name.push_str(&format!("{FILE}{device:x}.{inode:x}"));
    }
    is_descriptor_name(&name).then_some(name)
}

/// The name of what a master with this instance notes.
#[must_use]
pub fn of_state(instance: u64) -> String {
    format!("{STATE}{instance:016x}")
}

/// The name of the luggage of a connection.
#[must_use]
pub fn of_luggage(cookie: u64) -> String {
    format!("{LUGGAGE}{cookie:x}")
}

impl Meaning {
    /// What a name stands for, if it is one that a master gives.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        if let Some(asked) = name.strip_prefix(LISTENER) {
            let (asked, file) = match asked.split_once(FILE) {
                Some((asked, file)) => {
                    let (device, inode) = file.split_once('.')?;
                    (asked, Some((number(device)?, number(inode)?)))
                }
                None => (asked, None),
            };
            let asked = percent_decode_str(asked).decode_utf8().ok()?;
            Some(Self::Listener(asked.parse().ok()?, file))
        } else if let Some(instance) = name.strip_prefix(STATE) {
            number(instance).map(Self::State)
        } else if let Some(cookie) = name.strip_prefix(LUGGAGE) {
            number(cookie).map(Self::Luggage)
        } else {
            (name == CONNECTION).then_some(Self::Connection)
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
            "unix:/a%@1.2",
        ] {
            for file in [None, Some((0x1f, u64::MAX))] {
                let asked: Address = asked.parse().unwrap();
                let name = of_listener(&asked, file).unwrap();
                assert!(is_descriptor_name(&name), "{name}");
                assert_eq!(Meaning::of(&name), Some(Meaning::Listener(asked, file)));
            }
        }
        assert_eq!(Meaning::of(CONNECTION), Some(Meaning::Connection));
        assert_eq!(Meaning::of(&of_state(7)), Some(Meaning::State(7)));
        for cookie in [0, 0x1f, u64::MAX] {
            let name = of_luggage(cookie);
            assert!(name.len() < LUGGAGE_TAKES * (CONNECTION.len() + 1));
            assert_eq!(Meaning::of(&name), Some(Meaning::Luggage(cookie)));
        }
    }

    #[test]
    fn what_is_no_name_means_nothing() {
        for name in [
            "web",
            "baton-conn",
            "baton-bag-",
            "baton-bag-x",
            "baton-state-",
            "baton-listen-",
            "baton-listen-unix%3A/a%@1",
        ] {
            assert_eq!(Meaning::of(name), None, "{name}");
        }
        assert_eq!(of_listener(&"fd:web".parse().unwrap(), None), None);
        let long = format!("unix:/{}", ":".repeat(100));
        assert_eq!(of_listener(&long.parse().unwrap(), None), None);
    }
}
