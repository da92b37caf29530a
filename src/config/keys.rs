//! The settings of a pool as operators write them: name, unit and bounds of each. The command line,
//! the file and their documents are made or checked from one list, so that they agree. Pure.

mod key;
mod list;

use crate::config::settings::Settings;

pub(super) use key::size;
pub(crate) use key::{Choice, Heading, Key, Unit};
pub(crate) use list::KEYS;

/// Finds two settings that contradict each other. Returns the name of one of them and the reason.
pub(crate) fn contradiction(settings: &Settings) -> Option<(&'static str, String)> {
    let Settings {
        workers,
        min_spare,
        max_spare,
        max_workers,
        ..
    } = *settings;
    let above = |low: Option<usize>, high: Option<usize>| low.zip(high).filter(|(l, h)| l > h);
    if let Some((workers, most)) = above(Some(workers), max_workers) {
        let reason = format!("{most} is less than workers, which is {workers}");
        return Some(("max-workers", reason));
    }
    let (low, high, name) = match above(min_spare, max_spare) {
        Some((low, high)) => (low, high, "max-spare"),
        None => above(min_spare, max_workers).map(|(low, high)| (low, high, "max-workers"))?,
    };
    let reason = format!("{low} is more than {name}, which is {high}");
    Some(("min-spare", reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_survive_being_written_and_read() {
        let usual = Settings::for_processors(3);
        for key in KEYS {
            let mut settings = usual.clone();
            let value = key.accept(Some((key.get)(&usual)));
            let value = value.unwrap_or_else(|error| panic!("{}: {error}", key.name));
            Choice { key, value }.apply(&mut settings);
            assert_eq!(settings, usual, "{}", key.name);
        }
    }

    #[test]
    fn each_key_sets_one_thing_of_its_own() {
        let usual = Settings::for_processors(3);
        for key in KEYS {
            let value = (key.get)(&usual) + 7;
            let mut settings = usual.clone();
            Choice { key, value }.apply(&mut settings);
            assert_eq!((key.get)(&settings), value, "{}", key.name);
            for other in KEYS.iter().filter(|other| other.name != key.name) {
                let kept = (other.get)(&settings) == (other.get)(&usual);
                assert!(kept, "{} sets {}", key.name, other.name);
            }
        }
    }

    #[test]
    fn a_value_out_of_bounds_says_what_was_expected() {
        for (name, text, expected) in [
            ("workers", "0", "expected a number from 1 to 10000"),
            ("workers", "-1", "expected a number from 1 to 10000"),
            ("threads", "65", "expected a number from 1 to 64"),
            ("queue", "0", "expected a number, at least 1"),
            ("grace", "soon", "expected a whole number of seconds"),
            (
                "queue-wait",
                "1.5",
                "expected a whole number of milliseconds",
            ),
            (
                "patience",
                "0",
                "expected a whole number of microseconds from 1 to 10000000",
            ),
            (
                "max-rss",
                "200 M",
                "expected a number of bytes, or a size such as 200M",
            ),
            (
                "max-rss",
                "M",
                "expected a number of bytes, or a size such as 200M",
            ),
            (
                "max-rss",
                "",
                "expected a number of bytes, or a size such as 200M",
            ),
        ] {
            let key = KEYS.iter().find(|key| key.name == name).unwrap();
            assert_eq!(key.parse(text), Err(expected.to_owned()), "{name} {text}");
        }
    }

    #[test]
    fn a_size_may_have_a_unit() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("200M", Some(200 << 20)),
            ("3k", Some(3 << 10)),
            ("1G", Some(1 << 30)),
            ("2T", Some(2 << 40)),
            ("18446744073709551615K", None),
            ("1MB", None),
            ("ü", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::for_processors(2);
            change(&mut settings);
            contradiction(&settings).map(|(name, _)| name)
        };
        assert_eq!(with(|_| {}), None);
        assert_eq!(with(|s| s.max_workers = Some(4)), None);
        assert_eq!(with(|s| s.max_workers = Some(3)), Some("max-workers"));
        let spare = |s: &mut Settings| (s.min_spare, s.max_spare) = (Some(3), Some(2));
        assert_eq!(with(spare), Some("min-spare"));
        let spare = |s: &mut Settings| (s.min_spare, s.max_workers) = (Some(9), Some(8));
        assert_eq!(with(spare), Some("min-spare"));
    }
}
