//! Before the build: the commit that the sources are of, for `batond --version`.
//!
//! Without git, or outside a repository of this program, nothing is said of a commit.

use std::path::Path;
use std::process::Command;

fn main() {
    let commit = commit().unwrap_or_default();
    println!("cargo::rustc-env=BATOND_COMMIT={commit}");
    for path in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    // It changes with each commit and each checkout.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    if let Some(log) = log.filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
}

/// ` (1a2b3c4d5e6f)`, with a plus sign if the sources are not those of the commit.
fn commit() -> Option<String> {
    // The sources may lie in a repository of somebody else.
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let changed = if changed.is_empty() { "" } else { "+" };
    Some(format!(" ({commit}{changed})"))
}

fn git(arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    let output = command.arg("--no-optional-locks").args(arguments).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
