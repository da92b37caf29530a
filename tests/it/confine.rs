//! Workers that give up privileges: what the kernel says that they are, what they try in vain, and
//! that they serve all the same. docs/examples/confined.rs is the program. To give root up takes
//! root: without it, the refusals are tested.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

use crate::harness::process::status;
use crate::harness::skip::{lacks, lacks_root, skip};
use crate::harness::{
    Clients, Habit, Server, Setup, Worker, command, example, finish, open_descriptors,
};
use crate::logging::{Bare, Sink};

/// A user and a group that no database knows.
const STRANGER: u32 = 54321;

fn setup(arguments: &[&str]) -> Setup {
    // Whoever runs the tests may have left descriptors open.
    Setup::example("confined", arguments).expect("workers have descriptors")
}

fn nobody() -> User {
    let found = User::from_name("nobody").expect("there is a user database");
    found.expect("every system has nobody")
}

/// The words of a line of /proc/PID/status.
fn words(pid: Pid, key: &str) -> Vec<String> {
    let line = status(pid, key);
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

/// The soft and the hard limit in /proc/PID/limits.
#[track_caller]
fn limit(pid: Pid, name: &str) -> [String; 2] {
    let path = format!("/proc/{pid}/limits");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let mut values = line
        .unwrap_or_else(|| panic!("{path} has no {name}"))
        .split_ascii_whitespace();
    [(); 2].map(|()| values.next().expect("there are two").to_owned())
}

fn link(pid: Pid, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/{name}")).expect("root may look")
}

/// That a process, and each of its threads, is of one user and of these groups, and has no
/// capability.
#[track_caller]
fn assert_dropped(worker: Worker, uid: u32, gid: u32, groups: &[u32]) {
    let directory = format!("/proc/{}/task", worker.pid);
    let threads = fs::read_dir(directory).expect("it is there");
    for thread in threads {
        let name = thread.expect("it is there").file_name();
        let thread = Pid::from_raw(name.to_string_lossy().parse().expect("a number"));
        assert_eq!(words(thread, "Uid"), [(); 4].map(|()| uid.to_string()));
        assert_eq!(words(thread, "Gid"), [(); 4].map(|()| gid.to_string()));
        let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
        assert_eq!(words(thread, "Groups"), groups);
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(thread, set), "0000000000000000", "{set}");
        }
    }
}

/// What each attempt of `/escape` came to.
#[track_caller]
fn attempts(text: &str) -> Vec<(&str, &str)> {
    let attempts = text.lines().map(|line| line.split_once(": "));
    let attempts: Vec<_> = attempts.map(|pair| pair.expect("two parts")).collect();
    assert_eq!(attempts.len(), 7, "{text}");
    attempts
}

#[track_caller]
fn assert_no_escape(text: &str) {
    for (attempt, outcome) in attempts(text) {
        assert!(
            outcome.contains("not permitted") || outcome.contains("denied"),
            "{attempt}: {outcome}"
        );
    }
}

/// A directory that everyone may search, with a file for everyone and one for root, and a place for
/// everyone's temporary files.
fn shared_directory(within: &Path, name: &str) -> PathBuf {
    let directory = within.join(name);
    fs::create_dir(&directory).expect("a directory");
    fs::set_permissions(within, Permissions::from_mode(0o755)).expect("it is ours");
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("it is ours");
    for (name, mode) in [("public", 0o644), ("private", 0o600)] {
        let file = directory.join(name);
        fs::write(&file, name).expect("a file");
        fs::set_permissions(&file, Permissions::from_mode(mode)).expect("it is ours");
    }
    fs::create_dir(directory.join("tmp")).expect("a directory");
    let everyone = Permissions::from_mode(0o1777);
    fs::set_permissions(directory.join("tmp"), everyone).expect("it is ours");
    directory.canonicalize().expect("it is there")
}

#[test]
fn workers_are_what_they_were_told_to_be() {
    if lacks_root() {
        return;
    }
    let own = sched_getaffinity(Pid::from_raw(0)).expect("it can be asked");
    let last = (0..CpuSet::count()).rfind(|number| own.is_set(*number) == Ok(true));
    let last = last.expect("this runs somewhere").to_string();
    let server = setup(&["--user", "nobody", "--group", "54321"])
        .also(&["--groups", "54323,54322", "--no-new-privs"])
        .also(&["--umask", "027", "--nofile", "64", "--processors", &last])
        .start();
    for worker in server.workers(2) {
        assert_dropped(worker, nobody().uid.as_raw(), STRANGER, &[54322, 54323]);
        assert_eq!(status(worker.pid, "NoNewPrivs"), "1");
        assert_eq!(status(worker.pid, "Umask"), "0027");
        assert_eq!(status(worker.pid, "Cpus_allowed_list"), last);
        assert_eq!(limit(worker.pid, "Max open files"), ["64", "64"]);
        assert_eq!(link(worker.pid, "root"), Path::new("/"));
    }
    // The master is what it was.
    let (master, ours) = (server.master(), Pid::this());
    for key in ["Uid", "Gid", "Groups", "CapPrm", "NoNewPrivs", "Umask"] {
        assert_eq!(status(master, key), status(ours, key), "{key}");
    }
    assert_eq!(
        status(master, "Cpus_allowed_list"),
        status(ours, "Cpus_allowed_list")
    );
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_user_brings_its_groups_along() {
    if lacks_root() {
        return;
    }
    let nobody = nobody();
    let server = setup(&["--user", "nobody", "-t", "3"]).start();
    for worker in server.workers(2) {
        let gid = nobody.gid.as_raw();
        assert_eq!(words(worker.pid, "Threads"), ["4"]);
        assert_dropped(worker, nobody.uid.as_raw(), gid, &[gid]);
        // Nor may another process of the same user look into it, for it was root once.
        let mut look = command("ls");
        look.arg(format!("/proc/{}/fd", worker.pid));
        look.uid(nobody.uid.as_raw()).gid(gid).current_dir("/");
        let looked = finish(look);
        assert!(!looked.status.success(), "{looked:?}");
    }
    assert_no_escape(&server.get("/escape").text());
}

#[test]
fn who_has_given_root_up_does_not_get_it_back() {
    if lacks_root() {
        return;
    }
    // Whatever root tries succeeds: else the rest would prove nothing.
    let server = setup(&[]).start();
    for (attempt, outcome) in attempts(&server.get("/escape").text()) {
        assert_eq!(outcome, "done", "{attempt}");
    }
    let server = setup(&["--user", "nobody"]).start();
    let beside = Clients::start(server.endpoint(), 3, "/");
    let mut client = server.connect();
    for _ in 0..20 {
        assert_eq!(client.get("/").status, 200);
        assert_no_escape(&client.get("/escape").text());
    }
    beside.wait_for_requests(20);
    beside.stop().assert_all_ok_so_far();
}

#[test]
fn a_master_needs_no_more_than_some_capabilities() {
    if lacks_root() {
        return;
    }
    // The last is for the way to the program.
    let capabilities = "+setuid,+setgid,+kill,+dac_read_search";
    let script = format!(
        "setpriv --reuid {STRANGER} --regid {STRANGER} --clear-groups \
         --inh-caps {capabilities} --ambient-caps {capabilities} \"$@\"; exit $?"
    );
    let server = setup(&["--user", "nobody"])
        .under(&["sh", "-c", &script, "sh"])
        .start();
    let uid = STRANGER.to_string();
    assert_eq!(words(server.master(), "Uid"), [(); 4].map(|()| uid.clone()));
    let nobody = nobody();
    let gid = nobody.gid.as_raw();
    for worker in server.workers(2) {
        // The kernel takes nothing from who was not root.
        assert_dropped(worker, nobody.uid.as_raw(), gid, &[gid]);
    }
    assert_no_escape(&server.get("/escape").text());
}

#[test]
fn a_chroot_is_all_that_is_seen() {
    if lacks_root() {
        return;
    }
    let place = TempDir::new().expect("a temporary directory");
    let jail = shared_directory(place.path(), "jail");
    let path = jail.to_str().expect("it is plain");
    let arguments = ["--user", "nobody", "--chroot", path, "--files", path];
    let server = setup(&arguments).expect("cannot open private").start();
    for worker in server.workers(2) {
        assert_eq!(link(worker.pid, "root"), jail);
        assert_eq!(link(worker.pid, "cwd"), jail);
    }
    let mut client = server.connect();
    assert_eq!(client.get("/public").text(), "public");
    // The directory was opened by root, the files are not.
    assert_eq!(client.get("/private").status, 403);
    assert_eq!(client.get("/missing").status, 404);
    let text = client.get("/escape").text();
    let (others, descriptors): (Vec<_>, _) = attempts(&text)
        .into_iter()
        .partition(|(attempt, _)| *attempt != "list its descriptors");
    assert!(
        others
            .iter()
            .all(|(_, outcome)| outcome.contains("not permitted")),
        "{text}"
    );
    assert!(
        descriptors[0].1.contains("No such file"),
        "there is no /proc: {text}"
    );
}

#[test]
fn a_worker_that_dies_is_replaced_by_one_that_is_confined_too() {
    if lacks_root() {
        return;
    }
    let arguments = ["--user", "nobody", "--group", "54321", "-w", "1"];
    let server = setup(&arguments).expect(" died ").start();
    let mut worker = server.workers(1)[0];
    let mut client = server.connect();
    for _ in 0..3 {
        // It serves two, so that its replacement does not have to wait.
        assert_eq!(server.get("/").status, 200);
        let pid = format!("pid {}\n", worker.pid);
        assert!(client.get("/").text().starts_with(&pid));
        server.kill(worker);
        worker = server.replacement(worker);
        assert_dropped(worker, nobody().uid.as_raw(), STRANGER, &[STRANGER]);
    }
    // So is the next generation.
    server.signal(Signal::SIGHUP);
    worker = server.replacement(worker);
    assert_dropped(worker, nobody().uid.as_raw(), STRANGER, &[STRANGER]);
    assert_no_escape(&client.get("/escape").text());
}

#[test]
fn a_worker_that_cannot_be_confined_serves_nobody() {
    if lacks_root() {
        return;
    }
    let place = TempDir::new().expect("a temporary directory");
    let jail = shared_directory(place.path(), "jail");
    let path = jail.to_str().expect("it is plain");
    let arguments = ["--user", "nobody", "--chroot", path, "-w", "1"];
    let message = format!("cannot confine workers to {path}: No such file or directory");
    let server = setup(&arguments).expect(&message).expect(" died ").start();
    let worker = server.workers(1)[0];
    let elsewhere = place.path().join("elsewhere");
    fs::rename(&jail, &elsewhere).expect("it is ours");
    server.kill(worker);
    let mut waiting = server.connect();
    waiting.send_get("/");
    server.wait_for_lines(&message, 2);
    server.wait_for_log(": exited with status 1");
    assert!(waiting.is_silent());
    fs::rename(&elsewhere, &jail).expect("it is ours");
    assert_eq!(waiting.reply().status, 200);
    let worker = server.replacement(worker);
    assert_eq!(link(worker.pid, "root"), jail);
}

#[test]
fn what_is_no_protection_is_said_once() {
    if lacks_root() {
        return;
    }
    let place = TempDir::new().expect("a temporary directory");
    let jail = shared_directory(place.path(), "jail");
    let files = shared_directory(place.path(), "files");
    let [jail, files] = [&jail, &files].map(|path| path.to_str().expect("it is plain"));
    let server = setup(&["--chroot", jail])
        .expect("a worker can leave")
        .start();
    server.workers(2);
    let warnings = server.log_lines("a worker can leave");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("it keeps the master's privileges"));
    let server = setup(&["--user", "nobody", "--chroot", jail, "--files", files])
        .expect("a worker can leave")
        .start();
    server.workers(2);
    let warnings = server.log_lines("a worker can leave");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].ends_with(&format!("is the directory {files}")));
    assert_eq!(server.get("/public").text(), "public");
}

#[test]
fn descriptors_that_the_server_was_started_with_are_named() {
    if lacks_root() {
        return;
    }
    let start = |user: &[&str]| {
        let setup = Setup::new(&[&["demo", "-w", "1"], user].concat());
        let setup = setup.under(&[
            "sh",
            "-c",
            "\"$@\" 7</etc/shadow 8>/dev/null; exit $?",
            "sh",
        ]);
        setup.expect("workers have descriptors").start()
    };
    let server = start(&["--user", "nobody"]);
    let line = server.wait_for_log("workers have descriptors that the server was started with: ");
    assert!(
        line.contains("7 (/etc/shadow)") && line.contains("8 (/dev/null)"),
        "{line}"
    );
    assert_eq!(server.get("/").status, 200);
    // Who gives nothing up has more than these.
    assert!(!start(&[]).log_contains("workers have descriptors"));
}

#[test]
fn few_descriptors_are_enough_for_many_clients() {
    // This much anyone may give up.
    let server = setup(&["--nofile", "32", "--umask", "077", "--no-new-privs"]).start();
    for worker in server.workers(2) {
        assert_eq!(limit(worker.pid, "Max open files"), ["32", "32"]);
        assert_eq!(status(worker.pid, "NoNewPrivs"), "1");
        assert_eq!(status(worker.pid, "Umask"), "0077");
    }
    let clients = Clients::with(server.endpoint(), 100, Habit::KeepOne, "/");
    clients.wait_for_each(100, 10);
    clients.stop().assert_all_ok_so_far();
}

/// Runs the example with these arguments to its end, which must be an error with these words,
/// before any worker.
#[track_caller]
fn refused(arguments: &[&str], message: &str) {
    let mut command = command(example("confined"));
    command.args(["-l", "127.0.0.1:0"]).args(arguments);
    let finished = finish(command);
    assert_eq!(
        finished.status.code(),
        Some(1),
        "{arguments:?}: {finished:?}"
    );
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert!(last.contains(message), "{arguments:?}: {finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
}

#[test]
fn nonsense_is_refused_before_the_first_fork() {
    let place = TempDir::new().expect("a temporary directory");
    let file = place.path().join("file");
    fs::write(&file, "").expect("a file");
    let file = file.to_str().expect("it is plain");
    for (arguments, message) in [
        (["--user", "nobdy"], "user \"nobdy\": there is no such user"),
        (["--user", "54329"], "the group must be given too"),
        (
            ["--group", "nogrp"],
            "group \"nogrp\": there is no such group",
        ),
        (
            ["--chroot", "/no/such"],
            "/no/such: No such file or directory",
        ),
        (["--chroot", file], "file: Not a directory"),
        (
            ["--umask", "1777"],
            "umask 1777: it has more than the bits of 777",
        ),
        (["--nofile", "3"], "nofile of workers to 3: a worker needs "),
        (
            ["--processors", "9999"],
            "processor 9999: it is not among those",
        ),
    ] {
        refused(&arguments, message);
    }
}

#[test]
fn what_takes_root_is_refused_to_others() {
    let place = TempDir::new().expect("a temporary directory");
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).expect("it is ours");
    // Where the program was built, others may have no way.
    let program = place.path().join("confined");
    // Not by this process: what another test forks meanwhile could keep it open for writing, and
    // then it can't be run.
    let mut copy = command("cp");
    copy.arg(example("confined")).arg(&program);
    assert!(finish(copy).status.success());
    for (arguments, message) in [
        (&["--user", "root"][..], "user 0: it takes root"),
        (&["--group", "0"], "groups 0: it takes root"),
        (&["--chroot", "/"], "confine workers to /: it takes root"),
    ] {
        let mut command = command(&program);
        command.args(["-l", "127.0.0.1:0"]).args(arguments);
        command.current_dir("/");
        if geteuid().is_root() {
            command.uid(STRANGER).gid(STRANGER);
        }
        let finished = finish(command);
        assert_eq!(
            finished.status.code(),
            Some(1),
            "{arguments:?}: {finished:?}"
        );
        let last = finished.stderr.lines().last().unwrap_or_default();
        assert!(last.contains(message), "{arguments:?}: {finished:?}");
    }
}

#[test]
fn to_be_who_one_is_takes_no_root() {
    let user = geteuid().to_string();
    let server: Server = setup(&["--user", &user]).start();
    let (master, workers) = (server.master(), server.workers(2));
    for key in ["Uid", "Gid"] {
        assert_eq!(status(workers[0].pid, key), status(master, key));
    }
    assert_eq!(server.get("/").status, 200);
}

/// Runs a server under a sandbox that makes this system call come to nothing, in this way.
fn sandboxed(injections: &[&str], script: &str) -> Vec<String> {
    let mut words = vec!["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"];
    for injection in injections {
        words.extend(["-e", injection]);
    }
    // There is something behind the server, so that no shell runs it in its own place.
    let script = format!("{script} exec {} \"$@\"", words.join(" "));
    ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
}

/// Whether a sandbox of that kind can't be had here; says so.
#[track_caller]
fn lacks_sandbox() -> bool {
    if lacks("strace") {
        return true;
    }
    let mut strace = command("strace");
    strace.args(["-o", "/dev/null", "true"]);
    let works = strace.status().is_ok_and(|status| status.success());
    if !works {
        skip("strace may not trace here");
    }
    !works
}

/// That a worker has the descriptors that it needs, the one that the server was started with, and
/// none of the master's.
#[track_caller]
fn assert_has_its_own_only(server: &Server, inherited: i32) {
    let master: Vec<_> = open_descriptors(server.master()).into_iter().collect();
    for worker in server.workers(2) {
        let open = open_descriptors(worker.pid);
        assert_eq!(open[&inherited], "/dev/null", "{open:?}");
        let sockets = open.values().filter(|what| what.starts_with("socket:"));
        let sockets: Vec<_> = sockets.collect();
        // The inbox, and the copy for the handler of SIGTERM.
        assert_eq!(sockets.len(), 2, "{open:?}");
        assert_eq!(sockets[0], sockets[1], "{open:?}");
        // One of the master's has no epoll set, no pipe of the signals, no listener.
        assert!(
            !open.values().any(|what| what.contains("eventpoll")),
            "{open:?}"
        );
        assert!(open.len() < master.len(), "{open:?}\n{master:?}");
    }
}

#[test]
fn a_worker_has_nothing_of_its_master_s_whatever_a_sandbox_forbids() {
    if lacks_sandbox() {
        return;
    }
    let no_proc = "mount -t tmpfs none /proc;";
    for (injection, script) in [
        ("inject=close_range:error=EPERM", ""),
        ("inject=close_range:error=ENOSYS", ""),
        // It says that it has done it.
        ("inject=close_range:retval=0", ""),
        ("inject=close_range:error=EPERM", no_proc),
        ("inject=mremap:error=ENOSYS", no_proc),
    ] {
        if !script.is_empty() && lacks_root() {
            continue;
        }
        let script = format!("{script} ulimit -n 1000; exec 9</dev/null;");
        let mut wrapper = sandboxed(&["trace=close_range", injection], &script);
        if geteuid().is_root() {
            wrapper.splice(0..0, ["unshare", "-m"].map(str::to_owned));
        }
        let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
        let server = Setup::new(&["demo", "-w", "2"])
            .under(&wrapper)
            .expect(" died ")
            .expect("keeping in memory")
            .start();
        assert_has_its_own_only(&server, 9);
        assert_eq!(server.get("/").status, 200);
        let worker = server.workers(2)[0];
        server.kill(worker);
        server.replacement(worker);
        assert_has_its_own_only(&server, 9);
    }
}

#[test]
fn a_worker_that_cannot_be_rid_of_its_master_s_descriptors_does_not_start() {
    if lacks_sandbox() {
        return;
    }
    if lacks_root() {
        return;
    }
    // Neither the call, nor a list of what is open, nor the number at which a list would end.
    let injections = [
        "trace=close_range,prlimit64",
        "inject=close_range:error=EPERM",
        "inject=prlimit64:error=EPERM",
    ];
    let mut wrapper = sandboxed(&injections, "mount -t tmpfs none /proc;");
    wrapper.splice(0..0, ["unshare", "-m"].map(str::to_owned));
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let mut sink = Sink::pipe();
    let server = Bare::start(&wrapper, &["demo", "-w", "1"], sink.writer());
    let failure = "cannot start a process: close the descriptors that it must not have: ";
    assert!(sink.read_until(failure).contains("Operation not permitted"));
    sink.read_until(": exited with status 1");
    server.signal(Signal::SIGQUIT);
    assert!(!sink.read_to_end().contains("worker ready"));
}

#[test]
fn a_worker_that_a_sandbox_only_pretends_to_confine_does_not_serve() {
    if lacks_sandbox() {
        return;
    }
    let place = TempDir::new().expect("a temporary directory");
    let jail = shared_directory(place.path(), "jail");
    let file = place.path().join("batond.toml");
    let chroot = format!("chroot = '{}'", jail.display());
    let mut cases = vec![("prctl", "no-new-privs = true", "do without new privileges")];
    if geteuid().is_root() {
        cases.push(("chroot", &chroot, "confine workers to "));
        cases.push(("setresuid", "user = 'nobody'", "become user "));
        cases.push(("setresgid", "group = '54321'", "become user "));
        cases.push(("setgroups", "groups = ['54321']", "become user "));
    }
    for (call, key, attempt) in cases {
        let text = format!("[[pool]]\nservice = 'demo'\n{key}\n");
        fs::write(&file, text).expect("a file");
        let trace = format!("trace={call}");
        let wrapper = sandboxed(&[&trace, &format!("inject={call}:retval=0")], "");
        let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
        let file = file.to_str().expect("it is plain");
        let mut sink = Sink::pipe();
        let server = Bare::start(&wrapper, &["-w", "1", "-c", file], sink.writer());
        let line = sink.read_until(&format!("cannot {attempt}"));
        assert!(line.contains(": the call succeeded, and") || line.contains(": the kernel says"));
        sink.read_until(": exited with status 1");
        server.signal(Signal::SIGQUIT);
        assert!(!sink.read_to_end().contains("worker ready"));
    }
}
