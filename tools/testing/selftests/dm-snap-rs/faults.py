#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Has a device beneath a snapshot fail, and compares with a model what each device shows
while it does and afterwards.

faults.py DEV COW
    DEV or COW fails, for reads, for writes, or for both, while it is in use.

What is asked for each time: ORIGIN never fails, and shows what was written to it, unless
DEV itself has failed. SNAP shows what it has to, or is invalid, which the log tells.
Everything can be removed.

It prints how many requests have failed.
"""

import collections
import os
import random
import sys
import time

import dm
from model import SECTOR, buffer, read_all

CHUNK = 8
COUNTS = collections.Counter()


class Wrong(Exception):
    """The module did what it must not do."""


class Log:
    """The kernel's log from now on."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)
        self.lines = []

    def read(self):
        """All lines since the start."""
        while True:
            try:
                self.lines.append(os.read(self.fd, 8192).decode(errors="replace"))
            except BlockingIOError:
                return self.lines
            except BrokenPipeError:
                continue

    def tells(self, text):
        """True when a line of the module has this in it."""
        return any("device-mapper: snapshot-rs" in line and text in line
                   for line in self.read())

    def close(self):
        """Nothing more is wanted."""
        os.close(self.fd)


class Side:
    """What a device must show. Where a write has failed, it may show both."""

    def __init__(self, path, image, fails=False):
        self.path = path
        self.image = image
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.choices = {}
        self.bounce = buffer(1 << 20)
        # Whether its I/O may fail now.
        self.fails = fails

    def write(self, at, data):
        """Writes data at a sector; false when that failed."""
        self.bounce[:len(data)] = data
        part = self.bounce[:len(data)]
        gave = None
        try:
            gave = os.pwritev(self.fd, [part], at * SECTOR)
        except OSError as error:
            gave = error
        if gave == len(data):
            self.image[at * SECTOR:at * SECTOR + len(data)] = data
            for sector in range(at, at + len(data) // SECTOR):
                self.choices.pop(sector, None)
            return True
        self.failed("write", at, len(data), gave)
        for index in range(len(data) // SECTOR):
            self.choices.setdefault(at + index, []).append(
                bytes(data[index * SECTOR:(index + 1) * SECTOR]))
        return False

    def failed(self, what, at, size, gave):
        """Something fell short: only where that may be."""
        if not self.fails:
            raise Wrong(f"a {what} of {size} bytes at sector {at} of {self.path}: {gave}")

    def read(self, at, size):
        """Reads and compares; false when the read failed."""
        part = self.bounce[:size]
        gave = None
        try:
            gave = os.preadv(self.fd, [part], at * SECTOR)
        except OSError as error:
            gave = error
        if gave != size:
            self.failed("read", at, size, gave)
            return False
        self.compare(part, at)
        return True

    def compare(self, got, at):
        """Compares what was read at a sector."""
        got = bytes(got)
        if got == self.image[at * SECTOR:at * SECTOR + len(got)]:
            return
        for start in range(0, len(got), SECTOR):
            sector = at + start // SECTOR
            here = got[start:start + SECTOR]
            if here == self.image[sector * SECTOR:(sector + 1) * SECTOR]:
                continue
            if here not in self.choices.get(sector, ()):
                raise Wrong(f"{self.path} shows wrong data at sector {sector}")

    def flush(self):
        """Makes it durable; false when that failed."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            self.failed("flush", 0, 0, error)
            return False
        return True

    def all(self):
        """Compares the whole device."""
        for at in range(0, len(self.image) // SECTOR, 1024):
            self.read(at, min(1 << 19, len(self.image) - at * SECTOR))

    def close(self):
        """The device isn't used any more."""
        os.close(self.fd)


class Stand:
    """DEV and COW, and what stands on them."""

    def __init__(self, dev, cow, seed=1):
        self.dev, self.cow = dev, cow
        self.size = dm.size_of(dev)
        self.rng = random.Random(seed)
        self.pool = self.rng.randbytes(1 << 20)
        self.origin = self.snap = self.origin_dm = self.snap_dm = None
        self.log = None

    def data(self, sectors):
        """Fresh data."""
        at = self.rng.randrange(0, len(self.pool) - sectors * SECTOR)
        return self.pool[at:at + sectors * SECTOR]

    def line(self, target, store="P", chunk=CHUNK, dev=None, cow=None):
        """A line of a table."""
        dev, cow = dev or self.dev, cow or self.cow
        args = dev if target == "snap-origin-rs" else f"{dev} {cow} {store} {chunk}"
        return 0, self.size, target, args

    def wipe(self):
        """Makes COW a new one."""
        fd = os.open(self.cow, os.O_WRONLY)
        os.pwrite(fd, bytes(65536), 0)
        os.fsync(fd)
        os.close(fd)

    def open_origin(self, dev=None):
        """Makes ORIGIN, which shows what DEV does."""
        self.origin_dm = dm.Dm("origin")
        self.origin_dm.load(self.line("snap-origin-rs", dev=dev))
        self.origin_dm.resume()
        image = bytearray(self.size * SECTOR)
        fd = os.open(self.origin_dm.path, os.O_RDONLY | os.O_DIRECT)
        read_all(fd, memoryview(image))
        os.close(fd)
        self.origin = Side(self.origin_dm.path, image)

    def open_snap(self, store="P", **where):
        """Makes SNAP, which shows from now on what ORIGIN does."""
        self.log = Log()
        self.snap_dm = dm.Dm("snap")
        self.snap_dm.load(self.line("snapshot-rs", store, **where))
        self.origin_dm.suspend()
        self.snap_dm.resume()
        self.origin_dm.resume()
        self.snap = Side(self.snap_dm.path, bytearray(self.origin.image))

    def close_snap(self):
        """Removes SNAP."""
        self.snap.close()
        self.snap_dm.remove()
        self.log.close()
        self.snap = self.snap_dm = None

    def close(self):
        """Removes all."""
        if self.snap:
            self.close_snap()
        self.origin.close()
        self.origin_dm.remove()

    def is_invalid(self):
        """Whether SNAP has been given up, which the log must tell."""
        # The device counts for nothing until what was begun has ended.
        for _ in range(100):
            status = self.snap_dm.status()
            if status in ("Invalid", "Overflow"):
                if not self.log.tells("invalidating") and not self.log.tells("overflow") \
                        and not self.log.tells("marked as invalid"):
                    raise Wrong(f"the snapshot is {status}, and the log does not tell why")
                return True
            if "/" in status:
                return False
            time.sleep(0.05)
        raise Wrong(f"the status of the snapshot is '{status}'")

    def check(self):
        """Nothing fails any more: compares both."""
        self.origin.fails = False
        self.origin.all()
        self.snap.fails = True
        if self.is_invalid():
            COUNTS["snapshots lost"] += 1
            if self.snap.read(0, 4096):
                raise Wrong("a snapshot that is invalid can be read")
            return
        self.snap.fails = False
        self.snap.all()


def devices(dev, cow):
    """Has each device fail in each way."""
    size, cow_size = dm.size_of(dev), dm.size_of(cow)

    def lines(device, sectors, how):
        """The tables of a device that is well, and of one that fails."""
        if how == "error":
            return (0, sectors, "error", "")
        if how == "well":
            return (0, sectors, "linear", f"{device} 0")
        return (0, sectors, "flakey", f"{device} 0 0 1000000 1 {how}")

    for victim in "cow", "dev":
        for how in "error_writes", "error_reads", "error":
            for store in "P", "N":
                under_dev, under_cow = dm.Dm("under-dev"), dm.Dm("under-cow")
                under_dev.load(lines(dev, size, "well"))
                under_dev.resume()
                under_cow.load(lines(cow, cow_size, "well"))
                under_cow.resume()
                stand = Stand(dev, cow)
                stand.wipe()
                where = {"dev": under_dev.path, "cow": under_cow.path}
                stand.open_origin(where["dev"])
                stand.open_snap(store, **where)
                stand.origin.write(0, stand.data(128))
                stand.snap.write(256, stand.data(16))
                under, path, sectors = (under_cow, cow, cow_size) if victim == "cow" \
                    else (under_dev, dev, size)
                under.load(lines(path, sectors, how))
                under.resume()
                stand.snap.fails = True
                # Whole chunks, for which ORIGIN has nothing to read.
                stand.origin.fails = victim == "dev" and how != "error_reads"
                failed = 0
                for at in range(0, 1024, 64):
                    failed += not stand.origin.write(at, stand.data(16))
                    failed += not stand.snap.read(at, 16384)
                    failed += not stand.snap.write(at + 32, stand.data(4))
                failed += not stand.snap.flush()
                failed += not stand.origin.flush()
                if not failed:
                    raise Wrong(f"nothing has failed with {how} of {victim}")
                COUNTS[f"{how} of {victim}"] += failed
                under.load(lines(path, sectors, "well"))
                under.resume()
                stand.check()
                stand.close()
                under_dev.remove()
                under_cow.remove()


def main(arguments):
    """Does what the arguments say."""
    devices(*arguments)
    for name, count in sorted(COUNTS.items()):
        print(f"note: {name}: {count}")


if __name__ == "__main__":
    main(sys.argv[1:])
