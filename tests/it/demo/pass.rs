//! What is passed, and how it is shown.

use super::*;

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
fn every_kind_of_socket_has_its_name_and_an_empty_datagram_is_no_end() {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let dir = directory();
    let recv = recv_fd(dir.path(), &["-v"]);
    let sender = UnixStream::connect(dir.path().join("fd.sock")).unwrap();
    let pass = |fd: &dyn AsFd| {
        fdpass::send(&sender, &[IoSlice::new(b"*")], &[fd.as_fd()], Wait::Block).unwrap();
    };
    let flags = SocketFlags::CLOEXEC;
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).unwrap();
    pass(&netlink);
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap();
    udp.send_to(b"", address).unwrap();
    pass(&udp);
    let text = recv.wait_for_stdout("read 0 bytes: an empty message\n");
    let (text, read_write) = (unnumbered(&text), "open for reading and writing");
    assert!(
        text.contains(&format!("fd N is a netlink raw socket, {read_write}\n")),
        "{text}"
    );
    assert!(
        text.contains(&format!(
            "fd N is a UDP socket, {address}, not connected, {read_write}\n"
        )),
        "{text}"
    );
}

#[test]
fn both_ends_of_a_pseudo_terminal_are_read() {
    let dir = directory();
    let recv = recv_fd(dir.path(), &[]);
    let sender = UnixStream::connect(dir.path().join("fd.sock")).unwrap();
    let terminal = nix::pty::openpty(None, None).unwrap();
    rustix::io::write(&terminal.slave, b"shown").unwrap();
    rustix::io::write(&terminal.master, b"typed\n").unwrap();
    for (end, text) in [
        (&terminal.master, "read 12 bytes: showntyped\r\n"),
        (&terminal.slave, "read 6 bytes: typed\n"),
    ] {
        fdpass::send(&sender, &[IoSlice::new(b"*")], &[end.as_fd()], Wait::Block).unwrap();
        recv.wait_for_stdout(text);
    }
}
