"""Whether slow clients cost the others anything: each load of slow clients alone and all together,
beside a client that measures, and what they cost the server's memory and descriptors.
"""

import contextlib
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

import processes
from processes import Failure, Server, batond, client, counts, measure, running

BIG = 10 << 20
# What the demo's /bytes/N repeats.
LINE = b"baton 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrs\n"
# What a slow reader takes in a second, in bytes.
READ_RATE = 10_000

# The loads of slow clients: readers, writers and those that stop within a body.
LOADS = {
    "600 readers": (600, 0, 0),
    "200 writers": (0, 200, 0),
    "200 that stop": (0, 0, 200),
    "all": (600, 200, 200),
}
# Until the server has forgotten clients that are gone: it may linger with them for 30 s.
UNTIL_GONE = 45


class Kind:
    """A kind of server: how to start it, and what slow readers ask for and should get."""

    def __init__(self, name, start, path, expected):
        self.name, self.start, self.path, self.expected = name, start, path, expected


def kinds(tools):
    place = pathlib.Path(tools.scratch) / "slow"
    place.mkdir(exist_ok=True)
    (place / "index.html").write_text("ok")
    (place / "big").write_bytes(os.urandom(BIG))
    (tools.scratch / "pattern").write_bytes(LINE * (BIG // len(LINE)))
    found = [
        Kind("http", lambda: batond(tools, "http", place, workers=2), "/big", place / "big"),
        Kind("demo", lambda: batond(tools, "demo", workers=2), f"/bytes/{BIG}",
             tools.scratch / "pattern"),
    ]
    if tools.program:
        lines = tools.scratch / "lines"
        lines.write_bytes(b"".join(b"%015d\n" % line for line in range(BIG // 16)))
        command = shlex.split(tools.program)
        found.append(Kind("program", lambda: Server(tools, "program", command, workers=2),
                          f"/bytes/{BIG}", lines))
    return found


# ---- what the server uses ------------------------------------------------------------------------


def resident(pid):
    """The memory of a process, in KiB."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    raise Failure(f"no VmRSS in the status of process {pid}")


def descriptors(server):
    return len(os.listdir(f"/proc/{server.pid}/fd"))


class Usage:
    """What a server and its workers have used up to now."""

    def __init__(self, server):
        workers = server.workers()
        table = processes.processes()
        self.when = time.monotonic()
        self.master = resident(server.pid)
        self.worker = max(map(resident, workers), default=0)
        self.ticks = sum(table.get(worker, (0, 0))[1] for worker in workers)
        self.descriptors = descriptors(server)

    def processors_since(self, before):
        """How many processors the workers have kept busy. Those that have died are not counted."""
        return (self.ticks - before.ticks) / processes.TICKS_PER_SECOND / (self.when - before.when)


# ---- one measurement -----------------------------------------------------------------------------


class Slow:
    """The process of the slow clients. To be used in a `with` statement, which it ends with."""

    def __init__(self, server, kind, load):
        names = ["--readers", "--writers", "--stoppers"]
        command = [sys.executable, "-B", processes.HERE / "slow_clients.py", server.port,
                   "--path", kind.path, "--expect", kind.expected]
        command += [word for pair in zip(names, load) for word in pair]
        self.count = sum(load)
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        processes.end(self.process)
        self.process.stdout.close()

    def await_begun(self):
        """It gives up by itself when that takes too long."""
        line = self.process.stdout.readline().strip()
        if not line.startswith("begun "):
            raise Failure(f"the slow clients: '{line}' instead of how many have begun")
        return int(line.split()[1])

    def end(self):
        """What they have seen."""
        self.process.stdin.close()
        lines = self.process.stdout.read().splitlines()
        if self.process.wait(30) != 0:
            raise Failure(f"the slow clients ended with status {self.process.returncode}")
        return {name: int(value) for name, value in map(str.split, lines)}


def measuring(seconds):
    """The options of the client that measures: 24 of them, most of the time silent."""
    return ["-c", 24, "-r", 900, "-s", "think", "-m", 5, "-t", patience(seconds)]


def patience(seconds):
    """For how many milliseconds the client that measures waits for an answer."""
    return min(10, seconds) * 1000


def errors(count):
    return sum(value for name, value in count.items() if name in processes.FAILURES or
               name.startswith("status_") and name != "status_200")


def percentile(count, name, percent):
    """A latency in ms; that of a request without an answer is endless."""
    answers = count["replies"] - count["slow"]
    if answers == 0 or errors(count) > (answers + errors(count)) * (1 - percent / 100):
        return math.inf
    return count[name] / 1e3


def latencies(count):
    return {"requests": count["replies"] - count["slow"], "errors": errors(count),
            **{name: percentile(count, name, percent)
               for name, percent in [("p50", 50), ("p99", 99), ("max", 100)]}}


def pair(tools, section, kind, load, seconds):
    """The same server without and with the slow clients."""
    with kind.start() as server:
        measure(tools, server, 0.5, *measuring(seconds))
        start = Usage(server)
        without = latencies(measure(tools, server, seconds, *measuring(seconds)))
        before = Usage(server)
        without["cpu"] = before.processors_since(start)
        with Slow(server, kind, load) as slow:
            with running(client(tools, server, 2, *measuring(seconds))) as beside:
                begun = slow.await_begun()
                coming = latencies(counts(beside))
            start = Usage(server)
            beside = latencies(measure(tools, server, seconds, *measuring(seconds)))
            during = Usage(server)
            seen = slow.end()
        beside["cpu"] = during.processors_since(start)
        beside["coming"] = coming["max"]
        beside["pace"] = pace(seen, load)
        beside["ended"] = ended(seen)
        beside["master"], beside["worker"] = (
            during.master - before.master, during.worker - before.worker)
        beside["with"] = during.descriptors
        without["before"] = before.descriptors
        beside["left"] = await_gone(server, before.descriptors) - before.descriptors
        if begun != slow.count:
            section.fail(f"{kind.name}: {begun} of {slow.count} slow clients have begun")
        if seen["wrong"]:
            section.fail(f"{kind.name}: slow clients got wrong bytes {seen['wrong']} times")
        return without, beside


def pace(seen, load):
    """Which part of what the readers would take they got. Nothing without readers."""
    due = load[0] * READ_RATE * seen["milliseconds"] / 1000
    return seen["readers_bytes"] / due if due else None


def ended(seen):
    """How many slow clients the server has got rid of, answers to their requests included."""
    return sum(value for name, value in seen.items() if name.split("_")[0] in
               ("readers", "writers", "stoppers") and not name.startswith(
                   ("readers_bytes", "readers_answered")))


def await_gone(server, before):
    """The server's descriptors once there are no more of them than before, or at the deadline."""
    with contextlib.suppress(Failure):
        server.await_("end of the slow clients", lambda: descriptors(server) <= before, UNTIL_GONE)
    return descriptors(server)


# ---- the table -----------------------------------------------------------------------------------


def milliseconds(value, seconds):
    return f"{value:.2f}" if math.isfinite(value) else f"> {patience(seconds)}"


def middle(found):
    """The median of each value of the rounds."""
    return {name: None if found[0][name] is None else
            statistics.median(round_[name] for round_ in found) for name in found[0]}


def rows(section, name, load, without, beside, seconds):
    for what, count in [("without", without), (load, beside)]:
        own = [f"{count['pace']:.0%}" if count.get("pace") is not None else ""]
        own += [f"{count[key]:.0f}" if key in count else ""
                for key in ["ended", "master", "worker"]]
        coming = milliseconds(count["coming"], seconds) if "coming" in count else ""
        section.row(f"{name}: {what}", f"{count['requests']:.0f}", f"{count['errors']:.0f}",
                    *(milliseconds(count[key], seconds) for key in ["p50", "p99", "max"]), coming,
                    *own, f"{count['cpu']:.2f}", f"{count.get('before', count.get('with')):.0f}",
                    f"{count['left']:+.0f}" if "left" in count else "")


def slow(section, tools, options):
    section.about(
        f"latency beside slow clients, for {options.seconds} s",
        "A server with two workers has 24 keep-alive clients, each of which is silent for 5 ms "
        "before nine of ten requests, without and with slow clients: 600 that take 10 MiB at "
        "10 kB/s, 200 that send 1 MiB at 1 kB/s, 200 that fall silent within a body; alone, and "
        "all of them. A percentile counts a request without an answer as endless (inf). "
        "\"coming\" is the longest request while the slow ones come, within 2 s. \"pace\" is "
        "which part of their 10 kB/s the readers get; \"ended\" is how many slow connections the "
        "server has ended, those that it has answered included. "
        "\"master\" and \"worker\" are by how many KiB the memory (RSS) of the master and of the "
        "largest worker has grown, \"CPU\" is how many processors the workers use, \"open\" is how "
        "many descriptors the master has, and \"left\" how many more than before when the slow "
        f"ones have gone, after {UNTIL_GONE} s at most. `http` answers the bodies at once, with "
        "405.")
    section.table("medians of rounds", "requests", "errors", "p50 ms", "p99 ms", "max ms", "coming",
                  "pace", "ended", "master", "worker", "CPU", "open", "left")
    worst = {"master": 0.0, "worker": 0, "left": 0}
    slowest = 1.0
    differences, lost = {}, 0
    for kind in kinds(tools):
        for name, load in LOADS.items():
            found = [pair(tools, section, kind, load, options.seconds)
                     for _ in range(options.rounds)]
            without, beside = (middle(list(half)) for half in zip(*found))
            rows(section, kind.name, name, without, beside, options.seconds)
            if without["errors"]:
                section.fail(f"{kind.name}: {without['errors']:.0f} errors without slow clients")
            differences[f"{kind.name}, {name}"] = [b["p99"] - a["p99"] for a, b in found]
            lost += sum(b["errors"] for _, b in found)
            worst["master"] = max(worst["master"], beside["master"] / sum(load))
            worst["worker"] = max(worst["worker"], beside["worker"])
            worst["left"] = max(worst["left"], beside["left"])
            if beside["pace"] is not None:
                slowest = min(slowest, beside["pace"])
    for name, found in differences.items():
        section.at_most(f"p99 with - without, ms: {name}", found, 2.0)
    section.at_most("requests without an answer", lost, 0, "{:.0f}")
    section.at_least("least pace of the readers", slowest, 0.9)
    # A carry is that long at most. Files and bodies are much longer.
    section.at_most("the master's growth for each slow client, KiB", worst["master"], 64, "{:.1f}")
    section.at_most("the growth of a worker, KiB", worst["worker"], 4096, "{:.0f}")
    section.at_most("descriptors left", worst["left"], 0, "{:.0f}")
