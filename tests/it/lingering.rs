//! What a worker does to the descriptors that it is lent, or sends, holds up nobody.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::skip::{lacks, skip};
use crate::harness::{Server, Setup, Worker, eventually, open_descriptors};

/// Takes copies of the descriptors of a process, and does to its sockets what a service in it could
/// do. `linger`: has TCP connections linger. `send`: sends one that lingers, with bytes that nobody
/// reads, through the inbox to the master.
const MEDDLE: &str = r#"
import array, ctypes, os, socket, struct, sys
what, pid = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
process = os.pidfd_open(pid)
linger = struct.pack("ii", 1, 20)
found = 0
for number in map(int, os.listdir(f"/proc/{pid}/fd")):
    copy = libc.syscall(438, process, number, 0)
    if copy < 0:
        continue
    try:
        one = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        continue
    if what == "linger" and one.family == socket.AF_INET:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        found += 1
    if what == "send" and one.type == socket.SOCK_SEQPACKET and found == 0:
        found = 1
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        server.setblocking(False)
        try:
            while True: server.send(b"x" * 65536)
        except BlockingIOError:
            pass
        server.setblocking(True)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        rights = array.array("i", [server.fileno()])
        try:
            one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            # The last copy is on its way.
            server.close()
        except PermissionError:
            print("refused")
        print("sent", flush=True)
        # The client neither reads nor ends.
        sys.stdin.read()
print("found", found, flush=True)
# At an exit nothing lingers.
os._exit(0)
"#;

/// Whether this user may take copies of another process's descriptors.
#[track_caller]
fn may_meddle(directory: &Path) -> bool {
    if lacks("python3") {
        return false;
    }
    let pid = std::process::id().to_string();
    let status = Command::new("python3")
        .args(["-c", MEDDLE, "none", &pid])
        .current_dir(directory)
        .output();
    let may = status.is_ok_and(|output| output.status.success());
    if !may {
        skip("this user may not take descriptors of another process");
    }
    may
}

/// A request is answered sooner than a connection that lingers would let it.
#[track_caller]
fn assert_served(server: &Server, path: &str) {
    let asked = Instant::now();
    assert_eq!(server.get(path).status, 200);
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_worker_that_has_its_connections_linger() {
    let arguments = [
        "http",
        ".",
        "-w",
        "2",
        "--client-timeout",
        "1",
        "--linger-total",
        "2",
        "--max-spool",
        "0",
    ];
    let setup = Setup::new(&arguments);
    if !may_meddle(setup.directory()) {
        return;
    }
    let big = File::create(setup.directory().join("big")).expect("a file");
    big.set_len(1 << 28).expect("it may be so long");
    std::fs::write(setup.directory().join("small"), "x").expect("a file");
    let server = setup.start();
    let workers = server.workers(2);
    let before = open_descriptors(server.master()).len();
    let mut stuck = server.connect();
    stuck.send_get("/big");
    let meddle = |worker: &Worker| {
        let output = Command::new("python3")
            .args(["-c", MEDDLE, "linger", &worker.pid.to_string()])
            .output()
            .expect("python3 is there");
        String::from_utf8_lossy(&output.stdout).contains("found 1")
    };
    // A worker waits for its client for a second, and is in the turn for so long.
    eventually("a worker's connection lingers", || {
        workers.iter().any(meddle)
    });
    // The worker gives the turn up after a second, and the master closes what lingers two later.
    eventually("the master has closed it", || {
        assert_served(&server, "/small");
        open_descriptors(server.master()).len() == before
    });
}

#[test]
fn a_worker_that_sends_a_descriptor() {
    let setup = Setup::new(&["demo", "-w", "2"]);
    if !may_meddle(setup.directory()) {
        return;
    }
    let mut server = setup.expect(" died ").start();
    let [worker, _] = server.workers(2)[..] else {
        unreachable!("two were asked for")
    };
    let mut command = Command::new("python3");
    command.args(["-c", MEDDLE, "send", &worker.pid.to_string()]);
    command.stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped());
    let mut meddler = command.spawn().expect("python3 is there");
    let mut output = std::io::BufReader::new(meddler.stdout.take().expect("it is piped"));
    let mut line = String::new();
    while !line.contains("sent") {
        line.clear();
        let count = std::io::BufRead::read_line(&mut output, &mut line).expect("it says so");
        assert!(count > 0, "it has sent something");
    }
    // A worker that has a message in its inbox is looked at when it rings, or has died.
    server.signal(Signal::SIGTTIN);
    nix::sys::signal::kill(worker.pid, Signal::SIGKILL).expect("it is there");
    // The inbox is closed with what lies in it before a successor is started; there are three now.
    eventually("the worker has a successor", || {
        assert_served(&server, "/");
        server.log_lines("worker ready").len() == 4
    });
    assert!(server.stop().success());
    drop(meddler.stdin.take());
    meddler.wait().expect("it ends");
}
