#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Makes damaged COW devices, and sees what becomes of them.

Image N of a seed is always the same: a good COW device to which up to three kinds of
damage were done. What it must show is found out here by the format alone: it is
refused, or invalid, or shows exactly the records before the first empty one.

hostile.py kernel DEV COW [--snapshot TARGET]
    On the targets: writes each image to COW, a device of at least 256 KiB, and makes
    a snapshot of DEV, a device of 251 sectors. A refusal must have its reason in the
    kernel's log and leave COW as it was; a snapshot must show the saved chunks of
    exactly those records, have zeroed what a crash has left behind them, and take a
    write, which must be the next record.
hostile.py host PROGRAM
    On the module's store without a kernel: PROGRAM is the `hostile` of tools/host.
hostile.py snaprs PROGRAM
    Compares what `snaprs check` says: no problem, unless the module refuses the
    device or shows less than there is; and one at least whenever it refuses it.
hostile.py make DIR
    Only writes the images to files.

Each takes --count N (1000), --from N (0) and --seed N (1), and prints how many images
of which outcome there were. Its exit status is 1 if any was not as it should be.
"""

import argparse
import collections
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import tempfile

MAGIC = 0x70416E53
SECTOR = 512
# The last chunk of it is cut off, unless chunks are sectors.
ORIGIN_SECTORS = 251
COW_SECTORS = 512
BLOCK = 512
HEADER = struct.Struct("<IIII")
RECORD = struct.Struct("<QQ")
# In a block.
RECORDS = BLOCK // RECORD.size
PREFIX = "dsr-"
HUGE = [1 << 31, 1 << 32, (1 << 48) - 1, 1 << 48, 1 << 63, (1 << 64) - 1]

# ---------------------------------------------------------------------------
# The format


def per_area(chunk):
    """How many records an area has."""
    return chunk * SECTOR // RECORD.size


def area_at(chunk, area):
    """Where an area begins, in bytes."""
    return (1 + area * (per_area(chunk) + 1)) * chunk * SECTOR


def is_area(chunk, number):
    """Whether that chunk of COW is a metadata area."""
    return number % (per_area(chunk) + 1) == 1


def origin_chunks(chunk):
    """How many chunks the origin has."""
    return -(-ORIGIN_SECTORS // chunk)


def data_chunks(chunk, sectors):
    """The chunks that data can be in."""
    total = sectors // chunk
    end = total - 1 if is_area(chunk, total) else total
    return [c for c in range(1, end) if not is_area(chunk, c)]


def view(image, asked):
    """What an image must show: "refused", "invalid", or the chunk size and the
    records in their order."""
    magic, valid, version, chunk = HEADER.unpack_from(image.ljust(HEADER.size, b"\0"))
    sectors = len(image) // SECTOR
    if sectors == 0:
        return "refused"
    if magic == 0:
        return (asked, []) if data_chunks(asked, sectors) else "refused"
    if magic != MAGIC or version != 1:
        return "refused"
    if chunk == 0 or chunk & (chunk - 1) or chunk >= 1 << 22:
        return "refused"
    if not data_chunks(chunk, sectors):
        return "refused"
    if not valid:
        return "invalid"
    return records(image, chunk, sectors // chunk)


def records(image, chunk, total):
    """The same for the records of a device with a good header."""
    found, olds, news = [], set(), set()
    area = 0
    while area_at(chunk, area) < total * chunk * SECTOR:
        for index in range(per_area(chunk)):
            old, new = RECORD.unpack_from(image, area_at(chunk, area) + index * RECORD.size)
            if new == 0:
                return chunk, found
            if new >= total or is_area(chunk, new) or new in news:
                return "refused"
            if old >= origin_chunks(chunk) or old in olds:
                return "refused"
            olds.add(old)
            news.add(new)
            found.append((old, new))
        area += 1
    # There has been another area, on a larger device.
    return "refused"


def has_leftovers(image, chunk, count):
    """Whether an area with so many records up to its end has anything behind them."""
    area, index = divmod(count, per_area(chunk))
    begin, end = area_at(chunk, area), area_at(chunk, area) + chunk * SECTOR
    return end <= len(image) and any(image[begin + index * RECORD.size:end])


# ---------------------------------------------------------------------------
# Good images, and what can be done to them


class Image:
    """A COW device, and what is around it."""

    def __init__(self, seed, number):
        rng = self.rng = random.Random(f"{seed}/{number}")
        self.number = number
        self.chunk = rng.choice([1, 1, 1, 2, 2, 4, 8, 16])
        self.asked = rng.choice([self.chunk, self.chunk, 1, 4, 16])
        sectors = rng.randrange(4 * self.chunk, COW_SECTORS + 1)
        self.bytes = bytearray(rng.randbytes(sectors * SECTOR))
        data = data_chunks(self.chunk, sectors)
        olds = list(range(origin_chunks(self.chunk)))
        if rng.random() < 0.5:
            rng.shuffle(olds)
        if rng.random() < 0.3:
            rng.shuffle(data)
        elif rng.random() < 0.5:
            data = sorted(rng.sample(data, rng.randint(1, len(data))))
        most = min(len(olds), len(data))
        count = rng.choice([most, rng.randint(0, most), rng.randint(0, min(most, 40))])
        self.good = list(zip(olds, data))[:count]
        self.areas = range(count // per_area(self.chunk) + 1)
        for area in self.areas:
            if area_at(self.chunk, area) < len(self.bytes) // self.size * self.size:
                self.zero(area_at(self.chunk, area), self.size)
        for index, (old, new) in enumerate(self.good):
            self.put(index, old, new)
        self.zero(0, min(self.size, len(self.bytes)))
        self.header(MAGIC, 1, 1, self.chunk)
        self.damage = rng.choices(DAMAGE, k=rng.choice([1, 1, 1, 2, 3]))
        if rng.random() < 0.05:
            self.damage = []
        for damage in self.damage:
            damage(self)
        self.bytes = bytes(self.bytes)

    @property
    def size(self):
        """The bytes of a chunk."""
        return self.chunk * SECTOR

    def zero(self, at, size):
        """Zeroes a range."""
        size = max(0, min(size, len(self.bytes) - at))
        self.bytes[at:at + size] = bytes(size)

    def header(self, *fields):
        """Writes a header."""
        if len(self.bytes) >= HEADER.size:
            HEADER.pack_into(self.bytes, 0, *fields)

    def place(self, index):
        """Where a record is, in bytes."""
        area, index = divmod(index, per_area(self.chunk))
        return area_at(self.chunk, area) + index * RECORD.size

    def put(self, index, old, new):
        """Writes a record, if there is a place for it."""
        if self.place(index) + RECORD.size <= len(self.bytes):
            RECORD.pack_into(self.bytes, self.place(index), old, new)

    def pick(self):
        """The number of a record, or of the place behind the last one: often the first or the
        last one of an area."""
        index = self.rng.randint(0, len(self.good))
        if self.rng.random() < 0.3:
            index -= index % per_area(self.chunk) - self.rng.choice([0, per_area(self.chunk) - 1])
        return min(index, len(self.good))

    def own(self, index):
        """A record that is good in that place: what is there, or else an unused old
        chunk and an unused new one. So no other rule is broken by what replaces a half."""
        if index < len(self.good):
            return self.good[index]
        olds, news = {o for o, _ in self.good}, {n for _, n in self.good}
        data = data_chunks(self.chunk, len(self.bytes) // SECTOR)
        return (next((c for c in range(origin_chunks(self.chunk)) if c not in olds), 0),
                next((c for c in data if c not in news), 2))

    def some(self):
        """Some record."""
        return self.rng.choice(self.good or [(0, 2)])

    def area(self):
        """The range of an area that is in use."""
        at = area_at(self.chunk, self.rng.choice(self.areas))
        return slice(at, min(at + self.size, len(self.bytes)))

    def describe(self):
        """The image in a line."""
        names = ", ".join(d.__name__ for d in self.damage) or "none"
        return (f"image {self.number}: {len(self.bytes)} bytes, chunk {self.chunk}, "
                f"{len(self.good)} records, damage: {names}")


def bad_magic(image):
    """Another magic number, often by one bit."""
    image.header(image.rng.choice([MAGIC ^ 1 << image.rng.randrange(32), 1, 0xFFFFFFFF]),
                 1, 1, image.chunk)


def no_magic(image):
    """The device looks like a new one."""
    image.header(0, 1, 1, image.chunk)


def bad_version(image):
    """Another version."""
    image.header(MAGIC, 1, image.rng.choice([0, 2, 1 << 24, 0xFFFFFFFF]), image.chunk)


def bad_chunk_size(image):
    """A chunk size that can't be, or one that is wrong."""
    image.header(MAGIC, 1, 1, image.rng.choice(
        [0, 3, image.chunk * 2, image.chunk * 2, max(1, image.chunk // 2), 32, 1024, 1 << 21,
         1 << 22, 1 << 31, 0xFFFFFFFF]))


def bad_flag(image):
    """The snapshot is invalid, or the flag is none."""
    image.header(MAGIC, image.rng.choice([0, 0, 2, 1 << 24]), 1, image.chunk)


def random_header(image):
    """Noise."""
    image.header(*(image.rng.getrandbits(32) for _ in range(4)))


def beyond_device(image):
    """A new chunk that the device does not have."""
    total, index = len(image.bytes) // image.size, image.pick()
    image.put(index, image.own(index)[0], image.rng.choice([total] * 3 + [total + 1, *HUGE]))


def beyond_origin(image):
    """An old chunk that the origin does not have."""
    end, index = origin_chunks(image.chunk), image.pick()
    image.put(index, image.rng.choice([end] * 5 + [end + 1, *HUGE]), image.own(index)[1])


def at_area(image):
    """A new chunk that is an area, or the header."""
    stride, index = per_area(image.chunk) + 1, image.pick()
    new = image.rng.choice([0, 1, 1, 1 + stride, 1 + 2 * stride])
    image.put(index, image.own(index)[0], new)


def old_twice(image):
    """Two records with the same old chunk."""
    index = image.pick()
    image.put(index, image.some()[0], image.own(index)[1])


def new_twice(image):
    """Two records with the same new chunk."""
    index = image.pick()
    image.put(index, image.own(index)[0], image.some()[1])


def record_twice(image):
    """The same record in two places."""
    image.put(image.pick(), *image.some())


def random_record(image):
    """Small numbers, which may be good ones."""
    image.put(image.pick(), image.rng.randrange(300), image.rng.randrange(600))


def empty_record(image):
    """A record is gone, so the list ends there."""
    image.put(image.pick(), 0, 0)


def swapped_areas(image):
    """Two areas have changed places."""
    one, two = image.area(), image.area()
    if one.stop - one.start == two.stop - two.start:
        image.bytes[one], image.bytes[two] = image.bytes[two], image.bytes[one]


def copied_area(image):
    """An area is there twice."""
    one, two = image.area(), image.area()
    if one.stop - one.start == two.stop - two.start:
        image.bytes[one] = image.bytes[two]


def shuffled_records(image):
    """The records of an area in another order, which is none that matters."""
    area = image.area()
    whole = [bytes(image.bytes[at:at + RECORD.size])
             for at in range(area.start, area.stop, RECORD.size)]
    image.rng.shuffle(whole)
    image.bytes[area] = b"".join(whole)


def zeroed_area(image):
    """An area is empty."""
    area = image.area()
    image.zero(area.start, area.stop - area.start)


def zeroed_sector(image):
    """A sector of an area is empty."""
    area = image.area()
    if area.stop > area.start:
        image.zero(image.rng.randrange(area.start, area.stop, SECTOR), SECTOR)


def random_area(image):
    """An area is noise, or all bits are set."""
    area = image.area()
    size = area.stop - area.start
    image.bytes[area] = image.rng.choice([image.rng.randbytes(size), b"\xff" * size])


def stale_records(image):
    """Something behind the last record, as a crash may leave it, and in the next area."""
    for index in range(len(image.good) + 1, len(image.good) + image.rng.randint(2, 80)):
        image.put(index, image.rng.randrange(300), image.rng.randrange(600))


def torn_commit(image):
    """Of the records that were written together, those in the first block are not there."""
    index = len(image.good)
    index += RECORDS - index % RECORDS
    for index in range(index, index + image.rng.choice([1, RECORDS, image.rng.randint(1, 80)])):
        old, new = image.own(len(image.good))
        image.put(index, old, new)


def flipped_bits(image):
    """Some bits of an area are wrong."""
    area = image.area()
    for _ in range(image.rng.choice([1, 1, 2, 8])):
        if area.stop > area.start:
            image.bytes[image.rng.randrange(area.start, area.stop)] ^= 1 << image.rng.randrange(8)


def flipped_anywhere(image):
    """The same anywhere on the device, most likely in the data."""
    for _ in range(image.rng.choice([1, 4, 16])):
        if image.bytes:
            image.bytes[image.rng.randrange(len(image.bytes))] ^= 1 << image.rng.randrange(8)


def used_to_the_end(image):
    """The device ends where an area would begin, and its last chunk is in use, as if it had been
    larger. Often there is no hole, so that no empty record ends the list."""
    stride = per_area(image.chunk) + 1
    areas = min((len(image.bytes) // image.size - 1) // stride,
                origin_chunks(image.chunk) // per_area(image.chunk))
    if areas < 1:
        return
    del image.bytes[(1 + areas * stride) * image.size:]
    for area in range(areas):
        image.zero(area_at(image.chunk, area), image.size)
    data = [c for c in range(2, 1 + areas * stride) if not is_area(image.chunk, c)]
    for _ in range(image.rng.choice([0, 0, 1, 5])):
        data.remove(image.rng.choice(data[:-1]))
    olds = image.rng.sample(range(origin_chunks(image.chunk)), len(data))
    image.good = list(zip(olds, data))
    for index, record in enumerate(image.good):
        image.put(index, *record)


def truncated(image):
    """The device is shorter than it was, often by all but a few chunks."""
    rng, sectors = image.rng, len(image.bytes) // SECTOR
    left = rng.randint(1, max(sectors, 1))
    if rng.random() < 0.5:
        left = rng.randint(1, 4) * image.chunk - rng.randint(0, 1)
    del image.bytes[left * SECTOR:]


def all_random(image):
    """Nothing of it is left; sometimes the header is."""
    image.bytes[:] = image.rng.randbytes(len(image.bytes))
    if image.rng.random() < 0.5:
        image.header(MAGIC, 1, 1, image.chunk)


DAMAGE = [
    bad_magic, no_magic, bad_version, bad_chunk_size, bad_flag, random_header, beyond_device,
    beyond_origin, at_area, old_twice, new_twice, record_twice, random_record, empty_record,
    swapped_areas, copied_area, shuffled_records, zeroed_area, zeroed_sector, random_area,
    stale_records, torn_commit, flipped_bits, flipped_anywhere, used_to_the_end, truncated, all_random,
]

# ---------------------------------------------------------------------------
# Outcomes


class Tally:
    """How many images there were of which outcome, and what was wrong."""

    def __init__(self):
        self.outcomes = collections.Counter()
        self.wrong = 0

    def add(self, outcome):
        """An image came out like that."""
        self.outcomes[outcome] += 1

    def fail(self, image, text):
        """An image was not as it should be."""
        self.wrong += 1
        print(f"{image.describe()}: {text}", flush=True)

    def end(self):
        """Says how it went; the exit status."""
        total = sum(self.outcomes.values())
        parts = ", ".join(f"{n} {what}" for what, n in sorted(self.outcomes.items()))
        print(f"{total} images: {parts}; {self.wrong} wrong")
        return int(self.wrong != 0 or total == 0)


def outcome(wanted, image):
    """An outcome in words."""
    if isinstance(wanted, str):
        return wanted
    if sorted(wanted[1]) == sorted(image.good):
        return "shown whole"
    return "shown in part" if set(wanted[1]) <= set(image.good) else "shown with other records"


def images(args):
    """The images that were asked for."""
    for number in range(args.first, args.first + args.count):
        yield Image(args.seed, number)


def to_files(args, folder):
    """Writes the images to files; answers them."""
    found = []
    for image in images(args):
        with open(f"{folder}/{image.number}", "wb") as file:
            file.write(image.bytes)
        found.append(image)
    return found


def make(args):
    """The make command."""
    for image in to_files(args, args.folder):
        print(image.describe())
    return 0


def host(args):
    """The host command."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        found = to_files(args, folder)
        jobs = "".join(f"{folder}/{i.number} {BLOCK} {i.asked} {ORIGIN_SECTORS} {i.number}\n"
                       for i in found)
        done = subprocess.run([args.program], input=jobs, text=True, check=False,
                              stdout=subprocess.PIPE)
        lines = done.stdout.splitlines()
    for index, image in enumerate(found):
        wanted = view(image.bytes, image.asked)
        tally.add(outcome(wanted, image))
        got = lines[index] if index < len(lines) else f"the program ended ({done.returncode})"
        if isinstance(wanted, str):
            text = wanted
        else:
            text = " ".join(["shown", str(wanted[0]),
                             *(f"{old}:{new}" for old, new in sorted(wanted[1]))])
        if got != text:
            tally.fail(image, f"'{got}', wanted '{text}'")
    return tally.end()


# What snaprs may find on a device that the module shows: what it shows is less than there
# is, or the device was not written by anybody that goes by the format.
SHOWN_PROBLEMS = {"header-lost", "header-odd", "new-is-header", "records-lost"}


def snaprs(args):
    """The snaprs command."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        for image in to_files(args, folder):
            command = [args.program, "check", "--json", "--origin-sectors",
                       str(ORIGIN_SECTORS), f"{folder}/{image.number}"]
            done = subprocess.run(command, text=True, check=False, capture_output=True)
            wanted = view(image.bytes, image.asked)
            tally.add(outcome(wanted, image))
            if done.returncode not in (0, 4):
                tally.fail(image, f"exit status {done.returncode}: {done.stderr}")
                continue
            report = json.loads(done.stdout)
            kinds = {p["kind"] for p in report["problems"]}
            if bool(kinds) != (done.returncode == 4):
                tally.fail(image, f"exit status {done.returncode}, problems {kinds}")
            elif isinstance(wanted, str) and not kinds:
                tally.fail(image, f"no problem is found, but it is {wanted}")
            elif not isinstance(wanted, str) and kinds - SHOWN_PROBLEMS:
                tally.fail(image, f"problems {kinds}, but it is shown")
    return tally.end()


# ---------------------------------------------------------------------------
# On the targets


class Disk:
    """A block device, read and written directly."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)

    def read(self, size, at=0):
        """Bytes of it."""
        page = mmap.mmap(-1, size)
        if os.preadv(self.fd, [page], at) != size:
            sys.exit("a read fell short")
        return page[:]

    def write(self, data, at=0):
        """Writes bytes."""
        page = mmap.mmap(-1, len(data))
        page[:] = data
        if os.pwritev(self.fd, [page], at) != len(data):
            sys.exit("a write fell short")

    def close(self):
        """No more."""
        os.close(self.fd)


class Log:
    """The errors that the kernel logs from now on."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)

    def take(self):
        """The lines since the last time."""
        lines = []
        while True:
            try:
                head, _, text = os.read(self.fd, 8192).decode(errors="replace").partition(";")
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                continue
            # A warning is no reason for a refusal.
            if int(head.partition(",")[0]) & 7 <= 3:
                lines.append(text)


def dmsetup(*words):
    """Runs dmsetup; whether it succeeded, and what it printed."""
    done = subprocess.run(["dmsetup", *words], check=False, text=True, capture_output=True)
    return done.returncode == 0, done.stdout.strip()


class Kernel:
    """The kernel command: a COW device that has the size of each image in turn."""

    def __init__(self, args):
        self.args = args
        self.cow = Disk(args.cow)
        self.sectors = 0
        self.log = Log()
        origin = Disk(args.dev)
        self.origin = random.Random(args.seed).randbytes(ORIGIN_SECTORS * SECTOR)
        origin.write(self.origin)
        origin.close()
        self.name = f"{PREFIX}hostile"
        self.cow_name = f"{PREFIX}hostile-cow"

    def resize(self, sectors):
        """COW gets so many sectors."""
        if sectors == self.sectors:
            return
        self.sectors = sectors
        table = f"0 {sectors} linear {self.args.cow} 0"
        ok = dmsetup("create", self.cow_name, "--table", table)[0] or (
            dmsetup("load", self.cow_name, "--table", table)[0]
            and dmsetup("resume", self.cow_name)[0])
        if not ok:
            sys.exit("COW cannot be made")

    def look(self, image, tally):
        """Sees what the targets make of an image."""
        wanted = view(image.bytes, image.asked)
        tally.add(outcome(wanted, image))
        self.cow.write(image.bytes)
        self.resize(len(image.bytes) // SECTOR)
        self.log.take()
        table = (f"0 {ORIGIN_SECTORS} {self.args.snapshot} {self.args.dev} "
                 f"/dev/mapper/{self.cow_name} P {image.asked}")
        accepted, _ = dmsetup("create", self.name, "--table", table)
        try:
            if not accepted:
                text = self.refused(image, wanted)
            elif wanted == "refused":
                text = "it is not refused"
            else:
                text = self.shown(wanted)
        finally:
            if accepted and not dmsetup("remove", self.name)[0]:
                sys.exit("the snapshot cannot be removed")
        if accepted and not text:
            text = self.left(image, wanted)
        if text:
            tally.fail(image, text)

    def refused(self, image, wanted):
        """What is wrong with a refusal."""
        if wanted != "refused":
            return f"it is refused: {self.log.take()}"
        if not any("snapshot-rs: " in line for line in self.log.take()):
            return "it is refused without a reason"
        if self.cow.read(len(image.bytes)) != image.bytes:
            return "it is refused, but was written to"
        return None

    def shown(self, wanted):
        """What is wrong with what is shown."""
        status = dmsetup("status", self.name)[1]
        if wanted == "invalid":
            return None if status.endswith(" Invalid") else f"the status is '{status}'"
        chunk, found = wanted
        shown = bytearray(self.origin)
        saved = self.cow.read(self.sectors * SECTOR)
        size = chunk * SECTOR
        for old, new in found:
            shown[old * size:(old + 1) * size] = saved[new * size:(new + 1) * size]
        del shown[len(self.origin):]
        snap = Disk(f"/dev/mapper/{self.name}")
        try:
            if snap.read(len(shown)) != bytes(shown):
                return "it shows something else"
            if has_leftovers(saved, chunk, len(found)):
                return "what is behind the last record could become one"
            # The first whole chunk that has no record gets one, if there is a place for its data.
            free = set(range(ORIGIN_SECTORS // chunk)) - {old for old, _ in found}
            room = set(data_chunks(chunk, self.sectors)) - {new for _, new in found}
            self.added = min(free) if free and room else None
            if self.added is not None:
                snap.write(b"new!" * (size // 4), self.added * size)
        finally:
            snap.close()
        return None

    def left(self, image, wanted):
        """What is wrong with COW afterwards."""
        now = self.cow.read(len(image.bytes))
        if wanted == "invalid":
            return None if now == image.bytes else "it is invalid, but was written to"
        chunk, found = wanted
        after = view(now, image.asked)
        if isinstance(after, str):
            return f"afterwards it is {after}"
        if self.added is not None:
            found = [*found, (self.added, after[1][-1][1] if after[1] else 0)]
            at = found[-1][1] * chunk * SECTOR
            if now[at:at + chunk * SECTOR] != b"new!" * (chunk * SECTOR // 4):
                return "the new record names a place with other data"
        return None if after == (chunk, found) else f"afterwards it has {after}, wanted {found}"


def kernel(args):
    """The kernel command."""
    tally = Tally()
    run = Kernel(args)
    for image in images(args):
        run.look(image, tally)
    if not dmsetup("remove", run.cow_name)[0]:
        sys.exit("COW cannot be removed")
    return tally.end()


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in ("kernel", kernel), ("host", host), ("snaprs", snaprs), ("make", make):
        sub = commands.add_parser(name)
        sub.set_defaults(function=function)
        sub.add_argument("--count", type=int, default=1000)
        sub.add_argument("--from", dest="first", type=int, default=0)
        sub.add_argument("--seed", type=int, default=1)
        if name == "kernel":
            sub.add_argument("dev")
            sub.add_argument("cow")
            sub.add_argument("--snapshot", default="snapshot-rs")
        elif name == "make":
            sub.add_argument("folder")
        else:
            sub.add_argument("program")
    args = parser.parse_args()
    sys.exit(args.function(args))


if __name__ == "__main__":
    main()
