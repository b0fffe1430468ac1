# SPDX-License-Identifier: GPL-2.0
"""DEV and COW, what stands on them, and what each device has to show: for tests that have
something fail in the middle of it.

What is asked for at all times: ORIGIN never fails, and shows what was written to it, unless
DEV itself has failed. A snapshot shows what it has to, or is invalid, which the log tells.
"""

import errno
import fcntl
import os
import random
import time

import dm
from model import BLKDISCARD, SECTOR, buffer, read_all

ORIGIN, SNAPSHOT, MERGE = "snap-origin-rs", "snapshot-rs", "snap-merge-rs"


class Wrong(Exception):
    """The module did what it must not do."""


class Log:
    """The kernel's log from now on."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)
        self.lines = []

    def read(self):
        """What the module has said since the start."""
        while True:
            try:
                line = os.read(self.fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return self.lines
            except BrokenPipeError:
                continue
            if "device-mapper: snapshot-rs: " in line:
                self.lines.append(line.partition("snapshot-rs: ")[2].splitlines()[0])
                if "internal error" in line:
                    raise Wrong(self.lines[-1])

    def tells(self, *texts):
        """True when a line of the module has one of these in it."""
        return any(text in line for line in self.read() for text in texts)

    def close(self):
        """Nothing more is wanted."""
        os.close(self.fd)


class Under(dm.Dm):
    """A device on the first sectors of another one, parts of which can fail."""

    def __init__(self, name, device, sectors):
        super().__init__(name)
        self.device, self.sectors = device, sectors
        self.fail()

    def fail(self, how="", *parts):
        """From now on, I/O of that kind fails in these parts (start, length); in no other."""
        at, lines = 0, []
        for start, length in sorted(parts) + [(self.sectors, 0)]:
            if start > at:
                lines.append((at, start - at, "linear", f"{self.device} {at}"))
            if length and how == "error":
                lines.append((start, length, "error", ""))
            elif length:
                lines.append((start, length, "flakey", f"{self.device} {start} 0 1000000 1 {how}"))
            at = start + length
        self.load(*lines)
        self.resume()


class Side:
    """A device with what it must show. Where a write has failed, it may show both."""

    def __init__(self, path, image, choices=()):
        self.path = path
        self.image = image
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.choices = {sector: list(also) for sector, also in dict(choices).items()}
        self.bounce = buffer(1 << 20)
        # Whether its I/O may fail now, and how often it has.
        self.may_fail = False
        self.failures = 0

    def done(self, call, what, at, size):
        """Makes a system call; false when it failed, or fell short."""
        try:
            gave = call()
        except OSError as error:
            gave = error
        if gave is None or gave == size:
            return True
        if not self.may_fail:
            raise Wrong(f"a {what} of {size} bytes at sector {at} of {self.path}: {gave}")
        self.failures += 1
        return False

    def unsure(self, at, data):
        """This may be there instead of what was there before."""
        for index in range(len(data) // SECTOR):
            self.choices.setdefault(at + index, []).append(
                bytes(data[index * SECTOR:(index + 1) * SECTOR]))

    def write(self, at, data):
        """Writes data at a sector; false when that failed."""
        part = self.bounce[:len(data)]
        part[:] = data
        if not self.done(lambda: os.pwritev(self.fd, [part], at * SECTOR), "write", at, len(data)):
            self.unsure(at, data)
            return False
        self.image[at * SECTOR:at * SECTOR + len(data)] = data
        for sector in range(at, at + len(data) // SECTOR):
            self.choices.pop(sector, None)
        return True

    def discard(self, at, sectors):
        """Discards sectors, which show zeroes then or what they did; false when that failed."""
        where = (at * SECTOR).to_bytes(8, "little") + (sectors * SECTOR).to_bytes(8, "little")
        self.unsure(at, bytes(sectors * SECTOR))
        return self.done(lambda: fcntl.ioctl(self.fd, BLKDISCARD, where) and None,
                         "discard", at, sectors * SECTOR)

    def fetch(self, at, size):
        """Reads; None when that failed."""
        part = self.bounce[:size]
        if not self.done(lambda: os.preadv(self.fd, [part], at * SECTOR), "read", at, size):
            return None
        return part

    def read(self, at, size):
        """Reads and compares; false when the read failed."""
        part = self.fetch(at, size)
        if part is None:
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
        return self.done(lambda: os.fsync(self.fd), "flush", 0, 0)

    def all(self):
        """Compares the whole device."""
        for at in range(0, len(self.image) // SECTOR, 1024):
            self.read(at, min(1 << 19, len(self.image) - at * SECTOR))

    def close(self):
        """The device isn't used any more."""
        os.close(self.fd)


class Snap(Side):
    """A snapshot: it shows from now on what ORIGIN does."""

    def __init__(self, stand, line, name="snap"):
        self.dm = dm.Dm(name)
        self.log = stand.log
        try:
            self.dm.load(line)
            stand.origin.dm.suspend()
            try:
                self.dm.resume()
            finally:
                stand.origin.dm.resume()
        except OSError:
            self.dm.remove()
            raise
        super().__init__(self.dm.path, bytearray(stand.origin.image), stand.origin.choices)

    @classmethod
    def adopt(cls, stand, device, image):
        """The snapshot that is on a device, and shows this."""
        snap = cls.__new__(cls)
        snap.dm, snap.log = device, stand.log
        Side.__init__(snap, device.path, bytearray(image), stand.origin.choices)
        return snap

    def is_invalid(self):
        """Whether it has been given up, which the log must tell."""
        # The device counts for nothing until what was begun has ended.
        for _ in range(100):
            status = self.dm.status()
            if status in ("Invalid", "Overflow"):
                if not self.log.tells("invalidating", "overflow", "marked as invalid"):
                    raise Wrong(f"the snapshot is {status}, and the log does not tell why")
                return True
            if "/" in status:
                return False
            time.sleep(0.05)
        raise Wrong(f"the status of the snapshot is '{status}'")

    def check(self):
        """Nothing fails any more: compares all, if it is valid; answers whether it is."""
        if not self.is_invalid():
            self.may_fail = False
            self.all()
            return True
        self.may_fail = True
        if self.read(0, 4096):
            raise Wrong("a snapshot that is invalid can be read")
        return False

    def remove(self):
        """Removes it."""
        self.close()
        self.dm.remove()


class Origin(Side):
    """ORIGIN: what is on DEV."""

    def __init__(self, line):
        self.dm = dm.Dm("origin")
        try:
            self.dm.load(line)
            self.dm.resume()
        except OSError:
            self.dm.remove()
            raise
        image = bytearray(line[1] * SECTOR)
        super().__init__(self.dm.path, image)
        read_all(self.fd, memoryview(image))

    def remove(self):
        """Removes it."""
        self.close()
        self.dm.remove()


class Stand:
    """DEV, COW, and ORIGIN and SNAP on them."""

    CHUNK = 8
    POOL = random.Random(1).randbytes(1 << 20)

    def __init__(self, dev, cow, seed=1):
        self.dev, self.cow = dev, cow
        self.size = dm.size_of(dev)
        self.rng = random.Random(seed)
        self.origin = self.snap = None
        self.log = Log()

    def data(self, sectors):
        """Fresh data."""
        at = self.rng.randrange(0, len(self.POOL) - sectors * SECTOR)
        return self.POOL[at:at + sectors * SECTOR]

    def line(self, target, store="P", chunk=CHUNK, cow=None, features=""):
        """A line of a table."""
        args = self.dev
        if target != ORIGIN:
            args += f" {cow or self.cow} {store} {chunk} {len(features.split())} {features}"
        return 0, self.size, target, args

    @staticmethod
    def wipe(cow):
        """Makes a COW device a new one."""
        fd = os.open(cow, os.O_WRONLY)
        os.pwrite(fd, bytes(65536), 0)
        os.fsync(fd)
        os.close(fd)

    def open_origin(self):
        """Makes ORIGIN, which shows what DEV does."""
        self.origin = Origin(self.line(ORIGIN))

    def open_snap(self, **line):
        """Makes SNAP on a new COW device, which shows from now on what ORIGIN does."""
        self.wipe(self.cow)
        self.snap = Snap(self, self.line(SNAPSHOT, **line))

    def reopen_snap(self):
        """Removes SNAP, and makes it again from what is on COW."""
        image, choices = self.snap.image, self.snap.choices
        self.snap.remove()
        self.snap = None
        self.snap = Snap(self, self.line(SNAPSHOT))
        self.snap.image, self.snap.choices = image, choices

    def merge(self):
        """Has ORIGIN become what SNAP shows."""
        self.snap.dm.suspend()
        self.origin.dm.load(self.line(MERGE))
        self.origin.dm.suspend()
        self.origin.dm.resume()
        self.origin.image, self.origin.choices = self.snap.image, self.snap.choices
        self.snap.remove()
        self.snap = None

    def merge_status(self, seconds=30):
        """The status of a merge that has come to its end, in one way or another."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = self.origin.dm.status()
            numbers = status.replace("/", " ").split()
            if "/" not in status or numbers[0] == numbers[2]:
                return status
            time.sleep(0.05)
        raise Wrong(f"the merge does not end: {status}")

    def check(self):
        """Nothing fails any more: compares all; answers whether SNAP is valid."""
        self.origin.may_fail = False
        self.origin.all()
        return self.snap.check()

    def close(self):
        """Removes all."""
        for side in self.snap, self.origin:
            if side:
                side.remove()
        self.log.close()


def refused(call, *codes):
    """Fails unless a step is refused, with one of these errors."""
    try:
        call()
    except OSError as error:
        if error.errno in codes or not codes:
            return
        raise Wrong(f"this was refused with {errno.errorcode[error.errno]}") from error
    raise Wrong("this should have been refused")
