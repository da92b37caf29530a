//! Files that say of themselves, in their heads, that they are pure: they touch no clock and no
//! system call, so that the same input gives the same output, always.

use super::check;
use super::source::{Broken, Source, Tree};

/// These are pure, and say so.
const MUST_BE: &[&str] = &[
    "src/wire.rs",
    "src/config.rs",
    "src/config/",
    "src/master/dispatch/",
    "src/master/store/ledger.rs",
    "src/master/store/names.rs",
    "src/master/store/stowed.rs",
    "src/master/workers/slots.rs",
    "src/master/workers/crash_loop.rs",
    "src/master/workers/lifetime.rs",
    "src/master/workers/autoscale.rs",
    "src/service/outgoing/record.rs",
    "src/services/http/head.rs",
    "src/services/http/head/",
    "src/services/http/chunked.rs",
    "src/services/http/preconditions.rs",
    "src/master/snapshot.rs",
    "src/master/connection/evidence.rs",
    "src/master/succession/messages.rs",
];

/// What a pure file has no business with, and all below it.
const IMPURE: &[&str] = &[
    "libc",
    "nix",
    "rustix",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "std::time::Instant::now",
    "std::time::SystemTime::now",
];

/// The same by name, wherever it comes from.
const IMPURE_NAMES: &[&str] = &[
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "OwnedFd",
    "BorrowedFd",
    "RawFd",
];

#[test]
fn pure_files_touch_no_clock_and_no_system_call() {
    check("pure files", Tree::read(), effects);
}

#[test]
fn files_that_must_be_pure_say_so() {
    let tree = Tree::read();
    for wanted in MUST_BE {
        let found = tree.sources.iter().any(|source| is_of(source, wanted));
        assert!(found, "{wanted} is not there: amend the list MUST_BE");
    }
    check("files that must be pure", tree, |source| {
        let must = MUST_BE.iter().any(|wanted| is_of(source, wanted));
        match must && !source.is_test && !says_pure(&source.text) {
            true => vec![(1, "its head does not say that it is pure".to_owned())],
            false => Vec::new(),
        }
    });
}

fn is_of(source: &Source, wanted: &str) -> bool {
    match wanted.ends_with('/') {
        true => source.path.starts_with(wanted),
        false => source.path == wanted,
    }
}

/// Whether the head of a file has the word `Pure` as a sentence, or at the beginning of one that
/// says more of it.
fn says_pure(text: &str) -> bool {
    let head = text.lines().map_while(|line| line.strip_prefix("//!"));
    let mut words = head.flat_map(str::split_whitespace);
    words.any(|word| word == "Pure." || word == "Pure:")
}

fn effects(source: &Source) -> Vec<Broken> {
    if source.is_test || !says_pure(&source.text) {
        return Vec::new();
    }
    let rule = "a pure file has neither clock nor system call";
    let mut broken = Vec::new();
    for reference in &source.references {
        let impure = IMPURE.iter().any(|path| reference.begins_with(path));
        if impure {
            broken.push((reference.line, format!("`{}`: {rule}", reference.shown())));
        }
    }
    for (line, word) in &source.words {
        if IMPURE_NAMES.contains(&word.as_str()) {
            broken.push((*line, format!("`{word}`: {rule}")));
        }
    }
    broken
}

#[cfg(test)]
mod rules {
    use super::*;

    #[test]
    fn a_file_says_in_its_head_that_it_is_pure() {
        assert!(says_pure("//! Messages. Pure.\n\nuse a;"));
        assert!(says_pure("//! Messages.\n//! Pure: nothing but bytes.\n"));
        assert!(!says_pure("//! Messages.\n\n/// Pure.\nfn f() {}"));
        assert!(!says_pure("//! Purely messages."));
    }

    #[test]
    fn an_effect_of_a_pure_file_is_found() {
        let broken = |text: &str| {
            let text = format!("//! Pure.\n{text}");
            let tree = Tree::single("src/wire.rs", &text);
            effects(&tree.sources[0])
                .iter()
                .map(|(line, _)| *line)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            broken("use std::time::Instant;\nfn f() { Instant::now() }"),
            [3]
        );
        assert_eq!(broken("use std::{fmt, fs};"), [2]);
        assert_eq!(broken("use std::fs as files;\nfn f() {}"), [2]);
        assert_eq!(broken("fn f(x: libc::c_int) {}"), [2]);
        assert_eq!(broken("fn f() { g!(1, std::env::var(a)); }"), [2]);
        assert_eq!(broken("use std::net::TcpStream;"), [2]);
        assert!(broken("use std::net::SocketAddr; use std::time::Duration;").is_empty());
        assert!(broken("#[cfg(test)] mod tests { use std::fs; }").is_empty());
        let tree = Tree::single("src/wire.rs", "//! Messages.\nuse std::fs;");
        assert!(effects(&tree.sources[0]).is_empty());
    }
}
