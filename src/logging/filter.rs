//! Which records are logged: what a configuration or the variable RUST_LOG says of it, and whether
//! that makes sense. Pure.
//!
//! To the library that reads it, a word that is no level is the name of a module, and all others
//! are silent then. So a level that is misspelt would silence the log.

use env_filter::{Builder, Filter};
use log::LevelFilter;

/// The crate that all lines of this program come from.
const PROGRAM: &str = env!("CARGO_CRATE_NAME");

/// Its modules, each of which a filter may name.
const MODULES: &[&str] = &[
    "channel", "cli", "config", "error", "fdpass", "fdtool", "logging", "lookup", "master",
    "server", "service", "services", "sys", "systemd", "wire", "worker",
];

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// What is logged unless somebody says otherwise.
const DEFAULT: &str = "info";

/// One part of a filter: `batond::master=debug`, `info`.
struct Directive<'a> {
    target: Option<&'a str>,
    /// `None` is all levels.
    level: Option<LevelFilter>,
}

impl Directive<'_> {
    /// Whether it makes a difference to this program.
    fn concerns_program(&self) -> bool {
        let Some(target) = self.target else {
            return true;
        };
        // The beginning of a path is enough for the library.
        match target.strip_prefix(PROGRAM) {
            Some("") => true,
            Some(path) => path.strip_prefix("::").is_some_and(|path| {
                let name = path.split("::").next().unwrap_or(path);
                MODULES.contains(&name)
            }),
            None => false,
        }
    }
}

/// Whether a configuration may say this; why not, if not.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let directives = directives(text)?;
    if directives.is_empty() {
        return Err(format!("expected a level: {}", levels()));
    }
    match directives
        .iter()
        .find(|directive| !directive.concerns_program())
    {
        None => Ok(()),
        Some(Directive { target, level }) => {
            let name = target.unwrap_or_default();
            Err(match level {
                None => format!(
                    "{name:?} is neither a level ({}) nor a module of {PROGRAM}{}",
                    levels(),
                    hint(name)
                ),
                Some(_) => {
                    format!("{name:?} is no module of {PROGRAM}, and nothing is logged there")
                }
            })
        }
    }
}

/// What is logged: as RUST_LOG says, else as the configuration does. And what is to be said if
/// RUST_LOG makes no sense, `None` being a text that is not UTF-8.
pub(super) fn choose(
    variable: Option<Option<&str>>,
    configured: Option<&str>,
) -> (Filter, Option<String>) {
    let (usual, place) = match configured {
        Some(configured) => (configured, "the configuration says"),
        None => (DEFAULT, "the default is"),
    };
    let complaint = match variable {
        None => None,
        Some(None) => Some("it is not UTF-8".to_owned()),
        // Empty is what some write for "not set".
        Some(Some(text)) if text.trim().is_empty() => None,
        Some(Some(text)) => match check_shared(text).and_then(|()| build(text)) {
            Ok(filter) => return (filter, None),
            Err(reason) => Some(reason),
        },
    };
    let complaint =
        complaint.map(|reason| format!("RUST_LOG is ignored, and {place} {usual:?}: {reason}"));
    let filter = build(usual).or_else(|_| build(DEFAULT));
    (filter.unwrap_or_else(|_| Builder::new().build()), complaint)
}

/// Whether a variable that other programs read too may say this: it may name their modules, as long
/// as it has a word for this one.
fn check_shared(text: &str) -> Result<(), String> {
    let directives = directives(text)?;
    if directives.iter().any(Directive::concerns_program) {
        return Ok(());
    }
    // The reason that a configuration would be given is the right one here too.
    check(text)
}

fn build(text: &str) -> Result<Filter, String> {
    let mut builder = Builder::new();
    builder.try_parse(text).map_err(|error| error.to_string())?;
    Ok(builder.build())
}

/// The parts of a filter as the library takes them, but without its leniency.
fn directives(text: &str) -> Result<Vec<Directive<'_>>, String> {
    // Behind a slash is what a message must contain.
    let mut parts = text.split('/');
    let directives = parts.next().unwrap_or_default();
    if parts.nth(1).is_some() {
        return Err("there is more than one \"/\"".to_owned());
    }
    let directives = directives.split(',').map(str::trim);
    directives
        .filter(|directive| !directive.is_empty())
        .map(directive)
        .collect()
}

fn directive(text: &str) -> Result<Directive<'_>, String> {
    let level = |text: &str| text.parse::<LevelFilter>().ok();
    match text.split_once('=') {
        None => Ok(match level(text) {
            Some(level) => Directive {
                target: None,
                level: Some(level),
            },
            None => Directive {
                target: Some(text),
                level: None,
            },
        }),
        Some((target, word)) => {
            let word = word.trim();
            let level = level(word).ok_or_else(|| {
                format!(
                    "{word:?} is not a level: expected {}{}",
                    levels(),
                    hint(word)
                )
            })?;
            Ok(Directive {
                target: Some(target),
                level: Some(level),
            })
        }
    }
}

/// `off, error, warn, info, debug or trace`.
fn levels() -> String {
    let [first @ .., last] = LEVELS else {
        return String::new();
    };
    format!("{} or {last}", first.join(", "))
}

/// A level that was probably meant.
fn hint(word: &str) -> String {
    let word = word.to_lowercase();
    let distance = |level: &&&str| strsim::damerau_levenshtein(level, &word);
    match LEVELS.iter().min_by_key(distance) {
        Some(level) if distance(&level) <= 2 => format!("; {level:?} is"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::{Level, Metadata};

    #[test]
    fn a_filter_that_says_nothing_of_this_program_is_refused() {
        for text in [
            "info",
            "INFO",
            "off",
            "warn,batond=debug",
            "batond::master::pool=trace, error",
            "batond",
            "batond::worker",
            "info/listening",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        for (text, reason) in [
            ("inof", "\"inof\" is neither a level ("),
            ("info,inof", "\"inof\" is neither"),
            (
                "",
                "expected a level: off, error, warn, info, debug or trace",
            ),
            (" , ", "expected a level"),
            ("/text", "expected a level"),
            ("info/a/b", "there is more than one"),
            (
                "batond=loud",
                "\"loud\" is not a level: expected off, error, warn",
            ),
            ("batond=", "\"\" is not a level"),
            ("batond=info=debug", "\"info=debug\" is not a level"),
            (
                "batond::mater=debug",
                "\"batond::mater\" is no module of batond",
            ),
            ("batondx=debug", "\"batondx\" is no module"),
            ("hyper=debug", "\"hyper\" is no module"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.starts_with(reason), "{text}: {error}");
        }
        assert!(check("inof").unwrap_err().ends_with("; \"info\" is"));
    }

    #[test]
    fn a_variable_without_sense_is_ignored_and_said_to_be() {
        let most = |variable, configured| {
            let (filter, complaint) = choose(variable, configured);
            let logs = |level: &Level| {
                let target = "batond::master";
                filter.enabled(&Metadata::builder().level(*level).target(target).build())
            };
            (Level::iter().filter(logs).last(), complaint.is_some())
        };
        for (variable, configured, expected) in [
            (None, None, (Some(Level::Info), false)),
            (None, Some("warn"), (Some(Level::Warn), false)),
            (
                Some(Some("debug")),
                Some("warn"),
                (Some(Level::Debug), false),
            ),
            (Some(Some("off")), None, (None, false)),
            // Another program's, and this one's.
            (
                Some(Some("hyper=off,debug")),
                None,
                (Some(Level::Debug), false),
            ),
            (Some(Some("batond::worker=debug")), None, (None, false)),
            (Some(Some("")), None, (Some(Level::Info), false)),
            (Some(None), None, (Some(Level::Info), true)),
            (Some(Some("inof")), None, (Some(Level::Info), true)),
            (
                Some(Some("inof")),
                Some("debug"),
                (Some(Level::Debug), true),
            ),
            (Some(Some("hyper=debug")), None, (Some(Level::Info), true)),
            (
                Some(Some("batond=verbose")),
                None,
                (Some(Level::Info), true),
            ),
            (Some(Some("a=b=c")), None, (Some(Level::Info), true)),
        ] {
            assert_eq!(
                most(variable, configured),
                expected,
                "{variable:?} {configured:?}"
            );
        }
    }

    #[test]
    fn the_list_of_modules_is_that_of_the_crate() {
        let lines = include_str!("../lib.rs").lines();
        let names = lines.filter_map(|line| {
            let line = line.strip_prefix("pub ").unwrap_or(line);
            line.strip_prefix("mod ")?.strip_suffix(';')
        });
        let names: Vec<_> = names.collect();
        assert_eq!(names, MODULES);
    }
}
