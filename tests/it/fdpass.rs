//! What happens to descriptors at the limits, which belong to a process: so a process of its own
//! meets them.

use std::fs;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use batond::fdpass::{self, Wait};
use rustix::process::Pid;

use crate::demo::{Running, directory, recv_fd};
use crate::harness::skip::lacks;

fn limited(dir: &Path, files: u32, arguments: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_batond")]);
    shell
        .args(arguments)
        .current_dir(dir)
        .env_remove("RUST_LOG");
    shell
}

/// How many descriptors are open in recv-fd and its receivers.
fn open_files(process: &Running) -> usize {
    let receivers = process.receivers().into_iter().map(open_in);
    open_in(process.pid()) + receivers.sum::<usize>()
}

/// How many descriptors are open in one process; none if it has just ended.
fn open_in(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Waits until the process has this many open files again; it may still be closing some.
#[track_caller]
fn wait_for_open_files(process: &Running, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while open_files(process) != count {
        let now = open_files(process);
        assert!(
            Instant::now() < deadline,
            "{now} open files, not {count}: {process}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_receiver_at_its_limit_says_so_closes_what_came_and_goes_on() {
    for kind in [&[][..], &["-d"]] {
        let dir = directory();
        let recv = Running::start(&mut limited(dir.path(), 40, &[&["recv-fd"], kind].concat()));
        recv.wait_for_stderr("listening on ");
        // Datagrams have a receiver from the start, with the three standard descriptors, the
        // socket, and the way to report.
        let receiver = if kind.is_empty() { 0 } else { 5 };
        let before = open_in(recv.pid()) + receiver;

        let file = fs::File::open(dir.path().join("hello")).unwrap();
        let path = dir.path().join("fd.sock");
        for (round, count) in [39, 253, 100].into_iter().enumerate() {
            pass(&path, kind.is_empty(), &vec![file.as_fd(); count]);
            let cause = "this process is at its limit of open files, see ulimit -n";
            let text = recv.wait_for_stderr_times(cause, round + 1);
            assert!(text.contains("cannot receive a message"), "{text}");
        }
        pass(&path, kind.is_empty(), &[file.as_fd()]);
        recv.wait_for_stdout("read 6 bytes: hello\n");
        wait_for_open_files(&recv, before);
        let (stdout, stderr) = recv.stop();
        assert_eq!(stdout.matches("received ").count(), 1, "{stdout}");
        assert_eq!(
            stderr.matches("descriptors were lost on arrival").count(),
            3,
            "{stderr}"
        );
    }
}

fn pass(path: &Path, stream: bool, descriptors: &[std::os::fd::BorrowedFd<'_>]) {
    let data = &[IoSlice::new(b"*")];
    if stream {
        let socket = UnixStream::connect(path).unwrap();
        fdpass::send(&socket, data, descriptors, Wait::Block).unwrap();
    } else {
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        socket.connect(path).unwrap();
        fdpass::send(&socket, data, descriptors, Wait::Block).unwrap();
    }
}

#[test]
fn a_receiver_keeps_nothing_open() {
    let dir = directory();
    let recv = recv_fd(dir.path(), &[]);
    let before = open_files(&recv);
    let file = fs::File::open(dir.path().join("hello")).unwrap();
    for round in 0..50 {
        pass(
            &dir.path().join("fd.sock"),
            true,
            &vec![file.as_fd(); round * 5],
        );
    }
    drop(file);
    let seen = |text: &str| text.matches("received 1 bytes: *\n").count();
    recv.wait_until(|text| seen(text) == 50);
    wait_for_open_files(&recv, before);
}

#[test]
fn a_sender_with_too_many_in_flight_is_told_what_to_do() {
    let dir = directory();
    // It listens, and that is all: whatever is sent stays in flight.
    let _listener = UnixListener::bind(dir.path().join("fd.sock")).unwrap();
    let files = ["hello"; 60];
    // Files are opened before the first is sent, so the limit has to be above their number: lower
    // it in between by passing the same ones from many processes, each of which holds few.
    let batch = [&["send-fd"], &files[..10]].concat();
    let mut command = limited(dir.path(), 24, &batch);
    if rustix::process::geteuid().is_root() {
        if lacks("setpriv") {
            return;
        }
        // The kernel lets whoever has one of these capabilities exceed the limit.
        let mut unprivileged = Command::new("setpriv");
        unprivileged
            .args(["--bounding-set", "-sys_resource,-sys_admin"])
            .args(["--inh-caps", "-sys_resource,-sys_admin"])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(dir.path());
        command = unprivileged;
    }
    for _ in 0..6 {
        let (status, _, stderr) = Running::start(&mut command).end();
        if !status.success() {
            assert_eq!(status.code(), Some(1), "{stderr}");
            let expected = "batond: cannot pass hello on fd.sock: more descriptors are on their \
                            way than the open-files limit allows; wait for the receiver, or raise \
                            ulimit -n\n";
            assert_eq!(stderr, expected);
            return;
        }
    }
    panic!("60 descriptors in flight exceed no limit of 24");
}
