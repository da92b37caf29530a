//! Programs in C and in Python on the other side.

use super::*;

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
