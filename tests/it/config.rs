//! The configuration file: what is right in it is obeyed, what is wrong is said in one line, and
//! flags win over it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid, mkfifo};
use tempfile::TempDir;

use crate::harness::client::Served;
use crate::harness::{BATOND, Setup, command, eventually, finish, run};

/// What is said of the path of a socket that is too long.
pub const TOO_LONG: &str = "File name too long: the path of a socket has at most 107 bytes";

fn with_file(text: impl AsRef<[u8]>) -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    fs::write(directory.path().join("batond.toml"), text).expect("a file");
    directory
}

/// Runs `check` or `serve`, which must fail with `code`, and say `reason` in a line that is the
/// only one.
#[track_caller]
fn refuses(directory: &Path, arguments: &[&str], code: i32, reason: &str) {
    let finished = run(directory, arguments);
    assert_eq!(
        finished.status.code(),
        Some(code),
        "{arguments:?}: {finished:?}"
    );
    assert_eq!(finished.stdout, "", "{arguments:?}");
    if code == 1 {
        assert_eq!(finished.stderr, format!("batond: {reason}"));
    } else {
        let first = finished.stderr.lines().next().unwrap_or_default();
        assert!(first.contains(reason), "{arguments:?}: {finished:?}");
    }
}

/// Both say the same of a bad file.
#[track_caller]
fn both_refuse(directory: &Path, reason: &str) {
    for command in ["check", "serve"] {
        refuses(directory, &[command, "-c", "batond.toml"], 1, reason);
    }
}

#[test]
fn a_good_file_is_checked_in_one_line() {
    let directory = with_file(
        "[[pool]]\nname = 'site'\nservice = 'http'\nroot = '.'\nlisten = [':80', 'unix:s.sock']\nworkers = 3\n\
         user = 'root'\ngroup = 7\n[[pool]]\nname = 'echo'\nservice = 'echo'\nlisten = ':81'\nworkers = 2\n",
    );
    let finished = run(directory.path(), &["check", "-c", "batond.toml"]);
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(
        finished.stdout,
        "batond.toml: 2 pools: site: http . on :80 and unix:s.sock, workers: 3; \
         echo: echo on :81, workers: 2"
    );
    assert_eq!(finished.stderr, "");
    let finished = run(directory.path(), &["check", "-w", "9", "echo"]);
    assert_eq!(
        finished.stdout,
        "1 pool: main: echo on 127.0.0.1:8080, workers: 9"
    );
    // Nothing was bound.
    assert!(!directory.path().join("s.sock").exists());
}

#[test]
fn the_example_is_a_good_file() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples");
    let finished = run(&examples, &["check", "-c", "batond.toml"]);
    assert!(finished.status.success(), "{finished:?}");
}

#[test]
fn a_bad_file_is_refused_with_its_line() {
    for (text, reason) in [
        (
            "[[pool]]\nname = 'site'\nservice = 'demo'\nworkers = 0\n",
            "cannot read batond.toml:4: pool \"site\": workers: expected a number from 1 to 10000",
        ),
        (
            "[[pool]]\nservice = 'demo'\n\nworkrs = 2\n",
            "cannot read batond.toml:4: pool \"main\": workrs: unknown key; did you mean workers?",
        ),
        (
            "[[pool]]\nname = 'site'\nlisten = ':80'\nservice = 'http'\nroot = '.'\n\
             fallback = 'app'\n",
            "cannot read batond.toml:6: pool \"site\": fallback: there is no pool \"app\"",
        ),
        (
            "",
            "cannot read batond.toml: pool: no pool is configured; begin one with [[pool]]",
        ),
    ] {
        both_refuse(with_file(text).path(), reason);
    }
    let directory = with_file("[[pool]]\nservice = 'demo\n");
    let finished = run(directory.path(), &["check", "-c", "batond.toml"]);
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished
            .stderr
            .starts_with("batond: cannot read batond.toml:2: "),
        "{finished:?}"
    );
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
}

#[test]
fn a_file_that_cannot_be_read() {
    let directory = with_file(b"# gr\xfc\xdfe\n");
    let path = directory.path().join("batond.toml");
    both_refuse(
        directory.path(),
        "cannot read batond.toml: the text is not UTF-8",
    );
    fs::write(&path, " ".repeat((1 << 20) + 1)).expect("a file");
    both_refuse(
        directory.path(),
        "cannot read batond.toml: it has more than 1048576 bytes",
    );
    fs::remove_file(&path).expect("it is there");
    both_refuse(
        directory.path(),
        "cannot read batond.toml: No such file or directory",
    );
    fs::create_dir(&path).expect("a directory");
    both_refuse(directory.path(), "cannot read batond.toml: Is a directory");
    fs::remove_dir(&path).expect("it is empty");
    symlink("batond.toml", &path).expect("a link");
    both_refuse(
        directory.path(),
        "cannot read batond.toml: Too many symbolic links encountered",
    );
}

#[test]
fn what_the_file_names_is_looked_for() {
    let demo = "[[pool]]\nservice = 'demo'\n";
    for (text, reason) in [
        (
            "[[pool]]\nservice = 'http'\nroot = 'gone'\n".to_owned(),
            "cannot serve gone: No such file or directory",
        ),
        (
            format!("{demo}user = 'no-such-user'\n"),
            "cannot run workers as user \"no-such-user\": there is no such user",
        ),
        (
            format!("{demo}groups = [0, 'no-such-group']\n"),
            "cannot give workers the group \"no-such-group\": there is no such group",
        ),
        (
            format!("{demo}chroot = 'batond.toml'\n"),
            "cannot confine workers to batond.toml: Not a directory",
        ),
        (
            format!("{demo}body-dir = 'gone'\n"),
            "cannot use body-dir gone: No such file or directory",
        ),
        (
            format!("{demo}body-dir = 'batond.toml'\n"),
            "cannot use body-dir batond.toml: Not a directory",
        ),
        (
            format!("{demo}body-dir = '/proc'\n"),
            "cannot use body-dir /proc: its file system is not known to be of this machine",
        ),
        (
            format!("{demo}cpu-affinity = 1023\n"),
            "cannot run workers on processor 1023: it is not among those that the master may run on",
        ),
        (
            format!("{demo}limits = {{ nofile = 4 }}\n"),
            "cannot limit nofile of workers to 4: a worker needs 13 to serve anyone",
        ),
        (
            format!("log = {{ file = 'gone/log' }}\n{demo}"),
            "cannot log to gone/log: No such file or directory",
        ),
        (
            format!("pid-file = 'gone/pid'\n{demo}"),
            "cannot write pid file gone/pid: No such file or directory",
        ),
        (
            format!("control = 'gone/control'\n{demo}"),
            "cannot listen on control socket gone/control: No such file or directory",
        ),
        (
            format!("{demo}listen = 'unix:gone/socket'\n"),
            "cannot listen on unix:gone/socket: No such file or directory",
        ),
        // TEST-NET-1 of RFC 5737: no machine has it.
        (
            format!("{demo}listen = '192.0.2.1:80'\n"),
            "cannot listen on 192.0.2.1:80: Cannot assign requested address",
        ),
    ] {
        let text = match text.contains("listen") {
            true => text,
            false => format!("{text}listen = '127.0.0.1:0'\n"),
        };
        both_refuse(with_file(text).path(), reason);
    }
}

#[test]
fn what_is_in_the_way_is_seen_by_both() {
    let directory = with_file("");
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("directory")).expect("a directory");
    fs::write(at("text"), "precious\n").expect("a file");
    drop(UnixListener::bind(at("socket")).expect("a socket"));
    mkfifo(&at("fifo"), Mode::S_IRWXU).expect("a FIFO");
    symlink("gone/target", at("dangling")).expect("a link");
    symlink("circle", at("circle")).expect("a link");
    let pid_file = "write pid file";
    let control = "listen on control socket";
    let not_a_file = "the path exists and is not a regular file";
    let not_a_socket = "the path exists and is not a socket";
    let long = "n".repeat(120);
    for (key, name, attempt, reason) in [
        ("pid-file", "directory", pid_file, "is a directory"),
        ("pid-file", "socket", pid_file, not_a_file),
        ("pid-file", "fifo", pid_file, not_a_file),
        ("pid-file", "dangling", pid_file, not_a_file),
        ("pid-file", "/dev/null", pid_file, not_a_file),
        (
            "pid-file",
            "text",
            pid_file,
            "the path exists and is not a pid file",
        ),
        ("pid-file", "text/pid", pid_file, "Not a directory"),
        ("control", "directory", control, not_a_socket),
        ("control", "fifo", control, not_a_socket),
        ("control", "text", control, not_a_socket),
        ("control", "/dev/null", control, not_a_socket),
        ("control", &long, control, TOO_LONG),
        ("log.file", "directory", "log to", "Is a directory"),
        ("log.file", "socket", "log to", "it is a socket"),
        (
            "log.file",
            "dangling",
            "log to",
            "No such file or directory",
        ),
        (
            "log.file",
            "circle",
            "log to",
            "Too many symbolic links encountered",
        ),
        ("log.file", "text/log", "log to", "Not a directory"),
    ] {
        let text =
            format!("{key} = '{name}'\n[[pool]]\nservice = 'demo'\nlisten = '127.0.0.1:0'\n");
        fs::write(at("batond.toml"), text).expect("a file");
        both_refuse(
            directory.path(),
            &format!("cannot {attempt} {name}: {reason}"),
        );
    }
    for (name, reason) in [
        ("directory", not_a_socket),
        ("fifo", not_a_socket),
        ("text/socket", "Not a directory"),
        (&long, TOO_LONG),
    ] {
        let text = format!("[[pool]]\nservice = 'demo'\nlisten = 'unix:{name}'\n");
        fs::write(at("batond.toml"), text).expect("a file");
        both_refuse(
            directory.path(),
            &format!("cannot listen on unix:{name}: {reason}"),
        );
    }
    // No file has a name with a slash at its end.
    for arguments in [
        ["--log-file", "new/"],
        ["--pid-file", "new/"],
        ["--control", "new/"],
        ["-l", "unix:new/"],
    ] {
        for command in ["check", "serve"] {
            let finished = run(
                directory.path(),
                &[&[command, "demo"], &arguments[..]].concat(),
            );
            assert_eq!(finished.status.code(), Some(1), "{finished:?}");
            assert!(finished.stderr.contains("new/: "), "{finished:?}");
        }
    }
    assert_eq!(fs::read(at("text")).expect("a file"), b"precious\n");
}

#[test]
fn what_cannot_be_in_one_place_is_seen_by_both() {
    let file = "control = 'c'\n[[pool]]\nservice = 'demo'\nlisten = ['127.0.0.1:0', 'unix:a']\n";
    let directory = with_file(file);
    symlink(".", directory.path().join("link")).expect("a link");
    let (log, pid, control, unix) = ("--log-file", "--pid-file", "--control", "-l");
    for (arguments, reason) in [
        ([log, "x", pid, "x"], "log.file x and pid-file x"),
        ([log, "x", pid, "./x"], "log.file x and pid-file ./x"),
        (
            [pid, "x", control, "link/x"],
            "pid-file x and control link/x",
        ),
        (
            [log, "x", unix, "unix:link/x"],
            "log.file x and unix:link/x",
        ),
        ([control, "x", unix, "unix:./x"], "control x and unix:./x"),
        ([unix, "unix:x", unix, "unix:./x"], "unix:x and unix:./x"),
    ] {
        let reason = format!("cannot use the command line: {reason} are the same file");
        for command in ["check", "serve"] {
            let words = [&[command, "-w", "1"], &arguments[..]].concat();
            refuses(directory.path(), &words, 2, &reason);
        }
    }
    let reason = "cannot read batond.toml: pid-file ./a and unix:a are the same file";
    for command in ["check", "serve"] {
        let words = [command, "-c", "batond.toml", pid, "./a"];
        refuses(directory.path(), &words, 1, reason);
    }
    assert!(!directory.path().join("x").exists());
}

#[test]
fn addresses_that_overlap_are_seen_by_both() {
    let directory = with_file("");
    for (one, other) in [
        ("127.0.0.1:17999", ":17999"),
        (":17999", "127.0.0.1:17999"),
        ("[::]:17999", "0.0.0.0:17999"),
        (":17999", "[::]:17999"),
        ("127.0.0.1:17999", "localhost:17999"),
    ] {
        let reason =
            format!("cannot listen on {one} and on {other}: they have an address in common");
        for command in ["check", "serve"] {
            let words = [command, "-w", "1", "-l", one, "-l", other];
            refuses(directory.path(), &words, 1, &reason);
        }
    }
    for (one, other) in [
        (":0", "127.0.0.1:0"),
        ("127.0.0.1:17999", "127.0.0.2:17999"),
        (":17998", "127.0.0.1:17999"),
    ] {
        let words = ["check", "-w", "1", "-l", one, "-l", other];
        let finished = run(directory.path(), &words);
        assert!(finished.status.success(), "{finished:?}");
    }
}

#[test]
fn a_check_knows_which_ports_its_user_may_not_bind_and_does_not_mind_a_server() {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first: u16 = first.expect("Linux has it").trim().parse().expect("a port");
    if first > 1 && Uid::effective().is_root() {
        let mut command = command("setpriv");
        command.args([
            "--bounding-set",
            "-net_bind_service",
            BATOND,
            "check",
            "-l",
            ":1",
        ]);
        let finished = finish(command);
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        let expected = "batond: cannot listen on :1: Permission denied";
        assert_eq!(finished.stderr, expected);
    }
    let server = Setup::new(&["demo", "-w", "1"]).start();
    let address = server.endpoint().tcp().to_string();
    let finished = run(server.directory(), &["check", "-w", "1", "-l", &address]);
    assert!(finished.status.success(), "{finished:?}");
}

#[test]
fn a_command_line_that_contradicts_itself_or_the_file() {
    let pool =
        |name, port| format!("[[pool]]\nname = '{name}'\nservice = 'echo'\nlisten = ':{port}'\n");
    let directory = with_file(pool("one", 1) + &pool("two", 2));
    let file = ["check", "-c", "batond.toml"];
    for (flags, reason) in [
        (
            &["-l", ":3"][..],
            "cannot read batond.toml: --listen applies to a single pool, but the file has 2",
        ),
        (
            &["demo"],
            "cannot read batond.toml: a service on the command line applies to a single pool, but the file has 2",
        ),
        (
            &["-w", "3", "--max-workers", "2"],
            "cannot read batond.toml: pool \"one\": max-workers: 2 is less than workers, which is 3",
        ),
    ] {
        refuses(directory.path(), &[&file, flags].concat(), 1, reason);
    }
    for (words, reason) in [
        (&["serve", "-c", ""][..], "a path cannot be empty"),
        (&["serve", "-c"], "'--config <FILE>'"),
        (
            &["serve", "-w", "3", "--max-workers", "2"],
            "max-workers: 2 is less than workers, which is 3",
        ),
        (
            &["serve", "-l", ":1", "-l", ":1"],
            "listen: :1 is listed twice",
        ),
        (
            &["serve", "--max-rss", "much"],
            "expected a number of bytes",
        ),
        (&["serve", "--user", ""], "--user"),
    ] {
        refuses(directory.path(), words, 2, reason);
    }
}

#[test]
fn the_file_says_what_is_served_where_and_by_how_many() {
    let text = "[[pool]]\nservice = 'demo'\nworkers = 2\nlisten = ['127.0.0.1:0', 'unix:s.sock']\n";
    let server = Setup::new(&[]).file(text, 2).start();
    server.workers(2);
    for endpoint in server.endpoints() {
        assert_eq!(Served::of(&endpoint.connect().get("/")).turn, 1);
    }
    assert!(server.directory().join("s.sock").exists());
}

#[test]
fn flags_win_over_the_file() {
    let text = "[[pool]]\nservice = 'http'\nroot = 'gone'\nworkers = 2\nlisten = 'unix:s.sock'\n";
    let flags = ["demo", "-w", "3", "-l", "127.0.0.1:0"];
    let server = Setup::new(&flags).file(text, 1).start();
    server.workers(3);
    assert_eq!(Served::of(&server.get("/")).turn, 1);
    assert!(!server.directory().join("s.sock").exists());
}

#[test]
fn several_pools_serve_side_by_side_and_change_with_the_file() {
    let directory = TempDir::new().expect("a temporary directory");
    let page = |name: &str| {
        fs::create_dir(directory.path().join(name)).expect("a directory");
        fs::write(directory.path().join(name).join("index.html"), name).expect("a file");
    };
    page("old");
    page("new");
    let text = |root: &str, workers: u32| {
        let root = directory.path().join(root);
        format!(
            "[[pool]]\nname = 'site'\nservice = 'http'\nroot = {root:?}\nlisten = '127.0.0.1:0'\n\
             workers = {workers}\n[[pool]]\nname = 'echo'\nservice = 'echo'\nlisten = 'unix:s.sock'\n"
        )
    };
    let server = Setup::new(&["-w", "1"]).file(&text("old", 5), 2).start();
    server.workers(2);
    let file = server.directory().join("batond.toml");
    let reload = |text: &str, outcome: &str| {
        fs::write(&file, text).expect("a file");
        server.signal(Signal::SIGHUP);
        server.wait_for_log(outcome);
    };
    assert_eq!(server.get("/").body, b"old");
    let mut echo = server.endpoints()[1].connect();
    echo.send("hello");
    assert_eq!(echo.read_exact(5), b"hello");

    reload(&text("new", 5), "reloaded");
    // The flag still wins.
    server.workers(2);
    assert_eq!(server.get("/").body, b"new");
    echo.send("again");
    assert_eq!(echo.read_exact(5), b"again");
}

#[test]
fn a_bad_file_changes_nothing_at_a_reload() {
    let text = "[[pool]]\nservice = 'demo'\nworkers = 1\nlisten = '127.0.0.1:0'\n";
    let refused =
        "reload refused: cannot read batond.toml:3: pool \"main\": workers: expected a number";
    let server = Setup::new(&[]).file(text, 1).expect(refused).start();
    server.workers(1);
    let file = server.directory().join("batond.toml");
    fs::write(file, text.replace("workers = 1", "workers = 0")).expect("a file");
    server.signal(Signal::SIGHUP);
    server.wait_for_log(refused);
    server.workers(1);
    assert_eq!(server.get("/").status, 200);
}

/// A process that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn log_lines_go_to_the_file_that_is_named() {
    let text =
        "[log]\nfile = 'log'\n[[pool]]\nservice = 'demo'\nworkers = 1\nlisten = '127.0.0.1:0'\n";
    let directory = with_file(text);
    let log = directory.path().join("log");
    fs::write(&log, "before\n").expect("a file");
    let started = Command::new(BATOND)
        .args(["serve", "-c", "batond.toml"])
        .current_dir(directory.path())
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn();
    let mut server = Ended(started.expect("it starts"));
    let logged = || fs::read_to_string(&log).expect("it is there");
    eventually("the worker is ready", || logged().contains("worker ready"));
    let pid = Pid::from_raw(server.0.id().cast_signed());
    kill(pid, Signal::SIGTERM).expect("it is alive");
    let mut stderr = String::new();
    let pipe = server.0.stderr.as_mut().expect("it is piped");
    pipe.read_to_string(&mut stderr).expect("text");
    assert_eq!(stderr, "");
    let status = server.0.wait().expect("it is our child");
    assert!(status.success(), "{status}");
    assert!(logged().starts_with("before\n"));
    assert!(logged().contains("listening on 127.0.0.1:"));

    let directory = with_file("[log]\nfile = 'no/log'\n[[pool]]\nservice = 'demo'\n");
    let arguments = ["serve", "-c", "batond.toml"];
    let reason = "cannot log to no/log: No such file or directory";
    refuses(directory.path(), &arguments, 1, reason);
}
