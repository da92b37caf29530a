"""Runs the measurements of scripts/bench.sh, which says how to call it."""

import argparse
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import time

import figures
import report
from processes import Failure, Tools

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def whole(most):
    def parse(text):
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most}")
        return int(text)
    return parse


def arguments():
    parser = argparse.ArgumentParser(prog="bench.sh")
    parser.add_argument("what", nargs="*", metavar="WHAT",
                        help=f"all (the default), or any of: {', '.join(figures.ALL)}")
    parser.add_argument("--seconds", type=whole(3600), help="how long one measurement takes")
    parser.add_argument("--rounds", type=whole(1000), help="how often the candidates take turns")
    parser.add_argument("--markdown", action="store_true", help="print tables for a document")
    parser.add_argument("--update", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--against", metavar="BATOND", help="the executable of the other build")
    parser.add_argument("--program", metavar="COMMAND", help="a server of one's own, for 'slow'")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batond", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for what in options.what:
        if what != "all" and what not in figures.ALL:
            parser.error(f"'{what}' is not known; there are: all, {', '.join(figures.ALL)}")
    if not options.what or "all" in options.what:
        options.what = [what for what in figures.ALL if what not in figures.NOT_OF_ALL]
    if ("builds" in options.what) != bool(options.against):
        parser.error("'builds' and --against belong together")
    if options.program and "slow" not in options.what:
        parser.error("--program belongs to 'slow'")
    if options.against and not os.access(options.against, os.X_OK):
        parser.error(f"--against: {options.against} is no executable file")
    return options


def version(command, pattern):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "?"


def machine():
    """What a reader must know to judge the figures."""
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    nginx = version(["nginx", "-v"], r"nginx/(\S+)")
    wrk = version(["wrk", "-v"], r"(\d+\.\d+\.\d+)")
    return (f"{len(os.sched_getaffinity(0))} processors"
            f" ({model[1] if model else platform.machine()}),"
            f" Linux {platform.release().split('-')[0]}, nginx {nginx}, wrk {wrk};"
            f" load average before the start: {os.getloadavg()[0]:.1f}")


def run(name, tools, options):
    measure, seconds, rounds = figures.ALL[name]
    own = argparse.Namespace(seconds=options.seconds or seconds, rounds=options.rounds or rounds)
    asked = [f" --{option} {value}" for option, value in
             [("seconds", options.seconds), ("rounds", options.rounds)] if value]
    asked += [" --against BATOND"] if name == "builds" else []
    asked += [" --program COMMAND"] if name == "slow" and options.program else []
    section = report.Section(name, "".join(asked))
    try:
        measure(section, tools, own)
    except (Failure, OSError) as failure:
        section.fail(str(failure))
    return section


def main():
    options = arguments()
    if options.check:
        return 0
    # So that what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tools = Tools(options.batond, options.scratch, options.against, options.program)
    when = f"{time.strftime('%Y-%m-%d')}, {machine()}"
    print(when, flush=True)
    sections = []
    for name in options.what:
        section = run(name, tools, options)
        sections.append(section)
        text = section.markdown(when) if options.markdown else section.plain()
        print("\n" + text, flush=True)
    if options.update:
        report.update(DOCUMENT, sections, when)
    return 1 if any(section.failures for section in sections) else 0


sys.exit(main())
