//! Where the workers keep what is too much for memory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use crate::harness::process::open_descriptors;
use crate::harness::{Server, Setup, run, skip};

const IN_MEMORY: &str = "keeping in memory what slow clients send, or do not take: ";

/// Serves from a file whose pool has this line, with two workers.
fn setup(line: &str) -> Setup {
    let text = format!("[[pool]]\nservice = 'demo'\nlisten = '127.0.0.1:0'\nworkers = 2\n{line}\n");
    Setup::new(&[]).file(&text, 1)
}

/// Whether each of two workers, and the master, has a directory open.
fn have_open(server: &Server, directory: &str) -> [bool; 3] {
    let workers = server.workers(2);
    let processes = [workers[0].pid, workers[1].pid, server.master()];
    processes.map(|pid| open_descriptors(pid).values().any(|at| at == directory))
}

#[test]
fn workers_have_the_directory_open_that_is_beside_the_file() {
    let setup = setup("body-dir = 'spool'").environment("TMPDIR", "/nonexistent");
    let directory = setup.directory().join("spool");
    fs::create_dir(&directory).expect("a directory");
    let server = setup.start();
    let path = directory.canonicalize().expect("it is there");
    let path = path.to_str().expect("it is text");
    assert_eq!(have_open(&server, path), [true, true, false]);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn without_a_directory_one_worker_says_that_all_is_kept_in_memory() {
    let server = setup("")
        .environment("TMPDIR", "/nonexistent")
        .expect(IN_MEMORY)
        .start();
    server.workers(2);
    assert_eq!(server.get("/").status, 200);
    let said = server.log_lines(IN_MEMORY);
    let [line] = &said[..] else {
        panic!("{said:?}");
    };
    let reason = "cannot use body-dir /nonexistent: No such file or directory";
    assert!(line.ends_with(reason), "{line}");
}

#[test]
fn workers_open_the_directory_from_where_and_as_whom_they_run() {
    if skip::lacks_root() {
        return;
    }
    for (mode, expected) in [(0o1777, true), (0o755, false)] {
        let setup = setup("body-dir = 'jail/spool'\nchroot = 'jail'\nuser = 'nobody'");
        let everyone = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
        };
        let spool = setup.directory().join("jail/spool");
        fs::create_dir_all(&spool).expect("a directory");
        everyone(setup.directory(), 0o755);
        everyone(&spool, mode);
        // Whoever runs the tests may have left descriptors open.
        let setup = setup.expect("workers have descriptors");
        let server = match expected {
            true => setup.start(),
            false => setup.expect(IN_MEMORY).start(),
        };
        let spool = spool.canonicalize().expect("it is there");
        let spool = spool.to_str().expect("it is text");
        assert_eq!(have_open(&server, spool), [expected, expected, false]);
        let reason = "cannot use body-dir /spool: Permission denied";
        assert_eq!(server.log_contains(reason), !expected);
    }
}

#[test]
fn a_directory_that_workers_do_not_see_is_refused() {
    if skip::lacks_root() {
        return;
    }
    let place = TempDir::new().expect("a temporary directory");
    for name in ["jail", "spool"] {
        fs::create_dir(place.path().join(name)).expect("a directory");
    }
    let text = "[[pool]]\nservice = 'demo'\nchroot = 'jail'\nbody-dir = 'spool'\n";
    fs::write(place.path().join("batond.toml"), text).expect("a file");
    for word in ["check", "serve"] {
        let finished = run(place.path(), &[word, "-c", "batond.toml"]);
        let reason = "batond: cannot use body-dir spool: workers do not see it from their root \
                      directory jail";
        assert!(finished.stderr.ends_with(reason), "{finished:?}");
        assert_eq!(finished.status.code(), Some(1));
    }
}
