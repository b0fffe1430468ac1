# SPDX-License-Identifier: GPL-2.0
"""The snapshots of the soak test, what the kernel's log tells of them, and who hangs."""

import collections
import contextlib
import glob
import os
import re
import signal
import subprocess
import threading
import time

import dm
from model import Device, Mismatch

SNAPSHOT = "snapshot-rs"
PARAMETERS = "/sys/module/dm_snap_rs/parameters/"
QUEUE, ERROR = "queue_if_no_space", "error_if_no_space"
CHUNKS = (8, 16, 32, 128)
# So many seconds nothing takes, however slow the machine is.
LIMIT = 300


class Watch:
    """Since when each thread does what it does, in memory shared with the process that
    looks after that."""

    def __init__(self, memory):
        self.since = memory.cast("d")
        self.local = threading.local()

    def enter(self, number):
        """This thread is to be known by this number."""
        self.local.number = number

    @contextlib.contextmanager
    def step(self):
        """Something that must come to an end."""
        self.since[self.local.number] = time.monotonic()
        try:
            yield
        finally:
            self.since[self.local.number] = 0

    def look_after(self, child):
        """Waits for the end of the process that works; its exit status."""
        late = []
        while not late:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(2)
            now = time.monotonic()
            late = [n for n, since in enumerate(self.since) if since and now - since > LIMIT]
        print(f"# FAILED: threads {late} have waited for {LIMIT} s", flush=True)
        os.kill(child, signal.SIGUSR1)
        with open("/proc/sysrq-trigger", "w", encoding="ascii") as file:
            file.write("w")
        time.sleep(3)
        for task in sorted(os.listdir(f"/proc/{child}/task")):
            with open(f"/proc/{child}/task/{task}/stack", encoding="ascii") as file:
                print(f"# stack of {task}:\n{file.read()}", flush=True)
        for what in "status", "table", "info -c":
            subprocess.run(["dmsetup", *what.split()], timeout=60, check=False)
        # Where requests are: beneath the module, or within it.
        for path in sorted(glob.glob("/sys/block/*/inflight")) + glob.glob(PARAMETERS + "*"):
            with open(path, encoding="ascii") as file:
                print(f"# {path}: {' '.join(file.read().split())}", flush=True)
        for path in sorted(glob.glob("/sys/block/dm-*/dm/name")):
            with open(path, encoding="ascii") as file:
                name = file.read().strip()
            print(f"# {name}:", flush=True)
            subprocess.run(["dmsetup", "message", name, "0", "stats"], timeout=60, check=False,
                           stderr=subprocess.DEVNULL)
        # Nothing that hangs can be removed, nor does it end.
        time.sleep(5)
        with open("/proc/sysrq-trigger", "w", encoding="ascii") as file:
            file.write("o")
        return 1


class Log:
    """What the module says."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)
        self.lock = threading.Lock()
        # By the COW device: when, and why, a snapshot was given up, or a merge failed.
        self.reasons = {}
        self.counts = collections.Counter()

    def read(self):
        """Reads what there is."""
        with self.lock:
            while True:
                try:
                    line = os.read(self.fd, 8192).decode(errors="replace")
                except BlockingIOError:
                    return
                head, _, text = line.partition("device-mapper: snapshot-rs: ")
                if text:
                    self.take(int(head.split(",")[2]) / 1e6, text.splitlines()[0])

    def take(self, when, text):
        """Takes in a line."""
        if "internal error" in text:
            raise Mismatch(f"the log says: {text}")
        told = re.search(r"COW device (\d+:\d+)(?: failed)?: (.*)", text)
        if told and " is full: writes" not in text:
            self.reasons[told[1]] = (when, told[2])
        if "invalidating" in text:
            self.counts[f"snapshots lost: {told[2]}"] += 1
        for words, name in ((" is full: ", "times that writes waited or failed for want of room"),
                            ("overflowed", "overflows"), ("no more than", "low-water marks")):
            self.counts[name] += words in text

    def reason(self, name, seconds=20):
        """When and why, of a COW device; the line may come a little later."""
        for _ in range(seconds * 10):
            self.read()
            if name in self.reasons:
                break
            time.sleep(0.1)
        return self.reasons.get(name, (0, "for no reason that the log tells"))


class Side(Device):
    """ORIGIN or SNAP, and what may be done with it."""

    def __init__(self, path, image):
        super().__init__(path, image)
        # The snapshot's slot; of ORIGIN None.
        self.slot = None
        # Whether nobody may begin anything on it, or any more than to read.
        self.is_blocked = True
        self.is_read_only = False

    def reopen(self, path):
        """It is another device now."""
        self.path = path
        self.open()


class Slot:
    """A place for a snapshot: its COW device, and the snapshot."""

    def __init__(self, number, stores, policy, space, dev):
        self.number, self.stores, self.policy = number, stores, policy
        self.space, self.dev, self.sectors = space, dev, dm.size_of(dev)
        self.store, self.chunk = "P", 8
        # The size of COW, and that with which it can't become full.
        self.size = self.cap = 0
        self.cow = dm.Dm(f"cow{number}")
        # SNAP, and what it shows.
        self.dm = self.side = None
        # Whether it guards what ORIGIN changes. The lock is held while this, or the
        # devices, change.
        self.guards = False
        self.lock = threading.Lock()
        # Until when writes could fail for want of room, and since when none can want any.
        self.refused_until, self.ample_since = 0, float("inf")
        # How likely it grows when it is full, each half a second.
        self.pace = 0

    def line(self, target=SNAPSHOT):
        """A line of a table."""
        low = f"low_water_mark:{self.cap // self.chunk // 8}"
        return 0, self.sectors, target, (
            f"{self.dev} {self.cow.path} {self.store} {self.chunk} "
            + (f"2 {self.policy} {low}" if self.policy else f"1 {low}"))

    def refuses(self):
        """Whether a write may find no room now, and fail for that."""
        return self.guards and self.policy == ERROR and self.size < self.cap

    @contextlib.contextmanager
    def change(self):
        """Around what may end that writes fail for want of room."""
        refuses = self.refuses()
        if refuses:
            self.refused_until = float("inf")
        try:
            yield
        finally:
            if refuses:
                self.refused_until = time.monotonic()

    def resize(self, sectors):
        """Gives COW another size."""
        with self.change():
            self.size = min(sectors // 8 * 8, self.cap)
            self.cow.load((0, self.size, "linear", self.space))
            self.cow.resume()
            self.ample_since = time.monotonic() if self.size == self.cap else float("inf")

    def renew(self, rng):
        """Makes COW a new one, of another kind."""
        self.store, self.chunk = rng.choice(self.stores), rng.choice(CHUNKS)
        chunks = self.sectors // self.chunk
        # As the guide says: header, data, the areas, and one more.
        self.cap = (chunks + 2 - -chunks // (self.chunk * 32)) * self.chunk
        self.pace = rng.choice((0.3, 0.9) if self.policy else (0, 0.9))
        self.resize(max(int(self.cap * rng.uniform(0.03, 0.4)), 6 * self.chunk))
        with open(self.cow.path, "wb", buffering=0) as file:
            file.write(bytes(65536)[:self.size * 512])
            os.fsync(file)

    def grow(self, rng):
        """COW grows, if there is not much room any more; whether it did."""
        words = self.dm.status().replace("/", " ").split()
        if len(words) < 3 or self.size - int(words[0]) > max(4 * self.chunk, self.size // 16):
            return False
        self.resize(self.size + int(self.cap * rng.uniform(0.05, 0.5)))
        return True
