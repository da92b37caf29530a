//! What the documents say is true: commands work when they are pasted, and lines of the log that
//! are quoted exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::LitStr;

use crate::harness::upgrade::{STARTED, reap};
use crate::harness::{BATOND, Watched, command, field, finish};

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The first block of shell commands below a heading of a document.
#[track_caller]
fn commands(document: &str, heading: &str) -> String {
    let text = text(document);
    let (_, below) = text
        .split_once(&format!("\n## {heading}\n"))
        .expect(heading);
    let (_, block) = below.split_once("```sh\n").expect("a block of commands");
    block.split("```").next().unwrap_or_default().to_owned()
}

#[test]
fn the_commands_of_the_readme_work_when_they_are_pasted_at_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = "[[pool]]\nservice = 'demo'\nlisten = '127.0.0.1:0'\nworkers = 2\n";
    fs::write(directory.path().join("batond.toml"), file).expect("it is ours");
    let programs = Path::new(BATOND).parent().expect("it is in a directory");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = command("sh");
    command
        .arg("-c")
        .arg(commands("README.md", "Reload, upgrade, stop"));
    command.current_dir(directory.path());
    command.env("PATH", format!("{}:{path}", programs.display()));
    // This ends when all processes have closed their output.
    let finished = finish(command);
    let log = fs::read_to_string(directory.path().join("batond.log")).expect("a log");
    let started = log
        .lines()
        .find(|line| line.contains(STARTED))
        .expect("an upgrade");
    reap(&Watched::new(Pid::from_raw(field(started, "pid"))));
    assert!(finished.status.success(), "{finished:?}\n{log}");
    assert_eq!(finished.stderr, "", "{log}");
    for said in ["reloaded", "took over with", "stopped"] {
        assert!(log.contains(said), "{said}:\n{log}");
    }
    let bad = |line: &&str| line.contains("WARN") || line.contains("ERROR");
    assert_eq!(log.lines().find(bad), None, "{log}");
}

/// All string literals of the sources, each with its placeholders replaced by `…`.
fn literals() -> BTreeSet<String> {
    let mut literals = BTreeSet::new();
    let mut directories = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source text is UTF-8");
                collect(text.parse().expect("it is Rust"), &mut literals);
            }
        }
    }
    literals
}

/// The string literals in code, with `…` where a value is put in. Attributes are left out, and so
/// are comments on items.
fn collect(code: TokenStream, literals: &mut BTreeSet<String>) {
    let mut tokens = code.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(mark) if mark.as_char() == '#' => {
                let attribute = |next: &TokenTree| match next {
                    TokenTree::Group(group) => group.delimiter() == Delimiter::Bracket,
                    _ => false,
                };
                tokens.next_if(attribute);
            }
            TokenTree::Group(group) => collect(group.stream(), literals),
            TokenTree::Literal(literal) => {
                if let Ok(text) = syn::parse_str::<LitStr>(&literal.to_string()) {
                    literals.insert(without_values(&text.value()));
                }
            }
            _ => {}
        }
    }
}

fn without_values(format: &str) -> String {
    let mut parts = format.split('{');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let (_, rest) = part.split_once('}').unwrap_or(("", part));
        format!("{text}…{rest}")
    })
}

#[test]
fn each_line_of_the_log_that_the_page_for_operators_quotes_exists() {
    let page = text("docs/operations.md");
    let quoted: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .flat_map(|row| {
            let (cell, _) = row.split_once(" | ").expect("a row has cells");
            cell.trim_end_matches('`').split("`, `").map(str::to_owned)
        })
        .collect();
    assert!(quoted.len() > 30, "{quoted:?}");
    let literals = literals();
    let said = |quote: &String| {
        // Errors of the crate begin with a word that is in one place only.
        let words = quote.strip_prefix("cannot ").unwrap_or(quote);
        literals.iter().any(|literal| {
            let mut rest = &literal[..];
            words.split('…').all(|part| match rest.find(part) {
                Some(at) => {
                    rest = &rest[at + part.len()..];
                    true
                }
                None => false,
            })
        })
    };
    let stale: Vec<_> = quoted.iter().filter(|quote| !said(quote)).collect();
    assert!(
        stale.is_empty(),
        "no line of the log has these words: {stale:#?}"
    );
    // The test can fail.
    assert!(!said(&"worker … has gone fishing".to_owned()));
}
