//! What the user is told when it does not work.

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::*;

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
         (it is not a datagram socket; leave out -d)\n"
    );
    assert_eq!(recv.stop().0, "");
}

#[test]
fn what_is_at_the_path_instead_of_a_receiver_is_named() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    let mkfifo = Command::new("mkfifo").arg(at("fifo")).status().unwrap();
    assert!(mkfifo.success());
    std::os::unix::fs::symlink("gone", at("link")).unwrap();
    drop(UnixListener::bind(at("dead")).unwrap());
    let [bound, _datagram, _packets] = [
        ("bound", SocketType::STREAM),
        ("datagram", SocketType::DGRAM),
        ("packets", SocketType::SEQPACKET),
    ]
    .map(|(name, kind)| {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
        let address = rustix::net::SocketAddrUnix::new(at(name)).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        socket
    });

    let no_socket = "Connection refused (it is";
    for (path, cause) in [
        (
            "hello",
            &*format!("{no_socket} a regular file, not a socket)"),
        ),
        ("dir", &*format!("{no_socket} a directory, not a socket)")),
        ("fifo", &*format!("{no_socket} a FIFO, not a socket)")),
        (
            "link",
            "No such file or directory (it is a symbolic link to gone, which is not there)",
        ),
        (
            "no/such/fd.sock",
            "No such file or directory (there is no directory no/such)",
        ),
        (
            "dead",
            "Connection refused (no process has this socket open; start recv-fd)",
        ),
        (
            "bound",
            "Connection refused (a process has it open, but does not listen on it)",
        ),
        (
            "datagram",
            "Protocol wrong type for socket (it is a datagram socket; add -d)",
        ),
        (
            "packets",
            "Protocol wrong type for socket \
             (it is a SEQPACKET socket, which send-fd does not speak with)",
        ),
    ] {
        assert_eq!(
            failure(dir.path(), &["send-fd", "-f", path, "hello"]),
            format!("batond: cannot connect to {path}: {cause}\n")
        );
    }
    // It was looked at, and that was no event: a stream socket that listens now has nobody waiting.
    rustix::net::listen(&bound, 1).unwrap();
    let mut listener = [PollFd::new(&bound, PollFlags::IN)];
    let none = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut listener, Some(&none)).unwrap(), 0);
}

/// The time that a text says to have been waited for.
fn seconds_in(text: &str) -> u64 {
    let (before, _) = text
        .split_once(" seconds")
        .expect("it says how long it waited");
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_time_that_send_fd_says_to_have_waited_is_the_time_that_it_waited() {
    let dir = directory();
    let listen = |name: &str, backlog| {
        let flags = SocketFlags::CLOEXEC;
        let kind = SocketType::STREAM;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
        let path = dir.path().join(name);
        let address = rustix::net::SocketAddrUnix::new(path).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, backlog).unwrap();
        socket
    };
    // One that accepts nobody and has no room for one more, and one that reads nothing.
    let _full = listen("full", 0);
    let _waiting = UnixStream::connect(dir.path().join("full")).unwrap();
    let _deaf = listen("deaf", 8);
    let payload = "x".repeat(120_000);
    let start = Instant::now();
    let senders = [
        (
            batond(dir.path(), &["send-fd", "-f", "full", "hello"]),
            "cannot connect to full: the receiver accepted no connection for ",
        ),
        (
            batond(
                dir.path(),
                &[
                    "send-fd",
                    "-f",
                    "deaf",
                    "--payload",
                    &payload,
                    "hello",
                    "hello",
                    "hello",
                ],
            ),
            "the receiver took nothing for ",
        ),
    ]
    .map(|(mut command, expected)| (Running::start(&mut command), expected));
    for (sender, expected) in senders {
        let pidfd = pidfd_open(sender.pid(), PidfdFlags::empty()).unwrap();
        let time = Timespec {
            tv_sec: DEADLINE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time)).unwrap(),
            1
        );
        let took = start.elapsed();
        let (status, _, stderr) = sender.end();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
        let said = Duration::from_secs(seconds_in(&stderr));
        // What is above is for a busy machine.
        assert!(
            (said..said + Duration::from_secs(6)).contains(&took),
            "{took:?}: {stderr}"
        );
    }
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
