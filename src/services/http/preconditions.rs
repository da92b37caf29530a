//! Conditions that a client sets for its request (RFC 9110 §13), for resources that have a date of
//! their last modification and no entity tags. Pure: no system call, no clock.

use std::time::SystemTime;

use super::syntax::Once;

/// What the conditions of a GET or HEAD come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// The fields of a request that set conditions.
#[derive(Debug, Default)]
struct Conditions<'a> {
    matches: Once<'a>,
    unmodified_since: Once<'a>,
    none_matches: Once<'a>,
    modified_since: Once<'a>,
}

/// Evaluates the conditions among the `fields` of a GET or HEAD, in the order of RFC 9110 §13.2.2,
/// for a resource that exists, was last `modified` then, in whole seconds, and says so by `date`.
pub(super) fn evaluate<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    modified: SystemTime,
    date: &str,
) -> Verdict {
    let mut conditions = Conditions::default();
    for (name, value) in fields {
        conditions.add(name, value);
    }
    conditions.verdict(modified, date)
}

impl<'a> Conditions<'a> {
    fn add(&mut self, name: &[u8], value: &'a [u8]) {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // By length first: most fields are none of these.
        match name.len() {
            8 if is(b"If-Match") => self.matches.add(value),
            13 if is(b"If-None-Match") => self.none_matches.add(value),
            17 if is(b"If-Modified-Since") => self.modified_since.add(value),
            19 if is(b"If-Unmodified-Since") => self.unmodified_since.add(value),
            _ => {}
        }
    }

    fn verdict(&self, modified: SystemTime, date: &str) -> Verdict {
        let is_not_later = |then: Once<'_>| is_not_later(modified, date, then);
        let may_go_on = match self.matches {
            Once::Never => is_not_later(self.unmodified_since) != Some(false),
            tags => is_any(tags),
        };
        let is_current = match self.none_matches {
            Once::Never => is_not_later(self.modified_since) == Some(true),
            tags => is_any(tags),
        };
        match (may_go_on, is_current) {
            (false, _) => Verdict::Failed,
            (true, true) => Verdict::NotModified,
            (true, false) => Verdict::Proceed,
        }
    }
}

/// Whether a list of entity tags stands for whatever there is. No tag in it is one of ours.
fn is_any(tags: Once<'_>) -> bool {
    matches!(tags, Once::Value(b"*"))
}

/// Whether the last modification was not later than the field says; `None` if it does not say a
/// date. Several lines of a field make a list, which is no date.
fn is_not_later(modified: SystemTime, date: &str, field: Once<'_>) -> Option<bool> {
    let Once::Value(value) = field else {
        return None;
    };
    if value == date.as_bytes() {
        return Some(true);
    }
    let then = httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()?;
    Some(modified <= then)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn judge(fields: &[(&str, &str)]) -> Verdict {
        let fields = fields
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let modified = UNIX_EPOCH + Duration::from_secs(784_111_777);
        evaluate(fields, modified, DATE)
    }

    #[test]
    fn each_condition_alone() {
        use Verdict::*;
        for (name, value, verdict) in [
            ("If-Match", "*", Proceed),
            ("if-MATCH", "*", Proceed),
            ("If-Match", "\"x\"", Failed),
            ("If-Match", "\"x\", W/\"y\"", Failed),
            ("If-Match", "", Failed),
            ("If-Match", "\"*\"", Failed),
            ("If-Unmodified-Since", BEFORE, Failed),
            ("If-Unmodified-Since", DATE, Proceed),
            ("If-Unmodified-Since", LATER, Proceed),
            (
                "If-Unmodified-Since",
                "Sunday, 06-Nov-94 08:49:36 GMT",
                Failed,
            ),
            ("If-Unmodified-Since", "Sun Nov  6 08:49:36 1994", Failed),
            ("If-Unmodified-Since", "yesterday", Proceed),
            ("If-Unmodified-Since", "", Proceed),
            (
                "If-Unmodified-Since",
                "Thu, 01 Jan 1970 00:00:00 GMT",
                Failed,
            ),
            ("If-None-Match", "*", NotModified),
            ("If-None-Match", "\"x\"", Proceed),
            ("If-None-Match", "", Proceed),
            ("If-None-Match", "\"*\"", Proceed),
            ("If-Modified-Since", BEFORE, Proceed),
            ("If-Modified-Since", DATE, NotModified),
            ("If-Modified-Since", LATER, NotModified),
            (
                "If-Modified-Since",
                "Sunday, 06-Nov-94 08:49:37 GMT",
                NotModified,
            ),
            ("If-Modified-Since", "Sun Nov  6 08:49:37 1994", NotModified),
            ("If-Modified-Since", "yesterday", Proceed),
            ("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37", Proceed),
            ("If-Modified-Since", "0", Proceed),
            ("If-Range", "\"x\"", Proceed),
        ] {
            assert_eq!(judge(&[(name, value)]), verdict, "{name}: {value}");
        }
        assert_eq!(judge(&[]), Proceed);
    }

    #[test]
    fn one_overrules_another() {
        use Verdict::*;
        let (if_match, if_none) = ("If-Match", "If-None-Match");
        let (since, unmodified) = ("If-Modified-Since", "If-Unmodified-Since");
        for (fields, verdict) in [
            (&[(if_match, "*"), (unmodified, BEFORE)][..], Proceed),
            (&[(unmodified, BEFORE), (if_match, "*")], Proceed),
            (&[(if_match, "\"x\""), (unmodified, LATER)], Failed),
            (&[(if_match, "\"x\""), (if_none, "*")], Failed),
            (&[(if_match, "*"), (if_none, "*")], NotModified),
            (&[(if_match, "*"), (since, DATE)], NotModified),
            (&[(unmodified, BEFORE), (since, DATE)], Failed),
            (&[(unmodified, BEFORE), (if_none, "*")], Failed),
            (&[(unmodified, DATE), (since, DATE)], NotModified),
            (&[(unmodified, "never"), (since, DATE)], NotModified),
            (&[(if_none, "\"x\""), (since, DATE)], Proceed),
            (&[(since, DATE), (if_none, "\"x\"")], Proceed),
            (&[(if_none, "*"), (since, BEFORE)], NotModified),
        ] {
            assert_eq!(judge(fields), verdict, "{fields:?}");
        }
    }

    #[test]
    fn several_lines_are_a_list() {
        use Verdict::*;
        for (name, first, second, verdict) in [
            ("If-Modified-Since", DATE, DATE, Proceed),
            ("If-Modified-Since", DATE, BEFORE, Proceed),
            ("If-Modified-Since", DATE, "", Proceed),
            ("If-Unmodified-Since", BEFORE, BEFORE, Proceed),
            ("If-Match", "\"x\"", "\"y\"", Failed),
            ("If-Match", "*", "\"y\"", Failed),
            ("If-None-Match", "\"x\"", "\"y\"", Proceed),
            ("If-None-Match", "*", "\"y\"", Proceed),
        ] {
            let fields = [(name, first), (name, second)];
            assert_eq!(judge(&fields), verdict, "{fields:?}");
            let list = format!("{first}, {second}");
            assert_eq!(judge(&[(name, &list)]), verdict, "{name}: {list}");
        }
    }

    proptest! {
        #[test]
        fn no_date_panics(
            start in proptest::sample::select(vec!["", "Sun, 06 ", "Sunday, 0", "Wednesday", "Sun Nov"]),
            rest in proptest::collection::vec(
                proptest::sample::select(b"Sun, 06-Nov94:8GMT\xc3\xa9".to_vec()), 0..30,
            ),
        ) {
            let value = [start.as_bytes(), &rest].concat();
            let fields = [(&b"If-Modified-Since"[..], &value[..])];
            let _ = evaluate(fields.into_iter(), UNIX_EPOCH, DATE);
        }
    }
}
