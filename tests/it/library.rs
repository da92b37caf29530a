//! A program that uses the library for more than one pool: docs/examples/pools.rs, which reads them
//! from a file, has a control socket and a pid file, and reloads and takes over as `batond` does.
//! And one whose service is its own, docs/examples/stream.rs.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::process::Watched;
use crate::harness::upgrade::TOOK_OVER;
use crate::harness::{
    Client, Endpoint, Server, Setup, command, example, field, finish, open_descriptors,
};

const PLACES: [&str; 4] = ["--control", "control", "--pid-file", "pid"];

/// A pool that greets, and one that serves the files of a directory.
const TWO: &str = "hello 127.0.0.1:0 say first\nfiles unix:socket files www\n";

/// The program with [`TWO`] pools. Reloads may be refused.
fn start() -> Server {
    let setup = Setup::example("pools", &PLACES);
    let www = setup.directory().join("www");
    fs::create_dir(&www).expect("a directory");
    fs::write(www.join("file"), "content").expect("a file");
    setup.file(TWO, 2).expect("reload refused").start()
}

fn rewrite(server: &Server, text: &str) {
    fs::write(server.directory().join("batond.toml"), text).expect("a file");
}

/// Changes the file, and waits until its pools serve, and the four workers before are gone: one may
/// stay with its connection for a moment, and answer one request more.
#[track_caller]
fn reload(server: &Server, text: &str) {
    let count = |pattern| server.log_lines(pattern).len();
    let (reloaded, retired) = (count("reloaded"), count("worker retired"));
    rewrite(server, text);
    server.signal(Signal::SIGHUP);
    server.wait_for_lines("reloaded", reloaded + 1);
    server.wait_for_lines("worker retired", retired + 4);
}

/// Where the greeting pool listens, and the other one. (The log names first the one that is ready
/// first.)
fn endpoints(server: &Server) -> [&Endpoint; 2] {
    match server.endpoints() {
        [hello @ Endpoint::Tcp(_), files] | [files, hello] => [hello, files],
        others => panic!("it listens on {others:?}"),
    }
}

/// A connection to each of the two pools.
fn connect(server: &Server) -> [Client; 2] {
    endpoints(server).map(Endpoint::connect)
}

#[track_caller]
fn assert_served([hello, files]: &mut [Client; 2], greeting: &str) {
    assert_eq!(hello.get("/").text(), format!("{greeting}\n"));
    assert_eq!(files.get("/file").text(), "content");
}

#[track_caller]
fn assert_named_in_pid_file(server: &Server) {
    let text = fs::read_to_string(server.directory().join("pid")).expect("it is there");
    assert_eq!(text, format!("{}\n", server.master()));
}

/// The program in the directory of a server, without its environment.
fn pools(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = command(example("pools"));
    command.args(["-c", "batond.toml"]).args(arguments);
    command.current_dir(directory);
    command
}

#[test]
fn each_pool_has_its_service_and_the_process_has_its_places() {
    let mut server = start();
    server.workers(4);
    let mut clients = connect(&server);
    assert_served(&mut clients, "first");
    assert_named_in_pid_file(&server);
    let port = endpoints(&server)[0].tcp();
    server.wait_for_log(&format!("bound to [{port}]"));
    let directory = server.directory().to_owned();
    for place in ["control", "pid", "socket"] {
        assert!(directory.join(place).exists(), "{place}");
    }
    assert!(server.stop().success());
    for place in ["control", "pid", "socket"] {
        assert!(!directory.join(place).exists(), "{place}");
    }
}

#[test]
fn a_reload_asks_the_program_for_its_pools() {
    let server = start();
    let mut clients = connect(&server);
    assert_served(&mut clients, "first");
    reload(&server, &TWO.replace("first", "second"));
    assert_served(&mut clients, "second");
    assert_served(&mut connect(&server), "second");
    // One pool goes, and another comes.
    reload(&server, "files unix:socket files www\nnew unix:new echo\n");
    let [mut hello, mut files] = clients;
    assert!(hello.is_closed());
    assert_eq!(files.get("/file").text(), "content");
    server.workers(4);
    server.wait_for_log("listening on unix:new");
}

#[test]
fn a_reload_that_fails_changes_nothing() {
    let server = start();
    let workers = server.workers(4);
    let mut clients = connect(&server);
    assert_served(&mut clients, "first");
    for (text, expected) in [
        ("hello 127.0.0.1:0\n", "cannot read batond.toml:1: expected"),
        (&TWO.replace("www", "nowhere"), "nowhere: No such file"),
        (
            &TWO.replace("127.0.0.1:0", "127.0.0.1"),
            "\"hello\": listen: the port is missing",
        ),
        (
            &TWO.replace("hello", "files"),
            "\"files\": another pool has its name",
        ),
        (
            &TWO.replace("127.0.0.1:0", "unix:socket"),
            "unix:socket is listed twice",
        ),
        (
            &TWO.replace("unix:socket", "unix:control"),
            "unix:control is the control socket",
        ),
        (&TWO.replace("127.0.0.1:0", "unix:no/where"), "no/where"),
        ("", "cannot use 0 pools"),
    ] {
        let before = server.log_lines("reload refused").len();
        rewrite(&server, text);
        server.signal(Signal::SIGHUP);
        let lines = server.wait_for_lines("reload refused", before + 1);
        let line = &lines[before];
        assert!(line.contains(expected), "{expected}: {line}");
        assert!(line.ends_with("nothing has changed"), "{line}");
        assert_served(&mut clients, "first");
    }
    assert_eq!(server.workers(4), workers);
    reload(&server, &TWO.replace("first", "second"));
    assert_served(&mut clients, "second");
}

#[test]
fn workers_keep_the_descriptors_of_their_own_pool_only() {
    let server = start();
    let www = server.directory().join("www");
    let www = www.to_str().expect("UTF-8");
    for generation in 0..2 {
        if generation > 0 {
            reload(&server, TWO);
        }
        server.workers(4);
        let ready = server.log_lines("worker ready");
        for line in &ready[ready.len() - 4..] {
            let open = open_descriptors(Pid::from_raw(field(line, "pid")));
            let count = open.values().filter(|what| *what == www).count();
            let expected = usize::from(line.contains("pool=files"));
            assert_eq!(count, expected, "{line}: {open:?}");
        }
        let open = open_descriptors(server.master());
        let count = open.values().filter(|what| *what == www).count();
        assert_eq!(count, 1, "{open:?}");
    }
}

#[test]
fn another_one_takes_over_with_all_connections() {
    let mut server = start();
    let mut clients = connect(&server);
    assert_served(&mut clients, "first");
    rewrite(&server, &TWO.replace("first", "second"));
    let arguments = [&["--takeover", "control"], &PLACES[..]].concat();
    let mut command = pools(server.directory(), &arguments);
    let child = server.spawn_beside(&mut command);
    server.wait_for_lines(TOOK_OVER, 1);
    let process = Watched::new(Pid::from_raw(child.id().cast_signed()));
    server.follow_child(process, Some(child));
    server.wait_for_former();
    assert_served(&mut clients, "second");
    assert_served(&mut connect(&server), "second");
    assert_named_in_pid_file(&server);
    // What it took over it can reload, and hand over itself.
    reload(&server, &TWO.replace("first", "third"));
    assert_served(&mut clients, "third");
    server.upgrade();
    assert_served(&mut clients, "third");
    server.wait_for_former();
    assert_named_in_pid_file(&server);
}

#[test]
fn what_is_wrong_at_the_start_is_said_before_any_worker_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("it is bound");
    for (text, arguments, expected) in [
        (
            format!("a 127.0.0.1:0 echo\nb {taken} echo\n"),
            [].as_slice(),
            "in use",
        ),
        ("a\n".to_owned(), &[], "cannot read batond.toml:1"),
        (
            "a unix:a echo\n".to_owned(),
            &["--pid-file", "no/where"],
            "no/where",
        ),
        (
            "a unix:a echo\n".to_owned(),
            &["--control", "no/where"],
            "no/where",
        ),
        (
            "a unix:a echo\n".to_owned(),
            &["--takeover", "nobody"],
            "nobody",
        ),
    ] {
        fs::write(directory.path().join("batond.toml"), text).expect("a file");
        let finished = finish(pools(directory.path(), arguments));
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(
            finished.stderr.contains(expected),
            "{expected}: {finished:?}"
        );
        assert!(!finished.stderr.contains("worker"), "{finished:?}");
    }
}

#[test]
fn a_service_that_streams_sends_as_many_bytes_as_were_asked_for() {
    let server = Setup::example("stream", &[]).start();
    let mut client = server.connect();
    let lines: String = (0..8192).map(|line| format!("{line:015}\n")).collect();
    for length in [0, 1, 16, 65_535, 65_536, 65_537, 131_072] {
        let reply = client.get(&format!("/bytes/{length}"));
        assert_eq!(reply.status, 200);
        assert!(reply.body == lines.as_bytes()[..length], "{length} bytes");
    }
    // Pipelined, and on the same connection as before.
    client.send("GET / HTTP/1.1\r\n\r\nGET /bytes/3 HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\n\r\n");
    assert_eq!(client.reply().body, &lines.as_bytes()[..16]);
    assert_eq!(client.reply().body, b"000");
    assert_eq!(client.reply().status, 405);
    assert!(client.is_closed());
}
