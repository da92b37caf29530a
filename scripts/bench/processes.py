"""Servers and clients as processes: start, find the port, count the CPU time, end and reap.

Nothing here outlives the program: each process is ended by its id, and waited for.
"""

import contextlib
import copy
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
HERE = pathlib.Path(__file__).resolve().parent


class Failure(Exception):
    """A measurement that could not be made, or a server that did what it must not."""


class Tools:
    """What the measurements are made with."""

    def __init__(self, batond, scratch, against=None, program=None):
        self.batond = batond
        self.against = against
        self.program = program
        self.scratch = pathlib.Path(scratch)
        self.client = self.scratch / "client"
        self.bare_limit = self.scratch / "bare_limit"
        self.files = self.scratch / "files"
        self.files.mkdir()
        (self.files / "index.html").write_text("ok")

    def with_batond(self, batond):
        """The same with another build of batond."""
        tools = copy.copy(self)
        tools.batond = batond
        return tools


def end(process, with_signal=signal.SIGTERM, patience=10):
    """Ends a process that was started here, and reaps it. Returns its exit status."""
    if process.poll() is None:
        process.send_signal(with_signal)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


class Server:
    """A server in the foreground, with a log of its own. To be used in a `with` statement."""

    count = 0

    def __init__(self, tools, name, command, port=None, workers=0):
        Server.count += 1
        self.name = name
        self.log = tools.scratch / f"log-{Server.count}"
        environment = {key: value for key, value in os.environ.items() if key != "RUST_LOG"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment,
            )
        try:
            self.port = port or int(self.await_line(r"listening on 127\.0\.0\.1:(\d+)"))
            self.await_port()
            self.await_workers(workers)
        except BaseException:
            end(self.process)
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        status = end(self.process)
        if kind is None and status != 0:
            raise Failure(f"{self.name} ended with status {status}:\n{self.tail()}")
        trouble = re.search(r".*(ERROR|panicked).*", self.log.read_text(errors="replace"))
        if kind is None and trouble:
            raise Failure(f"{self.name} said: {trouble[0]}")
        self.log.unlink()

    @property
    def pid(self):
        return self.process.pid

    def tail(self, lines=10):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def await_(self, what, condition, seconds=30):
        until = time.monotonic() + seconds
        while not (found := condition()):
            if self.process.poll() is not None:
                raise Failure(f"{self.name} ended while {what} was waited for:\n{self.tail()}")
            if time.monotonic() > until:
                raise Failure(f"{self.name}: no {what} after {seconds} s:\n{self.tail()}")
            time.sleep(0.02)
        return found

    def await_line(self, pattern):
        return self.await_(
            "address", lambda: re.search(pattern, self.log.read_text(errors="replace"))
        )[1]

    def await_port(self):
        def answers():
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return True
            return False
        self.await_("listener", answers)

    def await_workers(self, workers):
        """batond says of each worker when it is ready."""
        def ready():
            return self.log.read_text(errors="replace").count("worker ready") >= workers
        self.await_(f"{workers} workers", ready)

    def workers(self):
        """The process ids of its children that live."""
        return [pid for pid, (parent, _) in processes().items() if parent == self.pid]


def batond(tools, *arguments, workers=None):
    """batond with these arguments to `serve`, on a port of its own."""
    command = [tools.batond, "serve", *arguments, "-l", "127.0.0.1:0"]
    command += ["-w", workers] if workers else []
    name = " ".join(["batond serve", arguments[0], *(["-w", str(workers)] if workers else [])])
    return Server(tools, name, command, workers=workers or 1)


PASSING = """
[[pool]]
name = "site"
listen = "127.0.0.1:0"
service = "http"
root = "nothing"
fallback = "app"
workers = {workers}

[[pool]]
name = "app"
service = "http"
root = "{files}"
workers = {workers}
"""


def passing(tools, workers):
    """batond with a pool that has no files, and passes each request to one that has them."""
    configuration = tools.scratch / "passing.toml"
    (tools.scratch / "nothing").mkdir(exist_ok=True)
    configuration.write_text(PASSING.format(workers=workers, files=tools.files))
    name = f"batond serve with a fallback, -w {workers} each"
    return Server(tools, name, [tools.batond, "serve", "-c", configuration], workers=2 * workers)


NGINX = """
daemon off;
{user}
worker_processes 2;
worker_rlimit_nofile {files};
pid {prefix}/pid;
error_log stderr error;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    default_type text/html;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    server {{ listen 127.0.0.1:{port} backlog=4096; root {root}; }}
}}
"""


def nginx(tools):
    """nginx with two workers on the same files. It has no port 0, so one is looked for."""
    prefix = tools.scratch / "nginx"
    prefix.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    # As root, nginx would run its workers as somebody who may not see the scratch directory.
    user = "user root root;" if os.geteuid() == 0 else ""
    most = os.sysconf("SC_OPEN_MAX")
    configuration = prefix / "nginx.conf"
    configuration.write_text(NGINX.format(
        user=user, files=most, connections=most - 64, prefix=prefix, port=port, root=tools.files))
    command = ["nginx", "-p", prefix, "-c", configuration, "-e", "stderr"]
    return Server(tools, "nginx", command, port=port)


def bare_limit(tools, workers=2):
    """Workers that share the listener, and nothing else."""
    return Server(tools, "bare limit", [tools.bare_limit, workers])


# ---- what processes use ---------------------------------------------------------------------------


def processes():
    """Of each process its parent and the ticks it has used, those of its reaped children included."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    # The command stands in parentheses and may hold any character.
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue  # It has ended meanwhile.
            if fields[0] != "Z":
                found[int(name)] = (int(fields[1]), sum(int(field) for field in fields[11:15]))
    return found


def cpu_of_tree(root):
    """Seconds that a process, its descendants and those that they have reaped have used so far."""
    table = processes()
    ticks, members = 0, [root]
    for member in members:  # It grows on the way.
        ticks += table.get(member, (0, 0))[1]
        members += [pid for pid, (parent, _) in table.items() if parent == member]
    return ticks / TICKS_PER_SECOND


def cpu_of_machine():
    """Seconds that all processors have been busy so far, and that were stolen from them."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, irq, softirq, steal = map(
            int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


def proportional_set_size(pid):
    """What a process has in memory, in bytes; shared pages count as shares."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    raise Failure(f"no Pss in smaps_rollup of process {pid}")


# ---- clients --------------------------------------------------------------------------------------

# What the measuring client counts beside the replies.
FAILURES = ["refused", "lost", "torn", "timeout", "malformed"]


class Load:
    """What a run of wrk came to."""

    def __init__(self, requests, rate, cpu, p50, p99, others):
        self.requests, self.rate, self.cpu = requests, rate, cpu
        self.p50, self.p99, self.others = p50, p99, others


def wrk(tools, server, seconds, connections=32, close=False):
    """Loads a server, and counts what its process tree uses for it."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
               "-s", HERE / "wrk.lua", f"http://127.0.0.1:{server.port}/"]
    command += ["-H", "Connection: close"] if close else []
    before, began = cpu_of_tree(server.pid), time.monotonic()
    machine = cpu_of_machine()
    with running(command) as client:
        output = client.communicate()[0]
        client_cpu = cpu_of_reaped()
    used = cpu_of_tree(server.pid) - before
    # What else there was to do on this machine, in processors.
    others = (cpu_of_machine() - machine - used - client_cpu) / (time.monotonic() - began)
    result = re.search(r"^RESULT (.*)$", output, re.MULTILINE)
    if client.returncode != 0 or not result:
        raise Failure(f"wrk against {server.name}: status {client.returncode}\n{output}")
    requests, micros, p50, p99, *errors = map(int, result[1].split())
    if requests == 0 or any(errors):
        kinds = dict(zip(["connect", "read", "write", "status", "timeout"], errors))
        raise Failure(f"wrk against {server.name}: {requests} requests, errors {kinds}")
    return Load(requests, requests / (micros / 1e6), used / requests * 1e6, p50, p99,
                max(0.0, others))


_reaped = 0.0


def cpu_of_reaped():
    """Seconds that the children reaped since the last call have used."""
    global _reaped
    times = os.times()
    before, _reaped = _reaped, times.children_user + times.children_system
    return _reaped - before


@contextlib.contextmanager
def running(command):
    """A client, ended with the block at the latest."""
    cpu_of_reaped()
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        end(process)
        process.stdout.close()


def client(tools, server, seconds, *options):
    """The command of the measuring client."""
    return [tools.client, "-d", round(seconds * 1000), *options, server.port]


def counts(process):
    """What the measuring client prints, by name."""
    output = process.communicate()[0]
    if process.returncode != 0:
        raise Failure(f"the client ended with status {process.returncode}\n{output}")
    return {name: int(value) for name, value in map(str.split, output.splitlines())}


def measure(tools, server, seconds, *options):
    """Runs the measuring client to its end."""
    with running(client(tools, server, seconds, *options)) as process:
        return counts(process)


@contextlib.contextmanager
def held(server, connections):
    """Connections that have had one answer each and are silent since. Each must still work at the end."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "hold.py"), str(server.port), str(connections)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        expect(process, f"held {connections}")
        yield
        process.stdin.close()
        expect(process, f"alive {connections}")
    finally:
        process.stdin.close()
        end(process)
        process.stdout.close()


def expect(process, line):
    found = process.stdout.readline().strip()
    if found != line:
        raise Failure(f"idle connections: '{found}' instead of '{line}'")
