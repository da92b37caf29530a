"""The sub-commands: each measures one group of figures and puts them into its section.

Costs are compared as ratios: the candidates take turns (A B A B ...), each round gives a ratio, and
the median of the rounds counts. The machine's own pace, and what else runs on it, cancel out.
"""

import contextlib
import itertools
import os
import random
import signal
import statistics
import time

import disturb
import processes
from processes import (
    Failure, bare_limit, batond, held, measure, nginx, passing, proportional_set_size, wrk,
)
from slow import slow

# What a process needs beside its connections.
HEADROOM = 512


# ---- cost ------------------------------------------------------------------------------------------


def alternate(section, options, candidates, load):
    """Lets the candidates take turns and returns the runs of each by name.

    A candidate is a function that gives a server to be used in a `with` statement. It is started
    anew for each round, so that the luck of one start does not count for all.
    """
    runs = {name: [] for name in candidates}
    for _ in range(options.rounds):
        for name, start in candidates.items():
            with start() as server:
                runs[name].append(load(server))
    tabulate(section, runs)
    return runs


def tabulate(section, runs):
    section.table("medians", "requests/s", "CPU us/request", "p50 ms", "p99 ms", "other load")
    for name, loads in runs.items():
        rate, cpu, p50, p99, others = (
            statistics.median(getattr(load, field) for load in loads)
            for field in ["rate", "cpu", "p50", "p99", "others"])
        section.row(name, f"{rate:.0f}", f"{cpu:.2f}", f"{p50 / 1e3:.2f}", f"{p99 / 1e3:.2f}",
                    f"{others:.2f}")


def ratios(runs, one, other, field="cpu"):
    """The ratio of two candidates in each round."""
    return [getattr(a, field) / getattr(b, field) for a, b in zip(runs[one], runs[other])]


def files(tools, workers):
    return lambda: batond(tools, "http", tools.files, workers=workers)


def against_nginx(section, tools, options, close, target):
    runs = alternate(section, options, {
        "batond -w 2": files(tools, 2),
        "nginx, 2 workers": lambda: nginx(tools),
        "batond -w 8": files(tools, 8),
    }, lambda server: wrk(tools, server, options.seconds, close=close))
    one, other, many = runs
    section.at_most("CPU per request, batond / nginx", ratios(runs, one, other), target)
    section.at_least("requests/s, batond / nginx", ratios(runs, one, other, "rate"), 1.0)
    section.at_most("CPU per request, -w 8 / -w 2", ratios(runs, many, one), 1.10)


def keepalive(section, tools, options):
    section.about(
        "CPU per request, 32 keep-alive connections",
        "`batond serve http DIR` and nginx serve the same file of two bytes to 32 wrk connections.")
    against_nginx(section, tools, options, close=False, target=0.95)


def close(section, tools, options):
    section.about(
        "CPU per request, a new connection for each",
        "As above, with a new connection for each request.")
    against_nginx(section, tools, options, close=True, target=0.80)


def limit(section, tools, options):
    section.about(
        "a new connection for each request, against the least that it can cost",
        "The reference is `tests/bench/bare_limit.c`: two workers share the listener, accept by "
        "themselves, answer without looking at the request, and close.")
    runs = alternate(section, options, {
        "batond -w 2": files(tools, 2),
        "bare limit, 2 workers": lambda: bare_limit(tools),
    }, lambda server: wrk(tools, server, options.seconds, close=True))
    section.at_most("CPU per request, batond / bare limit", ratios(runs, *runs), 1.4)


def builds(section, tools, options):
    section.about(
        "CPU per request, this build against another one",
        "`batond serve http DIR` of both builds, two workers, a file of two bytes, 32 wrk "
        "connections: kept alive, and a new one for each request.")
    for how, close in [("kept alive", False), ("new connections", True)]:
        runs = alternate(section, options, {
            f"this build, {how}": files(tools, 2),
            f"the other, {how}": files(tools.with_batond(tools.against), 2),
        }, lambda server, close=close: wrk(tools, server, options.seconds, close=close))
        section.at_most(f"CPU per request, this / other, {how}", ratios(runs, *runs), 1.02)


def through_pass(section, tools, options):
    section.about(
        "CPU per request that is passed to another pool",
        "A pool of files that has none passes each request of 32 keep-alive connections to a "
        "second one, which has a file of two bytes. `batond serve http DIR` serves it at once. Each "
        "pool has two workers.")
    runs = alternate(section, options, {
        "passed": lambda: passing(tools, 2),
        "at once": files(tools, 2),
    }, lambda server: wrk(tools, server, options.seconds))
    more = [a.cpu - b.cpu for a, b in zip(runs["passed"], runs["at once"])]
    section.at_most("CPU us per request, passed - at once", more, 10.0)


def workers(section, tools, options):
    section.about(
        "CPU per request with 2 to 256 workers",
        "The same load of 32 keep-alive connections; only the number of workers differs.")
    numbers = [2, 8, 32, 64, 256]
    runs = alternate(
        section, options, {f"batond -w {number}": files(tools, number) for number in numbers},
        lambda server: wrk(tools, server, options.seconds))
    first, *more = runs
    for name in more:
        section.at_most(f"CPU per request, {name.removeprefix('batond ')} / -w 2",
                        ratios(runs, name, first), 1.05)


def parked(section, tools, options):
    most = min(15_000, os.sysconf("SC_OPEN_MAX") - HEADROOM)
    section.about(
        f"CPU per request beside {most} parked connections",
        "32 keep-alive connections have requests, beside so many that have had one and are silent. "
        "Two servers take turns, so that both have run for as long.")
    with files(tools, 2)() as empty, files(tools, 2)() as full, held(full, most):
        runs = alternate(section, options, {
            "none parked": lambda: contextlib.nullcontext(empty),
            f"{most} parked": lambda: contextlib.nullcontext(full),
        }, lambda server: wrk(tools, server, options.seconds))
        none, many = runs
        section.at_most(f"CPU per request, {many} / none", ratios(runs, many, none), 1.05)


# ---- latency ---------------------------------------------------------------------------------------


def latencies(section, name, count):
    section.row(name, count["replies"] - count.get("slow", 0), *(
        f"{count[key] / 1e3:.2f}" for key in ["p50", "p90", "p99", "max"]))


def check_replies(section, count, allowed=("status_200",)):
    """Whatever a client saw that it should not have seen is a failure."""
    for name, number in count.items():
        unwanted = name in processes.FAILURES or name.startswith("status_") and name not in allowed
        if unwanted and number:
            section.fail(f"{number} of {count['replies']} requests: {name}")


def median_of(counts):
    return {name: statistics.median(count.get(name, 0) for count in counts) for name in counts[0]}


def tail(section, tools, options):
    section.about(
        "latency of fast requests beside slow ones",
        "`batond serve demo -w 32` has 32 keep-alive clients; 5 % of their requests sleep for "
        "100 ms. The latencies are those of the others, by `tests/bench/client.c`. \"No slow ones\" "
        "is all 32 clients at full speed; \"silent instead\" has clients that are silent for 100 ms "
        "in place of a slow request, so that the load of fast ones is the same.")
    kinds = {
        "no slow ones": [],
        "silent instead": ["-r", 50, "-s", "think", "-m", 100],
        "5 % sleep 100 ms": ["-r", 50, "-s", "/sleep/100"],
    }
    counts = {name: [] for name in kinds}
    for _ in range(options.rounds):
        for name, arguments in kinds.items():
            with batond(tools, "demo", workers=32) as server:
                count = measure(tools, server, options.seconds, "-c", 32, "-o", 50, *arguments)
            check_replies(section, count)
            counts[name].append(count)
    section.table("medians of the fast requests", "requests", "p50 ms", "p90 ms", "p99 ms", "max ms")
    medians = {name: median_of(found) for name, found in counts.items()}
    for name, count in medians.items():
        latencies(section, name, {key: int(value) for key, value in count.items()})
    without, silent, beside = medians.values()
    for name, base in [("no slow ones", without), ("silent instead", silent)]:
        section.at_most(f"p50, beside slow ones / {name}", beside["p50"] / base["p50"], 1.10)
        section.at_most(f"p99, beside slow ones - {name}, ms",
                        (beside["p99"] - base["p99"]) / 1e3, 2.0)
    over = sum(count["over"] for count in counts["5 % sleep 100 ms"])
    section.at_most("fast requests of more than 50 ms", over, 0, "{:.0f}")


def disturbed(section, tools, options):
    section.about(
        "latency while somebody disturbs the master",
        "`batond serve` with eight workers for files has 24 keep-alive clients, each of which is "
        "silent for 5 ms before nine of ten requests. Each disturbance goes on all the time, alone "
        "and beside each other one. At the end SIGTERM comes while it lasts; the grace period is "
        "5 s.")
    section.table("medians of rounds; worst stop", "requests", "p50 ms", "p99 ms", "max ms",
                  "SIGTERM to end, s")
    kinds = [name for name in disturb.DISTURBANCES
             if name != "silent resolver" or disturb.can_have_another_resolver()]
    cases = [(), *((kind,) for kind in kinds), *itertools.combinations(kinds, 2)]
    counts = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            with disturb.Victim(tools) as server, disturb.disturbed(server, case):
                # Until the first connection lingers in the master.
                measure(tools, server, 5 if "lingering worker" in case else 0.5, "-c", 24)
                count = measure(tools, server, options.seconds, "-c", 24, "-r", 900, "-s", "think",
                                "-m", 5)
                check_replies(section, count)
                counts[case].append({**count, "stop": server.stop()})
                if server.process.poll() != 0:
                    section.fail(f"{case}: SIGTERM did not end it: {server.process.poll()}")
    medians = {case: median_of(found) for case, found in counts.items()}
    stops = {case: max(count["stop"] for count in found) for case, found in counts.items()}
    for case, count in medians.items():
        section.row(" and ".join(case) or "undisturbed", int(count["replies"] - count["slow"]),
                    *(f"{count[key] / 1e3:.2f}" for key in ["p50", "p99", "max"]),
                    f"{stops[case]:.2f}")
    base, *others = (count["p99"] / 1e3 for count in medians.values())
    section.at_most("worst p99 - undisturbed, ms", max(others) - base, 2.0)
    section.at_most("worst stop, s", max(stops.values()), 6.0)


# ---- what happens to workers -------------------------------------------------------------------------


def send_to_worker(master, worker, with_signal):
    """Signals a worker and nobody else, even if it has just ended and another has its id."""
    try:
        descriptor = os.pidfd_open(worker)
    except ProcessLookupError:
        return False
    try:
        if worker not in master.workers():
            return False
        signal.pidfd_send_signal(descriptor, with_signal)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)


def kill(section, tools, options):
    section.about(
        f"kill -9 of a random worker every 0.1 s, for {options.seconds} s",
        "`batond serve demo` with its default number of workers has 24 connections. One in five "
        "requests is `/sleep/10`, so that many workers are killed within a request.")
    section.table("24 connections", "kills", "200", "502", "broken", "refused", "late", "max ms")
    for name, arguments in [("keep-alive", []), ("a new one for each request", ["-n"])]:
        with batond(tools, "demo") as server:
            command = processes.client(tools, server, options.seconds + 0.2, "-c", 24, "-r", 200,
                                       "-s", "/sleep/10", *arguments)
            with processes.running(command) as client:
                kills = kill_workers(server, options.seconds)
                count = processes.counts(client)
        check_replies(section, count, ["status_200", "status_502"])
        section.row(name, kills, count.get("status_200", 0), count.get("status_502", 0),
                    sum(count[key] for key in ["lost", "torn", "malformed"]), count["refused"],
                    count["timeout"], f"{count['max'] / 1e3:.1f}")
        # Fewer, when there was nobody left to be killed.
        section.at_least(f"kills, {name}", kills, 9 * options.seconds, "{:.0f}")
        broken = sum(count[key] for key in processes.FAILURES)
        section.at_most(f"broken or refused, {name}", broken, 0, "{:.0f}")


def kill_workers(server, seconds):
    kills, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        time.sleep(max(0.0, (kills + 1) * 0.1 - passed))
        workers = server.workers()
        # With none alive the next one is on its way.
        kills += bool(workers) and send_to_worker(server, random.choice(workers), signal.SIGKILL)
    return kills


def stop(section, tools, options):
    section.about(
        f"SIGSTOP of one of four workers, for {options.seconds} s",
        "`batond serve demo -w 4` has 32 keep-alive clients at full speed, and the busiest worker "
        "is stopped. A request that takes longer than 1 s is taken to have waited for it; the other "
        "latencies are those of all requests.")
    section.table("all requests", "requests", "p50 ms", "p90 ms", "p99 ms", "max ms")
    with batond(tools, "demo", workers=4) as server:
        before = measure(tools, server, 2)
        check_replies(section, before)
        latencies(section, "all four run", before)
        command = processes.client(tools, server, options.seconds + 2, "-o", 1000,
                                   "-t", int(options.seconds * 1000) + 10_000)
        with processes.running(command) as client:
            time.sleep(1)
            victim = busiest(server)
            if not send_to_worker(server, victim, signal.SIGSTOP):
                raise Failure("the worker to be stopped had gone")
            try:
                time.sleep(options.seconds)
            finally:
                send_to_worker(server, victim, signal.SIGCONT)
            count = processes.counts(client)
        check_replies(section, count)
        latencies(section, "one is stopped; max of the others", {**count, "max": count["max_under"]})
    section.at_most("requests that waited for the stopped worker", count["over"], 1, "{:.0f}")


def busiest(server):
    """The worker that has most to do: an idle one would have nothing that could wait."""
    table = processes.processes()
    return max(server.workers(), key=lambda worker: table.get(worker, (0, 0))[1])


def idle(section, tools, options):
    most = min(18_000, os.sysconf("SC_OPEN_MAX") - HEADROOM)
    section.about(
        f"{most} idle keep-alive connections",
        "Memory is the growth of the master's proportional set size (PSS). Latencies are those of "
        "32 keep-alive clients, medians of rounds; two servers take turns, one of them with the "
        "idle connections. At the end each of these has a request answered.")
    section.table("32 clients", "requests", "p50 ms", "p90 ms", "p99 ms", "max ms")
    none, many = "no idle connections", f"beside {most} idle ones"
    counts = {none: [], many: []}
    with batond(tools, "demo") as empty, batond(tools, "demo") as full:
        measure(tools, full, 1)
        before = proportional_set_size(full.pid)
        with held(full, most):
            growth = (proportional_set_size(full.pid) - before) / most
            for _ in range(options.rounds):
                for name, server in [(none, empty), (many, full)]:
                    count = measure(tools, server, options.seconds)
                    check_replies(section, count)
                    counts[name].append(count)
    medians = {name: median_of(found) for name, found in counts.items()}
    for name, count in medians.items():
        latencies(section, name, {key: int(value) for key, value in count.items()})
    section.at_most("master's memory per idle connection, bytes", growth, 250, "{:.0f}")
    for key in ["p50", "p99"]:
        section.at_most(f"{key}, beside idle connections / without",
                        statistics.median(b[key] / a[key] for a, b in zip(*counts.values())), 1.10)


# Each with the seconds and the rounds that it takes unless told otherwise.
ALL = {
    "keepalive": (keepalive, 2, 15),
    "close": (close, 2, 15),
    "limit": (limit, 2, 15),
    "workers": (workers, 2, 15),
    "parked": (parked, 4, 5),
    "tail": (tail, 4, 5),
    "disturbed": (disturbed, 4, 3),
    "kill": (kill, 60, 1),
    "stop": (stop, 10, 1),
    "idle": (idle, 4, 5),
    "pass": (through_pass, 2, 15),
    "builds": (builds, 2, 15),
    "slow": (slow, 30, 2),
}
# They take an argument, or long.
NOT_OF_ALL = ["builds", "slow"]
