//! A file system that does not answer any more (NFS, FUSE) where the server has files of its own:
//! neither clients nor the end of the server wait for it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::harness::process::{self, eventually};
use crate::harness::skip::{lacks, lacks_root, skip};
use crate::harness::{Server, Setup, begin_sleep};

/// A mount namespace in which a file system comes over the directory `x` when the FIFO `hang` is
/// written to. It reads what it is asked, and answers nothing but that it is there (FUSE_INIT).
const HANGING: [&str; 7] = [
    "unshare",
    "-m",
    "--propagation",
    "private",
    "python3",
    "-c",
    "
import ctypes, os, struct, subprocess, sys
server = subprocess.Popen(sys.argv[1:])
os.read(os.open('hang', os.O_RDONLY), 1)
fuse = os.open('/dev/fuse', os.O_RDWR)
options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other'
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b'fuse', b'x', b'fuse', 0, options.encode()) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
request = os.read(fuse, 1 << 20)
unique, = struct.unpack_from('Q', request, 8)
read_ahead, = struct.unpack_from('I', request, 48)
reply = struct.pack('IIIIHHII', 7, 31, read_ahead, 0, 12, 10, 4096, 1) + bytes(32)
os.write(fuse, struct.pack('IiQ', 16 + len(reply), 0, unique) + reply)
open('hung', 'x').close()
sys.exit(server.wait())",
];

/// A server with the directory `x` in its own, where that can come to hang; nothing where this user
/// can't do that.
fn setup(arguments: &[&str]) -> Option<Setup> {
    if lacks("unshare") || lacks("python3") || lacks_root() {
        return None;
    }
    let mut possible = Command::new("unshare");
    possible.args(["-m", "sh", "-c", ": < /dev/fuse"]);
    let possible = possible.stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        skip("this user can't have a FUSE mount of its own");
        return None;
    }
    let setup = Setup::new(arguments).under(&HANGING);
    let at = |name: &str| setup.directory().join(name);
    fs::create_dir(at("x")).expect("a directory");
    mkfifo(&at("hang"), Mode::S_IRWXU).expect("a FIFO");
    Some(setup)
}

/// From now on nothing answers that is asked of the directory.
#[track_caller]
fn hang(server: &Server) {
    // Open for both, it waits for nobody.
    let fifo = server.directory().join("hang");
    let fifo = OpenOptions::new().read(true).write(true).open(fifo);
    let mut fifo = fifo.expect("it is there");
    fifo.write_all(b"x").expect("there is room");
    let hung = server.directory().join("hung");
    eventually("the file system is mounted", || hung.exists());
}

#[test]
fn a_reload_and_a_stop_do_not_wait_for_the_pid_file_and_the_control_socket() {
    let places = ["--pid-file", "x/pid", "--control", "x/control"];
    let Some(setup) = setup(&[&["demo", "-w", "2"], &places[..]].concat()) else {
        return;
    };
    let setup = setup.expect("cannot remove x/pid: no answer within 1 s");
    let setup = setup.expect("cannot remove x/control: no answer within 1 s");
    let mut server = setup.start();
    server.workers(2);
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    hang(&server);
    server.signal(Signal::SIGHUP);
    let children = || process::children(server.master()).0.len();
    eventually("somebody looks for the files", || children() == 3);
    for _ in 0..10 {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(server.stop().success());
    assert_eq!(server.log_lines("cannot remove x/").len(), 2);
}

#[test]
fn a_stop_does_not_wait_for_the_file_of_a_unix_socket() {
    let Some(setup) = setup(&["demo", "-w", "2"]) else {
        return;
    };
    let setup = setup.listen("127.0.0.1:0").listen("unix:x/s.sock");
    let setup = setup.expect("cannot remove x/s.sock: no answer within 1 s");
    let mut server = setup.start();
    let mut client = server.connect();
    begin_sleep(&mut client, 1000, &server.workers(2));
    hang(&server);
    server.signal(Signal::SIGTERM);
    assert_eq!(client.reply().status, 200);
    assert!(server.wait().success());
    server.wait_for_log("cannot remove x/s.sock: no answer within 1 s");
}

#[test]
fn a_reload_can_give_up_a_unix_socket_whose_directory_hangs() {
    let Some(setup) = setup(&[]) else {
        return;
    };
    let pool = |listen: &str| {
        format!("[[pool]]\nservice = 'demo'\nworkers = 2\nlisten = ['127.0.0.1:0'{listen}]\n")
    };
    let setup = setup.file(&pool(", 'unix:x/s.sock'"), 2);
    let setup = setup.expect("cannot remove x/s.sock: no answer within 1 s");
    let server = setup.start();
    let mut client = server.connect();
    assert_eq!(client.get("/").status, 200);
    hang(&server);
    fs::write(server.directory().join("batond.toml"), pool("")).expect("a file");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    assert_eq!(client.get("/").status, 200);
}
