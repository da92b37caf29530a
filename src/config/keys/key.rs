//! A setting as operators write it: its unit and bounds, and how its text is read. Pure.

use crate::config::settings::Settings;

/// The unit of a setting's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A count of things, such as connections or workers.
    Number,
    Seconds,
    Milliseconds,
    Microseconds,
    /// Bytes, which may also be written as text with a unit: `200M`.
    Bytes,
}

/// The heading under which the help of the command line shows a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heading {
    /// How many workers there are, and how long each lives.
    Workers,
    /// What clients may do, and how long they wait.
    Limits,
}

/// A setting. Its value is a number in its unit; 0 stands for "no limit" where the setting allows
/// that.
#[derive(Debug)]
pub(crate) struct Key {
    /// The name of the key in the file, and of the flag after two hyphens.
    pub(crate) name: &'static str,
    /// The letter of the flag after one hyphen, if it has one.
    pub(crate) short: Option<char>,
    pub(crate) heading: Heading,
    pub(crate) unit: Unit,
    /// The text of the help: a sentence in the imperative.
    pub(crate) help: &'static str,
    pub(super) least: u64,
    pub(super) most: u64,
    /// The text that documents show as the default, where it is no fixed number.
    pub(super) default: Option<&'static str>,
    pub(super) get: fn(&Settings) -> u64,
    pub(super) set: fn(&mut Settings, u64),
}

/// A value that the operator has chosen for a setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) key: &'static Key,
    /// A value that the key accepts.
    pub(crate) value: u64,
}

impl Choice {
    /// Stores the value in `settings`.
    pub(crate) fn apply(self, settings: &mut Settings) {
        (self.key.set)(settings, self.value);
    }
}

impl Key {
    /// Parses a value. The error says what was expected instead.
    pub(crate) fn parse(&self, text: &str) -> Result<u64, String> {
        self.accept(match self.unit {
            Unit::Bytes => size(text),
            _ => text.parse().ok(),
        })
    }

    /// Checks that there is a number and that it is within bounds. The error says what was expected
    /// instead.
    pub(crate) fn accept(&self, number: Option<u64>) -> Result<u64, String> {
        number
            .filter(|number| (self.least..=self.most).contains(number))
            .ok_or_else(|| self.expected())
    }

    fn expected(&self) -> String {
        let what = match self.unit {
            Unit::Number => "a number",
            Unit::Seconds => "a whole number of seconds",
            Unit::Milliseconds => "a whole number of milliseconds",
            Unit::Microseconds => "a whole number of microseconds",
            Unit::Bytes => "a number of bytes, or a size such as 200M",
        };
        let Self { least, most, .. } = self;
        match (least, most) {
            (0, UNBOUNDED..) => format!("expected {what}"),
            (_, UNBOUNDED..) => format!("expected {what}, at least {least}"),
            _ => format!("expected {what} from {least} to {most}"),
        }
    }

    /// The default, as documents show it.
    pub(crate) fn default(&self) -> String {
        match self.default {
            Some(words) => words.to_owned(),
            None => (self.get)(&Settings::for_processors(1)).to_string(),
        }
    }
}

/// Parses a number of bytes: digits, then optionally K, M, G or T for a power of 1024.
pub(in crate::config) fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// An upper bound of this size or more only says what the type can hold, so messages omit it.
const UNBOUNDED: u64 = i32::MAX as u64;

/// What most keys have in common.
pub(super) const KEY: Key = Key {
    name: "",
    short: None,
    heading: Heading::Limits,
    unit: Unit::Number,
    help: "",
    least: 0,
    most: u32::MAX as u64,
    default: None,
    get: |_| 0,
    set: |_, _| {},
};
