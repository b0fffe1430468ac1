#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Looks at what a killed machine has left, and writes until it's killed itself.

kill-guest.py SEED ROUND DEV COW NOTES [SAID]

SAID is what this script printed in the round before: the operations that were begun
there (b) and that had ended (e).  NOTES is a disk for the contents with which a round
begins.  Each five rounds, the snapshot is a new one.
"""

import os
import random
import subprocess
import sys
import time

from devices import Aio, SECTOR, buffer, opened, read_all, write_all
from dm import Dm
from media import Medium, Write
from record import ORIGIN, SNAPSHOT, stamps

SECTORS = 16 << 11
SIZE = SECTORS * SECTOR
OPERATIONS = 4000
# Then it goes on slowly: it should never come to its end.
QUICK = 2500
DEPTH = 8
ROUNDS = 5


def plan(seed, number):
    """The operations of a round: (name, device, write or None for a flush)."""
    rng = random.Random(f"{seed} {number}")
    operations = []
    for step in range(OPERATIONS):
        name = (number << 16) + step + 1
        key = rng.choice(("ORIGIN", "ORIGIN", "SNAP"))
        kind = rng.choices(("write", "fua", "flush"), (8, 1, 1))[0]
        first = rng.randrange(SECTORS // 8) * 8 + rng.choice((0, 0, 0, 3))
        count = min(rng.choice((1, 8, 8, 16, 64)), SECTORS - first)
        write = None if kind == "flush" else Write(first, count, kind == "fua", None, name)
        operations.append((name, key, write))
    return operations


def fill(write):
    """The data of a write."""
    if write.data is None:
        write.data = stamps(write.name, write.first, write.count)
    return write


def verify(seed, number, said, found, before):
    """Compares what is there with what the round before has said."""
    media = {key: Medium(before[key], SECTOR) for key in found}
    operations = {name: (key, write) for name, key, write in plan(seed, number)}
    begun, ended = set(), 0
    with open(said, encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            # The last line may be cut off.
            if len(words) != 3 or words[0] not in "be" or words[2] != ".":
                continue
            name = int(words[1])
            key, write = operations[name]
            if words[0] == "b":
                begun.add(name)
                if write:
                    media[key].begin(fill(write))
                else:
                    media[key].begin_flush(name)
                continue
            ended += 1
            if write:
                media[key].end(write)
            else:
                media[key].end_flush(name)
    # What came last may not have been heard of.
    for name, (key, write) in operations.items():
        if write and name not in begun:
            media[key].begin(fill(write))
    bad = 0
    for key, medium in media.items():
        wrong = medium.differing(found[key])
        if wrong:
            bad += 1
            print(f"FAILED {key}: {len(wrong)} sectors are wrong, the first is {wrong[0]}")
    print(f"VERIFIED {len(begun)} begun, {ended} ended, {bad} wrong", flush=True)
    return bad


def work(seed, number, devices):
    """Writes, with some in flight, for ever or to the end."""
    aio = Aio(64)
    flying = {}
    files = {key: os.open(device.path, os.O_RDWR | os.O_DIRECT) for key, device in devices.items()}

    def reap():
        lines = ""
        for name, good in aio.reap(1):
            del flying[name]
            lines += f"e {name} .\n" if good else f"FAILED operation {name}\n"
        os.write(1, lines.encode())

    print("WRITING", flush=True)
    for step, (name, key, write) in enumerate(plan(seed, number)):
        if step > QUICK:
            time.sleep(0.02)
        while len(flying) >= DEPTH or write and any(
                other and where == key and other.first < write.first + write.count
                and write.first < other.first + other.count for where, other in flying.values()):
            reap()
        os.write(1, f"b {name} .\n".encode())
        flying[name] = (key, write)
        if write:
            fill(write)
            aio.submit(name, files[key], Aio.WRITE, buffer(write.data), write.first * SECTOR, write.fua)
        else:
            aio.submit(name, files[key], Aio.FLUSH)
    while flying:
        reap()
    print("ALL WRITTEN", flush=True)


def main():
    """Reads the command line and works."""
    seed, number, dev, cow, notes, *said = sys.argv[1:]
    number = int(number)
    subprocess.run(["modprobe", "dm_snap_rs"], check=True)
    rng = random.Random(f"{seed} {number // ROUNDS}")
    chunk = rng.choice((8, 8, 32))
    if number == 0:
        write_all(dev, buffer(stamps(0, 0, SECTORS)))
    else:
        # Before the module has seen it.
        command = f"./snaprs check --origin-sectors {SECTORS} {cow}"
        if subprocess.run(command.split(), check=False).returncode != 0:
            print("FAILED snaprs check")
    fresh = number % ROUNDS == 0

    def make(chunk):
        origin = Dm("origin", (0, SECTORS, ORIGIN, dev))
        return {"ORIGIN": origin, "SNAP": Dm("snap", (0, SECTORS, SNAPSHOT, f"{dev} {cow} P {chunk}"))}

    if number > 0:
        old = random.Random(f"{seed} {(number - 1) // ROUNDS}").choice((8, 8, 32))
        devices = make(old)
        found = {key: read_all(device.path, SIZE)[:] for key, device in devices.items()}
        images = read_all(notes, 2 * SIZE)
        verify(seed, number - 1, said[0], found, {"ORIGIN": images[:SIZE], "SNAP": images[SIZE:]})
    if fresh:
        if number > 0:
            devices["SNAP"].remove()
            devices["ORIGIN"].remove()
        write_all(cow, buffer(4096))
        devices = make(chunk)
        found = {key: read_all(device.path, SIZE)[:] for key, device in devices.items()}
    write_all(notes, buffer(found["ORIGIN"] + found["SNAP"]))
    # Durable from here on, as it's what the next round compares with.
    for path in notes, dev, cow:
        with opened(path, os.O_RDWR) as fd:
            os.fsync(fd)
    work(seed, number, devices)


if __name__ == "__main__":
    main()
