//! Files as they are served to clients: with their type, on conditions, by redirects; none that is
//! special, and none that lies outside the directory that is served.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::mpsc;
use std::thread;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, gettid, mkfifo};

use crate::harness::{Client, DEADLINE, Server, Setup, eventually};

/// A server of files, and beside its directory a file that it must never send.
struct Files {
    server: Server,
}

const SECRET: &str = "not for the public";

impl Files {
    fn start() -> Self {
        Self::start_by(Setup::start)
    }

    fn start_by(start: impl FnOnce(Setup) -> Server) -> Self {
        let setup =
            Setup::new(&["http", "public", "-w", "2"]).expect("cannot send the rest of a file");
        let public = setup.directory().join("public");
        fs::create_dir_all(public.join("sub/deep")).expect("directories");
        let write = |path: &str, text: &[u8]| fs::write(public.join(path), text).expect("a file");
        write("index.html", b"<h1>home</h1>");
        write("sub/index.html", b"<h1>sub</h1>");
        write("notes.txt", b"some notes\n");
        write("empty", b"");
        write("a b&c.txt", b"odd name");
        write("large.bin", &large());
        fs::write(setup.directory().join("secret"), SECRET).expect("a file");
        symlink("../secret", public.join("link")).expect("a link");
        symlink("..", public.join("up")).expect("a link");
        symlink("notes.txt", public.join("inner")).expect("a link");
        symlink("sub", public.join("inner-directory")).expect("a link");
        Self {
            server: start(setup),
        }
    }
}

fn large() -> Vec<u8> {
    (0..3_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[test]
fn files_are_served_with_their_type_and_length() {
    let files = Files::start();
    let mut client = files.server.connect();
    for (path, kind, body) in [
        ("/", "text/html", &b"<h1>home</h1>"[..]),
        ("/index.html", "text/html", b"<h1>home</h1>"),
        ("/sub/", "text/html", b"<h1>sub</h1>"),
        ("/notes.txt", "text/plain", b"some notes\n"),
        ("/notes.txt?query=1", "text/plain", b"some notes\n"),
        ("/a%20b%26c.txt", "text/plain", b"odd name"),
        ("/sub/../notes.txt", "text/plain", b"some notes\n"),
        ("/nothing/../notes.txt", "text/plain", b"some notes\n"),
        ("/inner", "", b"some notes\n"),
        ("/empty", "", b""),
        ("/large.bin", "application/octet-stream", &large()),
    ] {
        let reply = client.get(path);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert!(
            reply
                .header("content-type")
                .unwrap_or_default()
                .starts_with(kind),
            "{reply:?}"
        );
        assert!(reply.body == body, "{path}: {reply:?}");
        let head = client.head(path);
        assert_eq!(head.status, 200);
        assert_eq!(
            head.header("content-length"),
            Some(&*body.len().to_string()),
            "{path}"
        );
    }
}

#[test]
fn a_file_that_has_not_changed_is_not_sent_again() {
    let files = Files::start();
    let mut client = files.server.connect();
    let modified = client
        .get("/notes.txt")
        .header("last-modified")
        .map(str::to_owned);
    let modified = modified.expect("a date");
    let reply = client.get_with("/notes.txt", &format!("If-Modified-Since: {modified}"));
    assert_eq!((reply.status, reply.body.len()), (304, 0), "{reply:?}");
    let reply = client.get_with(
        "/notes.txt",
        "If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT",
    );
    assert_eq!(reply.status, 200);
    let reply = client.get_with("/notes.txt", "If-Modified-Since: yesterday");
    assert_eq!(
        reply.status, 200,
        "a date that is none is ignored (RFC 9110 §13.1.3)"
    );
}

#[test]
fn what_is_no_file_gets_its_status() {
    let files = Files::start();
    let mut client = files.server.connect();
    for path in [
        "/missing",
        "/missing/",
        "/notes.txt/",
        "/notes.txt/more",
        "/sub/deep/",
    ] {
        let reply = client.get(path);
        assert!([403, 404].contains(&reply.status), "{path}: {reply:?}");
    }
    let reply = client.post("/notes.txt", b"new text");
    assert_eq!(reply.status, 405, "{reply:?}");
    let allow = reply.header("allow").expect("RFC 9110 §15.5.6");
    assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
    let reply = client.get("/sub");
    assert!([200, 301, 308].contains(&reply.status), "{reply:?}");
}

#[test]
fn no_path_leaves_the_directory() {
    assert_no_path_leaves(&Files::start());
}

/// What a seccomp profile or systemd's RestrictSUIDSGID= does: the call fails as if the kernel did
/// not have it, or as if it were forbidden.
#[test]
fn no_path_leaves_the_directory_where_a_sandbox_refuses_openat2() {
    for errno in [Errno::ENOSYS, Errno::EPERM] {
        let files = Files::start_by(|setup| setup.start_without(libc::SYS_openat2, errno));
        assert!(files.server.log_contains("openat2(2) is refused here"));
        assert_no_path_leaves(&files);
        let mut client = files.server.connect();
        for (path, text) in [
            ("/", "<h1>home</h1>"),
            ("/sub/", "<h1>sub</h1>"),
            ("/sub/../notes.txt", "some notes\n"),
            ("/inner", "some notes\n"),
            ("/inner-directory/deep/../index.html", "<h1>sub</h1>"),
        ] {
            // More often than a file has to be asked for to be kept.
            for _ in 0..3 {
                let reply = client.get(path);
                assert_eq!((reply.status, &*reply.text()), (200, text), "{path}");
            }
        }
        assert_eq!(client.get("/sub").header("location"), Some("/sub/"));
        assert!(client.get("/large.bin").body == large());
    }
}

#[track_caller]
fn assert_no_path_leaves(files: &Files) {
    let absolute = files.server.directory().join("secret");
    let absolute = absolute.to_str().expect("a path of ASCII");
    let mut paths: Vec<String> = [
        "/../secret",
        "/../../secret",
        "/sub/../../secret",
        "/sub/deep/../../../secret",
        "/%2e%2e/secret",
        "/%2E%2E/secret",
        "/.%2e/secret",
        "/..%2fsecret",
        "/..%2Fsecret",
        "/%2e%2e%2fsecret",
        "/sub/..%2f..%2fsecret",
        "/..%5csecret",
        "/%252e%252e/secret",
        "/./../secret",
        "//../secret",
        "/link",
        "/up/secret",
        "/up/up/secret",
        "/notes.txt%00/../../secret",
        "/secret%00",
        "/..",
        "/../",
        "/%2e%2e",
        "/../public/../secret",
        "/~/secret",
    ]
    .map(str::to_owned)
    .to_vec();
    paths.push(format!("/{absolute}"));
    paths.push(format!("/{}", absolute.replace('/', "%2f")));
    paths.push(format!("http://test{absolute}"));
    paths.push("/proc/self/cwd/secret".to_owned());
    for path in paths {
        let mut client: Client = files.server.connect();
        let reply = client.get(&path);
        assert!(!reply.text().contains(SECRET), "{path}: {reply:?}");
        // `/..` may be read as `/`, as RFC 3986 §5.2.4 has it for a reference; the secret is never
        // found.
        assert!(
            [200, 301, 308, 400, 403, 404].contains(&reply.status),
            "{path}: {reply:?}"
        );
    }
}

#[test]
fn a_request_in_absolute_form_is_for_its_path() {
    let files = Files::start();
    let mut client = files.server.connect();
    assert_eq!(client.get("http://test/notes.txt").text(), "some notes\n");
}

#[test]
fn a_method_that_nobody_knows_does_not_end_the_connection() {
    let files = Files::start();
    let mut client = files.server.connect();
    for (method, status, allow) in [
        ("BREW", 501, None),
        ("QUERY", 501, None),
        ("PROPFIND", 501, None),
        ("DELETE", 405, Some("GET, HEAD, OPTIONS")),
        ("OPTIONS", 204, Some("GET, HEAD, OPTIONS")),
    ] {
        let request =
            format!("{method} /notes.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
        let reply = client.roundtrip(request);
        assert_eq!(
            (reply.status, reply.header("allow")),
            (status, allow),
            "{method}"
        );
    }
    assert_eq!(client.get("/notes.txt").text(), "some notes\n");
}

#[test]
fn conditions_are_evaluated_for_what_is_there() {
    let files = Files::start();
    let mut client = files.server.connect();
    let reply = client.get("/notes.txt");
    let modified = reply.header("last-modified").expect("a date").to_owned();
    let long_ago = "Sat, 01 Jan 2000 00:00:00 GMT";
    for (path, fields, status) in [
        ("/notes.txt", "If-Match: *".to_owned(), 200),
        ("/notes.txt", "If-Match: \"x\"".to_owned(), 412),
        ("/notes.txt", "If-None-Match: *".to_owned(), 304),
        (
            "/notes.txt",
            format!("If-Unmodified-Since: {modified}"),
            200,
        ),
        (
            "/notes.txt",
            format!("If-Unmodified-Since: {long_ago}"),
            412,
        ),
        (
            "/notes.txt",
            format!("If-Modified-Since: {modified}\r\nIf-Modified-Since: {modified}"),
            200,
        ),
        ("/missing", "If-None-Match: *".to_owned(), 404),
        ("/missing", "If-Match: \"x\"".to_owned(), 404),
        ("/sub", "If-Match: \"x\"".to_owned(), 301),
    ] {
        let reply = client.get_with(path, &fields);
        assert_eq!(reply.status, status, "{path}: {fields}");
    }
}

#[test]
fn redirects_lead_to_what_is_there_or_nowhere() {
    let files = Files::start();
    let public = files.server.directory().join("public");
    fs::create_dir_all(public.join("odd \"name\"/index.html/index.html")).expect("directories");
    let mut client = files.server.connect();
    for (path, location) in [
        ("/sub?a=[b]", "/sub/?a=%5Bb%5D"),
        ("/sub/.", "/sub/"),
        ("/sub/..", "/"),
        ("/sub/deep/..//../sub", "/sub/"),
        ("/sub/..//sub", "/sub/"),
        ("/odd%20%22name%22", "/odd%20%22name%22/"),
    ] {
        let reply = client.get(path);
        let found = reply.header("location");
        assert_eq!((reply.status, found), (301, Some(location)), "{path}");
    }
    assert_eq!(client.get("/odd%20%22name%22/").status, 404);
    fs::remove_file(public.join("index.html")).expect("it is there");
    fs::create_dir(public.join("index.html")).expect("a directory");
    assert_eq!(client.get("/").status, 404);
}

#[test]
fn the_writer_of_a_fifo_goes_on_waiting() {
    let files = Files::start();
    let fifo = files.server.directory().join("public/fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
    let path = fifo.clone();
    let (name, named) = mpsc::channel();
    let writer = thread::spawn(move || {
        name.send(gettid()).expect("somebody hears it");
        fs::write(path, "for the reader")
    });
    let writes = named.recv_timeout(DEADLINE).expect("the thread runs");
    eventually("it waits for a reader", || {
        let status = fs::read_to_string(format!("/proc/self/task/{writes}/status"));
        status.is_ok_and(|status| status.contains("State:\tS"))
    });
    let mut client = files.server.connect();
    for _ in 0..20 {
        assert_eq!(client.get("/fifo").status, 404);
        assert!(!writer.is_finished(), "it was let go");
    }
    assert_eq!(
        fs::read_to_string(fifo).expect("it is read"),
        "for the reader"
    );
    writer.join().expect("no panic").expect("all was written");
}

#[test]
fn a_file_that_becomes_shorter_while_it_is_sent_is_logged_and_cut_off() {
    let files = Files::start();
    let path = files.server.directory().join("public/shrinking.bin");
    let file = fs::File::create(path).expect("a file");
    let length = 64 << 20;
    file.set_len(length).expect("a length");
    let mut client = files.server.connect();
    client.send_get("/shrinking.bin");
    // The rest does not fit into the sockets.
    let start = client.read_exact(1000);
    assert!(start.starts_with(b"HTTP/1.1 200 OK\r\n"));
    file.set_len(0).expect("a length");
    let rest = client.read_until_close();
    assert!((rest.len() as u64) < length, "{}", rest.len());
    let line = files.server.wait_for_log("cannot send the rest of a file");
    assert!(line.contains("it is shorter than it was"), "{line}");
    assert_eq!(files.server.get("/notes.txt").status, 200);
}

#[test]
fn a_file_that_the_workers_may_not_read_is_told_once() {
    let mut arguments = vec!["http", "public", "-w", "1"];
    if geteuid().is_root() {
        arguments.extend(["--user", "nobody"]);
    }
    let setup = Setup::new(&arguments).expect("cannot open ");
    // Whoever has started the tests may have had some open.
    let setup = setup.expect("descriptors that the server was started with");
    let public = setup.directory().join("public");
    let closed = public.join("closed");
    fs::create_dir_all(&closed).expect("directories");
    fs::write(closed.join("file"), SECRET).expect("a file");
    fs::write(public.join("private"), SECRET).expect("a file");
    for (path, mode) in [(&public, 0o755), (&closed, 0), (&public.join("private"), 0)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
    }
    let server = setup.start();
    for path in ["/closed/file", "/private", "/closed/", "/private"] {
        assert_eq!(server.get(path).status, 403, "{path}");
    }
    assert_eq!(server.get("/missing").status, 404);
    let line = server.wait_for_log("cannot open ");
    let expected = "cannot open closed/file: Permission denied; answering 403";
    assert!(line.ends_with(expected), "{line}");
    assert_eq!(server.log_lines("cannot open ").len(), 1);
    // So that whoever is not root can remove it.
    fs::set_permissions(&closed, Permissions::from_mode(0o755)).expect("it is ours");
}
