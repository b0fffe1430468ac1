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
"""

import argparse
import fcntl
import mmap
import os
import struct
import sys

MAGIC = 0x70416E53
SECTOR = 512
HEADER = struct.Struct("<IIII")
RECORD = struct.Struct("<QQ")
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


def number(text):
    """A number in any notation."""
    return int(text, 0)


def main():
    """Reads the command line."""
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
    args = parser.parse_args()
    {"new": new, "record": record, "count": count, "check": check}[args.command](args)


if __name__ == "__main__":
    main()
