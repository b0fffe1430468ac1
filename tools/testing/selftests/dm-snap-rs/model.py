#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What each side of a snapshot must show.

model.py fill DEVICE SEED [--mib N]
    Fills a device with data that differs in every sector.
model.py digest DEVICE [OFFSET COUNT]
    Prints a checksum of COUNT sectors from sector OFFSET, read directly.
model.py sequential read|write DEVICE MIB [OFFSET]
    Direct I/O of 1 MiB from sector OFFSET on, each from memory in one piece.
model.py touch DEVICE CHUNK COUNT SEED
    Writes a sector in each of COUNT chunks of CHUNK sectors, at random places.
model.py blocks DEVICE FIRST COUNT STEP
    Writes COUNT blocks of 4 KiB one by one, each STEP blocks after the last.
model.py parts FILE PARTS DEVICE...
    Fails unless each of the devices shows, from its first sector on, parts of so many
    sectors: +N what FILE has there, -N zeroes, =N whatever it be.  The last may be
    without a number: all the rest.
model.py run --seed N --origin DEVICE [--snap DEVICE=COMMAND]... [options]
    Concurrent jobs read and write an origin and its snapshots at random, while
    a model in memory keeps what each device must show.  COMMAND creates the
    snapshot; the moments are spread over the run.  When COMMAND is empty the
    snapshot exists already.  Every read is compared, and in the end all of
    every device is.

    With --discard DEVICE:CHUNK some writes of this device are discards: on an
    origin, of any CHUNK, the place shows zeroes afterwards; on a snapshot with
    chunks of CHUNK sectors, chunks that it has saved do, and others stay as they
    were.  It must be a new snapshot then.  All I/O is direct.
"""

import argparse
import ctypes
import fcntl
import functools
import mmap
import os
import random
import struct
import subprocess
import sys
import threading
import zlib

SECTOR = 512
PAGE = 4096
MIB = 1 << 20
BLKDISCARD = 0x1277
BLKFLSBUF = 0x1261
BLKGETSIZE64 = 0x80081272


class Mismatch(Exception):
    """A device shows something else than the model."""


def device_size(fd):
    """The size of a block device in bytes."""
    return int.from_bytes(fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)), "little")


def buffer(size):
    """Memory that is aligned for direct I/O."""
    return memoryview(mmap.mmap(-1, size))


def read_all(fd, out, offset=0):
    """Reads as much as `out` holds, by 1 MiB, directly."""
    bounce = buffer(MIB)
    done = 0
    while done < len(out):
        part = bounce[:min(MIB, len(out) - done)]
        got = os.preadv(fd, [part], offset + done)
        if got != len(part):
            raise Mismatch(f"read of {len(part)} at {offset + done} gave {got}")
        out[done:done + got] = part
        done += got


def write_all(fd, data, offset):
    """Writes an aligned buffer."""
    got = os.pwritev(fd, [data], offset)
    if got != len(data):
        raise Mismatch(f"write of {len(data)} at {offset} gave {got}")


def first_difference(got, want):
    """The index of the first sector that differs, or None."""
    # A comparison of bytes is one memcmp, that of memoryviews is not.
    for start in range(0, len(want), MIB):
        one, other = bytes(got[start:start + MIB]), bytes(want[start:start + MIB])
        if one != other:
            for at in range(0, len(other), SECTOR):
                if one[at:at + SECTOR] != other[at:at + SECTOR]:
                    return (start + at) // SECTOR
    return None


class Device:
    """One side: the device, what it must show, and what is in flight on it."""

    def __init__(self, path, image):
        self.path = path
        self.name = os.path.basename(path)
        self.image = image
        self.open()
        self.view = memoryview(image)
        self.busy = []
        # With discards: the bytes of a chunk, and the chunks that a snapshot has
        # saved.
        self.chunk = None
        self.saved = set()

    @classmethod
    def existing(cls, path):
        """A device that shows what it shows now."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        image = bytearray(device_size(fd))
        read_all(fd, memoryview(image))
        os.close(fd)
        return cls(path, image)

    def open(self):
        """Opens it, for direct I/O and for that of the page cache."""
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        self.buffered = os.open(self.path, os.O_RDWR)
        if device_size(self.direct) != len(self.image):
            raise Mismatch(f"{self.path} has a wrong size")

    def close(self):
        """Closes it."""
        os.close(self.direct)
        os.close(self.buffered)

    def overlaps(self, start, end):
        """True when something is in flight there."""
        return any(start < e and s < end for s, e in self.busy)

    def chunks_of(self, start, end):
        """The numbers of the chunks that a range touches."""
        return range(start // self.chunk, -(-end // self.chunk))

    def discard(self, offset, size):
        """Discards a range."""
        fcntl.ioctl(self.direct, BLKDISCARD, struct.pack("QQ", offset, size))

    def drop_cache(self):
        """Writes out and forgets what the page cache holds of the device."""
        os.fsync(self.buffered)
        fcntl.ioctl(self.buffered, BLKFLSBUF, 0)

    def compare(self, got, offset, how, others):
        """Raises Mismatch when `got` is not what must be at `offset`."""
        want = self.view[offset:offset + len(got)]
        index = first_difference(got, want)
        if index is None:
            return
        at = offset + index * SECTOR
        bad = bytes(got[index * SECTOR:(index + 1) * SECTOR])
        told = [d.name for d in others
                if bad == d.image[at:at + SECTOR] and d is not self]
        if not any(bad):
            told.append("zeros")
        raise Mismatch(
            f"{self.name}: {how} of {len(got)} bytes at sector {offset // SECTOR}"
            f" is wrong from sector {at // SECTOR} on: it shows "
            + (" and ".join(told) if told else "something unknown"))


class Run:
    """The jobs, the devices and the lock over what the model says."""

    # What the devices are.
    device = Device

    def __init__(self, args):
        self.args = args
        self.lock = threading.Lock()
        self.origin = self.device.existing(args.origin)
        self.devices = [self.origin]
        self.size = len(self.origin.image)
        self.error = None
        self.started = 0
        self.advanced = threading.Condition(self.lock)
        # The origin writes that each job has in flight.
        self.in_flight = {}
        # While a snapshot is being created: the origin writes that may or may
        # not be in it.
        self.unsure = None
        self.pool = buffer(4 * MIB)
        self.pool[:] = random.Random(args.seed).randbytes(4 * MIB)

    def pick_range(self, rng):
        """A random place: 4 KiB to 1 MiB, half of them on odd sectors."""
        size = PAGE << rng.choices(range(9), weights=(8, 6, 4, 4, 3, 2, 2, 1, 1))[0]
        size = min(size, self.args.max_io)
        if rng.random() < 0.5:
            size = max(SECTOR, size - SECTOR * rng.randrange(0, 8))
            align = SECTOR
        else:
            align = PAGE
        # Half of the places lie in a small part, so that jobs meet.
        area = self.size if rng.random() < 0.5 else self.size // 8
        return rng.randrange(0, (area - size) // align + 1) * align, size

    def claim(self, rng):
        """Takes a device and a free range on it."""
        while True:
            device = self.origin
            if len(self.devices) > 1 and rng.random() < 0.45:
                device = rng.choice(self.devices[1:])
            offset, size = self.pick_range(rng)
            # Buffered and direct writes must not share a page.
            held = (offset // PAGE * PAGE, (offset + size + PAGE - 1) // PAGE * PAGE)
            if not device.overlaps(*held):
                device.busy.append(held)
                return device, offset, size, held

    def claim_discard(self, device, offset, size, held):
        """Makes a claim that of a discard; None when something else is in flight
        on whole chunks there.  What a snapshot shows afterwards depends on what
        the origin has written before, so that has to wait as well."""
        chunks = device.chunks_of(offset, offset + size)
        whole = (chunks.start * device.chunk, chunks.stop * device.chunk)
        device.busy.remove(held)
        if any(d.overlaps(*whole) for d in (device, self.origin)):
            device.busy.append(held)
            return None
        for side in {device, self.origin}:
            side.busy.append(whole)
        return whole

    def finish(self, device, offset, size, data):
        """The model of a write that has ended; without data, of a discard."""
        end = offset + size
        if data is not None:
            device.view[offset:end] = data
        elif device is self.origin:
            device.view[offset:end] = bytes(size)
        else:
            for chunk in device.saved.intersection(device.chunks_of(offset, end)):
                start = max(offset, chunk * device.chunk)
                stop = min(end, (chunk + 1) * device.chunk)
                device.view[start:stop] = bytes(stop - start)
            return
        for side in self.devices[1:] if device is self.origin else [device]:
            if side.chunk:
                side.saved.update(side.chunks_of(offset, end))

    def job(self, number):
        """One stream of reads and writes."""
        rng = random.Random(self.args.seed * 100 + number)
        bounce = buffer(MIB)
        for _ in range(self.args.ops // self.args.jobs):
            with self.lock:
                if self.error or (self.args.stop and os.path.exists(self.args.stop)):
                    return
                self.started += 1
                self.advanced.notify_all()
                write = rng.random() < 0.65
                buffered = rng.random() < 0.3 and not self.args.discard
                device, offset, size, held = self.claim(rng)
                whole = None
                if write and device.chunk and rng.random() < 0.3:
                    whole = self.claim_discard(device, offset, size, held)
                source = rng.randrange(0, (len(self.pool) - size) // SECTOR) * SECTOR
                data = self.pool[source:source + size]
                if write and device is self.origin and self.unsure is not None:
                    self.unsure.append((offset, data))
                if write and device is self.origin:
                    self.in_flight[number] = (offset, data)
            try:
                if whole:
                    device.discard(offset, size)
                elif write:
                    write_all(device.buffered if buffered else device.direct,
                              data, offset)
                else:
                    part = bounce[:size]
                    fd = device.buffered if buffered else device.direct
                    got = os.preadv(fd, [part], offset)
                    if got != size:
                        raise Mismatch(f"{device.name}: a read at {offset} gave {got}")
                    device.compare(part, offset,
                                   "a buffered read" if buffered else "a direct read",
                                   self.devices)
            except Exception as error:  # the first error ends the run
                if isinstance(error, OSError):
                    error = f"{device.name}: {'write' if write else 'read'} of {size}" \
                            f" at sector {offset // SECTOR}: {error}"
                with self.lock:
                    self.error = self.error or error
                    self.advanced.notify_all()
                return
            with self.lock:
                if write:
                    self.finish(device, offset, size, None if whole else data)
                self.in_flight.pop(number, None)
                for side in {device, self.origin} if whole else {device}:
                    side.busy.remove(whole or held)

    def create(self, path, make):
        """Creates a snapshot by `make` while the jobs go on, and learns what it froze:
        a write that is in flight meanwhile may be in the snapshot or not."""
        with self.lock:
            self.unsure = list(self.in_flight.values())
            image = bytearray(self.origin.image)
        # What was acknowledged to a buffered writer before is in the snapshot.
        os.fsync(self.origin.buffered)
        make()
        with self.lock:
            unsure, self.unsure = self.unsure, None
        snap = self.device(path, image)
        try:
            self.learn(snap, unsure)
        except Exception:
            snap.close()
            raise
        with self.lock:
            self.devices.append(snap)
        return snap

    @staticmethod
    def learn(device, writes):
        """Reads back where writes may have been done or not: each sector must be that
        of one of them, or what was there before."""
        view = device.view
        choices = {}
        for offset, data in writes:
            for at in range(0, len(data), SECTOR):
                choices.setdefault((offset + at) // SECTOR, []).append(
                    bytes(data[at:at + SECTOR]))
        for start, end in runs(sorted(choices)):
            got = memoryview(bytearray((end - start) * SECTOR))
            read_all(device.direct, got, start * SECTOR)
            for sector in range(start, end):
                at = sector * SECTOR
                is_now = bytes(got[at - start * SECTOR:][:SECTOR])
                was = bytes(view[at:at + SECTOR])
                if is_now != was and is_now not in choices[sector]:
                    error = Mismatch(f"{device.name}: sector {sector} shows what was "
                                     "there neither before a write nor after it")
                    error.shown = [is_now, was, *choices[sector]]
                    raise error
                view[at:at + SECTOR] = is_now

    def verify(self):
        """Compares all of every device."""
        for device in self.devices:
            device.drop_cache()
        got = bytearray(self.size)
        for device in self.devices:
            read_all(device.direct, memoryview(got))
            device.compare(memoryview(got), 0, "the final read", self.devices)

    def run(self):
        """Runs all; the error or None."""
        args = self.args
        later = []
        for spec in args.snap:
            path, _, command = spec.partition("=")
            if command:
                later.append((path, command))
            else:
                self.devices.append(Device.existing(path))
        for spec in args.discard:
            path, _, chunk = spec.rpartition(":")
            for device in self.devices:
                if device.path == path:
                    device.chunk = int(chunk) * SECTOR
        jobs = [threading.Thread(target=self.job, args=(n,), daemon=True)
                for n in range(args.jobs)]
        for thread in jobs:
            thread.start()
        try:
            for number, (path, command) in enumerate(later):
                moment = args.ops * (2 * number + 1) // (2 * len(later) + 4)
                with self.lock:
                    while self.started < moment and not self.error:
                        self.advanced.wait(1)
                    if self.error:
                        break
                self.create(path, functools.partial(
                    subprocess.run, ["bash", "-e", "-c", command], check=True))
        except (Mismatch, subprocess.CalledProcessError, OSError) as error:
            with self.lock:
                self.error = self.error or error
        for thread in jobs:
            thread.join()
        if not self.error:
            try:
                self.verify()
            except (Mismatch, OSError) as error:
                self.error = error
        for device in self.devices:
            device.close()
        return self.error


def runs(numbers):
    """Consecutive numbers as (start, end)."""
    start = end = None
    for number in numbers:
        if number != end:
            if start is not None:
                yield start, end
            start = number
        end = number + 1
    if start is not None:
        yield start, end


def fill(args):
    """The fill command."""
    fd = os.open(args.device, os.O_WRONLY | os.O_DIRECT)
    size = args.mib * MIB if args.mib else device_size(fd)
    rng = random.Random(args.seed)
    # Shifted views of one random buffer differ in every sector at less cost
    # than fresh random data.
    pool = buffer(2 * MIB)
    pool[:] = rng.randbytes(2 * MIB)
    for offset in range(0, size, MIB):
        shift = rng.randrange(0, MIB // SECTOR) * SECTOR
        length = min(MIB, size - offset)
        write_all(fd, pool[shift:shift + length], offset)
    os.close(fd)


def digest(args):
    """The digest command."""
    fd = os.open(args.device, os.O_RDONLY | os.O_DIRECT)
    fcntl.ioctl(fd, BLKFLSBUF, 0)
    offset = args.offset * SECTOR
    end = offset + args.count * SECTOR if args.count else device_size(fd)
    bounce = buffer(MIB)
    crc = 0
    while offset < end:
        part = bounce[:min(MIB, end - offset)]
        got = os.preadv(fd, [part], offset)
        if got <= 0:
            sys.exit(f"{args.device}: short read at {offset}")
        crc = zlib.crc32(part[:got], crc)
        offset += got
    print(f"{crc:08x}")


def address(view):
    """Where in memory a buffer begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def sequential(args):
    """The sequential command."""
    fd = os.open(args.device, os.O_RDWR | os.O_DIRECT)
    memory = mmap.mmap(-1, 4 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A huge page, so that 1 MiB is one piece of memory. A kernel without them makes
    # many pieces of it, which a device takes up to a certain number.
    if os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    view[:] = os.urandom(4096) * 1024
    # The huge page begins at the next multiple of 2 MiB.
    start = -address(view) % (2 * MIB)
    part = view[start:start + MIB]
    for mib in range(args.mib):
        offset = args.offset * SECTOR + mib * MIB
        move = os.pwritev if args.way == "write" else os.preadv
        if move(fd, [part], offset) != MIB:
            sys.exit(f"a {args.way} at {offset} fell short")
    os.close(fd)


def touch(args):
    """The touch command."""
    fd = os.open(args.device, os.O_RDWR | os.O_DIRECT)
    chunks = device_size(fd) // SECTOR // args.chunk
    places = random.Random(args.seed).sample(range(chunks), args.count)
    data = buffer(SECTOR * 64)
    data[:] = random.Random(args.seed).randbytes(len(data))
    failed = []

    def some(first):
        try:
            for index in range(first, len(places), 8):
                source = index % 64 * SECTOR
                write_all(fd, data[source:source + SECTOR],
                          places[index] * args.chunk * SECTOR)
        except (OSError, Mismatch) as error:
            failed.append(error)

    jobs = [threading.Thread(target=some, args=(first,)) for first in range(8)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    os.close(fd)
    if failed:
        sys.exit(f"{args.device}: {failed[0]}")


def blocks(args):
    """The blocks command."""
    fd = os.open(args.device, os.O_WRONLY | os.O_DIRECT)
    data = buffer(PAGE)
    for index in range(args.count):
        data[:] = os.urandom(PAGE)
        write_all(fd, data, (args.first + index * args.step) * PAGE)
    os.close(fd)


def parts(args):
    """The parts command."""
    with open(args.file, "rb") as file:
        old = file.read()
    got = memoryview(bytearray(len(old)))
    for path in args.devices:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        read_all(fd, got)
        os.close(fd)
        at = 0
        for part in args.parts.split():
            end = at + int(part[1:]) * SECTOR if part[1:] else len(old)
            want = {"+": old[at:end], "-": bytes(end - at), "=": got[at:end]}[part[0]]
            wrong = first_difference(got[at:end], want)
            if wrong is not None:
                sys.exit(f"FAILED: {path}: {part} is wrong from sector "
                         f"{at // SECTOR + wrong} on")
            at = end
        if at != len(old):
            sys.exit(f"FAILED: the parts end at sector {at // SECTOR}")


def command_line():
    """What the arguments may be."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("fill")
    sub.add_argument("device")
    sub.add_argument("seed", type=int)
    sub.add_argument("--mib", type=int)
    sub = commands.add_parser("digest")
    sub.add_argument("device")
    sub.add_argument("offset", type=int, nargs="?", default=0)
    sub.add_argument("count", type=int, nargs="?", default=0)
    sub = commands.add_parser("sequential")
    sub.add_argument("way", choices=["read", "write"])
    sub.add_argument("device")
    sub.add_argument("mib", type=int)
    sub.add_argument("offset", type=int, nargs="?", default=0)
    sub = commands.add_parser("touch")
    sub.add_argument("device")
    for name in "chunk", "count", "seed":
        sub.add_argument(name, type=int)
    sub = commands.add_parser("blocks")
    sub.add_argument("device")
    for name in "first", "count", "step":
        sub.add_argument(name, type=int)
    sub = commands.add_parser("parts")
    sub.add_argument("file")
    # Behind a blank, since it may begin as an option does.
    sub.add_argument("parts", type=str)
    sub.add_argument("devices", nargs="+")
    sub = commands.add_parser("run")
    sub.add_argument("--seed", type=int, required=True)
    sub.add_argument("--ops", type=int, default=400)
    sub.add_argument("--jobs", type=int, default=2)
    sub.add_argument("--max-io", type=int, default=MIB)
    sub.add_argument("--stop", help="the run ends when this file is there")
    sub.add_argument("--origin", required=True)
    sub.add_argument("--snap", action="append", default=[],
                     metavar="DEVICE=COMMAND")
    sub.add_argument("--discard", action="append", default=[],
                     metavar="DEVICE:CHUNK")
    return parser


COMMAND_LINE = command_line()


def main(arguments):
    """Does what the arguments say."""
    args = COMMAND_LINE.parse_args(arguments)
    plain = {"fill": fill, "digest": digest, "sequential": sequential, "touch": touch,
             "blocks": blocks, "parts": parts}
    if args.command in plain:
        plain[args.command](args)
    else:
        error = Run(args).run()
        if error:
            print(f"seed {args.seed}: {error}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
