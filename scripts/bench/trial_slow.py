#!/usr/bin/env -S python3 -B
"""Whether slow transfers are exact while workers are killed and masters follow each other.

    scripts/bench/trial_slow.py [OPTIONS] [-- ARGUMENTS OF batond serve]

Downloads and uploads at a slow pace are compared byte by byte while a random worker is killed every
0.1 s, the server is reloaded five times and upgraded twice. With --count N there is no unrest, but
that many slow clients come and go in waves, and the master's descriptors are counted.

Exits 1 if a client got something wrong, less than all, or no answer, or if the server does not do
what it should; 2 if the arguments make no sense.
"""

import argparse
import os
import pathlib
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time

import slow_clients
from pacing import Clock, raise_limit
from processes import Failure
from transfers import BAD, Outcomes, Source
from unrest import Restless, adopt_orphans

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINE = b"baton 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrs\n"
MODES = ["http", "demo"]
# Until the master has forgotten clients that are gone: it may linger with them for 30 s.
UNTIL_GONE = 45.0
# How long a client of a wave waits for an answer that may not come.
WAVE = 1.0


def size(text):
    found = re.fullmatch(r"(\d+)([kM]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of bytes such as 300k or 10M")
    return int(found[1]) * {"": 1, "k": 1000, "M": 1 << 20}[found[2]]


def span(text):
    """SIZE, or SIZE-SIZE."""
    least, _, most = text.partition("-")
    found = (size(least), size(most or least))
    if not 0 < found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"'{text}' is no span such as 300k-2M")
    return found


def arguments():
    parser = argparse.ArgumentParser(
        prog="trial_slow.py", description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--batond", default=ROOT / "target/release/batond", type=pathlib.Path)
    add("--mode", choices=[*MODES, "both"], default="both",
        help="the files of a directory (downloads only), the demo, or one after the other")
    add("--unix", action="store_true",
        help="over a Unix socket, where a killed worker may cost a transfer")
    add("--workers", type=int, default=4)
    add("--downloads", type=int, default=200, help="at a time")
    add("--uploads", type=int, default=200, help="at a time, of the demo")
    add("--size", type=size, default="10M", help="of a download; a multiple of 64")
    add("--upload", type=span, default="300k-1M", help="size of an upload")
    add("--rate", type=span, default="300k-2M", help="bytes a second of a transfer")
    add("--kill", type=float, default=0.1, help="seconds between two kills; 0: none")
    add("--reloads", type=int, default=5)
    add("--upgrades", type=int, default=2)
    add("--pause", type=float, default=1.0, help="seconds between reloads and upgrades")
    add("--seconds", type=float, default=300, help="for all of it, per mode")
    add("--seed", type=int, help="of sizes, rates and victims")
    add("--count", type=int, default=0, help="so many short-lived slow clients instead")
    add("--wave", type=int, default=500, help="so many of them at a time")
    add("--keep-log", type=pathlib.Path, help="copy the server's log to this directory")
    add("--show", type=int, default=5, help="so many details of what went wrong")
    add("extra", nargs="*", metavar="ARGUMENT", help="more arguments of batond serve")
    options = parser.parse_args()
    if options.size % len(LINE):
        parser.error("--size must be a multiple of 64")
    if options.unix and options.count:
        parser.error("--count is for TCP")
    if not os.access(options.batond, os.X_OK):
        parser.error(f"--batond: {options.batond} is no executable file"
                     " (cargo build --release makes it)")
    return options


def prepared(mode, place, options):
    """The arguments of the server, its long answers with their paths, and a pool of noise."""
    pool = random.randbytes(max(options.size, 2 * options.upload[1]) + 8191)
    if mode == "demo":
        return ["demo"], [(f"/bytes/{options.size}",
                           LINE * (options.size // len(LINE)))], pool
    root = place / "files"
    root.mkdir()
    (root / "index.html").write_text("ok")
    files = []
    for number in range(8):
        content = pool[number * 1024:number * 1024 + options.size]
        (root / f"file{number}").write_bytes(content)
        files.append((f"/file{number}", content))
    return ["http", root], files, pool


def plan(options):
    """The upgrades lie evenly among the reloads."""
    signals = [(place / (options.reloads + 1), signal.SIGHUP)
               for place in range(1, options.reloads + 1)]
    signals += [(place / (options.upgrades + 1), signal.SIGUSR2)
                for place in range(1, options.upgrades + 1)]
    return [kind for _, kind in sorted(signals, key=lambda entry: entry[0])]


def await_gone(server, before):
    """Waits until the master has as many descriptors as before, or too long. Returns the number."""
    until = time.monotonic() + UNTIL_GONE
    while (found := server.descriptors()) > before and time.monotonic() < until:
        select.select([], [], [], 0.05)
    return found


# ---- exact transfers -----------------------------------------------------------------------------


def trial(mode, options, place):
    """Whether all was right."""
    arguments_, files, pool = prepared(mode, place, options)
    command = [*arguments_, *options.extra]
    outcomes, clock = {"downloads": Outcomes(), "uploads": Outcomes()}, Clock()
    uploads = options.uploads if mode == "demo" else 0
    with Restless(options.batond, place, command, options.workers, options.unix) as server:
        before, began = server.descriptors(), time.monotonic()
        overdue = began + options.seconds
        unrest = server.disturbances(plan(options), options.pause)
        state = {"calm": False, "transfers": 0}

        def disturb():
            after = unrest()
            state["calm"] = after is None
            return after

        def kill():
            server.kill_one()
            return options.kill if state["transfers"] else None

        def lane(source):
            """One transfer after the other, until the unrest is over; at least one."""
            transfer = source()

            def turn():
                nonlocal transfer
                if (after := transfer.turn()) is None and not state["calm"]:
                    transfer = source()
                    return 0.0
                state["transfers"] -= after is None
                return after

            state["transfers"] += 1
            return turn

        for name, count in [("downloads", options.downloads), ("uploads", uploads)]:
            source = Source(server.server, files, pool, options, outcomes[name])
            make = source.download if name == "downloads" else source.upload
            for number in range(count):
                clock.call(lane(make), number / count)
        clock.call(disturb, options.pause)
        if options.kill:
            clock.call(kill, options.kill)
        failures = []
        try:
            clock.run(lambda: state["transfers"] == 0 and state["calm"]
                      or time.monotonic() > overdue)
        except Failure as failure:
            failures.append(str(failure))
        if time.monotonic() > overdue:
            failures.append(f"not over after {options.seconds:.0f} s")
        took = time.monotonic() - began
        # Those that still run are over with their sockets, which go with the clock.
        clock.due.clear()
        server.await_workers()
        left = await_gone(server, before) - before
        if left > 0:
            failures.append(f"the master has {left} more descriptors than before")
    return report(mode, options, server, outcomes, took, failures, left)


def report(mode, options, server, outcomes, took, failures, left):
    print(f"{mode}, {'a Unix socket' if options.unix else 'TCP'}, {took:.1f} s: {server.kills}"
          f" kills, {server.done['reload']} reloads, {server.done['upgrade']} upgrades;"
          f" descriptors {left:+d}")
    good = not failures
    # Nobody can say of a Unix connection what a worker that was killed has done with it.
    allowed = ["cut off", "no answer"] if options.unix and options.kill else []
    for name, found in outcomes.items():
        if not any(found.values()):
            continue
        seen = [f"{found[key]} {key}" for key in BAD if found[key]]
        print(f"  {name}: {found['right']} right, {found['502']} times 502 and tried again,"
              f" {found['over']} times no connection afterwards, {', '.join(seen) or 'none bad'}")
        for detail in found.details[:options.show]:
            print(f"    {detail}")
        good &= not found.bad(allowed)
    for failure in server.failed:
        print(f"  tried again: {failure}")
    for failure in failures:
        print(f"  FAILED: {failure}")
    print("  all exact" if good else "  FAILED", flush=True)
    return good


# ---- many that come and go -----------------------------------------------------------------------


class Brief:
    """What slow clients must know here."""

    post = "/echo"

    def __init__(self, port, path, expected):
        self.port, self.path, self.expected = port, path, expected


def waves(mode, options, place):
    """Whether the master's descriptors are as many as before when all have gone."""
    arguments_, files, _ = prepared(mode, place, options)
    command = [*arguments_, *options.extra]
    tally, began, most = slow_clients.Tally(wrong=0), time.monotonic(), 0
    overdue = began + options.seconds
    with Restless(options.batond, place, command, options.workers, False) as server:
        brief = Brief(server.server, *files[0])
        # The first clients make the master open what it keeps.
        wave(brief, tally, range(3))
        before = settled(server)
        count = 0
        while count < options.count and time.monotonic() < overdue:
            numbers = range(count, min(options.count, count + options.wave))
            most = max(most, wave(brief, tally, numbers, server))
            count = numbers.stop
        left = await_gone(server, before)
    took = time.monotonic() - began
    print(f"{mode}: {count} slow clients in waves of {options.wave}, {took:.1f} s; the master's"
          f" descriptors: {before} before, {most} at most, {left} after")
    for name, value in sorted(tally.items()):
        print(f"  {name} {value}")
    good = left <= before and count == options.count and not tally["wrong"]
    print("  all gone" if good else "  FAILED", flush=True)
    return good


def settled(server):
    """The number of descriptors when it has been the same for a while: what lingers is gone."""
    found, since, until = server.descriptors(), time.monotonic(), time.monotonic() + UNTIL_GONE
    while time.monotonic() < min(since + 6, until):
        select.select([], [], [], 0.1)
        if (now := server.descriptors()) != found:
            found, since = now, time.monotonic()
    return found


def wave(brief, tally, numbers, server=None):
    """Lets these clients begin, and drops them soon. Returns the master's descriptors then."""
    kinds = [slow_clients.Reader, slow_clients.Writer, slow_clients.Stopper]
    clients = [kinds[number % 3](number, brief, tally) for number in numbers]
    clock, over = Clock(), time.monotonic() + WAVE
    for client in clients:
        clock.call(client.turn)
    clock.run(lambda: time.monotonic() > over or all(
        client.ever_begun and (client.answered or client.kind != "readers") for client in clients))
    found = server.descriptors() if server else 0
    for client in clients:
        client.drop()
    return found


def main():
    options = arguments()
    if options.seed is not None:
        random.seed(options.seed)
    # So that what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    raise_limit(max(options.downloads + options.uploads, options.wave if options.count else 0) * 2)
    good = True
    for mode in MODES if options.mode == "both" else [options.mode]:
        place = pathlib.Path(tempfile.mkdtemp(prefix="trial-"))
        try:
            good &= (waves if options.count else trial)(mode, options, place)
        finally:
            if options.keep_log and (place / "log").exists():
                shutil.copy(place / "log", options.keep_log / f"{mode}.log")
            shutil.rmtree(place)
    return 0 if good else 1


try:
    sys.exit(main())
except Failure as failure:
    print(f"trial_slow: {failure}", file=sys.stderr)
    sys.exit(1)
