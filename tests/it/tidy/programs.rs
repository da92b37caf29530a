//! The programs that tests start are in tests/programs.txt, from where `.ci/run` installs them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use proc_macro2::{TokenStream, TokenTree};

use super::settle;
use super::source;

const LIST: &str = "tests/programs.txt";

/// What every system has, and what a test makes itself.
const EVERYWHERE: &[&str] = &["./peer", "cat", "cp", "ls", "mkfifo", "sh", "true"];

#[test]
fn each_program_that_tests_start_is_listed() {
    let list = source::text(LIST);
    let listed = programs(&list);
    let mut report = String::new();
    for folder in ["src", "tests"] {
        for path in source::files(folder, &["rs"]) {
            for (line, name) in started(source::tokens(&path, &source::text(&path))) {
                if !listed.contains(&*name) && !EVERYWHERE.contains(&&*name) {
                    let _ = writeln!(report, "{path}:{line}: {name} is not in {LIST}");
                }
            }
        }
    }
    settle("programs of the tests", &report);
    let reads_it = source::text(".ci/run").contains(LIST);
    assert!(reads_it, ".ci/run does not read {LIST}");
}

fn programs(list: &str) -> BTreeSet<&str> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

/// The names in `Command::new("name")` and `command("name")`.
fn started(tokens: TokenStream) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut last = [String::new(), String::new()];
    for token in tokens {
        if let TokenTree::Group(group) = &token {
            let starts = last[1] == "command" || last == ["Command", "new"];
            let mut arguments = group.stream().into_iter();
            if let (true, Some(TokenTree::Literal(name))) = (starts, arguments.next()) {
                let name_alone = name.to_string().trim_matches('"').to_owned();
                found.push((name.span().start().line, name_alone));
            }
            found.extend(started(group.stream()));
        }
        if !matches!(&token, TokenTree::Punct(colon) if colon.as_char() == ':') {
            last.swap(0, 1);
            last[1] = token.to_string();
        }
    }
    found
}

#[test]
fn a_program_is_found_where_it_is_started() {
    let text = "fn f() { Command::new(\"a\").arg(\"b\"); let x = command(\"c\"); }
        fn g() { process::Command::new(PATH); Other::new(\"d\"); g!(Command::new(\"e\")) }";
    let found = started(text.parse().expect("it is Rust"));
    assert_eq!(found, [(1, "a".into()), (1, "c".into()), (2, "e".into())]);
    assert_eq!(programs("# a b\nc d e\n"), BTreeSet::from(["c"]));
}
