//! The programs of docs/examples, built when a test asks for one.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use super::BATOND;

/// The program of docs/examples that has this name.
#[track_caller]
pub fn example(name: &str) -> PathBuf {
    let programs = Path::new(BATOND).parent().expect("it is in a directory");
    build_examples(programs);
    let path = programs.join("examples").join(name);
    assert!(path.is_file(), "{} is not there", path.display());
    path
}

/// Builds the examples as the program under test was built, once: cargo builds them for `cargo
/// test`, but not for `cargo test --test it`. Without cargo they must be there.
#[track_caller]
fn build_examples(programs: &Path) {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let Some(cargo) = std::env::var_os("CARGO") else {
            return Ok(());
        };
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "--offline", "--examples"]);
        command.args(like_those_in(programs));
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command.stdin(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
        .map_err(|why| format!("{command:?} failed: {why}"))
    });
    if let Err(why) = built {
        panic!("{why}");
    }
}

/// What has cargo put its programs where these are: TARGET/PROFILE, or TARGET/TRIPLE/PROFILE when
/// they were built with `--target`.
#[track_caller]
fn like_those_in(programs: &Path) -> Vec<OsString> {
    let names: Vec<&OsStr> = programs.iter().rev().take(2).collect();
    let [profile, above] = names[..] else {
        panic!("{} is no place of cargo's", programs.display());
    };
    let profile = match profile.to_str() {
        Some("debug") => OsStr::new("dev"),
        _ => profile,
    };
    let mut arguments = vec!["--profile".into(), profile.into()];
    let mut target = programs.parent().unwrap_or(programs);
    // Cargo puts this file into the target directory itself.
    if !target.join("CACHEDIR.TAG").is_file() {
        arguments.extend(["--target".into(), above.into()]);
        target = target.parent().unwrap_or(target);
    }
    arguments.extend(["--target-dir".into(), target.into()]);
    arguments
}

#[test]
fn examples_are_built_beside_the_program_under_test() {
    let place = TempDir::new().expect("a temporary directory");
    let target = place.path().to_str().expect("it is text");
    std::fs::write(place.path().join("CACHEDIR.TAG"), "").expect("a file");
    for (programs, profile, triple) in [
        ("debug", "dev", None),
        ("release", "release", None),
        ("some-profile", "some-profile", None),
        (
            "x86_64-unknown-linux-gnu/debug",
            "dev",
            Some("x86_64-unknown-linux-gnu"),
        ),
    ] {
        let mut wanted = vec!["--profile", profile];
        wanted.extend(triple.into_iter().flat_map(|triple| ["--target", triple]));
        wanted.extend(["--target-dir", target]);
        assert_eq!(like_those_in(&place.path().join(programs)), wanted);
    }
}
