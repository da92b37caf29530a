//! What holds for lines and files as text: heads, lengths, widths, and the top of the repository.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use proc_macro2::{TokenStream, TokenTree};

use super::source::{self, Broken, Tree};
use super::{check, settle};

const LONGEST_FILE: usize = 600;

const WIDEST_COMMENT: usize = 100;

/// What may lie at the top of the repository.
const TOP_LEVEL: &[&str] = &[
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "docs",
    "scripts",
    "src",
    "tests",
];

#[test]
fn every_file_says_what_it_owns_and_stays_short() {
    check("heads and lengths", Tree::read(), |source| {
        let mut broken = headless(&source.text);
        broken.extend(too_long(&source.text));
        broken
    });
}

#[test]
fn every_file_of_the_tests_says_what_it_owns_and_stays_short() {
    let mut report = String::new();
    for path in source::files("tests", &["rs"]) {
        let text = source::text(&path);
        for (line, rule) in headless(&text).into_iter().chain(too_long(&text)) {
            let _ = writeln!(report, "{path}:{line}: {rule}");
        }
    }
    settle("heads and lengths of tests", &report);
}

/// What a print macro prints, the test runner keeps back, so that nobody would know.
#[test]
fn a_test_that_is_skipped_says_so_by_the_harness() {
    let mut report = String::new();
    for path in source::files("tests", &["rs"]) {
        // A test that fails shows what the server has said.
        let lines = source::text(&path);
        let lines = lines.lines().enumerate();
        let lines = lines.filter(|_| path != "tests/it/harness.rs");
        for (line, _) in lines.filter(|(_, text)| text.contains(concat!("eprint", "ln!("))) {
            let _ = writeln!(report, "{path}:{}: call harness::skip::skip", line + 1);
        }
    }
    settle("skipped tests", &report);
}

#[test]
fn no_comment_is_wider_than_the_code() {
    let mut report = String::new();
    for folder in ["src", "tests", "docs/examples"] {
        for path in source::files(folder, &["rs", "c", "toml"]) {
            for line in wide_comments(&path, &source::text(&path)) {
                let rule = format!("a comment of more than {WIDEST_COMMENT} columns");
                let _ = writeln!(report, "{path}:{line}: {rule}");
            }
        }
    }
    settle("comment width", &report);
}

#[test]
fn the_top_level_holds_nothing_else() {
    let entries = tracked_entries().unwrap_or_else(listed_entries);
    let strangers: Vec<_> = entries
        .iter()
        .filter(|name| !TOP_LEVEL.contains(&name.as_str()))
        .collect();
    assert!(
        strangers.is_empty(),
        "these do not belong at the top of the repository: {strangers:?}"
    );
}

fn headless(text: &str) -> Vec<Broken> {
    match text.starts_with("//!") {
        true => Vec::new(),
        false => vec![(1, "a file begins with `//!`: what it owns".to_owned())],
    }
}

fn too_long(text: &str) -> Option<Broken> {
    let lines = text.lines().count();
    let rule = format!("{lines} lines, more than {LONGEST_FILE}: split it by what it owns");
    (lines > LONGEST_FILE).then_some((lines, rule))
}

/// The lines that are too wide and have a comment. (Code and strings are rustfmt's business.)
fn wide_comments(path: &str, text: &str) -> Vec<usize> {
    let is_rust = path.ends_with(".rs");
    let code = match is_rust {
        true => Code::of(source::tokens(path, text)),
        false => Code::default(),
    };
    let is_comment = |number: usize, line: &str| {
        let start = line.trim_start();
        let starts = |beginnings: &[&str]| beginnings.iter().any(|one| start.starts_with(one));
        if !is_rust {
            return starts(&["#", "//", "/*", "* "]);
        }
        let end = code.ends.get(&number).copied().unwrap_or(0);
        let after: String = line.chars().skip(end).collect();
        !code.is_inside(number) && (starts(&["//", "/*"]) || after.contains("//"))
    };
    let lines = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line));
    let wide = lines.filter(|(_, line)| line.chars().count() > WIDEST_COMMENT);
    let comments = wide.filter(|(number, line)| is_comment(*number, line));
    comments.map(|(number, _)| number).collect()
}

/// Where the code is, so that the rest is comments.
#[derive(Default)]
struct Code {
    /// The column behind the last word of a line.
    ends: BTreeMap<usize, usize>,
    /// The first and the last line of each string of several lines.
    strings: Vec<(usize, usize)>,
}

impl Code {
    fn of(tokens: TokenStream) -> Self {
        let mut code = Self::default();
        code.collect(tokens);
        code
    }

    fn collect(&mut self, tokens: TokenStream) {
        for token in tokens {
            let end = token.span().end();
            let column = self.ends.entry(end.line).or_default();
            *column = end.column.max(*column);
            match token {
                TokenTree::Group(group) => self.collect(group.stream()),
                TokenTree::Literal(literal) => {
                    let lines = (literal.span().start().line, end.line);
                    self.strings.extend((lines.0 < lines.1).then_some(lines));
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) => {}
            }
        }
    }

    /// Whether a line begins inside a string.
    fn is_inside(&self, line: usize) -> bool {
        let mut strings = self.strings.iter();
        strings.any(|(first, last)| *first < line && line <= *last)
    }
}

/// The entries at the top of the repository that git knows; nothing without git or a repository.
fn tracked_entries() -> Option<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(source::root())
        .output()
        .ok()?;
    let listing = String::from_utf8(output.stdout).ok()?;
    let mut names: Vec<String> = listing
        .split_terminator('\0')
        .map(|path| path.split('/').next().unwrap_or(path).to_owned())
        .collect();
    names.dedup();
    (output.status.success() && !names.is_empty()).then_some(names)
}

/// The same for sources that were unpacked without a repository: all but what a build leaves.
fn listed_entries() -> Vec<String> {
    fs::read_dir(source::root())
        .expect("the repository is readable")
        .map(|entry| entry.expect("it is readable").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name != ".git" && name != "target")
        .collect()
}

#[cfg(test)]
mod rules {
    use super::*;

    #[test]
    fn a_wide_comment_is_found_and_wide_code_is_not() {
        let wide = "x".repeat(WIDEST_COMMENT);
        let lines = |text: &str| wide_comments("src/wire.rs", text);
        assert_eq!(
            lines(&format!("//! {wide}\n\n  /// {wide}\nfn f() {{}}")),
            [1, 3]
        );
        assert_eq!(lines(&format!("fn f() {{}} // {wide}")), [1]);
        assert_eq!(lines(&format!("fn f() {{ g(\"http://{wide}\") }}")), [0; 0]);
        assert_eq!(
            lines(&format!("const S: &str = \"\n// {wide}\n\";")),
            [0; 0]
        );
        assert_eq!(
            lines(&format!("// {}", "ü".repeat(WIDEST_COMMENT - 3))),
            [0; 0]
        );
        assert_eq!(
            wide_comments("a.toml", &format!("# {wide}\nkey = '{wide}'")),
            [1]
        );
        assert_eq!(wide_comments("a.c", &format!("/* a\n * {wide} */\n")), [2]);
    }

    #[test]
    fn a_file_without_a_head_or_an_end_is_found() {
        assert_eq!(headless("use a;").len(), 1);
        assert_eq!(headless("//! What it owns.\nuse a;").len(), 0);
        let long = |lines: usize| {
            let tree = Tree::single("src/wire.rs", &"\n".repeat(lines));
            too_long(&tree.sources[0].text).is_some()
        };
        assert!(long(LONGEST_FILE + 1));
        assert!(!long(LONGEST_FILE));
    }
}
