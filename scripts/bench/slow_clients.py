"""Holds slow clients until stdin ends: slow_clients.py [OPTIONS] PORT.

Readers take a long answer at 10 kB/s and compare it, writers send a body of 1 MiB at 1 kB/s, and
stoppers fall silent within a body. When all have begun, "begun N" is printed; at the end, one
"name value" a line, as the measuring client does. One that is at its end, or whose connection the
server ends, begins anew a second later. A process of its own, at a lower priority than the client
that measures beside it.
"""

import argparse
import os
import signal
import sys
import time

from pacing import Clock, Malformed, Reply, connect, raise_limit
from processes import Failure

READ_RATE, WRITE_RATE = 10_000, 1_000  # In bytes a second.
BODY = 1 << 20
TICK = 0.25
LOOK = 1.0
# How often the writers' text repeats must not be how often anything of the server's does.
TEXT = b"".join(b"%06d what is sent slowly\n" % number for number in range(BODY // 28 + 1))[:BODY]
# So that what the client does not take stays with the server.
RECEIVE_BUFFER = 16384
# How long all of them take to begin, and how long they may.
RAMP, PATIENCE = 2.0, 20.0


class Tally(dict):
    def add(self, name, number=1):
        self[name] = self.get(name, 0) + number


class Client:
    """One slow client. It counts what it sees, and never ends by itself."""

    kind, tick = "", TICK

    def __init__(self, number, options, tally):
        self.number, self.options, self.tally = number, options, tally
        self.connection, self.begun = None, False
        self.ever_begun = self.answered = False

    def turn(self):
        """Called at each tick; returns when the next one is due."""
        try:
            if self.connection is None:
                self.connection = connect(self.options.port, self.number, RECEIVE_BUFFER)
                self.reply, self.outgoing = Reply(), self.request()
                self.taken, self.begun = 0, False
            self.send()
            self.receive()
        except BlockingIOError:
            pass  # The backlog is full, or the connection is not there yet.
        except Malformed as error:
            return self.ended(f"malformed ({error})")
        except OSError as error:
            return self.ended(type(error).__name__)
        return self.tick if self.connection else LOOK

    def send(self):
        if self.outgoing:
            del self.outgoing[:self.connection.send(self.outgoing)]
        if not self.outgoing and not self.begun:
            self.begun = self.ever_begun = True

    def receive(self):
        try:
            data = self.connection.recv(int(READ_RATE * TICK))
        except BlockingIOError:
            return
        if not data:
            whole = self.reply.end()
            self.ended("complete" if whole and self.reply.status == 200 else "closed")
            return
        for piece in self.reply.feed(data):
            if self.reply.status == 200:
                self.take(piece)
        if self.connection and self.reply.status not in (0, 200):
            self.ended(f"status_{self.reply.status}")
        elif self.connection and self.reply.complete:
            self.ended("complete")

    def take(self, piece):
        """A part of the body of the answer."""
        self.taken += len(piece)

    def ended(self, how):
        """Notes how the connection ended. Returns when there is to be another one."""
        self.tally.add(f"{self.kind}_{how.replace(' ', '_')}")
        self.drop()
        return LOOK

    def drop(self):
        if self.connection:
            self.connection.close()
        self.connection, self.begun = None, False


class Reader(Client):
    kind = "readers"

    def request(self):
        return bytearray(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % self.options.path.encode())

    def take(self, piece):
        self.answered = True
        self.tally.add("readers_bytes", len(piece))
        expected = self.options.expected
        if expected[self.taken:self.taken + len(piece)] != piece:
            self.tally.add("wrong")
        self.taken += len(piece)


def post(path, chunked, extra=b""):
    extra += b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % BODY
    return bytearray(b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (path.encode(), extra))


def chunk(piece):
    return b"%x\r\n%s\r\n" % (len(piece), piece)


class Writer(Client):
    """Half of them say how long the body is, the others send it in chunks."""

    kind = "writers"

    def request(self):
        self.written, self.chunked = 0, self.number % 2 == 1
        return post(self.options.post, self.chunked)

    def send(self):
        # What a full socket did not take counts against the pace.
        if self.begun and not self.outgoing and self.written < BODY:
            piece = TEXT[self.written:self.written + int(WRITE_RATE * TICK)]
            self.written += len(piece)
            self.outgoing += chunk(piece) if self.chunked else piece
            if self.chunked and self.written == BODY:
                self.outgoing += b"0\r\n\r\n"
        super().send()

    def take(self, piece):
        if TEXT[self.taken:self.taken + len(piece)] != piece:
            self.tally.add("wrong")
        self.taken += len(piece)


class Stopper(Client):
    """Two fifths stop within a body whose length is known, two within a chunk, and one after it
    has asked whether it may send the body.
    """

    kind, tick = "stoppers", LOOK

    def request(self):
        how = self.number % 5
        if how == 4:
            return post(self.options.post, False, b"Expect: 100-continue\r\n")
        start = TEXT[:1000]
        return post(self.options.post, how < 2) + (b"1000\r\n" + start if how < 2 else start)


def arguments():
    parser = argparse.ArgumentParser(prog="slow_clients.py")
    parser.add_argument("port", type=int)
    for kind in ["readers", "writers", "stoppers"]:
        parser.add_argument(f"--{kind}", type=int, default=0)
    parser.add_argument("--path", default="/big", help="what readers ask for")
    parser.add_argument("--expect", required=True, help="a file with what they should get")
    parser.add_argument("--post", default="/echo", help="where the others send their bodies")
    options = parser.parse_args()
    with open(options.expect, "rb") as file:
        options.expected = file.read()
    return options


def main():
    options = arguments()
    tally, clock = Tally(wrong=0, readers_bytes=0), Clock()
    kinds = [Reader] * options.readers + [Writer] * options.writers + [Stopper] * options.stoppers
    raise_limit(len(kinds))
    os.nice(5)
    clients = [kind(number, options, tally) for number, kind in enumerate(kinds)]
    for place, client in enumerate(clients):
        clock.call(client.turn, RAMP * place / len(clients))

    began = time.monotonic()
    late = began + RAMP + PATIENCE
    clock.run(lambda: time.monotonic() > late or all(client.ever_begun for client in clients))
    print("begun", sum(client.ever_begun for client in clients), flush=True)

    tally["readers_bytes"], began = 0, time.monotonic()
    clock.run(lambda: False, watched=[sys.stdin])
    tally["milliseconds"] = round((time.monotonic() - began) * 1000)
    tally["readers_answered"] = sum(client.answered for client in clients)
    for name, value in sorted(tally.items()):
        print(name, value)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        main()
    except Failure as failure:
        sys.exit(f"slow_clients: {failure}")
