//! Static files from memory: each change of a file shows at the next request. To see what was sent,
//! the memory is given other bytes than the file has.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::super::cache::{CachedFile, Identity, Metadata};
use super::files::{NotRoot, Site, ask, later, site};
use super::*;

const PATH: &str = "docs/x.css";
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// A worker that has long kept `PATH`, and the site.
fn keeper() -> (Table<Files>, Site) {
    let site = site();
    let mut files = site.files.clone();
    files.clock = later;
    let mut table = Table::new(files);
    plant(&mut table, &site.root, PATH);
    (table, site)
}

/// Has the worker keep something else for the file than is in it.
fn plant(table: &mut Table<Files>, root: &Path, path: &str) {
    let stat = rustix::fs::stat(root.join(path)).unwrap();
    let kept = CachedFile {
        identity: Identity::of(&stat),
        read_at: later(),
        metadata: Metadata {
            modified: httpdate::parse_http_date(DATE).unwrap(),
            date: DATE.to_owned(),
            fields: b"X-Kept: yes\r\n".to_vec(),
        },
        body: b"planted".as_slice().into(),
    };
    let cache = &mut table.http.handler.cache;
    cache.keep(path.as_bytes(), Arc::new(kept));
}

fn is_kept(table: &mut Table<Files>, path: &str) -> bool {
    let mut looked = false;
    let now = (table.http.handler.clock)();
    let cache = &mut table.http.handler.cache;
    let _ = cache.get(path.as_bytes(), now, || {
        looked = true;
        None
    });
    looked
}

/// Waits until a change of the file gives it another time.
fn wait_for_a_tick(site: &Site) {
    let scratch = site.root.parent().unwrap().join("scratch");
    let changed = |path: &Path| {
        let stat = rustix::fs::stat(path).unwrap();
        (stat.st_ctime, stat.st_ctime_nsec)
    };
    let file = changed(&site.root.join(PATH));
    let start = Instant::now();
    while {
        fs::write(&scratch, "tick").unwrap();
        changed(&scratch) <= file
    } {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "time stands still"
        );
    }
}

#[test]
fn a_kept_file_is_not_read_again() {
    let (mut table, _site) = keeper();
    for _ in 0..2 {
        let answer = ask(&mut table, &get("/docs/x.css?y=z"));
        assert_eq!((answer.status, answer.text()), (200, "planted"));
        assert_eq!(answer.field("X-Kept"), Some("yes"));
    }
    let answer = ask(&mut table, "HEAD /docs/x%2ecss HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(
        (answer.status, answer.field("Content-Length")),
        (200, Some("7"))
    );
    let since = format!("GET /docs/x.css HTTP/1.1\r\nHost: x\r\nIf-Modified-Since: {DATE}\r\n\r\n");
    let answer = ask(&mut table, &since);
    assert_eq!(
        (answer.status, answer.field("Last-Modified")),
        (304, Some(DATE))
    );
}

#[test]
fn an_index_is_kept_like_any_file() {
    let (mut table, site) = keeper();
    plant(&mut table, &site.root, "docs/index.html");
    for target in ["/docs/", "/docs/index.html"] {
        assert_eq!(ask(&mut table, &get(target)).text(), "planted");
    }
    assert_eq!(ask(&mut table, &get("/docs")).status, 301);
}

#[test]
fn what_is_asked_for_again_is_kept() {
    let (mut table, site) = keeper();
    for (length, kept) in [(0, true), (16_384, true), (16_385, false)] {
        let name = format!("{length}-bytes");
        fs::write(site.root.join(&name), vec![b'x'; length]).unwrap();
        for kept in [false, kept] {
            assert_eq!(
                ask(&mut table, &get(&format!("/{name}"))).body.len(),
                length
            );
            assert_eq!(is_kept(&mut table, &name), kept, "{name}");
        }
    }
}

#[test]
fn a_file_that_has_just_changed_is_not_kept() {
    let (mut table, _site) = keeper();
    table.http.handler.clock = SystemTime::now;
    for _ in 0..3 {
        assert_eq!(ask(&mut table, &get("/index.html")).status, 200);
    }
    assert!(!is_kept(&mut table, "index.html"));
}

#[test]
fn every_change_shows_at_the_next_request() {
    type Change = fn(&Path, &Path);
    let changes: [(&str, Change, u16, &str); 12] = [
        (
            "replaced",
            |file, other| fs::rename(other, file).unwrap(),
            200,
            "b {}",
        ),
        (
            "rewritten",
            |file, _| fs::write(file, "q {}").unwrap(),
            200,
            "q {}",
        ),
        (
            "rewritten, and its time set back",
            |file, _| {
                let modified = fs::metadata(file).unwrap().modified().unwrap();
                fs::write(file, "q {}").unwrap();
                let file = fs::File::options().write(true).open(file).unwrap();
                file.set_modified(modified).unwrap();
            },
            200,
            "q {}",
        ),
        ("truncated", |file, _| fs::write(file, "").unwrap(), 200, ""),
        ("removed", |file, _| fs::remove_file(file).unwrap(), 404, ""),
        (
            "renamed",
            |file, _| fs::rename(file, file.with_extension("old")).unwrap(),
            404,
            "",
        ),
        (
            "made a directory",
            |file, _| {
                fs::remove_file(file).unwrap();
                fs::create_dir(file).unwrap();
            },
            301,
            "",
        ),
        (
            "made a link to another",
            |file, _| {
                fs::remove_file(file).unwrap();
                symlink("../a b.txt", file).unwrap();
            },
            200,
            "spaced",
        ),
        (
            "made a link that leads out",
            |file, _| {
                fs::remove_file(file).unwrap();
                symlink("../../secret", file).unwrap();
            },
            404,
            "",
        ),
        (
            "moved out, and linked to",
            |file, other| {
                fs::rename(file, other).unwrap();
                symlink("../../other", file).unwrap();
            },
            404,
            "",
        ),
        (
            "given another mode",
            |file, _| fs::set_permissions(file, fs::Permissions::from_mode(0o400)).unwrap(),
            200,
            "p {}",
        ),
        (
            "the directory removed",
            |file, _| fs::remove_dir_all(file.parent().unwrap()).unwrap(),
            404,
            "",
        ),
    ];
    for (name, change, status, text) in changes {
        let (mut table, site) = keeper();
        let other = site.root.parent().unwrap().join("other");
        fs::write(&other, "b {}").unwrap();
        wait_for_a_tick(&site);
        assert_eq!(
            ask(&mut table, &get("/docs/x.css")).text(),
            "planted",
            "{name}"
        );
        change(&site.root.join(PATH), &other);
        for _ in 0..2 {
            let answer = ask(&mut table, &get("/docs/x.css"));
            assert_eq!(answer.status, status, "{name}");
            assert_eq!(answer.field("X-Kept"), None, "{name}");
            if status == 200 {
                assert_eq!(answer.text(), text, "{name}");
            }
        }
    }
}

#[test]
fn what_may_no_longer_be_read() {
    let _user = NotRoot::become_it();
    for path in [PATH, "docs"] {
        let (mut table, site) = keeper();
        let of_nobody = fs::Permissions::from_mode(0o0);
        let path = site.root.join(path);
        wait_for_a_tick(&site);
        fs::set_permissions(&path, of_nobody).unwrap();
        assert_eq!(ask(&mut table, &get("/docs/x.css")).status, 403);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn a_directory_that_was_moved_out_is_noticed_when_the_file_is_opened_again() {
    let (mut table, site) = keeper();
    let docs = site.root.join("docs");
    fs::rename(&docs, site.root.parent().unwrap().join("out")).unwrap();
    symlink("../out", &docs).unwrap();
    table.http.handler.clock = || later() + Duration::from_secs(1);
    assert_eq!(ask(&mut table, &get("/docs/x.css")).status, 404);
}
