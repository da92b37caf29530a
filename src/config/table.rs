//! A TOML table whose keys are known, and messages that say what is wrong in it and where. Pure.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::unix_access::parse_mode;

/// A mistake in a configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The place in the file, in bytes from its beginning; `None` if the mistake is not in the
    /// file.
    pub(crate) offset: Option<usize>,
    /// What is wrong, in one line.
    pub(crate) reason: String,
}

impl Fault {
    pub(crate) fn new(offset: impl Into<Option<usize>>, reason: impl Into<String>) -> Self {
        Self {
            offset: offset.into(),
            reason: reason.into(),
        }
    }
}

/// A table that has no key but those that it may have.
#[derive(Clone, Copy)]
pub(crate) struct Table<'t> {
    table: &'t DeTable<'t>,
    /// What precedes a key of this table in a message: `pool "site": `.
    context: &'t str,
}

impl<'t> Table<'t> {
    /// Checks that every key of the table is one of the `known` ones.
    pub(crate) fn new(
        table: &'t DeTable<'t>,
        context: &'t str,
        known: &[&str],
    ) -> Result<Self, Fault> {
        let unknown = table
            .keys()
            .filter(|key| !known.contains(&key.get_ref().as_ref()));
        match unknown.min_by_key(|key| key.span().start) {
            None => Ok(Self { table, context }),
            Some(first) => {
                let name: &str = first.get_ref();
                let hint = nearest(name, known)
                    .map(|known| format!("; did you mean {known}?"))
                    .unwrap_or_default();
                let reason = format!("{context}{}: unknown key{hint}", KeyName(name));
                Err(Fault::new(first.span().start, reason))
            }
        }
    }

    /// The entry of a key, if the table has it.
    pub(crate) fn get(&self, key: &'t str) -> Option<Entry<'t>> {
        let value = self.table.get(key)?;
        Some(Entry {
            key,
            value,
            context: self.context,
        })
    }
}

/// A value in a table, with its key.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'t> {
    key: &'t str,
    value: &'t Spanned<DeValue<'t>>,
    context: &'t str,
}

impl<'t> Entry<'t> {
    /// The place in the file at which the value begins, in bytes.
    pub(crate) fn offset(&self) -> usize {
        self.value.span().start
    }

    /// A fault at this value, whose message begins with the key.
    pub(crate) fn fault(&self, reason: impl Display) -> Fault {
        let Self { key, context, .. } = self;
        Fault::new(self.offset(), format!("{context}{key}: {reason}"))
    }

    /// The value as text that is neither empty nor contains a NUL character.
    pub(crate) fn text(&self) -> Result<&'t str, Fault> {
        match self.value.get_ref().as_str() {
            None => Err(self.fault("expected text in quotes")),
            Some("") => Err(self.fault("the text is empty")),
            Some(text) if text.contains('\0') => {
                Err(self.fault("the text contains a NUL character"))
            }
            Some(text) => Ok(text),
        }
    }

    /// The value as a path. A relative one is taken from `directory`.
    pub(crate) fn path(&self, directory: &Path) -> Result<PathBuf, Fault> {
        self.text().map(|path| directory.join(path))
    }

    /// The value as true or false.
    pub(crate) fn boolean(&self) -> Result<bool, Fault> {
        let boolean = self.value.get_ref().as_bool();
        boolean.ok_or_else(|| self.fault("expected true or false"))
    }

    /// The value as a whole number that is not negative, and the base in which it is written.
    pub(crate) fn number(&self) -> Option<(u64, u32)> {
        let number = self.value.get_ref().as_integer()?;
        let radix = number.radix();
        Some((u64::from_str_radix(number.as_str(), radix).ok()?, radix))
    }

    /// The value as the mode of a file: octal digits in quotes, or a number that begins with 0o. A
    /// bare 27 is refused, because TOML means the decimal number.
    pub(crate) fn mode(&self, example: &str) -> Result<u32, Fault> {
        let mode = match (self.number(), self.text()) {
            (Some((mode, 8)), _) => u32::try_from(mode).ok().filter(|mode| *mode <= 0o777),
            (_, Ok(text)) => parse_mode(text).ok(),
            _ => None,
        };
        mode.ok_or_else(|| {
            self.fault(format_args!(
                "expected octal digits in quotes, such as \"{example}\""
            ))
        })
    }

    /// The elements of an array. Any other value counts as an array of one element.
    pub(crate) fn list(&self) -> Vec<Entry<'t>> {
        match self.value.get_ref() {
            DeValue::Array(values) => values
                .iter()
                .map(|value| Entry { value, ..*self })
                .collect(),
            _ => vec![*self],
        }
    }

    /// The value as a table.
    pub(crate) fn table(&self) -> Option<&'t DeTable<'t>> {
        self.value.get_ref().as_table()
    }
}

/// Displays a key of the file: as it is if it is a plain word, else in quotes with escapes, so that
/// the message stays one line.
struct KeyName<'a>(&'a str);

impl Display for KeyName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !self.0.is_empty() && self.0.chars().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// The known word that was most likely meant, if one is similar enough.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Words below this similarity share some letters and nothing more.
    const NEAR: f64 = 0.8;
    let word = word.to_ascii_lowercase().replace('_', "-");
    known
        .iter()
        .map(|known| (strsim::jaro_winkler(&word, known), *known))
        .filter(|(similarity, _)| *similarity >= NEAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        let known = ["workers", "max-workers", "max-turns", "root", "listen"];
        for (word, meant) in [
            ("worker", Some("workers")),
            ("max_turns", Some("max-turns")),
            ("Workers", Some("workers")),
            ("rot", Some("root")),
            ("lisen", Some("listen")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
    }

    #[test]
    fn an_odd_name_is_quoted() {
        assert_eq!(KeyName("max-rss").to_string(), "max-rss");
        assert_eq!(KeyName("a\nb").to_string(), r#""a\nb""#);
        assert_eq!(KeyName("").to_string(), r#""""#);
    }
}
