//! The socket's path: its mode, what is in the way, what is removed.

use super::*;

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
        "batond: cannot listen on hello: something that is not a socket is in the way: \
         a regular file\n"
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
