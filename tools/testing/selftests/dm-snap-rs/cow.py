#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Reads, checks, writes and damages the metadata of a persistent COW device.

The format is version 1 of the kernel's dm-snapshot, all little-endian: chunk 0
is the header: magic, valid, version and chunk size in sectors, 32 bits each.
Metadata areas of one chunk follow, area i at chunk 1 + i * (n + 1), where n is
the number of records of 16 bytes that a chunk holds: the old chunk and the new
one, 64 bits each.  A new chunk of 0 is the end.

cow.py new COW --chunk SECTORS [--magic N] [--valid N] [--version N]
    Writes a header and an empty first area.
cow.py record COW INDEX OLD NEW
    Writes one record.
cow.py count COW
    Prints the number of records.
cow.py check COW ORIGIN-SECTORS [--old CHUNK]...
    Checks every record, and prints their number and "valid" or "invalid"; fails
    when one is out of range, at a metadata area or there twice, or when one of
    the named old chunks has none.
cow.py make COW ORIGIN-SECTORS --chunk SECTORS --count N --seed N [--run N] [--hole N]
    Makes a snapshot with N exceptions at random places, in runs of --run chunks,
    as if the origin or the snapshot had been written there.  With --hole, each
    N-th data chunk is left out, as a crash would leave it.
cow.py list COW
    Prints the old chunk and the new one of each record, in their order.
cow.py merged COW DEV NOW
    NOW is what DEV had become when the snapshot on COW was merged in part.  Prints
    how many records were; fails unless those are the last ones, and all else is
    unchanged.
cow.py digest COW DEV
    Prints the checksum of what the snapshot must show, by the format alone.
"""

import argparse
import fcntl
import mmap
import os
import random
import struct
import sys
import zlib

MAGIC = 0x70416E53
SECTOR = 512
MIB = 1 << 20
HEADER = struct.Struct("<IIII")
RECORD = struct.Struct("<QQ")
BLKFLSBUF = 0x1261
BLKGETSIZE64 = 0x80081272


class Cow:
    """A COW device, read and written directly, so that nothing is cached."""

    def __init__(self, path, flags):
        self.fd = os.open(path, flags | os.O_DIRECT)
        self.size = int.from_bytes(
            fcntl.ioctl(self.fd, BLKGETSIZE64, bytes(8)), "little")
        self.magic, self.valid, self.version, self.chunk = HEADER.unpack_from(
            self.read(0, 4096))

    def read(self, offset, size):
        """Reads bytes at an aligned place."""
        page = mmap.mmap(-1, size)
        got = os.preadv(self.fd, [page], offset)
        if got != size:
            sys.exit(f"a read of {size} at {offset} gave {got}")
        return page[:]

    def write(self, offset, data):
        """Writes bytes at an aligned place."""
        page = mmap.mmap(-1, len(data))
        page[:] = data
        if os.pwritev(self.fd, [page], offset) != len(data):
            sys.exit(f"a write at {offset} fell short")

    @property
    def chunk_bytes(self):
        """The size of a chunk in bytes."""
        return self.chunk * SECTOR

    @property
    def per_area(self):
        """How many records an area holds."""
        return self.chunk_bytes // RECORD.size

    def area_offset(self, area):
        """Where an area starts, in bytes."""
        return (1 + area * (self.per_area + 1)) * self.chunk_bytes

    def records(self):
        """All records, as (old, new)."""
        area = 0
        while self.area_offset(area) + self.chunk_bytes <= self.size:
            data = self.read(self.area_offset(area), self.chunk_bytes)
            for old, new in RECORD.iter_unpack(data):
                if new == 0:
                    return
                yield old, new
            area += 1


def new(args):
    """The new command."""
    cow = Cow(args.cow, os.O_RDWR)
    cow.chunk = args.chunk
    page = bytearray(4096)
    HEADER.pack_into(page, 0, args.magic, args.valid, args.version, args.chunk)
    cow.write(0, page)
    # A chunk size that is not sane is written as it is, but no area can be.
    if 0 < args.chunk <= 2048:
        cow.write(cow.area_offset(0), bytes(cow.chunk_bytes))


def record(args):
    """The record command."""
    cow = Cow(args.cow, os.O_RDWR)
    area, index = divmod(args.index, cow.per_area)
    data = bytearray(cow.read(cow.area_offset(area), cow.chunk_bytes))
    RECORD.pack_into(data, index * RECORD.size, args.old, args.new)
    cow.write(cow.area_offset(area), data)


def count(args):
    """The count command."""
    print(sum(1 for _ in Cow(args.cow, os.O_RDONLY).records()))


def check(args):
    """The check command."""
    cow = Cow(args.cow, os.O_RDONLY)
    if cow.magic != MAGIC or cow.version != 1:
        sys.exit(f"magic {cow.magic:#x}, version {cow.version}")
    old_limit = -(-args.origin_sectors // cow.chunk)
    new_limit = cow.size // cow.chunk_bytes
    olds, news = set(), set()
    for old, place in cow.records():
        if old >= old_limit:
            sys.exit(f"old chunk {old} is beyond the origin")
        if old in olds:
            sys.exit(f"old chunk {old} is there twice")
        if place >= new_limit:
            sys.exit(f"new chunk {place} is beyond the device")
        if place % (cow.per_area + 1) == 1:
            sys.exit(f"new chunk {place} is a metadata area")
        if place in news:
            sys.exit(f"new chunk {place} is there twice")
        olds.add(old)
        news.add(place)
    missing = set(args.old) - olds
    if missing:
        sys.exit(f"no record for old chunks {sorted(missing)}")
    print(len(olds), "valid" if cow.valid else "invalid")


def old_runs(args, chunks):
    """The first chunks of the runs that make puts at random places."""
    slots = chunks // args.run
    wanted = -(-args.count // args.run)
    if wanted > slots:
        sys.exit(f"{args.count} exceptions don't fit an origin of {chunks} chunks")
    return [slot * args.run
            for slot in random.Random(args.seed).sample(range(slots), wanted)]


def make(args):
    """The make command."""
    cow = Cow(args.cow, os.O_RDWR)
    cow.chunk = args.chunk
    size, per_area = cow.chunk_bytes, cow.per_area
    olds = [first + i for first in old_runs(args, args.origin_sectors // args.chunk)
            for i in range(args.run)][:args.count]
    # Shifted views of one random buffer differ from chunk to chunk.
    rng = random.Random(args.seed)
    pool = rng.randbytes(2 * max(size, MIB))
    areas, place = [], 2
    for index, old in enumerate(olds):
        if args.hole and index % args.hole == args.hole - 1:
            place += 1
        if place % (per_area + 1) == 1:
            place += 1
        if (place + 1) * size > cow.size:
            sys.exit(f"{args.count} exceptions don't fit {args.cow}")
        areas.append(RECORD.pack(old, place))
        place += 1
    # All data chunks from the second on, holes and areas as well, in large pieces;
    # the areas are put in their places afterwards.
    for offset in range(2 * size, place * size, MIB):
        shift = rng.randrange(0, len(pool) - MIB + 1) // SECTOR * SECTOR
        cow.write(offset, pool[shift:shift + min(MIB, place * size - offset)])
    for area in range(len(areas) // per_area + 1):
        data = b"".join(areas[area * per_area:(area + 1) * per_area])
        if cow.area_offset(area) + size <= cow.size:
            cow.write(cow.area_offset(area), data.ljust(size, b"\0"))
    page = bytearray(4096)
    HEADER.pack_into(page, 0, MAGIC, 1, 1, args.chunk)
    cow.write(0, page[:max(SECTOR, min(size, 4096))])


def list_records(args):
    """The list command."""
    for old, place in Cow(args.cow, os.O_RDONLY).records():
        print(old, place)


def read_whole(fd, size):
    """What the first bytes of a device are, read directly by 1 MiB."""
    data = mmap.mmap(-1, size)
    view = memoryview(data)
    for offset in range(0, size, MIB):
        piece = view[offset:offset + MIB]
        if os.preadv(fd, [piece], offset) != len(piece):
            sys.exit(f"a read at {offset} fell short")
    return view


def read_device(path):
    """All of a device."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    fcntl.ioctl(fd, BLKFLSBUF, 0)
    size = int.from_bytes(fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)), "little")
    return read_whole(fd, size)


def saved_chunks(cow, size):
    """Each record as the place of the chunk on an origin of so many bytes, and the
    data that COW has for it."""
    records = list(cow.records())
    top = max((new for _, new in records), default=0) + 1
    saved = read_whole(cow.fd, top * cow.chunk_bytes)
    for old, new in records:
        at = old * cow.chunk_bytes
        start = new * cow.chunk_bytes
        yield at, saved[start:start + min(cow.chunk_bytes, size - at)]


def merged(args):
    """The merged command."""
    image, now = read_device(args.dev), read_device(args.now)
    count = 0
    for at, data in saved_chunks(Cow(args.cow, os.O_RDONLY), len(image)):
        if now[at:at + len(data)].tobytes() == data.tobytes():
            count += 1
            image[at:at + len(data)] = data
        elif count:
            sys.exit(f"the chunk at byte {at} is not merged, but an earlier record is")
    for offset in range(0, len(image), MIB):
        if image[offset:offset + MIB].tobytes() != now[offset:offset + MIB].tobytes():
            sys.exit(f"something from byte {offset} on is neither old nor merged")
    print(count)


def digest(args):
    """The digest command."""
    image = read_device(args.dev)
    for at, data in saved_chunks(Cow(args.cow, os.O_RDONLY), len(image)):
        image[at:at + len(data)] = data
    crc = 0
    for offset in range(0, len(image), MIB):
        crc = zlib.crc32(image[offset:offset + MIB], crc)
    print(f"{crc:08x}")


def number(text):
    """A number in any notation."""
    return int(text, 0)


def command_line():
    """What the arguments may be."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("new")
    sub.add_argument("cow")
    sub.add_argument("--chunk", type=number, required=True)
    sub.add_argument("--magic", type=number, default=MAGIC)
    sub.add_argument("--valid", type=number, default=1)
    sub.add_argument("--version", type=number, default=1)
    sub = commands.add_parser("record")
    sub.add_argument("cow")
    for name in "index", "old", "new":
        sub.add_argument(name, type=number)
    sub = commands.add_parser("count")
    sub.add_argument("cow")
    sub = commands.add_parser("check")
    sub.add_argument("cow")
    sub.add_argument("origin_sectors", type=number)
    sub.add_argument("--old", type=number, action="append", default=[])
    sub = commands.add_parser("make")
    sub.add_argument("cow")
    sub.add_argument("origin_sectors", type=number)
    for name in "--chunk", "--count", "--seed":
        sub.add_argument(name, type=number, required=True)
    sub.add_argument("--run", type=number, default=1)
    sub.add_argument("--hole", type=number)
    sub = commands.add_parser("list")
    sub.add_argument("cow")
    sub = commands.add_parser("merged")
    for name in "cow", "dev", "now":
        sub.add_argument(name)
    sub = commands.add_parser("digest")
    sub.add_argument("cow")
    sub.add_argument("dev")
    return parser


COMMAND_LINE = command_line()


def main(arguments):
    """Does what the arguments say."""
    args = COMMAND_LINE.parse_args(arguments)
    {"new": new, "record": record, "count": count, "check": check, "make": make,
     "list": list_records, "merged": merged, "digest": digest}[args.command](args)


if __name__ == "__main__":
    main(sys.argv[1:])
