//! A filter that makes no sense does not silence the log.

use std::fs;

use tempfile::TempDir;

use crate::harness::{Setup, run};

#[test]
fn a_configuration_with_a_filter_without_sense_is_refused() {
    let place = TempDir::new().expect("a temporary directory");
    for (filter, reason) in [
        (
            "inof",
            "\"inof\" is neither a level (off, error, warn, info, debug or trace) nor",
        ),
        ("hyper=debug", "\"hyper\" is no module of batond"),
        (",", "expected a level"),
        (
            "batond=debgu",
            "\"debgu\" is not a level: expected off, error, warn, info, debug or trace; \"debug\" is",
        ),
    ] {
        let text = format!(
            "[log]\nfilter = '{filter}'\n[[pool]]\nservice = 'echo'\nlisten = '127.0.0.1:0'\n"
        );
        fs::write(place.path().join("c"), text).expect("a file");
        for command in ["check", "serve"] {
            let finished = run(place.path(), &[command, "-c", "c"]);
            assert_eq!(finished.status.code(), Some(1), "{finished:?}");
            let reason = format!("batond: cannot read c:2: log: filter: {reason}");
            assert!(finished.stderr.starts_with(&reason), "{finished:?}");
        }
    }
}

#[test]
fn a_variable_without_sense_is_said_and_ignored() {
    for (value, reason) in [
        ("inof", "\"inof\" is neither a level"),
        ("hyper=debug", "\"hyper\" is no module of batond"),
        ("batond=loud", "\"loud\" is not a level"),
    ] {
        // That it is seen to listen says that the level is info.
        let server = Setup::new(&["demo", "-w", "2"])
            .environment("RUST_LOG", value)
            .expect("RUST_LOG is ignored")
            .start();
        let said = server.log_lines("RUST_LOG is ignored, and the default is \"info\": ");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains(reason), "{said:?}");
        server.workers(2);
    }
    // Other programs' modules may be there too, and no text is no filter.
    for value in ["info,hyper=debug", ""] {
        let server = Setup::new(&["demo", "-w", "2"])
            .environment("RUST_LOG", value)
            .start();
        server.workers(2);
    }
}
