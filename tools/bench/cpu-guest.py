#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Measures what an I/O costs the CPU, in a guest with the stock kernel.

cpu-guest.py JOBS ROUNDS IOS [PATH]... - prints one line "RESULT" with JSON: for each path
and each variant, the CPU time of all processors and the wall time per I/O in ns, once a
round.

The devices take no time and keep no data (but for the metadata of the persistent
snapshots), so what remains is the system call, the block layer, and the targets.  The variants
take turns within one boot, since no two boots are alike.
"""

import json
import os
import subprocess
import sys
import time

MIB = 1 << 20
SECTOR = 512
PAGE = 4096
NULLB = "/sys/kernel/config/nullb"
TARGETS = {"c": ("snapshot", "snapshot-origin"), "ours": ("snapshot-rs", "snap-origin-rs")}
VARIANTS = ("raw", "c", "ours")

# What is done to MIB of each device before; the rest of it stays untouched.
COVERED = 64
FRESH = 2048


def run(*command):
    """Runs a command and returns what it prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stdout}")
    return done.stdout


def null(name, mib, keeps=0):
    """A null_blk device that completes at once; returns its path and sectors."""
    folder = f"{NULLB}/{name}"
    os.mkdir(folder)
    for key, value in {"memory_backed": keeps, "size": mib, "irqmode": 0, "queue_mode": 2,
                       "submit_queues": os.cpu_count()}.items():
        with open(f"{folder}/{key}", "w", encoding="ascii") as file:
            file.write(str(value))
    with open(f"{folder}/power", "w", encoding="ascii") as file:
        file.write("1")
    if not os.path.exists(f"/dev/{name}"):
        with open(f"{folder}/index", encoding="ascii") as file:
            name = f"nullb{file.read().strip()}"
    return f"/dev/{name}", mib * MIB // SECTOR


def create(name, table):
    """A device-mapper device."""
    run("dmsetup", "create", name, "--table", table)
    return f"/dev/mapper/{name}"


def load(path, write, first_mib, ios, jobs):
    """Sends I/O of 4K; returns the ns of CPU and of wall time per I/O."""
    cpu, wall = run("./load", path, "w" if write else "r", str(first_mib * MIB // PAGE),
                    str(ios), str(jobs)).split()
    return int(cpu), int(wall)


class Rig:
    """The devices of one variant: P and N snapshots on DEVs of their own."""

    def __init__(self, variant):
        self.fresh = 0
        self.origin, self.snap = {}, {}
        mib = COVERED + FRESH
        for store in "NP":
            dev, sectors = null(f"{variant}-{store}-dev", mib)
            name = f"{variant}-{store}"
            if variant == "raw":
                self.origin[store] = self.snap[store] = create(
                    f"{name}-origin", f"0 {sectors} linear {dev} 0")
                continue
            cow, _ = null(f"{variant}-{store}-cow", 2 * mib, keeps=1 if store == "P" else 0)
            snap, origin = TARGETS[variant]
            self.origin[store] = create(f"{name}-origin", f"0 {sectors} {origin} {dev}")
            run("dmsetup", "suspend", f"{name}-origin")
            self.snap[store] = create(f"{name}-snap", f"0 {sectors} {snap} {dev} {cow} {store} 8")
            run("dmsetup", "resume", f"{name}-origin")
        # Chunks are saved in random order, so the tables are as large as can be.
        load(self.origin["N"], True, 0, COVERED * MIB // PAGE, 1)


# Path: device, store, whether it's written, and whether to places that are new.
PATHS = {
    "write to ORIGIN, covered": ("origin", "N", True, False),
    "read of SNAP, unchanged": ("snap", "N", False, True),
    "read of SNAP, copied": ("snap", "N", False, False),
    "first touch, N": ("origin", "N", True, True),
    "first touch, P": ("origin", "P", True, True),
}


def measure(rig, path, number, ios, jobs):
    """One run."""
    device, store, write, fresh = PATHS[path]
    first = 0
    if fresh:
        # What is only read stays new; of the rest each run has a part of its own.
        first = COVERED + (number * ios * PAGE // MIB if write else FRESH // 2)
    return load(getattr(rig, device)[store], write, first, ios, jobs)


def main():
    """Reads the command line and measures."""
    jobs, rounds, ios = map(int, sys.argv[1:4])
    only = sys.argv[4:]
    run("modprobe", "null_blk", "nr_devices=0")
    run("modprobe", "dm_snapshot")
    run("insmod", "dm_snap_rs.ko")
    rigs = {variant: Rig(variant) for variant in VARIANTS}
    result = {}
    for path in PATHS:
        if only and path not in only:
            continue
        result[path] = {variant: [] for variant in VARIANTS}
        for number in range(rounds):
            for variant in VARIANTS:
                result[path][variant].append(measure(rigs[variant], path, number, ios, jobs))
        print(f"{path}: done", file=sys.stderr, flush=True)
    print("RESULT", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
