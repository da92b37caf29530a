//! Workers gone wild: what they send is not taken, and whatever closing it takes, the master goes
//! on. The test sends it in a worker's name.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::harness::client::Served;
use crate::harness::skip::{lacks, lacks_root, skip};
use crate::harness::{Server, Setup, Worker, eventually, open_descriptors, process};

/// Sends a message with descriptors in the name of a worker: `speak(pid, message, descriptors)`.
const SPEAK: &str = "
import array, ctypes, os, socket, struct, sys
def take(pid, kind):
    links = [(int(fd), os.readlink(f'/proc/{pid}/fd/{fd}')) for fd in os.listdir(f'/proc/{pid}/fd')]
    theirs = min(fd for fd, link in links if link.startswith(kind))
    pidfd_getfd = 438
    ours = ctypes.CDLL(None).syscall(pidfd_getfd, os.pidfd_open(pid), theirs, 0)
    if ours < 0:
        sys.exit(3)
    return ours
def speak(pid, message, descriptors):
    inbox, doorbell = take(pid, 'socket:'), take(pid, 'anon_inode:[eventfd]')
    rights = array.array('i', descriptors)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
    socket.socket(fileno=inbox).sendmsg([message], rights)
    os.eventfd_write(doorbell, 1)
";

/// What a worker may send instead of luggage, in the words of Python.
const KINDS: [(&str, &str); 10] = [
    ("a pipe", "d = [os.pipe()[0]]"),
    ("a directory", "d = [os.open('/', os.O_RDONLY)]"),
    ("a device", "d = [os.open('/dev/zero', os.O_RDWR)]"),
    ("a path", "d = [os.open('/etc/passwd', os.O_PATH)]"),
    ("a process", "d = [os.pidfd_open(os.getpid())]"),
    (
        "a file of /proc",
        "d = [os.open('/proc/self/stat', os.O_RDONLY)]",
    ),
    (
        "two memory files",
        "d = [os.memfd_create('x') for _ in range(2)]",
    ),
    ("nothing", "d = []"),
    (
        "a socket that close(2) sleeps on",
        "s = slow(); d = [s.fileno()]",
    ),
    (
        "as many of those as it can",
        "s = slow(); d = [os.dup(s.fileno()) for _ in range(253)]",
    ),
];

/// A socket that is closed only when the other end has read all, or after 30 s.
const SLOW: &str = "
def slow():
    listener = socket.create_server(('127.0.0.1', 0))
    slow = socket.create_connection(listener.getsockname())
    global reader
    reader = listener.accept()[0]
    slow.setblocking(False)
    try:
        while True:
            slow.send(bytes(65536))
    except BlockingIOError:
        pass
    slow.setblocking(True)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 30))
    return slow
";

/// While this one stays, its ends of sockets stay open.
const STAY: &str = "
os.write(1, b'.')
sys.stdin.read()
os._exit(0)
";

/// Clients of the other worker are served as fast as ever.
#[track_caller]
fn assert_served(server: &Server, what: &str) {
    let begin = Instant::now();
    for _ in 0..20 {
        assert_eq!(server.get("/").status, 200, "{what}");
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "{what}: {took:?}");
}

/// A worker whose death is no early one, so that another one follows at once.
#[track_caller]
fn one_that_has_served(server: &Server) -> Worker {
    let workers = server.workers(2);
    loop {
        let served = Served::of(&server.get("/"));
        let worker = workers.iter().find(|one| one.pid.as_raw() == served.worker);
        if served.request > 2 {
            return *worker.expect("one of them has answered");
        }
    }
}

#[track_caller]
fn assert_killed(server: &Server, rogue: Worker, what: &str) {
    let died = format!(
        "worker died slot={} pid={}: killed by SIGKILL",
        rogue.slot, rogue.pid
    );
    eventually(&format!("who sends {what} is killed"), || {
        server.log_contains(&died)
    });
}

#[test]
fn a_worker_that_sends_what_is_no_luggage_is_killed_and_holds_nobody_up() {
    if lacks("python3") {
        return;
    }
    let setup = Setup::new(&["demo", "-w", "2"]).expect("broke the protocol");
    let server = setup.expect(" died ").start();
    server.workers(2);
    let before = open_descriptors(server.master()).len();
    for (what, kind) in KINDS {
        let rogue = one_that_has_served(&server);
        let speak = format!("speak({}, b'PARK 7 0 0 luggage\\n', d)", rogue.pid);
        let script = [SPEAK, SLOW, kind, "\n", &speak, STAY].concat();
        let mut speaker = Command::new("python3")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let said = speaker.stdout.as_mut().expect("it is piped");
        if std::io::Read::read(said, &mut [0; 1]).expect("it can be read") == 0 {
            let status = speaker.wait().expect("it has ended");
            assert_eq!(status.code(), Some(3), "{what}: {status}");
            return skip("this user may not take a descriptor of another process (ptrace(2))");
        }
        assert_served(&server, what);
        assert_killed(&server, rogue, what);
        drop(speaker.stdin.take());
        assert!(speaker.wait().expect("it ends").success());
        server.replacement(rogue);
    }
    assert_eq!(server.log_lines("broke the protocol").len(), KINDS.len());
    // Who closed it has ended, too.
    server.workers(2);
    eventually("nothing of it is left", || {
        open_descriptors(server.master()).len() == before
    });
}

/// The server in a mount namespace in which a file system comes over the directory `x` when the
/// FIFO `go` has the pid of a worker. In the worker's name it sends the file `x/file`. From then on
/// the process behind that file system answers nothing, and notes what it is asked. It ends when
/// the FIFO is written to again, because whoever sleeps in it could not.
const HANGING_FILE: &str = "
import signal, subprocess
server = subprocess.Popen(sys.argv[1:])
go = os.open('go', os.O_RDONLY)
pid = int(os.read(go, 100))
fuse = os.open('/dev/fuse', os.O_RDWR)
options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other'
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b'fuse', b'x', b'fuse', 0, options.encode()) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
times = (0, 0, 0, 0, 0, 0)
attributes = struct.pack('QQQQQQIIIIIIIIII', 2, 9, 8, *times, 0o100644, 1, 0, 0, 0, 512, 0)
entry = struct.pack('QQQQII', 2, 0, 100, 100, 0, 0) + attributes
answers = {1: entry, 14: struct.pack('QII', 7, 0, 0)}  # FUSE_LOOKUP, FUSE_OPEN
def answer():
    while True:
        request = os.read(fuse, 1 << 20)
        length, kind, unique = struct.unpack_from('IIQ', request)
        if kind == 26:  # FUSE_INIT
            ahead, = struct.unpack_from('I', request, 48)
            reply = struct.pack('IIIIHHII', 7, 31, ahead, 0, 12, 10, 4096, 1) + bytes(32)
        elif kind in answers:
            reply = answers[kind]
        else:
            open('asked', 'a').write(f'{kind}\\n')
            continue
        os.write(fuse, struct.pack('IiQ', 16 + len(reply), 0, unique) + reply)
daemon = os.fork()
if daemon == 0:
    answer()
os.close(fuse)
speak(pid, b'PARK 7 0 0 luggage\\n', [os.open('x/file', os.O_RDONLY)])
os.read(go, 1)
os.kill(daemon, signal.SIGKILL)
os.waitpid(daemon, 0)
os._exit(server.wait())
";

/// FUSE_FLUSH, with which close(2) begins.
const FLUSH: &str = "25";

#[test]
fn a_file_of_a_file_system_that_does_not_answer_holds_nobody_up() {
    if lacks("unshare") || lacks("python3") || lacks_root() {
        return;
    }
    let mut possible = Command::new("unshare");
    possible.args(["-m", "sh", "-c", ": < /dev/fuse"]);
    let possible = possible.stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        return skip("this user can't have a FUSE mount of its own");
    }
    let script = [SPEAK, HANGING_FILE].concat();
    let in_namespace = ["unshare", "-m", "--propagation", "private", "python3", "-c"];
    let setup = Setup::new(&["demo", "-w", "2"]).expect("broke the protocol");
    let setup = setup
        .expect(" died ")
        .under(&[&in_namespace[..], &[&script]].concat());
    let at = |name: &str| setup.directory().join(name);
    std::fs::create_dir(at("x")).expect("a directory");
    mkfifo(&at("go"), Mode::S_IRWXU).expect("a FIFO");
    let server = setup.start();
    let rogue = one_that_has_served(&server);
    // Open for both, it waits for nobody.
    let go = server.directory().join("go");
    let mut go = OpenOptions::new()
        .read(true)
        .write(true)
        .open(go)
        .expect("it is there");
    write!(go, "{}", rogue.pid).expect("there is room");
    assert_killed(&server, rogue, "a file that hangs");
    let line = server.wait_for_log("broke the protocol");
    assert!(
        line.contains("neither a memory file nor a plain file"),
        "{line}"
    );
    let asked = server.directory().join("asked");
    eventually("somebody closes the file", || {
        std::fs::read_to_string(&asked).is_ok_and(|asked| asked.lines().any(|one| one == FLUSH))
    });
    // Whoever it is sleeps in that.
    assert_served(&server, "a file that hangs");
    server.replacement(rogue);
    assert_eq!(process::children(server.master()).0.len(), 3);
    write!(go, ".").expect("there is room");
    server.workers(2);
}
