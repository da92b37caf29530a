//! A TOML table whose keys are known, and what is wrong with it and where. Pure.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong, and where in the text, if it is in the text at all.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The place, in bytes from the beginning.
    pub(crate) at: Option<usize>,
    /// One line.
    pub(crate) reason: String,
}

impl Fault {
    /// What is wrong there.
    pub(crate) fn at(at: impl Into<Option<usize>>, reason: impl Into<String>) -> Self {
        Self {
            at: at.into(),
            reason: reason.into(),
        }
    }
}

/// A table in which every key is one of those that may be there.
#[derive(Clone, Copy)]
pub(crate) struct Table<'t> {
    table: &'t DeTable<'t>,
    /// What comes before a key when it is blamed: `pool "site": `.
    context: &'t str,
}

impl<'t> Table<'t> {
    /// The table, unless a key of it is unknown.
    pub(crate) fn new(
        table: &'t DeTable<'t>,
        context: &'t str,
        known: &[&str],
    ) -> Result<Self, Fault> {
        let strangers = table
            .keys()
            .filter(|key| !known.contains(&key.get_ref().as_ref()));
        match strangers.min_by_key(|key| key.span().start) {
            None => Ok(Self { table, context }),
            Some(stranger) => {
                let name: &str = stranger.get_ref();
                let hint = nearest(name, known)
                    .map(|known| format!("; did you mean {known}?"))
                    .unwrap_or_default();
                let reason = format!("{context}{}: unknown key{hint}", Name(name));
                Err(Fault::at(stranger.span().start, reason))
            }
        }
    }

    /// What is said under a key.
    pub(crate) fn get(&self, key: &'t str) -> Option<Entry<'t>> {
        let value = self.table.get(key)?;
        Some(Entry {
            key,
            value,
            context: self.context,
        })
    }
}

/// A value, and the key that it stands under.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'t> {
    key: &'t str,
    value: &'t Spanned<DeValue<'t>>,
    context: &'t str,
}

impl<'t> Entry<'t> {
    /// Where the value begins.
    pub(crate) fn place(&self) -> usize {
        self.value.span().start
    }

    /// What is wrong with it.
    pub(crate) fn fault(&self, reason: impl Display) -> Fault {
        let Self { key, context, .. } = self;
        Fault::at(self.place(), format!("{context}{key}: {reason}"))
    }

    /// A text that says something.
    pub(crate) fn text(&self) -> Result<&'t str, Fault> {
        match self.value.get_ref().as_str() {
            None => Err(self.fault("expected a text, in quotes")),
            Some("") => Err(self.fault("the text is empty")),
            Some(text) if text.contains('\0') => Err(self.fault("the text holds a NUL character")),
            Some(text) => Ok(text),
        }
    }

    /// A path; one that is relative begins in `directory`.
    pub(crate) fn path(&self, directory: &Path) -> Result<PathBuf, Fault> {
        self.text().map(|path| directory.join(path))
    }

    /// Yes or no.
    pub(crate) fn switch(&self) -> Result<bool, Fault> {
        let switch = self.value.get_ref().as_bool();
        switch.ok_or_else(|| self.fault("expected true or false"))
    }

    /// A whole number that is not negative, and the base that it was written in.
    pub(crate) fn number(&self) -> Option<(u64, u32)> {
        let number = self.value.get_ref().as_integer()?;
        let radix = number.radix();
        Some((u64::from_str_radix(number.as_str(), radix).ok()?, radix))
    }

    /// The entries of an array; a value that is none stands for an array of one.
    pub(crate) fn list(&self) -> Vec<Entry<'t>> {
        match self.value.get_ref() {
            DeValue::Array(values) => values
                .iter()
                .map(|value| Entry { value, ..*self })
                .collect(),
            _ => vec![*self],
        }
    }

    /// The table under this key.
    pub(crate) fn table(&self) -> Option<&'t DeTable<'t>> {
        self.value.get_ref().as_table()
    }
}

/// A word of the file in a message: as it is, if it is just a word.
pub(crate) struct Name<'a>(pub(crate) &'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !self.0.is_empty() && self.0.chars().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// The word that was most likely meant, if one is near enough.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Below it are words that have nothing but some letters in common.
    const NEAR: f64 = 0.8;
    let word = word.to_ascii_lowercase().replace('_', "-");
    known
        .iter()
        .map(|known| (strsim::jaro_winkler(&word, known), *known))
        .filter(|(likeness, _)| *likeness >= NEAR)
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
        assert_eq!(Name("max-rss").to_string(), "max-rss");
        assert_eq!(Name("a\nb").to_string(), r#""a\nb""#);
        assert_eq!(Name("").to_string(), r#""""#);
    }
}
