//! The house rules, held by tests over the source text. Each says where it is broken, and what the
//! rule is; docs/architecture.md says why.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// From the bottom to the top: a module may use those of the lines before its own, and itself.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["sys"],
    &["fdpass", "wire", "logging", "lookup"],
    &["service", "config"],
    &["channel", "systemd"],
    &["master", "worker", "services"],
    &["server", "fdtool", "load"],
    &["lib"],
    &["cli"],
    &["main"],
];

/// These touch no clock and no system call: the same input gives the same output, always.
const PURE: &[&str] = &[
    "src/wire.rs",
    "src/config",
    "src/master/dispatch",
    "src/master/store/ledger.rs",
    "src/master/store/names.rs",
    "src/master/workers/slots.rs",
    "src/master/workers/crash_loop.rs",
    "src/master/workers/lifetime.rs",
    "src/master/workers/autoscale.rs",
    "src/services/http/head.rs",
];

/// What a pure file has no business with.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "libc::",
    "nix::",
    "rustix::",
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
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

/// Only fdpass speaks of ancillary data.
const ANCILLARY: &[&str] = &[
    "SendAncillary",
    "RecvAncillary",
    "ControlMessage",
    "ScmRights",
    "SCM_RIGHTS",
    "cmsg",
    "CMSG",
    "msg_control",
];

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

const LONGEST_FILE: usize = 600;

#[test]
fn imports_point_downwards_only() {
    let sources = sources();
    let face = reexports(&sources);
    check(&sources, |source| upward_imports(source, &face));
}

#[test]
fn unsafe_code_is_in_sys_only() {
    check(&sources(), |source| {
        if source.is_in("src/sys") {
            return Vec::new();
        }
        source.lines_with_word(&["unsafe"], "unsafe code belongs in src/sys")
    });
}

#[test]
fn ancillary_data_is_in_fdpass_only() {
    check(&sources(), |source| {
        if source.is_in("src/fdpass") {
            return Vec::new();
        }
        source.lines_with(ANCILLARY, "ancillary data belongs in src/fdpass.rs")
    });
}

#[test]
fn pure_files_touch_no_clock_and_no_system_call() {
    let sources = sources();
    let pure = |source: &Source| PURE.iter().any(|prefix| source.path.starts_with(prefix));
    assert!(sources.iter().any(pure), "no file is pure any more?");
    check(&sources, |source| match pure(source) {
        true => source.lines_with(IMPURE, "a pure file has neither clock nor system call"),
        false => Vec::new(),
    });
}

#[test]
fn the_master_starts_no_thread() {
    let threads = ["thread::spawn", "thread::Builder", "thread::scope"];
    check(&sources(), |source| match source.is_in("src/master") {
        true => source.lines_with(&threads, "fork from a threaded process is not safe"),
        false => Vec::new(),
    });
}

#[test]
fn every_file_says_what_it_owns_and_stays_short() {
    check(&sources(), |source| {
        let mut broken = Vec::new();
        if !source.text.starts_with("//!") {
            broken.push((1, "a file begins with `//!`: what it owns".to_owned()));
        }
        let lines = source.text.lines().count();
        if lines > LONGEST_FILE && !is_all_tests(&source.path) {
            let rule = format!("{lines} lines, more than {LONGEST_FILE}: split it by what it owns");
            broken.push((lines, rule));
        }
        broken
    });
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

/// A file under src.
struct Source {
    /// From the top of the repository: `src/master/pool.rs`.
    path: String,
    text: String,
    /// The text without comments, without what stands between quotes, and without tests; every line
    /// still in its place.
    code: String,
}

/// A broken rule: the line, and what the rule says.
type Broken = (usize, String);

impl Source {
    fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let code = match is_all_tests(&path) {
            true => String::new(),
            false => without_tests(&bare_code(&text)),
        };
        Self { path, text, code }
    }

    /// Whether the file is `path`.rs or below `path`/.
    fn is_in(&self, path: &str) -> bool {
        let rest = self.path.strip_prefix(path);
        rest.is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
    }

    /// The names of the modules above this file's code: `["master", "pool"]`, none for lib.rs.
    fn module(&self) -> Vec<&str> {
        let path = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let path = path.strip_suffix(".rs").unwrap_or(path);
        let mut names: Vec<&str> = path.split('/').collect();
        if names.len() > 1 && names.last() == Some(&"mod") {
            names.pop();
        }
        if names == ["lib"] || names == ["main"] {
            names.clear();
        }
        names
    }

    /// The name that [`LAYERS`] has for this file.
    fn layer(&self) -> &str {
        match self.path.as_str() {
            "src/lib.rs" => "lib",
            "src/main.rs" => "main",
            _ => self.module()[0],
        }
    }

    fn lines_with(&self, words: &[&str], rule: &str) -> Vec<Broken> {
        self.lines_where(words, rule, |line, word| line.contains(word))
    }

    /// Like [`Source::lines_with`], for words that are not part of a longer name.
    fn lines_with_word(&self, words: &[&str], rule: &str) -> Vec<Broken> {
        self.lines_where(words, rule, |line, word| {
            line.split(|c: char| !is_name(c)).any(|name| name == word)
        })
    }

    fn lines_where(
        &self,
        words: &[&str],
        rule: &str,
        found: impl Fn(&str, &str) -> bool,
    ) -> Vec<Broken> {
        let mut broken = Vec::new();
        for (number, line) in self.code.lines().enumerate() {
            for word in words.iter().filter(|word| found(line, word)) {
                broken.push((number + 1, format!("`{word}`: {rule}")));
            }
        }
        broken
    }
}

/// Whether a file is the tests of the module that it lies below: `src/master/dispatch/tests.rs`.
fn is_all_tests(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// All files under src, by path.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories = vec![root.join("src")];
    let mut paths: Vec<PathBuf> = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).expect("source text is UTF-8");
            let path = path.strip_prefix(root).expect("it lies below the root");
            Source::new(path.display().to_string(), text)
        })
        .collect()
}

/// Applies a rule to every file, and fails with all the places that break it.
#[track_caller]
fn check(sources: &[Source], rule: impl Fn(&Source) -> Vec<Broken>) {
    let mut report = String::new();
    for source in sources {
        for (line, text) in rule(source) {
            let _ = writeln!(report, "{}:{line}: {text}", source.path);
        }
    }
    assert!(report.is_empty(), "house rules are broken:\n{report}");
}

/// The entries at the top of the repository that git knows; nothing without git or a repository.
fn tracked_entries() -> Option<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
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
    fs::read_dir(env!("CARGO_MANIFEST_DIR"))
        .expect("the repository is readable")
        .map(|entry| entry.expect("it is readable").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name != ".git" && name != "target")
        .collect()
}

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&layer))
}

/// Which module the names come from that src/lib.rs offers at the top of the crate.
fn reexports(sources: &[Source]) -> BTreeMap<String, String> {
    let lib = sources.iter().find(|source| source.path == "src/lib.rs");
    let code = lib.map(|source| source.code.as_str()).unwrap_or_default();
    let mut names = BTreeMap::new();
    for (at, _) in code.match_indices("pub use ") {
        let path = code[at..].trim_start_matches("pub use ");
        let path = path.trim_start_matches("crate::");
        for path in leaves(path) {
            if let (Some(module), Some(name)) = (path.first(), path.last()) {
                names.insert(name.clone(), module.clone());
            }
        }
    }
    names
}

/// The imports of a file, and other uses of paths, that its place in [`LAYERS`] forbids.
fn upward_imports(source: &Source, face: &BTreeMap<String, String>) -> Vec<Broken> {
    let own = source.layer();
    let Some(own_rank) = rank(own) else {
        return vec![(1, format!("module `{own}` has no place in the layers"))];
    };
    let mut broken = Vec::new();
    for (line, used) in used_modules(source) {
        let used = face.get(&used).unwrap_or(&used);
        // The crate's face offers what lies below it, and main sees the crate through the face.
        let allowed = used == own
            || rank(used).is_some_and(|used_rank| used_rank < own_rank)
                && (own != "services" || ["service", "error"].contains(&used.as_str()));
        if !allowed {
            let rule = match rank(used) {
                None => format!("`{used}` has no place in the layers"),
                Some(_) => format!("`{own}` must not use `{used}`"),
            };
            broken.push((line, rule));
        }
    }
    broken
}

/// Names at the top of the crate that a file uses, by `crate::`, by enough `super::` to get there,
/// or from outside by the name of the crate.
fn used_modules(source: &Source) -> Vec<(usize, String)> {
    let depth = source.module().len();
    let code = &source.code;
    let mut used = Vec::new();
    let mut add = |at: usize, path: &str| {
        let line = code[..at].matches('\n').count() + 1;
        for path in leaves(path) {
            if let Some(name) = path.into_iter().next() {
                used.push((line, name));
            }
        }
    };
    for start in ["crate::", "batond::"] {
        for (at, _) in code.match_indices(start) {
            // `$crate` counts, `our_crate` does not.
            if !code[..at].ends_with(is_name) {
                add(at, &code[at + start.len()..]);
            }
        }
    }
    for (at, _) in code.match_indices("super::") {
        let inner = code[..at].ends_with("super::") || code[..at].ends_with(is_name);
        let mut rest = &code[at..];
        let mut levels = 0;
        while let Some(further) = rest.strip_prefix("super::") {
            rest = further;
            levels += 1;
        }
        if !inner && levels >= depth {
            add(at, rest);
        }
    }
    used
}

/// The paths that a use tree stands for, up to the end of the tree: `a::{b, c::d}` is `a::b` and
/// `a::c::d`. A `self` or a `*` is no name.
fn leaves(tree: &str) -> Vec<Vec<String>> {
    fn walk(rest: &mut &str, prefix: &[String], found: &mut Vec<Vec<String>>) {
        let mut path = prefix.to_vec();
        loop {
            *rest = rest.trim_start();
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let (name, further) = rest.split_at(end);
            *rest = further;
            if !name.is_empty() && name != "self" {
                path.push(name.to_owned());
            }
            if let Some(further) = rest.strip_prefix("::") {
                *rest = further;
            } else if let Some(further) = rest.strip_prefix('{') {
                *rest = further;
                while !rest.is_empty() && !rest.starts_with('}') {
                    walk(rest, &path, found);
                    // Past `as name` and the comma.
                    let next = rest.find([',', '}']).unwrap_or(rest.len());
                    *rest = rest[next..].trim_start_matches(',').trim_start();
                }
                *rest = rest.strip_prefix('}').unwrap_or(rest);
                return;
            } else {
                break;
            }
        }
        if path.len() > prefix.len() || !prefix.is_empty() {
            found.push(path);
        }
    }
    let mut found = Vec::new();
    walk(&mut { tree }, &[], &mut found);
    found
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Blanks comments and what stands between quotes; lines stay where they are.
fn bare_code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if first == '"' {
            quoted(rest)
        } else if let Some(length) = raw_string(rest, &code) {
            length
        } else if first == '\'' {
            character(rest)
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        let blank = rest[..length].chars();
        code.extend(blank.map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    code
}

/// The length of the block comment, with those inside it, that `text` starts with.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string that `text` starts with, its quotes included.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the raw string that `text` starts with, if it does and is not the end of a name.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    let rest = text.strip_prefix('r')?;
    // A `b` or a `c` before it belongs to the string; any longer name does not.
    let name = before.rsplit(|c| !is_name(c)).next().unwrap_or_default();
    if !["", "b", "c"].contains(&name) {
        return None;
    }
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let body = rest[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - body.len();
    Some(
        body.find(&end)
            .map_or(text.len(), |at| start + at + end.len()),
    )
}

/// The length of the character that `text` starts with, or of the quote alone before a lifetime.
fn character(text: &str) -> usize {
    let body = &text[1..];
    if body.starts_with('\\') {
        // The escaped character itself may be a quote.
        return body[2..].find('\'').map_or(text.len(), |at| at + 4);
    }
    let mut characters = body.chars();
    match (characters.next(), characters.next()) {
        (Some(c), Some('\'')) => c.len_utf8() + 2,
        _ => 1,
    }
}

/// Blanks each item under `#[cfg(test)]` in bare code.
fn without_tests(code: &str) -> String {
    let mut result = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        result.push_str(&rest[..at]);
        let length = item(&rest[at..]);
        result.extend(rest[at..at + length].chars().filter(|c| *c == '\n'));
        rest = &rest[at + length..];
    }
    result.push_str(rest);
    result
}

/// The length of the item that `code` starts with: to its closing brace, or to its semicolon.
fn item(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// A rule that never fails is no rule: each is shown sources that break it.
mod rules {
    use super::*;

    #[test]
    fn comments_strings_and_tests_are_no_code() {
        let text = r##"
//! crate::master
use a; // crate::master
/* crate::master /* unsafe */ unsafe */ use b;
const S: &str = "unsafe \" unsafe"; const T: &[u8] = br#"unsafe " unsafe"#;
fn f<'a>(x: &'a str) -> char { '"' } fn g() -> char { '\'' } // "
fn for_r(r: u8) { let _ = ['{', '\\']; }
#[cfg(test)]
mod tests { fn t() { unsafe { "}" } } }
fn last() {}
"##;
        let source = Source::new("src/wire.rs", text);
        assert_eq!(source.code.lines().count(), text.lines().count());
        assert!(!source.code.contains("unsafe"), "{}", source.code);
        assert!(!source.code.contains("crate"), "{}", source.code);
        for kept in [
            "use a;",
            "use b;",
            "fn f<",
            "a str",
            "fn g()",
            "fn last() {}",
        ] {
            assert!(source.code.contains(kept), "{kept} in {}", source.code);
        }
        assert_eq!(
            source.lines_with(&["fn last"], ""),
            [(10, "`fn last`: ".into())]
        );
    }

    #[test]
    fn an_import_is_seen_however_it_is_written() {
        let face = BTreeMap::from([("Server".to_owned(), "server".to_owned())]);
        let broken = |path: &str, code: &str| upward_imports(&Source::new(path, code), &face).len();
        assert_eq!(broken("src/wire.rs", "use crate::error::Error;"), 0);
        assert_eq!(broken("src/wire.rs", "use crate::service::Turn;"), 1);
        assert_eq!(broken("src/wire.rs", "use super::service;"), 1);
        assert_eq!(broken("src/wire.rs", "use crate::Server;"), 1);
        assert_eq!(broken("src/wire.rs", "fn f() -> crate::cli::X {}"), 1);
        assert_eq!(
            broken(
                "src/channel/inbox.rs",
                "use crate::{wire::{self, Lend}, error};"
            ),
            0
        );
        assert_eq!(
            broken(
                "src/channel/inbox.rs",
                "use crate::{wire::Lend, master::pool};"
            ),
            1
        );
        assert_eq!(
            broken(
                "src/channel/inbox.rs",
                "use crate::{\n wire as w,\n fdtool,\n load};"
            ),
            2
        );
        assert_eq!(broken("src/master/mod.rs", "use crate::worker;"), 1);
        assert_eq!(broken("src/master/mod.rs", "use super::worker;"), 1);
        assert_eq!(
            broken("src/master/mod.rs", "mod pool; use self::pool::Pool;"),
            0
        );
        assert_eq!(broken("src/master/pool.rs", "use super::connections;"), 0);
        assert_eq!(broken("src/master/pool.rs", "use super::super::worker;"), 1);
        assert_eq!(broken("src/worker/mod.rs", "use crate::master::Master;"), 1);
        assert_eq!(
            broken("src/services/echo.rs", "use crate::service::Turn;"),
            0
        );
        assert_eq!(
            broken("src/services/echo.rs", "use crate::services::http;"),
            0
        );
        assert_eq!(broken("src/services/echo.rs", "use crate::fdpass;"), 1);
        assert_eq!(broken("src/services/http/mod.rs", "use crate::master;"), 1);
        assert_eq!(
            broken("src/main.rs", "use batond::Server; batond::cli::run()"),
            0
        );
        assert_eq!(broken("src/server.rs", "use crate::cli::Options;"), 1);
        assert_eq!(broken("src/unheard_of.rs", "use crate::error;"), 1);
        assert_eq!(broken("src/server.rs", "use crate::unheard_of;"), 1);
    }

    #[test]
    fn a_word_is_found_where_it_is_forbidden() {
        let source = Source::new("src/fdpass.rs", "fn f() { unsafe {} }\nfn unsafe_code() {}");
        assert_eq!(source.lines_with_word(&["unsafe"], "").len(), 1);
        assert!(source.is_in("src/fdpass"));
        assert!(Source::new("src/fdpass/send.rs", "").is_in("src/fdpass"));
        assert!(!Source::new("src/fdpassed.rs", "").is_in("src/fdpass"));
        let source = Source::new("src/wire.rs", "use std::time::Instant;\nInstant::now();");
        assert_eq!(source.lines_with(IMPURE, "")[0].0, 2);
    }

    #[test]
    fn the_names_on_the_face_of_the_crate_belong_to_their_modules() {
        let lib = Source::new(
            "src/lib.rs",
            "mod error;\npub use error::{Error, Result};\npub use crate::service::Turn;",
        );
        let names = reexports(&[lib]);
        assert_eq!(names["Error"], "error");
        assert_eq!(names["Result"], "error");
        assert_eq!(names["Turn"], "service");
        assert_eq!(names.len(), 3);
    }
}
