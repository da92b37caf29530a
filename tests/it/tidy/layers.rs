//! The directions of imports between the modules at the top of the crate.

use std::fmt::Write as _;

use super::source::{Broken, Source, Tree};
use super::{check, settle};

/// From the bottom to the top: a module may use those of the lines before its own, and itself.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["sys"],
    &["fdpass", "wire", "logging", "lookup"],
    &["service", "config"],
    &["channel", "systemd"],
    &["master", "worker", "services"],
    &["server", "fdtool"],
    &["cli"],
    &["lib"],
    &["main"],
    // It runs before the build, and sees nothing of the crate.
    &["build"],
];

#[test]
fn imports_point_downwards_only() {
    let tree = Tree::read();
    check("layers", tree, |source| upward_imports(source, tree));
}

#[test]
fn each_layer_of_the_list_exists() {
    let sources = &Tree::read().sources;
    let mut report = String::new();
    for name in LAYERS.iter().copied().flatten() {
        if !sources.iter().any(|source| layer(source) == *name) {
            let _ = writeln!(report, "there is no module `{name}`: amend the list LAYERS");
        }
    }
    settle("the layers", &report);
}

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&layer))
}

/// The name that [`LAYERS`] has for a file.
fn layer(source: &Source) -> &str {
    match source.path.as_str() {
        "src/lib.rs" => "lib",
        "src/main.rs" => "main",
        _ => &source.module[0],
    }
}

/// The imports of a file, and other uses of paths, that its place in [`LAYERS`] forbids.
fn upward_imports(source: &Source, tree: &Tree) -> Vec<Broken> {
    let own = layer(source);
    let Some(own_rank) = rank(own) else {
        return vec![(1, format!("module `{own}` has no place in the layers"))];
    };
    let mut broken = Vec::new();
    for reference in &source.references {
        let origin = tree.origin(reference).unwrap_or_default();
        let Some(used) = origin.first() else {
            continue;
        };
        // The crate's face offers what lies below it, and main sees the crate through the face.
        let allowed = used == own
            || rank(used).is_some_and(|used_rank| used_rank < own_rank)
                && (own != "services" || ["service", "error"].contains(&used.as_str()));
        if !allowed {
            let rule = match rank(used) {
                None => format!("`{used}` has no place in the layers"),
                Some(_) => format!("`{own}` must not use `{used}`"),
            };
            broken.push((reference.line, rule));
        }
    }
    broken
}

#[test]
fn an_import_is_seen_however_it_is_written() {
    let broken = |path: &str, text: &str| {
        let tree = Tree::of(&[
            (path, text),
            ("src/lib.rs", "pub use crate::server::Server;"),
        ]);
        upward_imports(&tree.sources[0], &tree).len()
    };
    for (path, text, wanted) in [
        ("src/wire.rs", "use crate::error::Error;", 0),
        ("src/wire.rs", "use crate::service::Turn;", 1),
        ("src/wire.rs", "use super::service;", 1),
        ("src/wire.rs", "use crate::Server;", 1),
        ("src/wire.rs", "fn f() -> crate::cli::X {}", 1),
        ("src/wire.rs", "fn f() { assert!(crate::cli::x()); }", 1),
        (
            "src/wire.rs",
            "#[cfg(test)] mod tests { use crate::cli; }",
            0,
        ),
        (
            "src/channel/inbox.rs",
            "use crate::{wire::{self, Lend}, error};",
            0,
        ),
        (
            "src/channel/inbox.rs",
            "use crate::{wire::Lend, master::pool};",
            1,
        ),
        (
            "src/channel/inbox.rs",
            "use crate::{\n wire as w,\n fdtool,\n server};",
            2,
        ),
        ("src/master/mod.rs", "use crate::worker;", 1),
        ("src/master/mod.rs", "use super::worker;", 1),
        ("src/master/mod.rs", "mod pool; use self::pool::Pool;", 0),
        ("src/master/pool.rs", "use super::connections;", 0),
        ("src/master/pool.rs", "use super::super::worker;", 1),
        ("src/worker/mod.rs", "use crate::master::Master;", 1),
        ("src/services/echo.rs", "use crate::service::Turn;", 0),
        ("src/services/echo.rs", "use crate::services::http;", 0),
        ("src/services/echo.rs", "use crate::fdpass;", 1),
        ("src/services/http/mod.rs", "use crate::master;", 1),
        (
            "src/main.rs",
            "use batond::Server; fn main() { batond::cli::run() }",
            0,
        ),
        ("src/server.rs", "use crate::cli::Options;", 1),
        ("src/unheard_of.rs", "use crate::error;", 1),
        ("src/server.rs", "use crate::unheard_of;", 1),
    ] {
        assert_eq!(broken(path, text), wanted, "{path}: {text}");
    }
}
