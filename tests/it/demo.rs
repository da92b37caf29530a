//! `recv-fd` and `send-fd` as their users see them: with each other, with Python and with C on the
//! other side.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use batond::fdpass::{self, Wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use crate::harness::skip::lacks;

/// No wait is longer than this. It is far above what is needed, for a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A process with its output. Killed and reaped on drop.
pub struct Running {
    name: String,
    child: Child,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
}

#[derive(Default)]
struct Stream {
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Stream {
    fn collect(mut from: impl Read + Send + 'static) -> Arc<Self> {
        let stream = Arc::new(Self::default());
        let own = Arc::clone(&stream);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let count = from.read(&mut chunk).unwrap_or(0);
                let mut state = own.state.lock().unwrap();
                state.0.extend_from_slice(&chunk[..count]);
                state.1 = count == 0;
                own.changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        stream
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.state.lock().unwrap().0).into_owned()
    }

    /// Waits until this much has come, or everything.
    fn wait(&self, enough: impl Fn(&str) -> bool) -> Option<String> {
        let state = self.state.lock().unwrap();
        let missing = |(bytes, over): &mut (Vec<u8>, bool)| {
            !*over && !enough(&String::from_utf8_lossy(bytes))
        };
        let (state, _) = self
            .changed
            .wait_timeout_while(state, DEADLINE, missing)
            .unwrap();
        let text = String::from_utf8_lossy(&state.0).into_owned();
        (enough(&text)).then_some(text)
    }

    fn wait_for_end(&self) {
        let state = self.state.lock().unwrap();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, DEADLINE, |state| !state.1)
            .unwrap();
        assert!(state.1, "the output has no end");
    }
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let stdout = Stream::collect(child.stdout.take().unwrap());
        let stderr = Stream::collect(child.stderr.take().unwrap());
        Self {
            name,
            child,
            stdout,
            stderr,
        }
    }

    #[track_caller]
    pub fn wait_for_stdout(&self, what: &str) -> String {
        let text = self.stdout.wait(|text| text.contains(what));
        text.unwrap_or_else(|| panic!("no {what:?} from {self}"))
    }

    #[track_caller]
    pub fn wait_for_stderr(&self, what: &str) -> String {
        self.wait_for_stderr_times(what, 1)
    }

    #[track_caller]
    pub fn wait_for_stderr_times(&self, what: &str, times: usize) -> String {
        let text = self.stderr.wait(|text| text.matches(what).count() >= times);
        text.unwrap_or_else(|| panic!("no {what:?}, {times} times, from {self}"))
    }

    #[track_caller]
    pub fn wait_until(&self, enough: impl Fn(&str) -> bool) -> String {
        let text = self.stdout.wait(enough);
        text.unwrap_or_else(|| panic!("not enough from {self}"))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end: the exit status, the standard output, the standard error.
    #[track_caller]
    pub fn end(mut self) -> (ExitStatus, String, String) {
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let time = Timespec {
            tv_sec: DEADLINE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time)).unwrap();
        assert!(ended == 1, "no end of {self}");
        let status = self.child.wait().unwrap();
        self.stdout.wait_for_end();
        self.stderr.wait_for_end();
        (status, self.stdout.text(), self.stderr.text())
    }

    /// Ends it by SIGTERM, which is a success; gives the standard output and error.
    #[track_caller]
    pub fn stop(self) -> (String, String) {
        self.signal(Signal::TERM);
        let name = self.name.clone();
        let (status, stdout, stderr) = self.end();
        assert!(status.success(), "{name}: {status}\n{stdout}\n{stderr}");
        assert!(!stderr.contains("panicked"), "{name}: {stderr}");
        (stdout, stderr)
    }

    /// Waits for the end, which must be a success without a word on stderr; gives the standard
    /// output.
    #[track_caller]
    pub fn succeed(self) -> String {
        let name = self.name.clone();
        let (status, stdout, stderr) = self.end();
        assert!(
            status.success() && stderr.is_empty(),
            "{name}: {status}\n{stdout}\n{stderr}"
        );
        stdout
    }
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            stdout,
            stderr,
            ..
        } = self;
        write!(
            f,
            "{name}\nstdout:\n{}\nstderr:\n{}",
            stdout.text(),
            stderr.text()
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn batond(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batond"));
    command
        .current_dir(dir)
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// A recv-fd that is ready for senders.
#[track_caller]
pub fn recv_fd(dir: &Path, arguments: &[&str]) -> Running {
    let running = Running::start(batond(dir, &["recv-fd"]).args(arguments));
    running.wait_for_stderr("listening on ");
    running
}

#[track_caller]
fn send_fd(dir: &Path, arguments: &[&str]) {
    let stdout = Running::start(batond(dir, &["send-fd"]).args(arguments)).succeed();
    assert_eq!(stdout, "");
}

/// A run that fails: its one line on stderr.
#[track_caller]
fn failure(dir: &Path, arguments: &[&str]) -> String {
    let (status, stdout, stderr) = Running::start(&mut batond(dir, arguments)).end();
    assert_eq!((status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("batond: cannot "), "{stderr}");
    stderr
}

pub fn python(dir: &Path, script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command
        .current_dir(dir)
        .args(["-u", "-c", script])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

pub fn directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("hello"), "hello\n").unwrap();
    fs::write(dir.path().join("long"), "x".repeat(1200)).unwrap();
    dir
}

/// The text with the numbers of descriptors as N: which are free is nobody's business.
fn unnumbered(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let ours = ["Received fd ", "reading fd ", "fd "];
        match ours.iter().find(|head| line.starts_with(**head)) {
            Some(head) => {
                out.push_str(head);
                out.push('N');
                out.push_str(line[head.len()..].trim_start_matches(|c: char| c.is_ascii_digit()));
            }
            None => out.push_str(line),
        }
    }
    out
}

fn block(data: &str, reads: &[&str]) -> String {
    let mut text = format!("{data}\n");
    for read in reads {
        text.push_str(&format!("Received fd N\nreading fd N...\n{read}\n"));
    }
    text
}

#[test]
fn a_file_is_passed_and_shown() {
    for (kind, signal) in [(&[][..], Signal::TERM), (&["-d"], Signal::INT)] {
        let dir = directory();
        let recv = recv_fd(dir.path(), kind);
        send_fd(dir.path(), &[kind, &["hello"]].concat());
        recv.wait_for_stdout("hello\n");
        recv.signal(signal);
        let (status, stdout, stderr) = recv.end();
        assert!(status.success(), "{status}");
        let expected = block("received 1 bytes: *", &["read 6 bytes: hello"]);
        assert_eq!(unnumbered(&stdout), expected);
        assert!(stderr.ends_with(": listening on fd.sock\n"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(!dir.path().join("fd.sock").exists());
    }
}

#[test]
fn each_file_is_a_message_of_its_own_in_order() {
    for kind in [&[][..], &["-d"]] {
        let dir = directory();
        fs::write(dir.path().join("empty"), "").unwrap();
        let recv = recv_fd(dir.path(), kind);
        let files = ["--payload", "été", "long", "hello", "empty"];
        send_fd(dir.path(), &[kind, &files].concat());
        recv.wait_for_stdout("eof\n");
        let long = format!("read 1000 bytes: {}", "x".repeat(1000));
        let expected: String = [long.as_str(), "read 6 bytes: hello", "read: eof"]
            .map(|read| block("received 5 bytes: été", &[read]))
            .concat();
        assert_eq!(unnumbered(&recv.stop().0), expected);
    }
}

#[test]
fn standard_input_is_passed_as_it_is() {
    let dir = directory();
    let recv = recv_fd(dir.path(), &[]);
    let mut file = File::open(dir.path().join("hello")).unwrap();
    file.seek(std::io::SeekFrom::Start(2)).unwrap();
    let stdin = file.try_clone().unwrap();
    Running::start(batond(dir.path(), &["send-fd", "-"]).stdin(stdin)).succeed();
    recv.wait_for_stdout("read 4 bytes: llo\n");
    assert_eq!(file.stream_position().unwrap(), 6, "the offset is shared");
}

#[test]
fn a_python_sender_may_pass_several_at_once() {
    if lacks("python3") {
        return;
    }
    const SCRIPT: &str = "
import os, socket, sys
kind, path, *files = sys.argv[1:]
s = socket.socket(socket.AF_UNIX, getattr(socket, kind))
s.connect(path)
fds = [os.open(name, os.O_RDONLY) for name in files]
for fd in fds: os.lseek(fd, 1, os.SEEK_SET)
socket.send_fds(s, [b'to', b'ken'], fds)
";
    for (kind, name) in [
        (&["-f", "s"][..], "SOCK_STREAM"),
        (&["-d", "-f", "s"], "SOCK_DGRAM"),
    ] {
        let dir = directory();
        let recv = recv_fd(dir.path(), kind);
        Running::start(&mut python(
            dir.path(),
            SCRIPT,
            &[name, "s", "hello", "hello"],
        ))
        .succeed();
        let files = ["hello"; 253];
        let most = [&[name, "s"], &files[..]].concat();
        Running::start(&mut python(dir.path(), SCRIPT, &most)).succeed();
        let hello = "read 5 bytes: ello";
        let expected = [
            block("received 5 bytes: token", &[hello; 2]),
            block("received 5 bytes: token", &[hello; 253]),
        ];
        let length = expected.concat().lines().count();
        let enough = |text: &str| text.lines().count() == length && text.ends_with('\n');
        recv.wait_until(enough);
        assert_eq!(unnumbered(&recv.stop().0), expected.concat());
    }
}

#[test]
fn a_python_receiver_gets_what_send_fd_passes() {
    if lacks("python3") {
        return;
    }
    const SCRIPT: &str = "
import os, socket, sys
kind = sys.argv[1]
s = socket.socket(socket.AF_UNIX, getattr(socket, kind))
s.bind('fd.sock')
if kind == 'SOCK_STREAM': s.listen()
print('ready')
if kind == 'SOCK_STREAM': s, _ = s.accept()
for _ in range(2):
    data, fds, flags, _ = socket.recv_fds(s, 100, 9)
    flags &= ~socket.MSG_CMSG_CLOEXEC
    print(data, flags, [os.read(fd, 100) for fd in fds])
";
    for (kind, name) in [(&[][..], "SOCK_STREAM"), (&["-d"], "SOCK_DGRAM")] {
        let dir = directory();
        fs::write(dir.path().join("other"), "other").unwrap();
        let peer = Running::start(&mut python(dir.path(), SCRIPT, &[name]));
        peer.wait_for_stdout("ready\n");
        send_fd(dir.path(), &[kind, &["hello", "other"]].concat());
        assert_eq!(
            peer.succeed(),
            "ready\nb'*' 0 [b'hello\\n']\nb'*' 0 [b'other']\n"
        );
    }
}

/// The smallest C programs that pass and take one descriptor, with a control buffer for exactly one
/// int.
const C_PEER: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void check(int good, const char *what)
{
    if (!good) { perror(what); exit(1); }
}

/* peer send|recv stream|dgram SOCKET star|number [FILE] */
int main(int argc, char **argv)
{
    int sending = argc == 6 && !strcmp(argv[1], "send");
    int type = !strcmp(argv[2], "dgram") ? SOCK_DGRAM : SOCK_STREAM;
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    strncpy(name.sun_path, argv[3], sizeof name.sun_path - 1);
    int sock = socket(AF_UNIX, type, 0);
    check(sock >= 0, "socket");

    int number = 12345;
    char star = '*';
    int with_number = !strcmp(argv[4], "number");
    struct iovec data = { with_number ? (void *) &number : (void *) &star,
                          with_number ? sizeof number : 1 };
    union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
        .msg_control = control.space, .msg_controllen = sizeof control.space };

    if (sending) {
        int fd = open(argv[5], O_RDONLY);
        check(fd >= 0, "open");
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
        check(!connect(sock, (struct sockaddr *) &name, sizeof name), "connect");
        check(sendmsg(sock, &message, 0) == (ssize_t) data.iov_len, "sendmsg");
        return 0;
    }
    check(!bind(sock, (struct sockaddr *) &name, sizeof name), "bind");
    if (type == SOCK_STREAM) check(!listen(sock, 1), "listen");
    puts("ready");
    fflush(stdout);
    if (type == SOCK_STREAM) check((sock = accept(sock, NULL, NULL)) >= 0, "accept");
    number = star = 0;
    ssize_t length = recvmsg(sock, &message, 0);
    check(length >= 0, "recvmsg");
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    check(head && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(sizeof(int)), "cmsg");
    int fd;
    memcpy(&fd, CMSG_DATA(head), sizeof fd);
    char text[100];
    ssize_t count = read(fd, text, sizeof text);
    check(count >= 0, "read");
    printf("%zd bytes: %d %c flags %d: %.*s", length, with_number ? number : 0,
           with_number ? '-' : star, message.msg_flags, (int) count, text);
    return 0;
}
"#;

#[test]
fn c_programs_on_either_side() {
    if lacks("cc") {
        return;
    }
    let dir = directory();
    let source = dir.path().join("peer.c");
    fs::write(&source, C_PEER).unwrap();
    let compile = ["-Wall", "-Wextra", "-Werror", "-o", "peer", "peer.c"];
    Running::start(Command::new("cc").current_dir(dir.path()).args(compile)).succeed();
    let peer = |arguments: &[&str]| {
        Running::start(
            Command::new("./peer")
                .current_dir(dir.path())
                .args(arguments),
        )
    };
    for (data, options, socket, sent, received) in [
        (
            "star",
            &[][..],
            "fd.sock",
            "received 1 bytes: *",
            "1 bytes: 0 *",
        ),
        (
            "number",
            &["--tlpi"],
            "scm_rights",
            "Received data = 12345",
            "4 bytes: 12345 -",
        ),
    ] {
        for (kind, datagram) in [("stream", &[][..]), ("dgram", &["-d"])] {
            let options = [options, datagram].concat();
            let recv = recv_fd(dir.path(), &options);
            peer(&["send", kind, socket, data, "hello"]).succeed();
            recv.wait_for_stdout("hello\n");
            assert_eq!(
                unnumbered(&recv.stop().0),
                block(sent, &["read 6 bytes: hello"])
            );

            let taker = peer(&["recv", kind, socket, data]);
            taker.wait_for_stdout("ready\n");
            send_fd(dir.path(), &[&options[..], &["hello"]].concat());
            assert_eq!(
                taker.succeed(),
                format!("ready\n{received} flags 0: hello\n")
            );
            fs::remove_file(dir.path().join(socket)).unwrap();
        }
    }
}

#[test]
fn what_is_no_number_costs_a_tlpi_sender_its_connection() {
    for kind in [&[][..], &["-d"]] {
        let dir = directory();
        let arguments = [kind, &["--tlpi"]].concat();
        let recv = recv_fd(dir.path(), &arguments);
        send_fd(
            dir.path(),
            &[kind, &["-f", "scm_rights", "--payload", "abc", "hello"]].concat(),
        );
        recv.wait_for_stderr("cannot understand a message: 3 bytes are not a number");
        send_fd(dir.path(), &[&arguments[..], &["hello"]].concat());
        recv.wait_for_stdout("Received data = 12345\n");
        recv.wait_for_stdout("read 6 bytes: hello\n");
    }
}

#[test]
fn nobody_waits_for_a_silent_sender_or_an_empty_pipe() {
    let dir = directory();
    let socket = dir.path().join("fd.sock");
    let recv = recv_fd(dir.path(), &[]);
    let _silent: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let sender = UnixStream::connect(&socket).unwrap();
    let start = Instant::now();
    let fds = vec![pipe.as_fd(); 20];
    fdpass::send(&sender, &[IoSlice::new(b"pipes")], &fds, Wait::Block).unwrap();
    send_fd(dir.path(), &["hello"]);
    let text = recv.wait_for_stdout("read 6 bytes: hello\n");
    assert!(!text.contains("pipes"), "{text}");
    let text = recv.wait_for_stdout("received 5 bytes: pipes\n");
    assert_eq!(
        text.matches("read: nothing to read yet\n").count(),
        20,
        "{text}"
    );
    // All pipes together have one second. The bound leaves a slow machine its time.
    let took = start.elapsed();
    assert!(
        (Duration::from_secs(1)..Duration::from_secs(15)).contains(&took),
        "{took:?}"
    );
    // The sender's own view of the pipe is as it was: a read of it would still sleep.
    let flags = rustix::fs::fcntl_getfl(&pipe).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn what_cannot_be_read_is_said_and_verbose_says_what_it_is() {
    let dir = directory();
    let recv = recv_fd(dir.path(), &["-v"]);
    let sender = UnixStream::connect(dir.path().join("fd.sock")).unwrap();
    let pass = |fd: &dyn AsFd| {
        fdpass::send(&sender, &[IoSlice::new(b"*")], &[fd.as_fd()], Wait::Block).unwrap();
    };
    let path = |name: &str| fs::canonicalize(dir.path()).unwrap().join(name);
    let hello = path("hello").display().to_string();
    let parent = path("").display().to_string();
    let parent = parent.trim_end_matches('/');

    let mut file = File::open(path("hello")).unwrap();
    file.read_exact(&mut [0; 2]).unwrap();
    pass(&file);
    pass(&File::open(parent).unwrap());
    pass(&File::options().write(true).open(path("hello")).unwrap());
    pass(&File::open("/dev/null").unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(b"tcp").unwrap();
    let (served, client_address) = listener.accept().unwrap();
    pass(&served);
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"piped\0").unwrap();
    pass(&reader);
    let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::empty()).unwrap();
    pass(&event);
    let (mut here, there) = UnixStream::pair().unwrap();
    here.write_all(b"unix").unwrap();
    pass(&there);
    fdpass::send(&sender, &[IoSlice::new(b"a\nb")], &[], Wait::Block).unwrap();
    recv.wait_for_stdout("Received no fd\n");

    let served = listener.local_addr().unwrap();
    let inode = rustix::fs::fstat(&reader).unwrap().st_ino;
    let mut expected = String::new();
    for (what, read) in [
        (
            format!("a regular file, {hello}, open for reading, at offset 2"),
            "read 4 bytes: llo",
        ),
        (
            format!("a directory, {parent}, open for reading, at offset 0"),
            "read: Is a directory",
        ),
        (
            format!("a regular file, {hello}, open for writing, at offset 0"),
            "read: it is open for writing only",
        ),
        (
            "a character device, /dev/null, open for reading".into(),
            "read: eof",
        ),
        (
            format!(
                "a TCP socket, {served} connected to {client_address}, \
                 open for reading and writing"
            ),
            "read 3 bytes: tcp",
        ),
        (
            format!("a pipe, pipe:[{inode}], open for reading"),
            "read 6 bytes: piped\0",
        ),
        (
            "an anonymous file, anon_inode:[eventfd], open for reading and writing".into(),
            "read 8 bytes: \u{1}\0\0\0\0\0\0\0",
        ),
        (
            "a Unix stream socket, (unnamed) connected to (unnamed), \
             open for reading and writing"
                .into(),
            "read 4 bytes: unix",
        ),
    ] {
        if cfg!(target_endian = "big") && what.contains("eventfd") {
            continue;
        }
        expected.push_str(&format!(
            "received 1 bytes: *\nReceived fd N\nfd N is {what}\nreading fd N...\n{read}\n"
        ));
    }
    expected.push_str("received 3 bytes: a\\nb\nReceived no fd\n");
    assert_eq!(unnumbered(&recv.stop().0), expected);
}

#[test]
fn the_socket_is_for_its_owner_from_the_first_moment() {
    let dir = directory();
    for kind in ["", "-d"] {
        // There is no chmod of the path in the program: the mode is the one that bind gave it.
        let mut shell = Command::new("sh");
        let script = "umask 0; exec \"$0\" recv-fd $1";
        shell
            .args(["-c", script, env!("CARGO_BIN_EXE_batond"), kind])
            .current_dir(dir.path());
        let recv = Running::start(&mut shell);
        recv.wait_for_stderr("listening on fd.sock");
        let meta = fs::metadata(dir.path().join("fd.sock")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        recv.stop();
    }
}

#[test]
fn a_socket_that_a_dead_process_left_is_replaced() {
    for left_by in [&[][..], &["-d"]] {
        for kind in [&[][..], &["-d"]] {
            let dir = directory();
            let killed = recv_fd(dir.path(), left_by);
            killed.signal(Signal::KILL);
            assert_eq!(killed.end().0.signal(), Some(9));
            assert!(dir.path().join("fd.sock").exists());
            let error = failure(dir.path(), &["send-fd", "hello"]);
            assert!(error.contains("cannot connect to fd.sock"), "{error}");
            let recv = recv_fd(dir.path(), kind);
            send_fd(dir.path(), &[kind, &["hello"]].concat());
            recv.wait_for_stdout("read 6 bytes: hello\n");
        }
    }
}

#[test]
fn what_is_in_use_or_no_socket_is_left_alone() {
    let dir = directory();
    let recv = recv_fd(dir.path(), &[]);
    let datagram = recv_fd(dir.path(), &["-d", "-f", "datagram"]);
    for (socket, kind) in [("fd.sock", "-d"), ("fd.sock", "-v"), ("datagram", "-d")] {
        let error = failure(dir.path(), &["recv-fd", "-f", socket, kind]);
        assert_eq!(
            error,
            format!("batond: cannot listen on {socket}: another process has this socket open\n")
        );
    }
    // The test for it was no event for those who listen.
    assert_eq!(
        (recv.stop().0, datagram.stop().0),
        (String::new(), String::new())
    );

    let error = failure(dir.path(), &["recv-fd", "-f", "hello"]);
    assert_eq!(
        error,
        "batond: cannot listen on hello: something that is not a socket is in the way\n"
    );
    assert_eq!(fs::read(dir.path().join("hello")).unwrap(), b"hello\n");
    let error = failure(dir.path(), &["recv-fd", "-f", "no/such/place"]);
    assert_eq!(
        error,
        "batond: cannot listen on no/such/place: No such file or directory\n"
    );
    failure(dir.path(), &["recv-fd", "-f", &"x".repeat(200)]);
}

#[test]
fn on_exit_only_its_own_socket_is_removed() {
    let dir = directory();
    let recv = recv_fd(dir.path(), &[]);
    let (socket, other) = (dir.path().join("fd.sock"), dir.path().join("other"));
    let _listener = UnixListener::bind(&other).unwrap();
    let inode = fs::metadata(&other).unwrap().ino();
    fs::rename(&other, &socket).unwrap();
    recv.stop();
    assert_eq!(fs::metadata(&socket).unwrap().ino(), inode);
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let dir = directory();
    let mut recv = batond(dir.path(), &["recv-fd"]);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut recv = {
        let child = recv.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        drop(recv); // and with it the write end of the pipe
        Running {
            name: "recv-fd".into(),
            stdout: Stream::collect(std::io::empty()),
            stderr: Arc::default(),
            child,
        }
    };
    recv.stderr = Stream::collect(recv.child.stderr.take().unwrap());
    recv.wait_for_stderr("listening on ");
    let mut reader = BufReader::new(reader);
    send_fd(dir.path(), &["hello"]);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "received 1 bytes: *\n");
    drop(reader);
    let (status, _, stderr) = recv.end();
    assert!(status.success(), "{status}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(!dir.path().join("fd.sock").exists());
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let dir = directory();
    let mut command = Command::new("sh");
    let script = "exec \"$0\" recv-fd >/dev/full";
    command
        .args(["-c", script, env!("CARGO_BIN_EXE_batond")])
        .current_dir(dir.path());
    let recv = Running::start(&mut command);
    recv.wait_for_stderr("listening on ");
    send_fd(dir.path(), &["hello"]);
    let (status, _, stderr) = recv.end();
    assert_eq!(status.code(), Some(1));
    let last = "\nbatond: cannot write to the standard output: No space left on device\n";
    assert!(stderr.ends_with(last), "{stderr}");
}

#[test]
fn a_terminal_is_shown_no_control_characters_and_a_pipe_gets_all_bytes() {
    if lacks("python3") {
        return;
    }
    // Runs recv-fd with a pseudo-terminal as its output, and copies that to a pipe, byte for byte.
    const SCRIPT: &str = "
import os, subprocess, sys, tty
ours, theirs = os.openpty()
tty.setraw(theirs)
child = subprocess.Popen(sys.argv[1:], stdout=theirs)
os.close(theirs)
try:
    while chunk := os.read(ours, 4096): os.write(1, chunk)
except OSError: pass
sys.exit(child.wait())
";
    let dir = directory();
    let hostile = b"bell\x07 clear\x1b[2J \xc2\x9b raw\x9b";
    fs::write(dir.path().join("hostile"), hostile).unwrap();
    let arguments = [env!("CARGO_BIN_EXE_batond"), "recv-fd", "--once"];
    let terminal = Running::start(&mut python(dir.path(), SCRIPT, &arguments));
    terminal.wait_for_stderr("listening on ");
    send_fd(dir.path(), &["hostile"]);
    let (status, stdout, stderr) = terminal.end();
    assert!(status.success(), "{stderr}");
    let last = "read 23 bytes: bell\\u{7} clear\\u{1b}[2J \\u{9b} raw\\x9b\n";
    assert!(stdout.ends_with(last), "{stdout:?}");

    let recv = recv_fd(dir.path(), &["--once"]);
    send_fd(dir.path(), &["hostile"]);
    let stdout = Arc::clone(&recv.stdout);
    recv.end();
    let bytes = stdout.state.lock().unwrap().0.clone();
    assert!(bytes.ends_with(&[&b"read 23 bytes: "[..], hostile, b"\n"].concat()));
}

#[test]
fn once_is_the_first_sender_or_datagram_and_its_failure() {
    for (kind, count) in [(&[][..], 2), (&["-d"], 1)] {
        let dir = directory();
        let recv = recv_fd(dir.path(), &[kind, &["--once"]].concat());
        send_fd(dir.path(), &[kind, &["hello"; 2][..count]].concat());
        let (status, stdout, _) = recv.end();
        assert!(status.success());
        let expected = block("received 1 bytes: *", &["read 6 bytes: hello"]).repeat(count);
        assert_eq!(unnumbered(&stdout), expected);
    }
    let dir = directory();
    let recv = recv_fd(dir.path(), &["--once", "--tlpi"]);
    send_fd(dir.path(), &["-f", "scm_rights", "hello"]);
    let (status, _, stderr) = recv.end();
    assert_eq!(status.code(), Some(1));
    let last = "\nbatond: cannot understand a message: 1 bytes are not a number\n";
    assert!(stderr.ends_with(last), "{stderr}");
}

#[test]
fn send_fd_says_what_is_wrong_and_sends_nothing_then() {
    let dir = directory();
    assert_eq!(
        failure(dir.path(), &["send-fd", "hello"]),
        "batond: cannot connect to fd.sock: No such file or directory (is recv-fd running?)\n"
    );
    let recv = recv_fd(dir.path(), &[]);
    assert_eq!(
        failure(dir.path(), &["send-fd", "hello", "missing"]),
        "batond: cannot open missing: No such file or directory\n"
    );
    assert_eq!(
        failure(dir.path(), &["send-fd", "-d", "hello"]),
        "batond: cannot connect to fd.sock: Protocol wrong type for socket \
         (only one side was told -d, to use datagrams)\n"
    );
    assert_eq!(recv.stop().0, "");
}

#[test]
fn a_wrong_command_line_is_one_clear_line_and_exit_code_2() {
    let dir = directory();
    for (arguments, first_line) in [
        (
            &["send-fd", "--payload", "", "hello"][..],
            "a value is required for '--payload <TEXT>'",
        ),
        (
            &["send-fd", "--tlpi", "--payload", "x", "hello"],
            "'--payload <TEXT>'",
        ),
        (
            &["send-fd", "-f", "", "hello"],
            "invalid value '' for '--socket <PATH>': a path cannot be empty",
        ),
        (&["recv-fd", "extra"], "unexpected argument 'extra' found"),
        (
            &["serve", "-w", "0"],
            "invalid value '0' for '--workers <N>'",
        ),
        (&["serve", "http"], "http needs the directory"),
        (&["serve", "echo", "x"], "unexpected argument 'x'"),
    ] {
        let (status, stdout, stderr) = Running::start(&mut batond(dir.path(), arguments)).end();
        assert_eq!(
            (status.code(), stdout.as_str()),
            (Some(2), ""),
            "{arguments:?}"
        );
        assert!(
            stderr.lines().next().unwrap().contains(first_line),
            "{stderr}"
        );
    }
}

#[test]
fn a_fifo_without_a_writer_hangs_nobody() {
    let dir = directory();
    let mkfifo = Command::new("mkfifo")
        .arg(dir.path().join("fifo"))
        .status()
        .unwrap();
    assert!(mkfifo.success());
    let recv = recv_fd(dir.path(), &["-v"]);
    send_fd(dir.path(), &["fifo", "hello"]);
    let text = recv.wait_for_stdout("read 6 bytes: hello\n");
    assert!(text.contains(" is a FIFO, "), "{text}");
    assert!(text.contains("\nread: nothing to read yet\n"), "{text}");
}
