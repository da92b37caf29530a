//! Files that a server makes, and those that it finds in their places: Unix sockets, the control
//! socket, the pid file.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use nix::unistd::{Gid, chown};
use rustix::fs::fstat;
use rustix::net::listen;

use crate::config::TOO_LONG;
use crate::harness::skip::{lacks, lacks_root};
use crate::harness::systemd::Manager;
use crate::harness::{Finished, Server, Setup, command, eventually, finish, run};

/// A user and a group that no database has.
const STRANGER: u32 = 54321;

fn mode(path: &Path) -> u32 {
    path.metadata().expect("it is there").permissions().mode() & 0o777
}

/// A second server that is to fail in the directory of the first.
#[track_caller]
fn refused(directory: &Path, arguments: &[&str]) -> String {
    let arguments = [
        &["serve", "demo", "-w", "1", "-l", "127.0.0.1:0"],
        arguments,
    ]
    .concat();
    let Finished { status, stderr, .. } = run(directory, &arguments);
    assert_eq!(status.code(), Some(1), "{stderr}");
    stderr
}

const TAKEN: &str = "batond: cannot listen on unix:taken: another process listens there";

#[test]
fn a_listener_with_a_full_backlog_is_told_in_no_time_and_not_disturbed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("taken");
    let taken = UnixListener::bind(&path).expect("a socket");
    listen(&taken, 0).expect("it listens");
    let waiting = UnixStream::connect(&path).expect("there is room for one");
    assert_eq!(refused(directory.path(), &["-l", "unix:taken"]), TAKEN);
    taken.accept().expect("the one that waits");
    drop(waiting);
    // A listener that serves one client and ends (`nc -lU`) has not seen any.
    assert_eq!(refused(directory.path(), &["-l", "unix:taken"]), TAKEN);
    taken.set_nonblocking(true).expect("a flag");
    let nobody = taken.accept().expect_err("nobody has connected");
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_socket_that_does_not_listen_yet_is_not_taken() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("taken");
    let address = UnixAddr::new(&path).expect("an address");
    for kind in [SockType::Stream, SockType::SeqPacket, SockType::Datagram] {
        let taken = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None);
        let taken = taken.expect("a socket");
        bind(std::os::fd::AsRawFd::as_raw_fd(&taken), &address).expect("nothing is there");
        let inode = path.metadata().expect("it is there").ino();
        assert_eq!(refused(directory.path(), &["-l", "unix:taken"]), TAKEN);
        let control = refused(directory.path(), &["--control", "taken"]);
        assert!(
            control.contains("another master listens there"),
            "{control}"
        );
        assert_eq!(path.metadata().expect("it is there").ino(), inode);
        fs::remove_file(&path).expect("it is there");
    }
}

/// What a proxy of another user can do at the path of a socket.
fn stranger_connects(path: &Path, group: u32) -> bool {
    let script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
    let mut python = command("python3");
    python.args(["-c", script]).arg(path).current_dir("/");
    python.uid(STRANGER).gid(group);
    finish(python).status.success()
}

/// What a file gets that is made without a mode of its own.
fn mode_by_umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs is there");
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.map(|digits| u32::from_str_radix(digits.trim(), 8));
    0o777 & !umask.expect("a line").expect("a number")
}

#[test]
fn the_files_of_sockets_have_the_mode_that_is_asked_for() {
    for (flags, expected) in [
        (&["--unix-mode", "0660"][..], 0o660),
        (&["--unix-mode", "777"], 0o777),
        (&[], mode_by_umask()),
    ] {
        let setup = Setup::new(&["demo", "-w", "1"]).also(flags);
        let server = setup.listen("unix:s.sock").start();
        assert_eq!(mode(&server.directory().join("s.sock")), expected);
        assert_eq!(server.get("/").status, 200);
    }
    let wrong = run(Path::new("."), &["serve", "--unix-mode", "999"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        wrong.stderr.contains("expected octal digits"),
        "{}",
        wrong.stderr
    );
}

#[test]
fn a_proxy_of_another_user_can_connect_if_it_may() {
    if lacks_root() || lacks("python3") {
        return;
    }
    let text = |access: &str| {
        format!(
            "[[pool]]\nservice = 'demo'\nworkers = 1\nlisten = 'unix:s.sock'\nper-client = 5\n{access}\n"
        )
    };
    let ours = format!("unix-mode = '0660'\nunix-group = {STRANGER}");
    let server = Setup::new(&[]).file(&text(&ours), 1);
    let server = server.expect("per-client has no effect").start();
    let directory = server.directory().to_owned();
    fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).expect("it is ours");
    let path = directory.join("s.sock");
    assert!(stranger_connects(&path, STRANGER));
    assert!(!stranger_connects(&path, STRANGER + 1));
    let line = server.wait_for_log("per-client has no effect on unix:");
    assert!(line.contains(" WARN "), "{line}");
    // A reload changes what is there.
    let owner = format!("unix-mode = 0o600\nunix-owner = '{STRANGER}'");
    fs::write(directory.join("batond.toml"), text(&owner)).expect("a file");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    let metadata = path.metadata().expect("it is there");
    assert_eq!((metadata.uid(), mode(&path)), (STRANGER, 0o600));
    assert!(stranger_connects(&path, STRANGER + 1));
    // The group was asked for no more, so it is the default one; in the end all is.
    let own = nix::unistd::getegid().as_raw();
    assert_eq!(metadata.gid(), own);
    fs::write(directory.join("batond.toml"), text("")).expect("a file");
    server.signal(Signal::SIGHUP);
    server.wait_for_lines("reloaded", 2);
    let metadata = path.metadata().expect("it is there");
    assert_eq!((metadata.uid(), metadata.gid()), (0, own));
    assert_eq!(mode(&path), mode_by_umask());
    let checked = run(&directory, &["check", "-c", "batond.toml"]);
    let expected = "(per-client has no effect on unix:s.sock)";
    assert!(checked.stdout.contains(expected), "{}", checked.stdout);
    // Who is unknown is an error before anything is bound.
    let unknown = text("unix-group = 'no-such-group'");
    fs::write(directory.join("batond.toml"), unknown).expect("a file");
    let checked = run(&directory, &["check", "-c", "batond.toml"]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(
        checked.stderr.contains("no-such-group"),
        "{}",
        checked.stderr
    );
}

#[test]
fn a_file_that_somebody_has_removed_is_made_anew() {
    let arguments = [
        "demo",
        "-w",
        "1",
        "--control",
        "control",
        "--pid-file",
        "pid",
    ];
    let setup = Setup::new(&arguments)
        .listen("unix:s.sock")
        .listen("127.0.0.1:0");
    let mut server = setup.expect(": making it anew").start();
    let directory = server.directory().to_owned();
    let names = ["s.sock", "control", "pid"];
    let remove = || names.map(|name| fs::remove_file(directory.join(name)).expect("it is there"));
    let connects = || UnixStream::connect(directory.join("s.sock")).is_ok();

    remove();
    assert!(!connects());
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    server.wait_for_lines(": making it anew", 3);
    server.wait_for_lines("listening on unix:", 2);
    assert!(connects());
    for endpoint in server.endpoints() {
        assert_eq!(endpoint.connect().get("/").status, 200);
    }
    let pid = fs::read_to_string(directory.join("pid")).expect("it is there");
    assert_eq!(pid, format!("{}\n", server.master()));

    remove();
    server.upgrade();
    server.wait_for_former();
    for endpoint in server.endpoints() {
        assert_eq!(endpoint.connect().get("/").status, 200);
    }
    for name in names {
        assert!(directory.join(name).exists(), "{name}");
    }
    assert!(server.stop().success());
    assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 0);
}

/// Whether the kernel shows a Unix socket at this path.
fn shown(path: &Path) -> bool {
    let sockets = fs::read_to_string("/proc/net/unix").expect("procfs is there");
    let path = path.display().to_string();
    sockets
        .lines()
        .any(|line| line.ends_with(&format!(" {path}")))
}

#[test]
fn the_control_socket_is_bound_where_it_is_found() {
    let setup = Setup::new(&["demo", "-w", "1"]);
    // As long as a path can be for programs that end it with a NUL.
    let mut path = setup.directory().display().to_string();
    path += &format!("/{}", "c".repeat(106 - path.len()));
    assert_eq!(path.len(), 107);
    let setup = setup.also(&["--control", &path]).listen("unix:s.sock");
    let mut server = setup.start();
    // Whatever it was called: who looks for it has the absolute path.
    assert!(shown(&server.directory().join("s.sock")));
    let path = Path::new(&path);
    for _ in 0..2 {
        assert!(shown(path));
        assert_eq!(mode(path), 0o600);
        let inode = path.metadata().expect("it is there").ino();
        server.upgrade();
        server.wait_for_former();
        assert_ne!(path.metadata().expect("it is there").ino(), inode);
    }
    let longer = format!("{}cc", path.display());
    let line = refused(server.directory(), &["--control", &longer]);
    assert!(line.ends_with(TOO_LONG), "{line}");
}

#[test]
fn two_servers_do_not_share_a_pid_file() {
    let mut server = Server::start(&["demo", "-w", "1", "--pid-file", "pid"]);
    let directory = server.directory().to_owned();
    let path = directory.join("pid");
    for _ in 0..2 {
        let expected = format!(
            "batond: cannot write pid file pid: the server with pid {} has it",
            server.master()
        );
        assert_eq!(refused(&directory, &["--pid-file", "pid"]), expected);
        server.upgrade();
        server.wait_for_former();
    }
    // One that was killed leaves the file, and nothing else that matters.
    server.signal(Signal::SIGKILL);
    server.wait_for_master();
    let left = fs::read_to_string(&path).expect("it is there");
    let setup = Setup::new(&[
        "demo",
        "-w",
        "1",
        "--pid-file",
        path.to_str().expect("text"),
    ]);
    let mut next = setup.start();
    assert_ne!(fs::read_to_string(&path).expect("it is there"), left);
    assert!(next.stop().success());
    assert!(!path.exists());
}

#[test]
fn what_is_no_pid_file_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    fs::write(at("text"), "precious\n").expect("a file");
    std::os::unix::fs::symlink("text", at("link")).expect("a link");
    for (name, why) in [
        ("pipe", "the path exists and is not a regular file"),
        ("link", "the path exists and is not a regular file"),
        ("text", "the path exists and is not a pid file"),
    ] {
        let line = refused(directory.path(), &["--pid-file", name]);
        assert_eq!(line, format!("batond: cannot write pid file {name}: {why}"));
    }
    let text = fs::read_to_string(at("text")).expect("it is there");
    assert_eq!(text, "precious\n");
    let names = fs::read_dir(directory.path()).expect("a directory");
    assert_eq!(names.count(), 3, "nothing was added and nothing removed");
}

#[test]
fn a_link_beside_the_pid_file_is_not_followed() {
    let setup = Setup::new(&["demo", "-w", "1", "--pid-file", "pid"]);
    let victim = setup.directory().join("victim");
    fs::write(&victim, "precious\n").expect("a file");
    // Names that can be guessed: the path and the number of a process that is to come.
    let own = std::process::id();
    for pid in own..own + 5000 {
        let planted = setup.directory().join(format!("pid.{pid}"));
        std::os::unix::fs::symlink("victim", planted).expect("a link");
    }
    let server = setup.start();
    let pid = server.directory().join("pid");
    eventually("the pid file is there", || pid.exists());
    assert!(fs::symlink_metadata(&pid).expect("it is there").is_file());
    let text = fs::read_to_string(&victim).expect("it is there");
    assert_eq!(text, "precious\n");
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_file_in_place_of_a_socket_is_not_changed() {
    if lacks_root() || lacks("python3") {
        return;
    }
    let text = |group: u32| {
        format!(
            "[[pool]]\nservice = 'demo'\nworkers = 1\nlisten = ['127.0.0.1:0', 'unix:s.sock']\n\
             unix-group = {group}\n"
        )
    };
    let server = Setup::new(&[]).file(&text(STRANGER), 2);
    let server = server
        .expect("reload refused")
        .expect(": making it anew")
        .start();
    let path = server.directory().join("s.sock");
    fs::remove_file(&path).expect("it is there");
    fs::write(&path, "precious\n").expect("a file");
    chown(&path, None, Some(Gid::from_raw(7))).expect("we are root");
    fs::write(server.directory().join("batond.toml"), text(STRANGER + 1)).expect("a file");
    server.signal(Signal::SIGHUP);
    let line = server.wait_for_log("reload refused");
    assert!(
        line.contains("the path exists and is not a socket"),
        "{line}"
    );
    assert_eq!(path.metadata().expect("it is there").gid(), 7);
}

#[test]
fn a_manager_keeps_the_socket_that_can_be_reached() {
    let manager = Manager::new(16);
    let setup = Setup::new(&["demo", "-w", "1"]).listen("unix:s.sock");
    let setup = setup.expect(": making it anew");
    let mut server = manager.manage(setup).start();
    let path = server.directory().join("s.sock");
    // Of the one that is stored.
    let identity = || {
        let stored = manager.stored().into_iter();
        let named = |(name, _): &(String, OwnedFd)| name.starts_with("baton-listen-");
        let found: Vec<_> = stored.filter(named).collect();
        match &found[..] {
            [(_, socket)] => Some(fstat(socket).expect("it is open").st_ino),
            _ => None,
        }
    };
    eventually("it is stored", || identity().is_some());
    let mut before = identity();
    for change in ["reload", "upgrade"] {
        fs::remove_file(&path).expect("it is there");
        if change == "reload" {
            server.signal(Signal::SIGHUP);
            server.wait_for_log("reloaded");
        } else {
            server.upgrade();
            server.wait_for_former();
        }
        assert!(UnixStream::connect(&path).is_ok(), "{change}");
        eventually("the manager has the new one alone", || {
            identity().is_some() && identity() != before
        });
        before = identity();
    }
}

#[test]
fn an_upgrade_does_not_take_a_socket_that_has_taken_the_place_of_its_own() {
    let setup = Setup::new(&["demo", "-w", "1"]).listen("unix:s.sock");
    let setup = setup
        .expect("takeover failed")
        .expect("another process listens there");
    let mut server = setup.listen("127.0.0.1:0").start();
    let path = server.directory().join("s.sock");
    fs::remove_file(&path).expect("it is there");
    let other = UnixListener::bind(&path).expect("a socket");
    server.signal(Signal::SIGUSR2);
    server.wait_for_log("another process listens there");
    server.wait_for_log("takeover failed: ");
    assert!(server.stop().success());
    UnixStream::connect(&path).expect("it is still there");
    other.accept().expect("the one that connected");
}
