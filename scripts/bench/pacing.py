"""What paced clients have in common: a clock for many of them, connections, and replies bit by bit.

A paced client does something at its ticks, and nothing in between, whatever its socket has: that is
what makes it slow. So one thread without epoll drives a thousand of them.
"""

import contextlib
import heapq
import itertools
import resource
import select
import socket
import time

from processes import Failure

# One address has some 28,000 ports towards one server; these are also used by the load beside.
PER_ADDRESS = 4000
IP_BIND_ADDRESS_NO_PORT = 24
# What a process needs beside its connections.
HEADROOM = 64
# A head that is longer than this is none.
LONGEST_HEAD = 16384


class Clock:
    """Calls functions at their times. Each returns in how many seconds it is to be called again,
    or None if it is not.
    """

    def __init__(self):
        self.due, self.order = [], itertools.count()

    def call(self, function, after=0.0):
        heapq.heappush(self.due, (time.monotonic() + after, next(self.order), function))

    def run(self, over, watched=()):
        """Until `over` says so, or there is something to read from one of `watched`."""
        while self.due and not over():
            wait = self.due[0][0] - time.monotonic()
            # Also when it is late, for it may be late all the time.
            if watched and select.select(watched, [], [], max(0.0, wait))[0]:
                return
            if wait > 0 and not watched:
                select.select([], [], [], wait)
            at, _, function = heapq.heappop(self.due)
            if (after := function()) is not None:
                # A late tick does not move those after it, but what was missed is not made up for.
                next_at = max(at + after, time.monotonic())
                heapq.heappush(self.due, (next_at, next(self.order), function))


def raise_limit(connections):
    """Lets this process open so many connections."""
    need = connections + HEADROOM
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if need <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, max(need, hard)))
    except (OSError, ValueError) as error:
        raise Failure(f"{connections} clients need {need} open files, and the limit is {hard}"
                      f" (`ulimit -Hn`): {error}") from error


def connect(server, number, receive_buffer=None):
    """A connection that does not block, to a port or to the path of a Unix socket. On loopback it
    is there at once or not at all, except while the backlog is full: then BlockingIOError.
    """
    unix = isinstance(server, str)
    connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    try:
        connection.setblocking(False)
        if receive_buffer:
            # Before the connection is made, for the window's scale depends on it.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if unix:
            connection.connect(server)
        else:
            # The port is chosen at connect, so that it need be free towards this server only.
            connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            connection.bind((f"127.0.0.{2 + number // PER_ADDRESS % 250}", 0))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                connection.connect(("127.0.0.1", server))
    except BaseException:
        connection.close()
        raise
    return connection


class Malformed(Exception):
    """A reply that is not HTTP/1.1."""


class Reply:
    """A reply, fed as it comes."""

    def __init__(self):
        self.status = 0  # Until its head is whole.
        self.interim = 0  # The last of 100 to 199.
        self.complete = self.closes = False
        self.pending = bytearray()  # The head, or the line before a chunk.
        self.left = None  # Of the body or the chunk; None: until the end of the connection.
        self.chunked = self.trailer = False

    def feed(self, data):
        """What of this belongs to the body, as a list of pieces."""
        pieces = []
        while data and not self.complete:
            if self.status == 0:
                data = self.head(data)
            elif self.chunked and not self.left:
                data = self.between_chunks(data)
            else:
                most = len(data) if self.left is None else self.left
                piece, data = data[:most], data[most:]
                pieces.append(piece)
                if self.left is not None:
                    self.left -= len(piece)
                    self.complete = self.left == 0 and not self.chunked
        if data:
            raise Malformed(f"{len(data)} bytes beyond the reply: {bytes(data[:40])}")
        return pieces

    def line(self, data, end):
        """Takes what comes up to `end`; returns that, if it is there, and the rest."""
        start = max(0, len(self.pending) - len(end))
        self.pending += data
        place = self.pending.find(end, start)
        if place < 0:
            if len(self.pending) > LONGEST_HEAD:
                raise Malformed(f"no end of a line: {bytes(self.pending[:40])}")
            return None, b""
        found, rest = bytes(self.pending[:place]), bytes(self.pending[place + len(end):])
        self.pending.clear()
        return found, rest

    def head(self, data):
        head, rest = self.line(data, b"\r\n\r\n")
        if head is None:
            return b""
        first, *fields = head.split(b"\r\n")
        version, status, *_ = [*first.split(b" ", 2), b"", b""]
        if version != b"HTTP/1.1" or len(status) != 3 or not status.isdigit():
            raise Malformed(f"no status line: {first[:40]}")
        if status < b"200":
            self.interim = int(status)
            return rest
        self.status = int(status)
        for field in fields:
            name, _, value = field.partition(b":")
            name, value = name.lower(), value.strip().lower()
            if name == b"content-length":
                self.left = int(value)
            elif name == b"transfer-encoding" and value == b"chunked":
                self.chunked = True
            elif name == b"connection" and value == b"close":
                self.closes = True
        self.complete = self.left == 0 or self.status in (204, 304)
        return rest

    def between_chunks(self, data):
        """The size of the next chunk, with the end of the line of the last one before it."""
        line, rest = self.line(data, b"\r\n")
        if line is None:
            return b""
        if self.trailer:
            self.complete = not line
        elif line:
            self.left = int(line.split(b";")[0], 16)
            self.trailer = self.left == 0
        return rest

    def end(self):
        """The connection has ended. Whether the reply is whole."""
        if self.status and self.left is None and not self.chunked:
            self.complete = self.closes = True
        return self.complete
