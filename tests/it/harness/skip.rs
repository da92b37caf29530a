//! Tests that cannot test here: they say so, and why, in one line that the test runner does not
//! swallow. With BATOND_TEST_ALL set, as `.ci/run` does, that is a failure.

use std::io::{self, Write};
use std::panic::Location;
use std::path::PathBuf;
use std::thread;

/// The programs that tests start, each with its package and what it is for.
const PROGRAMS: &str = include_str!("../../programs.txt");

/// Says that a test, or a part of it, is not done, and why: the caller returns then.
#[track_caller]
pub fn skip(why: &str) {
    let line = line(why);
    assert!(
        std::env::var_os("BATOND_TEST_ALL").is_none(),
        "BATOND_TEST_ALL is set, but {line}"
    );
    say(&line);
}

/// Says that a part of a test is not done because this kernel does not have what it takes. No
/// package could mend that, so it is no failure anywhere.
#[track_caller]
pub fn skip_for_the_kernel(why: &str) {
    say(&line(why));
}

#[track_caller]
fn line(why: &str) -> String {
    let here = Location::caller();
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    format!("skipped: {test} ({}:{}): {why}\n", here.file(), here.line())
}

fn say(line: &str) {
    // The runner keeps back what a print macro prints, and nothing else. In one write, so that
    // lines of two tests do not mix.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Whether the test must be skipped because this user is not root; says so.
#[track_caller]
pub fn lacks_root() -> bool {
    let lacks = !nix::unistd::geteuid().is_root();
    if lacks {
        skip("only root can do what it does");
    }
    lacks
}

/// Whether the test must be skipped because this program is not there; says so.
#[track_caller]
pub fn lacks(program: &str) -> bool {
    let package = require_listed(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(program));
    let lacks = !places.any(|path: PathBuf| path.is_file());
    if lacks {
        skip(&format!("{program} is missing (Debian package {package})"));
    }
    lacks
}

/// The package of a program that a test starts.
#[track_caller]
pub fn require_listed(program: &str) -> &'static str {
    package(program)
        .unwrap_or_else(|| panic!("{program} is not in tests/programs.txt: add it there"))
}

fn package(program: &str) -> Option<&'static str> {
    let lines = PROGRAMS.lines().filter(|line| !line.starts_with('#'));
    let mut words = lines.map(str::split_ascii_whitespace);
    words.find_map(|mut words| (words.next() == Some(program)).then(|| words.next())?)
}

#[test]
fn each_program_has_a_package_and_a_purpose() {
    for line in PROGRAMS.lines().filter(|line| !line.starts_with('#')) {
        let words = line.split_ascii_whitespace().count();
        assert!(words > 2, "{line:?} has no name, package and purpose");
    }
    assert_eq!(package("cc"), Some("build-essential"));
    assert_eq!(package("build-essential"), None);
}
