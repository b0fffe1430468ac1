# SPDX-License-Identifier: GPL-2.0
"""Boots guests on User-Mode Linux with a time of its own, and keeps what they say."""

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))

# What the programs of all guests import, besides files of their own.
SHARED = (f"{HERE}/../lib/nullblk.py", f"{HERE}/../testing/selftests/dm-snap-rs/dm.py")

# A guest that takes longer than this in real time has hung.
LIMIT = 900


class Guest:
    """How guests are booted: with which kernel, root and module."""

    def __init__(self, kernel, root, module):
        self.kernel = kernel
        self.root = root
        self.module = module
        self.children = set()
        self.lock = threading.Lock()

    def boot(self, case, variant, *options):
        """Runs one case in one boot; returns its result, and all that it printed."""
        files = [f"{HERE}/guest.py", f"{HERE}/cases.py"]
        if variant == "ours":
            files.append(self.module)
        return self.run(files, ["guest.py", case, variant, *options])

    def run(self, files, command):
        """Runs a Python program, with these files beside it, in one boot; returns what it
        says of its result, and all that it printed."""
        # The guest's memory is a file; here it needs no disk.
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="dm-snap-rs-uml.") as job:
            for name in (*files, *SHARED):
                shutil.copy(name, job)
            start = f"{job}/start"
            with open(start, "w", encoding="ascii") as file:
                file.write("#!/bin/sh\nPYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 exec python3 "
                           f"{' '.join(command)} 2>&1\n")
            os.chmod(start, 0o755)
            output = self.linux(job)
        result = None
        for line in output.splitlines():
            if line.startswith("RESULT "):
                result = json.loads(line[len("RESULT "):])
        return result, output

    def linux(self, job):
        """Runs the kernel on a job's folder and returns what its console shows."""
        command = [f"{self.kernel}/linux", "mem=2560M", "root=/dev/root", "rootfstype=hostfs",
                   f"rootflags={self.root}", "ro", "init=/init", "seccomp=on", "ssl=null",
                   "con=null", "con0=null,fd:1", "con1=null,fd:1", "quiet",
                   "time-travel=inf-cpu", f"uml_dir={job}/uml", f"bench.job={job}",
                   f"bench.modules={self.kernel}/modules/lib/modules"]
        # All processes of a User-Mode Linux are in the session of its first one.
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, cwd=job, start_new_session=True,
                              env={"TMPDIR": job, "HOME": job, "PATH": os.environ["PATH"]}) as child:
            with self.lock:
                self.children.add(child.pid)
            try:
                output, _ = child.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                output, _ = child.communicate()
            finally:
                with self.lock:
                    self.children.discard(child.pid)
        return output.decode("utf-8", "replace")

    def end_all(self):
        """Ends the guests that are running."""
        with self.lock:
            for pid in self.children:
                os.killpg(pid, signal.SIGKILL)


def run_all(guest, jobs, tell, boot=None):
    """Boots guests for jobs, each the arguments of boot; returns their results in order.

    tell(job, seconds, failure) hears of each; failure is what a boot printed that
    brought no result.
    """
    stopped = threading.Event()
    boot = boot or guest.boot

    def one(job):
        if stopped.is_set():
            return None
        begin = time.monotonic()
        result, output = boot(*job)
        if not stopped.is_set():
            tell(job, time.monotonic() - begin, None if result is not None else output)
        return result

    def stop(*_):
        stopped.set()
        guest.end_all()
        sys.exit(130)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(one, jobs))
