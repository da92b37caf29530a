//! What could hold recv-fd: senders that are silent, descriptors that do not answer.

use std::net::TcpStream;

use super::*;

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
fn with_once_a_silent_sender_is_not_the_first() {
    let dir = directory();
    let socket = dir.path().join("fd.sock");
    let recv = recv_fd(dir.path(), &["--once"]);
    let gone = UnixStream::connect(&socket).unwrap();
    recv.wait_for_receivers(1);
    drop(gone);
    recv.wait_for_receivers(0);
    let silent = UnixStream::connect(&socket).unwrap();
    send_fd(dir.path(), &["hello"]);
    let (status, stdout, stderr) = recv.end();
    assert!(status.success(), "{stderr}");
    assert!(stdout.ends_with("read 6 bytes: hello\n"), "{stdout}");
    drop(silent);
}

#[test]
fn with_once_a_receiver_that_dies_in_the_middle_is_a_failure() {
    let dir = directory();
    let recv = recv_fd(dir.path(), &["--once"]);
    let sender = UnixStream::connect(dir.path().join("fd.sock")).unwrap();
    let receiver = recv.wait_for_receivers(1)[0];
    // It is stopped until no other process has the socket, whose close is what it then sleeps in.
    kill_process(receiver, Signal::STOP).unwrap();
    let (client, _silent) = lingering();
    let data = [IoSlice::new(b"lingers")];
    fdpass::send(&sender, &data, &[client.as_fd()], Wait::Block).unwrap();
    drop(client);
    kill_process(receiver, Signal::CONT).unwrap();
    recv.wait_for_stdout("read: nothing to read yet\n");
    kill_process(receiver, Signal::KILL).unwrap();
    let (status, _, stderr) = recv.end();
    assert_eq!(status.code(), Some(1), "{stderr}");
    let own = std::process::id();
    let last = format!(
        "\nbatond: cannot finish with a message from process {own}: \
         the process that received it died\n"
    );
    assert!(stderr.ends_with(&last), "{stderr}");
}

#[test]
fn the_sender_that_was_silent_longest_gives_way() {
    const MOST: usize = 256;
    let dir = directory();
    let socket = dir.path().join("fd.sock");
    let recv = recv_fd(dir.path(), &[]);
    let file = File::open(dir.path().join("hello")).unwrap();
    let mut silent: Vec<_> = (0..MOST)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    // All are connected once the last one was served.
    let last = silent.last().unwrap();
    fdpass::send(last, &[IoSlice::new(b"last")], &[file.as_fd()], Wait::Block).unwrap();
    recv.wait_for_stdout("read 6 bytes: hello\n");
    fs::write(dir.path().join("more"), "more\n").unwrap();
    send_fd(dir.path(), &["more"]);
    recv.wait_for_stdout("read 5 bytes: more\n");
    recv.wait_for_stderr("to make room: 256 senders are connected");
    let first = silent.remove(0);
    first.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(
        (&first).read(&mut [0; 1]).unwrap(),
        0,
        "the first one was let go"
    );
    recv.stop();
}

#[test]
fn a_terminal_of_another_process_group_does_not_stop_recv_fd() {
    if lacks("python3") {
        return;
    }
    // In a session of its own, with a terminal: recv-fd runs in the background, and is passed the
    // terminal, on which something was typed.
    const SCRIPT: &str = "
import os, pty, subprocess, sys
batond, directory = sys.argv[1:]
child, terminal = pty.fork()
if child == 0:
    out = int(os.environ['OUT'])
    recv = subprocess.Popen([batond, 'recv-fd', '--once', '-v'], cwd=directory, stdin=-3,
                            stdout=out, stderr=subprocess.PIPE, preexec_fn=os.setpgrp)
    while b'listening' not in recv.stderr.readline(): pass
    os.read(0, 1)
    subprocess.run([batond, 'send-fd', '-'], cwd=directory, check=True)
    os._exit(recv.wait())
os.close(int(os.environ['OUT']))
os.write(terminal, b'typed\\nand more\\n')
try:
    while os.read(terminal, 1000): pass
except OSError: pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
";
    let dir = directory();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut script = python(
        dir.path(),
        SCRIPT,
        &[
            env!("CARGO_BIN_EXE_batond"),
            &dir.path().display().to_string(),
        ],
    );
    let writer = std::os::fd::OwnedFd::from(writer);
    script.env("OUT", "3");
    command_fds::CommandFdExt::fd_mappings(
        &mut script,
        vec![command_fds::FdMapping {
            parent_fd: writer,
            child_fd: 3,
        }],
    )
    .unwrap();
    let running = Running::start(&mut script);
    drop(script);
    let shown = Stream::collect(reader);
    let text = shown.wait(|text| text.contains("\nread: "));
    let text = text.unwrap_or_else(|| panic!("no answer: {}{running}", shown.text()));
    assert!(text.contains(" is a character device, /dev/pts/"), "{text}");
    let why = "read: it is a terminal whose foreground is process group ";
    assert!(text.contains(why), "{text}");
    let (status, ..) = running.end();
    assert!(status.success(), "{status}");
}

/// A file system that answers everything but reads, and a sender that passes a file of it.
const FUSE: &str = "
import ctypes, os, socket, struct, sys, threading
directory, kind, path = sys.argv[1:]
fuse = os.open('/dev/fuse', os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}'
if libc.mount(b'test', directory.encode(), b'fuse', 0, options.encode()):
    sys.exit('mount: ' + os.strerror(ctypes.get_errno()))

def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100644, 10)
    return struct.pack('=6Q10I', node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

def serve():
    while True:
        request = os.read(fuse, 1 << 20)
        _, operation, unique, node = struct.unpack_from('=IIQQ', request)
        error, reply = 0, b''
        if operation == 26:
            reply = struct.pack('=IIIIHHII36x', 7, 31, 65536, 0, 0, 0, 65536, 0)[:64]
        elif operation == 1: reply = struct.pack('=QQQQII', 2, 0, 60, 60, 0, 0) + attributes(2)
        elif operation == 3: reply = struct.pack('=QII', 60, 0, 0) + attributes(node)
        elif operation == 14: reply = struct.pack('=QII', 1, 1, 0)
        elif operation in (2, 15, 36, 42): # FORGET, READ, INTERRUPT: no answer
            if operation == 15: os.write(1, b'read\\n')
            continue
        else: error = -38
        os.write(fuse, struct.pack('=IiQ', 16 + len(reply), error, unique) + reply)

threading.Thread(target=serve, daemon=True).start()
file = os.open(directory + '/file', os.O_RDONLY)
s = socket.socket(socket.AF_UNIX, getattr(socket, kind))
s.connect(path)
socket.send_fds(s, [b'stuck'], [file])
os.close(file) # while somebody answers
os.write(1, b'passed\\n') # at once, for two threads write
sys.stdin.read()
libc.umount2(directory.encode(), 3) # MNT_FORCE | MNT_DETACH: what waits for an answer gets an error
os._exit(0)
";

#[test]
fn a_file_system_that_does_not_answer_holds_nobody_and_no_end() {
    if lacks_root() || lacks("python3") || lacks("unshare") {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        return skip("/dev/fuse is not there");
    }
    for (kind, name) in [(&[][..], "SOCK_STREAM"), (&["-d"], "SOCK_DGRAM")] {
        let dir = directory();
        fs::create_dir(dir.path().join("mount")).unwrap();
        let recv = recv_fd(dir.path(), kind);
        // A mount in a namespace of its own goes with its last process.
        let mut fuse = Command::new("unshare");
        let (input, keep) = std::io::pipe().unwrap();
        fuse.args([
            "--mount",
            "--propagation",
            "private",
            "python3",
            "-u",
            "-c",
            FUSE,
        ])
        .args(["mount", name, "fd.sock"])
        .current_dir(dir.path())
        .stdin(input);
        let fuse = Running::start(&mut fuse);
        fuse.wait_for_stdout("passed\n");
        fuse.wait_for_stdout("read\n");
        send_fd(dir.path(), &[kind, &["hello"]].concat());
        recv.wait_for_stdout("read 6 bytes: hello\n");
        let text = recv.wait_for_stdout("received 5 bytes: stuck\n");
        let expected = block(
            "received 5 bytes: stuck",
            &["read: no answer for 5 seconds"],
        );
        let text = match text.contains("read: no answer") {
            true => text,
            false => recv.wait_for_stdout("read: no answer for 5 seconds\n"),
        };
        assert!(unnumbered(&text).contains(&expected), "{text}");
        recv.wait_for_stderr(": a call did not return within 5 seconds; gave up");
        // Its receiver cannot be killed as long as the file system is there.
        recv.stop();
        drop(keep);
        fuse.end();
    }
}

/// A socket whose last close sleeps, and the other side, which reads nothing.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (silent, _) = listener.accept().unwrap();
    let linger = Some(Duration::from_secs(60));
    rustix::net::sockopt::set_socket_linger(&client, linger).unwrap();
    // More than the other side has room for: to close the last descriptor waits for the rest.
    client.set_nonblocking(true).unwrap();
    while (&client).write(&[0; 65536]).is_ok() {}
    (client, silent)
}

#[test]
fn a_socket_that_lingers_when_it_is_closed_holds_nobody() {
    let dir = directory();
    let recv = recv_fd(dir.path(), &["-d"]);
    let (client, _silent) = lingering();
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    socket.connect(dir.path().join("fd.sock")).unwrap();
    let data = [IoSlice::new(b"lingers")];
    fdpass::send(&socket, &data, &[client.as_fd()], Wait::Block).unwrap();
    drop(client);
    recv.wait_for_stdout("read: nothing to read yet\n");
    send_fd(dir.path(), &["-d", "hello"]);
    recv.wait_for_stderr("cannot close what came with a message: a call did not return");
    recv.wait_for_stdout("read 6 bytes: hello\n");
}

#[test]
fn a_sender_that_never_stops_keeps_nobody_from_being_served() {
    let dir = directory();
    fs::write(dir.path().join("more"), "more\n").unwrap();
    let recv = recv_fd(dir.path(), &[]);
    let sender = UnixStream::connect(dir.path().join("fd.sock")).unwrap();
    let file = File::open(dir.path().join("hello")).unwrap();
    let flood = thread::spawn(move || {
        let data = [IoSlice::new(b"flood")];
        while fdpass::send(&sender, &data, &[file.as_fd()], Wait::Block).is_ok() {}
    });
    recv.wait_for_stdout("received 5 bytes: flood\n");
    send_fd(dir.path(), &["more"]);
    recv.wait_for_stdout("read 5 bytes: more\n");
    recv.stop();
    flood.join().unwrap();
}
