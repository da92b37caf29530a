"""Paced downloads and uploads, each of which comes to one outcome, and is compared byte by byte."""

import itertools
import random
import time

from pacing import Malformed, Reply, connect

TICK = 0.05
# How long a transfer may take, retries included.
PATIENCE = 150.0
# How often a transfer that was answered with 502 is tried again.
RETRIES = 100
# Small, so that what is not taken stays with the server.
RECEIVE_BUFFER = 32768
MOST_AT_ONCE = 1 << 20

# What a client must not see; 502 and "over" it may.
BAD = ["wrong", "cut off", "no answer", "refused", "late", "malformed", "other status"]


class Outcomes(dict):
    """How often each outcome came, and what there is to say of the bad ones."""

    def __init__(self):
        super().__init__({name: 0 for name in ["right", "over", "502", *BAD]})
        self.details = []

    def add(self, name, detail=None):
        self[name] += 1
        if detail:
            self.details.append(f"{name}: {detail}")

    def bad(self, allowed=()):
        return sum(self[name] for name in BAD if name not in allowed)


class Transfer:
    """One download or upload at its pace, tried again after a 502. After a right one, half of them
    have another request on the same connection.
    """

    numbers = itertools.count()

    def __init__(self, server, rate, outcomes, request, body, expected, chunked, small):
        self.server, self.rate, self.outcomes = server, rate, outcomes
        self.line, self.body, self.expected = request, body, expected
        self.chunked, self.small = chunked, small
        self.number = next(self.numbers)
        self.tries, self.done, self.connection = 0, False, None
        self.late_at = time.monotonic() + PATIENCE
        self.last = time.monotonic()

    def __str__(self):
        return f"{self.line}, {len(self.expected)} bytes, {'chunked' if self.chunked else 'whole'}"

    def turn(self):
        """Called at each tick. None when the outcome is known."""
        now = time.monotonic()
        self.allowance = int(self.rate * min(4 * TICK, now - self.last))
        self.last = now
        try:
            if now > self.late_at:
                return self.finish("late", f"{self} after {self.taken} bytes")
            if self.connection is None:
                self.begin()
            self.send()
            self.receive()
        except BlockingIOError:
            pass
        except Malformed as error:
            return self.finish("malformed", f"{self}: {error}")
        except ConnectionRefusedError as error:
            return self.finish("refused", f"{self}: {error}")
        except OSError as error:
            return self.broken(error)
        return None if self.done else TICK

    def begin(self):
        self.connection = connect(self.server, self.number, RECEIVE_BUFFER)
        self.tries += 1
        self.reply, self.taken, self.after = Reply(), 0, False
        self.outgoing = bytearray(f"{self.line} HTTP/1.1\r\nHost: x\r\n".encode())
        self.unsent = memoryview(self.body)
        if self.chunked:
            self.outgoing += b"Transfer-Encoding: chunked\r\n"
        elif self.body:
            self.outgoing += b"Content-Length: %d\r\n" % len(self.body)
        self.outgoing += b"\r\n"

    def send(self):
        """As much as the pace allows and the socket takes."""
        while self.unsent and self.allowance > 0 and len(self.outgoing) < MOST_AT_ONCE:
            size = min(self.allowance, len(self.unsent), random.randint(1, 65536))
            piece, self.unsent = self.unsent[:size], self.unsent[size:]
            self.allowance -= size
            if self.chunked:
                self.outgoing += b"%x\r\n%s\r\n" % (size, piece)
                self.outgoing += b"0\r\n\r\n" if not self.unsent else b""
            else:
                self.outgoing += piece
        if self.outgoing:
            try:
                del self.outgoing[:self.connection.send(self.outgoing)]
            except BlockingIOError:
                pass  # Until the next tick; an answer may have come all the same.
            except (BrokenPipeError, ConnectionResetError):
                # There may be an answer all the same.
                self.outgoing.clear()
                self.unsent = memoryview(b"")
                self.allowance = MOST_AT_ONCE

    def receive(self):
        while self.allowance > 0 and self.connection:
            data = self.connection.recv(min(self.allowance, 1 << 18))
            self.allowance -= len(data)
            if not data:
                if not self.reply.end():
                    self.broken("the connection ended")
                    return
            for piece in self.reply.feed(data):
                if self.reply.status == 200 and not self.after and not self.same(piece):
                    return
            if self.reply.complete:
                self.answered()

    def same(self, piece):
        expected = self.expected[self.taken:self.taken + len(piece)]
        if expected != piece:
            place = next((place for place, (a, b) in enumerate(zip(expected, piece)) if a != b),
                         len(expected))
            self.finish("wrong", f"{self} at offset {self.taken + place}")
            return False
        self.taken += len(piece)
        return True

    def answered(self):
        status = self.reply.status
        if self.after:
            # The transfer itself was right.
            if status in (200, 502):
                self.finish("right")
            else:
                self.finish("other status", f"{status} after {self}")
        elif status == 502:
            self.outcomes.add("502")
            self.drop()
            if self.tries > RETRIES:
                self.finish("other status", f"502 for {self}, {self.tries} times")
        elif status != 200:
            self.finish("other status", f"{status} for {self}")
        elif self.taken != len(self.expected):
            self.finish("wrong", f"{self} has {self.taken} bytes")
        elif self.number % 2 or self.reply.closes:
            self.finish("right")
        else:
            self.after, self.reply = True, Reply()
            self.outgoing += f"GET {self.small} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            self.send()

    def broken(self, error):
        """The connection has ended before the answer was there. None, as `turn` returns it."""
        if self.after and not self.reply.status:
            # A worker that dies when it has answered costs the connection, and no answer.
            self.outcomes.add("over")
            return self.finish("right")
        if self.reply.status:
            return self.finish("cut off", f"{self} after {self.taken} bytes: {error}")
        sent = len(self.body) - len(self.unsent)
        return self.finish("no answer", f"{self} after {sent} bytes of the body: {error}")

    def finish(self, outcome, detail=None):
        self.drop()
        if not self.done:
            self.done = True
            self.outcomes.add(outcome, detail)

    def drop(self):
        if self.connection:
            self.connection.close()
        self.connection = None


class Source:
    """Makes transfers for one server."""

    def __init__(self, server, files, pool, options, outcomes):
        self.server, self.files, self.pool = server, files, pool
        self.options, self.outcomes = options, outcomes

    def transfer(self, *arguments, small="/"):
        rate = random.uniform(*self.options.rate)
        return Transfer(self.server, rate, self.outcomes, *arguments, small)

    def download(self):
        path, expected = random.choice(self.files)
        return self.transfer(f"GET {path}", b"", expected, False)

    def upload(self):
        size = random.randint(*self.options.upload)
        start = random.randrange(len(self.pool) - size)
        body = self.pool[start:start + size]
        return self.transfer("POST /echo", body, body, random.random() < 0.5)
