//! Where recv-fd writes: a reader that goes, a full disk, a terminal.

use super::*;

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
fn a_reader_that_has_stopped_reading_does_not_keep_it_from_ending() {
    let dir = directory();
    let mut command = batond(dir.path(), &["recv-fd"]);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = command
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(command);
    let recv = Running {
        name: "recv-fd".into(),
        stdout: Stream::collect(std::io::empty()),
        stderr: Stream::collect(child.stderr.take().unwrap()),
        child,
    };
    recv.wait_for_stderr("listening on ");
    let payload = "x".repeat(100_000);
    send_fd(dir.path(), &["--payload", &payload, "hello"]);
    // The pipe is full when it has taken what it can.
    let mut pipe = [PollFd::new(&reader, PollFlags::IN)];
    assert_eq!(poll(&mut pipe, None).unwrap(), 1);
    recv.stop();
    drop(reader);
}
