"""What somebody outside can do to the master: each disturbance goes on for as long as its block.

They are tried on one kind of server, which has a control socket, a pool of files, and a stderr that
somebody reads, or does not.
"""

import contextlib
import ctypes
import fcntl
import os
import pathlib
import signal
import socket
import struct
import subprocess
import threading
import time

from processes import Failure, end

# Of the loopback device, and not the one of anybody's resolver.
RESOLVER = "127.0.0.99"
BIG = 64 << 20

CONFIGURATION = """
control = "control"


[[pool]]
name = "web"
service = "http"
root = "."
workers = 8
client-timeout = 1
grace = 5
listen = [{listen}]
"""


class Victim:
    """The server that is disturbed. To be used in a `with` statement."""

    def __init__(self, tools):
        self.place = pathlib.Path(tools.scratch) / "disturbed"
        self.place.mkdir(exist_ok=True)
        (self.place / "index.html").write_text("ok")
        with open(self.place / "big", "wb") as file:
            file.truncate(BIG)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        self.name = "batond"
        self.stopping = False
        self.configure()
        command = [tools.batond, "serve", "-c", "batond.toml"]
        if can_have_another_resolver():
            (self.place / "resolv.conf").write_text(
                f"nameserver {RESOLVER}\noptions timeout:30 attempts:1\n")
            command = ["unshare", "-m", "sh", "-c",
                       'mount --bind resolv.conf /etc/resolv.conf && exec "$@"', "sh", *command]
        self.stderr, stderr = os.pipe()
        environment = {key: value for key, value in os.environ.items() if key != "RUST_LOG"}
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=self.place, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
        os.close(stderr)
        self.log = bytearray()
        self.reads = threading.Event()
        self.reads.set()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def __enter__(self):
        try:
            self.await_log(b"worker ready", 8)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_):
        end(self.process)
        self.reads.set()
        self.reader.join()
        os.close(self.stderr)

    def configure(self, *listen):
        """Writes the configuration, with these listeners beside the one for the clients."""
        own = f"127.0.0.1:{self.port}"
        listen = ", ".join(f'"{address}"' for address in [own, *listen])
        (self.place / "batond.toml").write_text(CONFIGURATION.format(listen=listen))

    def read(self):
        """Until the end, except while nobody is to read."""
        while self.reads.wait() and (said := os.read(self.stderr, 65536)):
            self.log += said

    def await_log(self, words, count):
        until = time.monotonic() + 20
        while self.log.count(words) < count:
            if time.monotonic() > until or self.process.poll() is not None:
                raise Failure(f"batond does not say '{words}':\n{self.log.decode()}")
            time.sleep(0.02)

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def ask(self):
        """A session with the control socket."""
        session = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        session.settimeout(20)
        session.connect(str(self.place / "control"))
        return session

    def stop(self):
        """The seconds until SIGTERM has ended it."""
        began = time.monotonic()
        self.stopping = True
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        return time.monotonic() - began


def can_have_another_resolver():
    return os.geteuid() == 0


@contextlib.contextmanager
def again_and_again(victim, action, pause):
    """Does something in a thread, until the end of the block. What it fails with, fails the block,
    unless the server is there no longer.
    """
    over = threading.Event()
    failures = []

    def run():
        try:
            while not over.is_set():
                action(over)
                over.wait(pause)
        except OSError as failure:
            if not victim.stopping:
                failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise Failure(f"a disturbance: {failures[0]!r}")


# ---- the disturbances ----------------------------------------------------------------------------


@contextlib.contextmanager
def stuck_stderr(victim):
    """Nobody reads stderr, and there are 20 lines a second, each of a caller that is refused."""
    victim.reads.clear()
    # The reader may still be in its last read, which the next line ends.
    size = fcntl.fcntl(victim.stderr, fcntl.F_SETPIPE_SZ, 4096)
    # Of an open file of its own, for this one must not sleep, and the server's may.
    filler = os.open(f"/proc/{victim.process.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)

    def fill():
        with contextlib.suppress(BlockingIOError):
            for _ in range(2 * size):
                os.write(filler, b"\n")

    def nonsense(_):
        fill()
        with victim.ask() as session:
            session.send(b"nonsense")
            session.recv(4096)

    try:
        with again_and_again(victim, nonsense, 0.05):
            yield
    finally:
        os.close(filler)


@contextlib.contextmanager
def silent_resolver(_):
    """A name server that answers nothing, and a reload with a host's name twice a second."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind((RESOLVER, 53))
        yield "silent.example:1"


@contextlib.contextmanager
def full_backlog(victim):
    """A reload, twice a second, with a Unix listener that another process has and leaves alone."""
    path = victim.place / "foreign"
    path.unlink(missing_ok=True)
    with contextlib.ExitStack() as sockets:
        def unix():
            return sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener = unix()
        listener.bind(str(path))
        listener.listen(0)
        while True:
            waiting = unix()
            waiting.setblocking(False)
            try:
                waiting.connect(str(path))
            except BlockingIOError:
                break
        yield f"unix:{path}"


@contextlib.contextmanager
def stalled_takeover(victim):
    """A new master asks for all there is, is offered the listeners, and says no more."""
    def stall(over):
        with victim.ask() as session:
            session.send(b"TAKEOVER 2\n")
            while not over.is_set():
                session.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not session.recv(65536):
                        return

    with again_and_again(victim, stall, 0.1):
        yield


@contextlib.contextmanager
def lingering_worker(victim):
    """Clients read nothing of a long reply, and workers have all that they hold linger for 20 s.

    A worker gives the turn up after some 4 s, when the kernel has found no more room for a second;
    so three of the workers are in such turns.
    """
    stuck = []

    def linger(_):
        client = socket.socket()
        stuck.append(client)
        # So small that the kernels do not go on for a while to find room for more.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", victim.port))
        client.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(1)
        for worker in children(victim.process.pid):
            # Some children of the master end at once.
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                let_linger(worker)

    try:
        with again_and_again(victim, linger, 1.5):
            yield
    finally:
        for client in stuck:
            client.close()


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def let_linger(worker):
    """Sets SO_LINGER of the TCP connections of a process, as a service in it could."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd_getfd = 438
    process = os.pidfd_open(worker)
    try:
        for number in os.listdir(f"/proc/{worker}/fd"):
            copy = libc.syscall(pidfd_getfd, process, int(number), 0)
            if copy < 0:
                continue
            try:
                found = socket.socket(fileno=copy)
            except OSError:
                os.close(copy)
                continue
            with found:
                if found.family == socket.AF_INET:
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
                    # It must not be this copy that lingers.
                    os.close(found.detach())
    finally:
        os.close(process)


DISTURBANCES = {
    "stuck stderr": stuck_stderr,
    "silent resolver": silent_resolver,
    "stalled takeover": stalled_takeover,
    "lingering worker": lingering_worker,
    "full backlog": full_backlog,
}


@contextlib.contextmanager
def disturbed(victim, names):
    """All of these disturbances at once."""
    with contextlib.ExitStack() as stack:
        entered = [stack.enter_context(DISTURBANCES[name](victim)) for name in names]
        listen = [address for address in entered if address]
        if listen:
            victim.configure(*listen)
            stack.enter_context(again_and_again(victim, lambda _: victim.reload(), 0.5))
        yield
