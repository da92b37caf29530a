//! docs/fd-passing.md: its programs are compiled and run as they stand there, and what its tables
//! say is tried.

use super::*;
use crate::harness::skip::skip_for_the_kernel;

/// The code block of this language in the page.
fn code(language: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fd-passing.md");
    let page = fs::read_to_string(page).unwrap();
    let start = format!("\n```{language}\n");
    let mut blocks = page.split(&start).skip(1);
    let block = blocks.next().expect("the page has such code");
    assert!(
        blocks.next().is_none(),
        "the page has one program in {language}"
    );
    let (block, _) = block.split_once("\n```\n").expect("the block ends");
    format!("{block}\n")
}

#[test]
fn the_rust_program_of_the_page_is_the_example() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/pass_fd.rs");
    assert_eq!(code("rust"), fs::read_to_string(example).unwrap());
}

#[test]
fn the_programs_of_the_page_speak_with_each_other_and_with_the_commands() {
    let dir = directory();
    fs::write(dir.path().join("pass.c"), code("c")).unwrap();
    if lacks("cc") {
        return;
    }
    let compile = [
        "-D_GNU_SOURCE",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        "pass",
        "pass.c",
    ];
    Running::start(Command::new("cc").current_dir(dir.path()).args(compile)).succeed();
    let in_c = dir.path().join("pass");
    let in_rust = crate::harness::example("pass_fd");
    let run = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        Running::start(command.current_dir(dir.path()).args(arguments))
    };

    let recv = recv_fd(dir.path(), &[]);
    for program in [&in_c, &in_rust] {
        run(program, &["send", "fd.sock", "hello"]).succeed();
    }
    recv.wait_until(|text| text.matches("read 6 bytes: hello\n").count() == 2);
    recv.stop();

    let batond = Path::new(env!("CARGO_BIN_EXE_batond"));
    for (receiver, name) in [(&in_c, "c"), (&in_rust, "rust")] {
        for (sender, first) in [
            (&*in_c, &["send", "SOCKET", "hello"][..]),
            (&*in_rust, &["send", "SOCKET", "hello"]),
            (batond, &["send-fd", "-f", "SOCKET", "hello"]),
        ] {
            let socket = format!("{name}.sock");
            let taker = run(receiver, &["recv", &socket]);
            // It listens a moment after its socket is there, and says nothing of it.
            let arguments: Vec<&str> = first
                .iter()
                .map(|word| if *word == "SOCKET" { &*socket } else { word })
                .collect();
            let deadline = Instant::now() + DEADLINE;
            while !run(sender, &arguments).end().0.success() {
                assert!(Instant::now() < deadline, "nobody listens: {taker}");
                thread::yield_now();
            }
            assert_eq!(taker.succeed(), "hello\n", "{sender:?} to {receiver:?}");
            fs::remove_file(dir.path().join(&socket)).unwrap();
        }
    }
}

/// What the page says of the kernel, as assertions.
const FACTS: &str = r"
import array, errno, os, select, socket as s
A, B = os.open('hello', os.O_RDONLY), os.open('long', os.O_RDONLY)
names = {os.fstat(A).st_ino: 'A', os.fstat(B).st_ino: 'B'}
KINDS = s.SOCK_STREAM, s.SOCK_SEQPACKET, s.SOCK_DGRAM
def send(to, length, fds=[]):
    control = [(s.SOL_SOCKET, s.SCM_RIGHTS, array.array('i', fds))] if fds else []
    return to.sendmsg([b'x' * length], control)
def recv(socket, size, control=200, flags=0):
    data, parts, flags, _ = socket.recvmsg(size, control, flags)
    got = ''
    for level, kind, part in parts:
        if kind == s.SCM_RIGHTS:
            for fd in array.array('i', part[:len(part) // 4 * 4]):
                got += names[os.fstat(fd).st_ino]
                os.close(fd)
    return len(data), got, flags & (s.MSG_TRUNC | s.MSG_CTRUNC)
def pair(kind, *messages):
    here, there = s.socketpair(s.AF_UNIX, kind)
    there.settimeout(20)
    for message in messages: send(here, *message)
    return here, there
def equal(what, *values):
    for value, expected in zip(what, values, strict=True): assert value == expected, (what, values)

for kind in KINDS:
    two = (100, [A]), (10, [B])
    stream = kind == s.SOCK_STREAM
    _, there = pair(kind, *two)
    equal([recv(there, 1000), recv(there, 1000)], (100, 'A', 0), (10, 'B', 0))
    _, there = pair(kind, *two)
    equal([recv(there, 50), recv(there, 1000)],
          (50, 'A', 0 if stream else s.MSG_TRUNC), (60 if stream else 10, 'B', 0))
    _, there = pair(kind, *two)
    equal([len(there.recv(10)), recv(there, 1000)], 10, (100 if stream else 10, 'B', 0))
    here, there = pair(kind, (1, [A, B, A]))
    equal([recv(there, 9, 24)], (1, 'AB', s.MSG_CTRUNC))
    send(here, 1, [A])
    equal([recv(there, 9, flags=s.MSG_PEEK), recv(there, 9)], (1, 'A', 0), (1, 'A', 0))
    send(here, 1, [A])
    equal([recv(there, 9, 0)], (1, '', s.MSG_CTRUNC))
    there.setsockopt(s.SOL_SOCKET, s.SO_PASSCRED, 1)
    send(here, 1, [A])
    equal([recv(there, 9, 24)], (1, '', s.MSG_CTRUNC))
    try: send(here, 1, [A] * 254)
    except OSError as error: assert error.errno == errno.EINVAL
    else: assert False
    here, there = pair(kind)
    send(here, 0, [A])
    send(here, 5)
    equal([recv(there, 9)], (5, '', 0) if stream else (0, 'A', 0))
    here, there = pair(kind)
    try: there.setsockopt(s.SOL_SOCKET, 83, 0) # SO_PASSRIGHTS
    except OSError: print('NOT TESTED: SO_PASSRIGHTS, which this kernel does not have')
    else:
        try: send(here, 1, [A])
        except OSError as error: assert error.errno == errno.EPERM
        else: assert False
        send(there, 1, [A])
for size, first, second in (1000, 110, 5), (104, 104, 11):
    _, there = pair(s.SOCK_STREAM, (100,), (10, [B]), (5,))
    equal([recv(there, size), recv(there, 1000)], (first, 'B', 0), (second, '', 0))

watch = select.epoll()
reader, writer = os.pipe()
watch.register(reader, select.EPOLLIN)
here, there = pair(s.SOCK_STREAM, (1, [reader]))
os.close(reader)
os.write(writer, b'!')
assert watch.poll(20) == [(reader, select.EPOLLIN)]
try: watch.unregister(reader)
except OSError as error: assert error.errno == errno.EBADF

listener = s.create_server(('127.0.0.1', 0))
client = s.create_connection(listener.getsockname())
served, _ = listener.accept()
send(client, 1, [A])
equal([recv(served, 9)], (1, '', 0))
print('all true')
";

#[test]
fn what_the_page_says_of_the_kernel_is_true() {
    if lacks("python3") {
        return;
    }
    let dir = directory();
    let text = Running::start(&mut python(dir.path(), FACTS, &[])).succeed();
    assert!(text.ends_with("all true\n"), "{text}");
    text.lines()
        .filter(|line| *line != "all true")
        .for_each(skip_for_the_kernel);
}
