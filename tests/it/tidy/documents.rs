//! What docs/architecture.md says of the tree: the code map, and the tests that hold invariants.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use proc_macro2::{TokenStream, TokenTree};

use super::settle;
use super::source::{self, Tree};

const DOCUMENT: &str = "docs/architecture.md";

#[test]
fn the_code_map_is_true() {
    let tree = Tree::read();
    let files = tree.sources.iter().filter(|source| !source.is_test);
    let files: Vec<&str> = files.map(|source| source.path.as_str()).collect();
    let there = |path: &str| source::root().join(path).exists();
    let wrong = wrong_in_map(&source::text(DOCUMENT), &files, there);
    settle("the code map", &report(&wrong));
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    let mut tests = BTreeSet::new();
    for folder in ["src", "tests"] {
        for path in source::files(folder, &["rs"]) {
            tests.extend(tests_in(source::tokens(&path, &source::text(&path))));
        }
    }
    let there = |path: &str| source::root().join(path).exists();
    let wrong = wrong_invariants(&source::text(DOCUMENT), &tests, there);
    settle("invariants name their tests", &report(&wrong));
}

/// (What the changelog names was there at its time.)
#[test]
fn each_path_that_a_document_names_exists() {
    let mut report = String::new();
    let documents = source::files("docs", &["md"]).into_iter();
    let documents = documents.filter(|path| path != "docs/CHANGELOG.md");
    for document in documents.chain(["README.md".to_owned()]) {
        let text = source::text(&document);
        let paths = quoted(&text).into_iter().filter(|name| is_path(name));
        for path in paths.filter(|path| !source::root().join(path).exists()) {
            let _ = writeln!(report, "{document}: {path} does not exist");
        }
    }
    settle("paths in documents", &report);
}

fn report(wrong: &[String]) -> String {
    wrong.iter().fold(String::new(), |mut report, one| {
        let _ = writeln!(report, "{DOCUMENT}: {one}");
        report
    })
}

/// What stands between backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The paths in the first column of the code map, in order. A folder ends with a slash.
fn map_entries(document: &str) -> Vec<&str> {
    let lines = document.lines().skip_while(|line| *line != "## Code map");
    let section = lines.skip(1).take_while(|line| !line.starts_with("## "));
    let rows = section.filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    rows.flat_map(quoted).collect()
}

/// Each file has one row of its own, or lies in a folder that has one; each row names what exists.
fn wrong_in_map(document: &str, files: &[&str], there: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = map_entries(document);
    let mut wrong = Vec::new();
    if entries.is_empty() {
        wrong.push("it has no code map".to_owned());
    }
    for (index, entry) in entries.iter().enumerate() {
        if entries[..index].contains(entry) {
            wrong.push(format!("the code map names {entry} twice"));
        }
        if !there(entry) {
            wrong.push(format!("the code map names {entry}, which does not exist"));
        }
    }
    for file in files {
        let covers = |entry: &&str| entry.ends_with('/') && file.starts_with(*entry);
        if !entries.contains(file) && !entries.iter().any(covers) {
            wrong.push(format!("the code map does not name {file}"));
        }
    }
    wrong
}

/// Each paragraph on an invariant names a test, by its file or by its function, and what it says to
/// hold the invariant exists.
fn wrong_invariants(
    document: &str,
    tests: &BTreeSet<String>,
    there: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for paragraph in document.split("**Architecture Invariant").skip(1) {
        let paragraph = paragraph.split("\n## ").next().unwrap_or_default();
        let title = paragraph.split("**").next().unwrap_or_default();
        let title = title.trim_start_matches(':').split_whitespace();
        let title = title.collect::<Vec<_>>().join(" ");
        let holders = paragraph.split_once("eld by").map_or("", |(_, rest)| rest);
        let functions = quoted(holders).into_iter().filter(|name| is_function(name));
        let paths = quoted(paragraph).into_iter().filter(|name| is_path(name));
        let missing = functions
            .filter(|name| !tests.contains(*name))
            .chain(paths.filter(|name| !there(name)));
        for name in missing {
            wrong.push(format!(
                "the invariant {title:?} names {name}, which does not exist"
            ));
        }
        let is_test =
            |name: &&str| tests.contains(*name) || is_path(name) && name.contains("tests");
        let named = quoted(paragraph)
            .iter()
            .filter(|name| is_test(name))
            .count();
        if named == 0 {
            wrong.push(format!("the invariant {title:?} names no test"));
        }
    }
    wrong
}

fn is_path(name: &str) -> bool {
    let folders = ["src/", "tests/", "docs/", "scripts/"];
    let is_pattern = name.contains(['*', ' ', '…']);
    !is_pattern && folders.iter().any(|folder| name.starts_with(folder))
}

fn is_function(name: &str) -> bool {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.contains('_') && name.chars().all(is_of_name)
}

/// The functions under an attribute that ends with `test`, also inside a macro.
fn tests_in(tokens: TokenStream) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_test = false;
    let mut after_fn = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let attribute = group.stream().to_string();
                is_test |= attribute == "test";
                found.extend(tests_in(group.stream()));
            }
            TokenTree::Ident(word) if after_fn => {
                if is_test {
                    found.push(word.to_string());
                }
                (is_test, after_fn) = (false, false);
            }
            TokenTree::Ident(word) => after_fn = word == "fn",
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod rules {
    use super::*;

    const MAP: &str = "# House\n\n`src/not.rs`\n\n## Code map\n\n| file | what it owns |\n| --- | --- |\n\
        | `src/a.rs` | one `src/no.rs` |\n| `src/b/` | two |\n| `src/b/c.rs`, `src/d.rs` | three |\n\
        \n## Invariants\n| `src/e.rs` | not in the map |\n";

    #[test]
    fn a_row_is_missing_or_too_many() {
        let all = ["src/a.rs", "src/b/mod.rs", "src/b/c.rs", "src/d.rs"];
        let wrong = |document: &str, files: &[&str]| wrong_in_map(document, files, |_| true);
        assert_eq!(wrong(MAP, &all), [""; 0]);
        assert_eq!(wrong(MAP, &["src/e.rs"]).len(), 1);
        assert_eq!(
            wrong(&MAP.replace("src/d.rs", "src/a.rs"), &all[..3]).len(),
            1
        );
        assert_eq!(wrong("# House\n", &[]).len(), 1);
        assert_eq!(wrong_in_map(MAP, &all, |path| path != "src/b/").len(), 1);
    }

    #[test]
    fn an_invariant_without_a_test_is_found() {
        let tests = BTreeSet::from(["it_is_so".to_owned()]);
        let wrong = |text: &str| {
            let text = format!(
                "## Invariants\n\n**Architecture Invariant: a\nb.** {text}\n\n## More\n`it_is_so`"
            );
            wrong_invariants(&text, &tests, |path| {
                path == "tests/it/a.rs" || path == "src/a.rs"
            })
        };
        assert_eq!(wrong("Held by `it_is_so`."), [""; 0]);
        assert_eq!(wrong("Held by `it_is_so` in\n`src/a.rs`."), [""; 0]);
        assert_eq!(wrong("Held by `tests/it/a.rs`."), [""; 0]);
        assert_eq!(
            wrong("Held by nobody."),
            ["the invariant \"a b.\" names no test"]
        );
        assert_eq!(wrong("`it_is_so` holds it."), [""; 0]);
        assert_eq!(wrong("Held by `it_is_not_so`.").len(), 2);
        assert_eq!(wrong("Held by `it_is_so` and `tests/it/b.rs`.").len(), 1);
        assert_eq!(wrong("Held by `src/a.rs`.").len(), 1);
    }

    #[test]
    fn a_test_is_found_inside_a_macro_too() {
        let text = "#[test] fn a() {} fn b() {} #[test] #[ignore = \"long\"] fn c() {}
            mod d { proptest! { #[test] fn e(x in 0..1) {} } } fn test() { fn f() {} }";
        let found = tests_in(text.parse().expect("it is Rust"));
        assert_eq!(found, ["a", "c", "e"]);
    }
}
