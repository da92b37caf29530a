//! The house rules, held by tests over the source text. Each says where it is broken, and what the
//! rule is; docs/architecture.md says why. A rule that never fails is no rule, so each is shown
//! sources that break it.
//!
//! By what they look at: `layers` and `floors` at the directions of imports, `owners` at what one
//! file alone may do, `pure` at what has no effects, `text` at lines and lengths, `documents` at
//! what docs/architecture.md says of the tree, `programs` at what tests start. `source` parses,
//! `references` resolves paths.

mod documents;
mod floors;
mod layers;
mod owners;
mod programs;
mod pure;
mod references;
mod source;
mod text;
mod without_tests;

use std::fmt::Write as _;

use source::{Broken, Source, Tree};

/// Rules that the tree does not keep yet. The list may only shrink: a rule that is kept after all
/// fails until it is taken off. `cargo test --test it tidy -- --nocapture` says what is left to do.
const UNFINISHED: &[&str] = &[];

/// Applies a rule to every file, and fails with all the places that break it.
#[track_caller]
fn check(name: &str, tree: &Tree, rule: impl Fn(&Source) -> Vec<Broken>) {
    let mut report = String::new();
    for source in &tree.sources {
        for (line, text) in rule(source) {
            let _ = writeln!(report, "{}:{line}: {text}", source.path);
        }
    }
    settle(name, &report);
}

/// Fails if there is something in the report, unless the rule is known to be unfinished.
#[track_caller]
fn settle(name: &str, report: &str) {
    if UNFINISHED.contains(&name) {
        println!("unfinished: {name}\n{report}");
        assert!(
            !report.is_empty(),
            "the tree keeps this rule now: take {name:?} off the list UNFINISHED"
        );
    } else {
        assert!(report.is_empty(), "house rule broken: {name}\n{report}");
    }
}
