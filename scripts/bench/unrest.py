"""A server that does not come to rest: its workers are killed, it is reloaded, it is upgraded.

The masters that follow each other become children of this process, so that all can be waited for.
"""

import ctypes
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import time

from disturb import children
from processes import Failure

PR_SET_CHILD_SUBREAPER = 36
# How long a start, a reload, or an upgrade may take; after an upgrade the old master's turns end.
PATIENCE = 90.0
LOOK = 0.05

# What the log says: that it is done, that it is not.
ENDS = {
    signal.SIGHUP: (r"master\[\d+\]: reloaded", r"reload (failed|refused).*"),
    signal.SIGUSR2: (r"the takeover is complete", r"takeover failed.*|upgrade (failed|refused).*"),
}
NAMES = {signal.SIGHUP: "reload", signal.SIGUSR2: "upgrade"}


def adopt_orphans():
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise Failure(f"PR_SET_CHILD_SUBREAPER: {os.strerror(ctypes.get_errno())}")


class Restless:
    """A server in a directory of its own. To be used in a `with` statement."""

    def __init__(self, batond, place, arguments, workers, unix):
        self.place, self.size = pathlib.Path(place), workers
        self.pid_file, self.log = self.place / "pid", self.place / "log"
        self.address = str(self.place / "socket") if unix else None
        listen = f"unix:{self.address}" if unix else "127.0.0.1:0"
        command = [batond, "serve", *arguments, "-w", workers, "-l", listen,
                   "--pid-file", self.pid_file]
        environment = {key: value for key, value in os.environ.items() if key != "RUST_LOG"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment)
        self.masters, self.ready = {self.process.pid}, set()
        self.text, self.read = "", 0
        self.kills = 0
        self.done = {NAMES[kind]: 0 for kind in NAMES}
        self.failed = []

    def __enter__(self):
        try:
            listening = self.await_(r"listening on (?:127\.0\.0\.1:)?(\S+)")
            self.server = self.address or int(listening[1])
            self.await_workers()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind, *_):
        ended = self.end()
        self.look()
        trouble = re.search(r".*panicked.*", self.text)
        if kind is None and trouble:
            raise Failure(f"batond said: {trouble[0]}")
        if kind is None and not ended:
            raise Failure(f"batond had to be killed in the end:\n{self.tail()}")

    def tail(self):
        return "\n".join(self.text.splitlines()[-15:])

    def look(self):
        """Reads on in the log, and notes who is there."""
        with open(self.log, "rb") as file:
            file.seek(self.read)
            new = file.read()
        whole = new[:new.rfind(b"\n") + 1]
        self.read += len(whole)
        text = whole.decode(errors="replace")
        self.text += text
        self.ready |= {int(pid) for pid in re.findall(r"worker ready slot=\d+ pid=(\d+)", text)}
        self.masters |= {int(pid) for pid in re.findall(r"upgrading: started \S+ pid=(\d+)", text)}

    def await_(self, pattern):
        until = time.monotonic() + PATIENCE
        while True:
            self.look()
            if found := re.search(pattern, self.text):
                return found
            if self.process.poll() is not None or time.monotonic() > until:
                raise Failure(f"batond does not say '{pattern}':\n{self.tail()}")
            select.select([], [], [], LOOK)

    def await_workers(self):
        """Waits until there are as many as there should be: what it has open depends on that."""
        until = time.monotonic() + PATIENCE
        while len(self.workers()) != self.size:
            if time.monotonic() > until:
                raise Failure(f"{len(self.workers())} workers, not {self.size}:\n{self.tail()}")
            select.select([], [], [], LOOK)
            self.look()

    def master(self):
        """The one that is in charge, as the pid file says."""
        return int(self.pid_file.read_text())

    def workers(self):
        """Those that have been ready, of any generation and any master."""
        found = []
        for master in self.masters:
            try:
                found += [child for child in children(master) if child in self.ready]
            except (OSError, ValueError):
                pass  # That master has ended.
        return found

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.master()}/fd"))

    # ---- unrest ----------------------------------------------------------------------------------

    def kill_one(self):
        """kill -9 of a random worker, and of nobody who has got its number since."""
        self.look()
        workers = self.workers()
        if not workers:
            return  # They have all been killed just now.
        victim = random.choice(workers)
        try:
            process = os.pidfd_open(victim)
        except ProcessLookupError:
            return
        try:
            if victim in self.workers():
                signal.pidfd_send_signal(process, signal.SIGKILL)
                self.kills += 1
        except ProcessLookupError:
            pass
        finally:
            os.close(process)

    def disturbances(self, plan, pause):
        """Obeys a plan of signals, one after the other has been obeyed. Returns a function to be
        called again and again, which says when, or None at the end.
        """
        plan = list(plan)
        state = {"mark": 0, "until": 0.0, "running": False}

        def step():
            self.look()
            if not state["running"]:
                if not plan:
                    return None
                state.update(mark=len(self.text), until=time.monotonic() + PATIENCE, running=True)
                os.kill(self.master(), plan[0])
                return LOOK
            name, (done, failed) = NAMES[plan[0]], ENDS[plan[0]]
            said = self.text[state["mark"]:]
            if re.search(done, said):
                self.done[name] += 1
                plan.pop(0)
            elif found := re.search(failed, said):
                self.failed.append(found[0])
                if len(self.failed) > 20:
                    raise Failure(f"20 times: {found[0]}")
            elif time.monotonic() > state["until"]:
                raise Failure(f"no end of {name} after {PATIENCE:.0f} s:\n{self.tail()}")
            else:
                return LOOK
            state["running"] = False
            return pause if plan else None

        return step

    # ---- the end ---------------------------------------------------------------------------------

    def end(self):
        """Ends all masters and reaps whatever they have left. False if one had to be killed."""
        self.look()
        orderly = True
        for master in self.masters:
            orderly &= self.end_master(master)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return orderly
            if pid == 0:
                # Workers of a master that was killed, which end by themselves, or of late.
                select.select([], [], [], LOOK)
        for orphan in children(os.getpid()):
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)
        return False

    def end_master(self, master):
        try:
            process = os.pidfd_open(master)
        except ProcessLookupError:
            return True
        orderly = True
        try:
            # Its parent is this process, or the old master is still there, and ends first.
            if master not in children(os.getpid()):
                return True
            signal.pidfd_send_signal(process, signal.SIGTERM)
            if not select.select([process], [], [], 45)[0]:
                orderly = False
                signal.pidfd_send_signal(process, signal.SIGKILL)
            if master == self.process.pid:
                self.process.wait()
            else:
                os.waitpid(master, 0)
        except ProcessLookupError:
            pass
        finally:
            os.close(process)
        return orderly
