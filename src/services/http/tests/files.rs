//! Static files: what is served, and above all what is not.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::{Uid, geteuid, setfsuid};

use super::super::beneath::{Beneath, Resolver};
use super::*;

/// A directory to serve, beside a file that must never be.
pub(super) struct Site {
    _outer: tempfile::TempDir,
    pub(super) files: Files,
    pub(super) root: std::path::PathBuf,
}

pub(super) fn site() -> Site {
    let outer = tempfile::tempdir().expect("make a directory");
    let root = outer.path().join("site");
    fs::create_dir_all(root.join("docs/empty")).unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    for (name, content) in [
        ("index.html", "<p>home</p>"),
        ("a b.txt", "spaced"),
        ("docs/index.html", "<p>docs</p>"),
        ("docs/x.css", "p {}"),
        ("empty", ""),
    ] {
        fs::write(root.join(name), content).unwrap();
    }
    Site {
        files: Files::open(&root).expect("open the directory"),
        root,
        _outer: outer,
    }
}

/// While it is there, files are made and opened as by a user who is not root. The kernel has that
/// user for each thread (setfsuid(2)).
pub(super) struct NotRoot(Uid);

impl NotRoot {
    /// Nothing is unreadable to root; whoever else runs the test stays who they are.
    pub(super) fn become_it() -> Self {
        const NOBODY: Uid = Uid::from_raw(65534);
        let own = geteuid();
        Self(setfsuid(if own.is_root() { NOBODY } else { own }))
    }
}

impl Drop for NotRoot {
    fn drop(&mut self) {
        setfsuid(self.0);
    }
}

impl Site {
    /// Asks a new worker, one that resolves paths by itself, and one that may have kept the file
    /// since it was last asked: all say the same.
    #[track_caller]
    fn ask(&self, request: &str) -> Answer {
        let answer = ask(&mut Table::new(self.files.clone()), request);
        let beneath = Beneath::open(&self.root).unwrap().by(Resolver::Walk);
        let walked = ask(&mut Table::new(Files::beneath(beneath)), request);
        assert_eq!(undated(&walked), undated(&answer), "{request}");
        assert!(walked.body == answer.body, "{request}");
        let mut keeper = self.files.clone();
        keeper.clock = later;
        let mut keeper = Table::new(keeper);
        for _ in 0..3 {
            let again = ask(&mut keeper, request);
            assert_eq!(undated(&again), undated(&answer), "{request}");
            assert!(again.body == answer.body, "{request}");
        }
        answer
    }

    #[track_caller]
    fn get(&self, target: &str) -> Answer {
        self.ask(&get(target))
    }
}

#[track_caller]
pub(super) fn ask(table: &mut Table<Files>, request: &str) -> Answer {
    table.send(request);
    assert_eq!(table.turn(), Turn::Park, "{request}");
    if request.starts_with("HEAD") {
        table.head_answer()
    } else {
        table.answer()
    }
}

/// When the files that a test has just made have settled.
pub(super) fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

fn undated(answer: &Answer) -> Vec<&str> {
    let lines = answer.head.lines();
    lines.filter(|line| !line.starts_with("Date: ")).collect()
}

#[test]
fn what_is_served() {
    let site = site();
    for (target, body, content_type) in [
        ("/", "<p>home</p>", "text/html; charset=utf-8"),
        ("/index.html?x=y", "<p>home</p>", "text/html; charset=utf-8"),
        ("/docs/", "<p>docs</p>", "text/html; charset=utf-8"),
        ("//docs//x.css", "p {}", "text/css; charset=utf-8"),
        ("/docs/../docs/./x.css", "p {}", "text/css; charset=utf-8"),
        ("/nothing/%2e./empty", "", "application/octet-stream"),
        (
            "/empty/../docs//./x/../",
            "<p>docs</p>",
            "text/html; charset=utf-8",
        ),
        ("/a%20b%2etxt", "spaced", "text/plain; charset=utf-8"),
        ("/empty", "", "application/octet-stream"),
        (
            "http://any.example/docs/x.css",
            "p {}",
            "text/css; charset=utf-8",
        ),
    ] {
        let answer = site.get(target);
        assert_eq!((answer.status, answer.text()), (200, body), "{target}");
        assert_eq!(answer.field("Content-Type"), Some(content_type), "{target}");
        let modified = answer.field("Last-Modified").expect("a date");
        assert!(httpdate::parse_http_date(modified).unwrap() <= SystemTime::now());
    }
    let answer = site.ask("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(
        (answer.status, answer.field("Content-Length")),
        (200, Some("11"))
    );
}

#[test]
fn what_is_not_served() {
    let site = site();
    for (target, status) in [
        ("/nothing", 404),
        ("/docs/empty/", 404),
        ("/empty/", 404),
        ("/empty/x", 404),
        ("/docs%2fx.css", 400),
        ("/docs%00", 400),
        ("/%", 400),
        (&format!("/{}", "a".repeat(300)), 404),
    ] {
        assert_eq!(site.get(target).status, status, "{target}");
    }
    let answer = site.ask("POST / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(
        (answer.status, answer.field("Allow")),
        (405, Some("GET, HEAD, OPTIONS"))
    );
}

#[test]
fn an_index_that_is_a_directory_is_no_file() {
    let site = site();
    fs::remove_file(site.root.join("index.html")).unwrap();
    fs::create_dir_all(site.root.join("index.html/index.html")).unwrap();
    fs::create_dir(site.root.join("docs/empty/index.html")).unwrap();
    for target in ["/", "//", "/./", "/docs/empty/", "/index.html/"] {
        assert_eq!(site.get(target).status, 404, "{target}");
    }
    let answer = site.get("/index.html");
    assert_eq!(answer.field("Location"), Some("/index.html/"));
}

#[test]
fn methods() {
    let site = site();
    let ask = |method: &str, target: &str| {
        let answer = site.ask(&format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let allow = answer.field("Allow").map(str::to_owned);
        (answer.status, allow)
    };
    let all = Some("GET, HEAD, OPTIONS".to_owned());
    for target in ["/", "/docs/x.css", "/docs", "*", "http://x"] {
        assert_eq!(ask("OPTIONS", target), (204, all.clone()), "{target}");
    }
    for (target, status) in [("/nothing", 404), ("/docs/empty/", 404), ("/%", 400)] {
        assert_eq!(ask("OPTIONS", target), (status, None), "{target}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE"] {
        assert_eq!(ask(method, "/"), (405, all.clone()), "{method}");
    }
    for method in [
        "BREW",
        "get",
        "QUERY",
        "PROPFIND",
        "A-LONG-EXTENSION-METHOD",
    ] {
        assert_eq!(ask(method, "/"), (501, None), "{method}");
    }
}

#[test]
fn a_directory_without_its_slash_is_elsewhere() {
    let site = site();
    for (target, location) in [
        ("/docs", "/docs/"),
        ("/docs?a=b", "/docs/?a=b"),
        ("//docs", "/docs/"),
        ("/docs/.", "/docs/"),
        ("/.", "/"),
        ("/docs/..", "/"),
        ("/docs/%2e%2e/./docs", "/docs/"),
        ("/nothing/..", "/"),
        ("/nothing/../docs", "/docs/"),
        ("/docs/empty/..?a=[b]&c=%", "/docs/?a=%5Bb%5D&c=%25"),
    ] {
        let answer = site.get(target);
        assert_eq!(
            (answer.status, answer.field("Location")),
            (301, Some(location)),
            "{target}"
        );
    }
}

#[test]
fn no_path_leads_out() {
    let site = site();
    let root = &site.root;
    symlink("../secret", root.join("relative")).unwrap();
    symlink(root.parent().unwrap().join("secret"), root.join("absolute")).unwrap();
    symlink("..", root.join("up")).unwrap();
    symlink("/", root.join("everything")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("docs/x.css", root.join("inside")).unwrap();
    let secret = root.parent().unwrap().join("secret");
    let secret = secret.to_str().unwrap();
    for target in [
        "/../secret",
        "/docs/../../secret",
        "/nothing/../../secret",
        "/docs/..//up/secret",
        &format!("/docs/..{secret}"),
        "/empty/.",
        "/empty/./",
        "/%2e%2e/secret",
        "/docs/%2e%2e/.%2e/secret",
        "/..",
        "/relative",
        "/absolute",
        "/up/secret",
        "/up/site/index.html",
        "/everything/etc/passwd",
        "/magic/etc/passwd",
        "/loop",
        secret,
        &format!("/{secret}"),
        &format!("/everything{secret}"),
    ] {
        let answer = site.get(target);
        assert_eq!(answer.status, 404, "{target}");
        assert!(!answer.text().contains("secret"), "{target}");
    }
    for target in ["/..%2fsecret", "/%2e%2e%2fsecret", "/..%00/secret"] {
        assert_eq!(site.get(target).status, 400, "{target}");
    }
    assert_eq!(
        site.get("/inside").text(),
        "p {}",
        "a link that stays inside"
    );
}

#[test]
fn only_regular_files() {
    let site = site();
    let fifo = site.root.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(site.root.join("socket")).unwrap();
    for target in ["/fifo", "/socket"] {
        assert_eq!(site.get(target).status, 404, "{target}");
    }
}

#[test]
fn a_fifo_is_not_opened() {
    let site = site();
    let fifo = site.root.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let path = fifo.clone();
    // It sleeps until somebody opens the FIFO for reading.
    let writer = thread::spawn(move || fs::write(path, "for the reader"));
    for _ in 0..20 {
        assert_eq!(site.get("/fifo").status, 404);
        assert!(!writer.is_finished(), "the writer was let go");
    }
    assert_eq!(fs::read_to_string(&fifo).unwrap(), "for the reader");
    writer.join().unwrap().unwrap();
}

#[test]
fn what_may_not_be_read() {
    let _user = NotRoot::become_it();
    let site = site();
    let path = site.root.join("empty");
    fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    assert_eq!(site.get("/empty").status, 403);
}

#[test]
fn an_unmodified_file_is_not_sent_again() {
    let site = site();
    let file = fs::File::options()
        .write(true)
        .open(site.root.join("empty"))
        .unwrap();
    let time = UNIX_EPOCH + Duration::from_millis(784_111_777_900);
    file.set_modified(time).unwrap();
    let ask = |fields: &str| {
        let answer = site.ask(&format!("GET /empty HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
        let modified = answer.field("Last-Modified");
        assert_eq!(modified, Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        answer.status
    };
    for (fields, status) in [
        ("", 200),
        ("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 304),
        ("If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT\r\n", 304),
        ("If-Modified-Since: Sun Nov  6 08:49:38 1994\r\n", 304),
        ("If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT\r\n", 200),
        ("If-Modified-Since: yesterday\r\n", 200),
        (
            "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\nIf-None-Match: \"x\"\r\n",
            200,
        ),
        (
            "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            200,
        ),
        ("If-None-Match: *\r\n", 304),
        (
            "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            200,
        ),
        ("If-Match: *\r\n", 200),
    ] {
        assert_eq!(ask(fields), status, "{fields}");
    }
}

#[test]
fn a_condition_that_does_not_hold_is_412_where_there_is_a_file_and_ignored_elsewhere() {
    let site = site();
    let failing = "If-Match: \"x\"\r\nIf-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let holding = "If-None-Match: *\r\n";
    for (request, fields, status) in [
        ("GET /docs/x.css", failing, 412),
        ("HEAD /docs/x.css", failing, 412),
        ("HEAD /docs/x.css", holding, 304),
        ("OPTIONS /docs/x.css", failing, 204),
        ("OPTIONS /docs/x.css", holding, 204),
        ("POST /docs/x.css", failing, 405),
        ("BREW /docs/x.css", failing, 501),
        ("GET /nothing", failing, 404),
        ("GET /nothing", "If-Match: *\r\n", 404),
        ("GET /nothing", holding, 404),
        ("GET /docs", failing, 301),
        ("GET /docs", holding, 301),
    ] {
        let answer = site.ask(&format!("{request} HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
        assert_eq!(answer.status, status, "{request}");
    }
}

#[test]
fn a_file_of_tomorrow_is_of_now() {
    let site = site();
    let file = fs::File::options()
        .write(true)
        .open(site.root.join("empty"))
        .unwrap();
    let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
    file.set_modified(tomorrow).unwrap();
    let answer = ask(&mut Table::new(site.files), &get("/empty"));
    let date = |name| httpdate::parse_http_date(answer.field(name).unwrap()).unwrap();
    assert!(date("Last-Modified") <= date("Date"));
}

#[test]
fn files_of_any_size_go_out_whole() {
    let site = site();
    for length in [1, 16_384, 32_767, 32_768, 32_769, 2_000_000] {
        let content: Vec<u8> = (0..length)
            .map(|at: usize| (at * 7 + at / 253) as u8)
            .collect();
        fs::write(site.root.join("file"), &content).unwrap();
        let mut table = Table::new(site.files.clone());
        table.send(get("/file"));
        let mut client = table.client.try_clone().unwrap();
        let answer = thread::scope(|scope| {
            let client = scope.spawn(move || read_answer(&mut client, true));
            assert_eq!(table.turn(), Turn::Park);
            client.join().unwrap()
        });
        assert!(answer.body == content, "{length} bytes differ");
        assert_eq!(table.leftover(), b"");
    }
}

/// Answers with a file that is one byte shorter than it says.
fn shrunk(length: u64) -> impl Handler {
    move |_: &mut Request<'_>| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length - 1).unwrap();
        Response::new(StatusCode::OK).file(file, 0, length)
    }
}

#[test]
fn a_small_file_that_turns_out_shorter_is_an_error_of_the_server() {
    let mut table = Table::new(shrunk(10));
    let (answer, turn) = table.exchange(get("/"));
    assert_eq!((answer.status, turn), (500, Turn::Park));
    assert_eq!(answer.text(), "500 Internal Server Error\n");
    table.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(table.turn(), Turn::Close);
    assert_eq!(table.answer().status, 500);
    assert_eq!(table.leftover(), b"");
}

#[test]
fn a_large_file_that_turns_out_shorter_cuts_the_connection() {
    let mut table = Table::new(shrunk(100_000));
    table.send(get("/"));
    let error = table.http.turn(&mut table.connection).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let sent = table.leftover();
    assert!(sent.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(sent.len() < 100_000 + 200, "{}", sent.len());
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_of_the_server() {
    let handler = |_: &mut Request<'_>| {
        let directory = fs::File::open("/").unwrap();
        Response::new(StatusCode::OK).file(directory, 0, 10)
    };
    let mut table = Table::new(handler);
    let (answer, turn) = table.exchange(get("/"));
    assert_eq!((answer.status, turn), (500, Turn::Park));
}

#[test]
fn part_of_a_file() {
    let handler = |_: &mut Request<'_>| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        Response::new(StatusCode::OK).file(file, 3, 4)
    };
    let mut table = Table::new(handler);
    let (answer, _) = table.exchange(get("/"));
    assert_eq!(answer.text(), "3456");
    assert_eq!(table.leftover(), b"");
}

#[test]
fn what_cannot_be_served_is_said_at_the_start() {
    let site = site();
    let error = Files::open(Path::new("/nowhere/at/all")).unwrap_err();
    let text = "cannot serve /nowhere/at/all: No such file or directory";
    assert_eq!(error.to_string(), text);
    let file = site.root.join("index.html");
    let error = Files::open(&file).unwrap_err();
    let text = format!("cannot serve {}: Not a directory", file.display());
    assert_eq!(error.to_string(), text);
}
