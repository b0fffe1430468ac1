#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Runs one case of the exact benchmark in a guest of its own.

guest.py CASE VARIANT [--trace]

Makes fresh null_blk devices, the variant's device-mapper targets on them, sends
the case's I/O, and prints one line "RESULT" with the figures as JSON.  All times
are those of the guest, in which only what waits takes time.
"""

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import random
import re
import struct
import subprocess
import sys
import threading
import time

import cases
from dm import Dm, NOFLUSH
from nullblk import MIB, SECTOR, Null, put

PAGE = 4096
TRACING = "/sys/kernel/tracing"

# The targets: the image, the live volume, the merge.
TARGETS = {
    "c": ("snapshot", "snapshot-origin", "snapshot-merge"),
    "ours": ("snapshot-rs", "snap-origin-rs", "snap-merge-rs"),
}

# How long deferred work may take until it has reached the devices.
SETTLE = 1.5

# And how long until what RCU frees has been freed: it's collected for 5 s.
FREED = 7


def run(*command, check=True):
    """Runs a command and returns what it prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stdout}")
    return done.stdout


class Counted(Null):
    """A fresh device whose I/O is counted."""

    def __init__(self, name, mib, nsec=cases.DEVICE_NS, mbps=0):
        super().__init__(name, mib * MIB, nsec, mbps=mbps)
        self.mark = None

    def counters(self):
        """Reads, sectors read, writes, sectors written."""
        with open(f"/sys/block/{self.name}/stat", encoding="ascii") as file:
            stat = [int(word) for word in file.read().split()]
        return {"reads": stat[0], "read_sectors": stat[2],
                "writes": stat[4], "write_sectors": stat[6]}

    def start(self):
        """Counts from here."""
        self.mark = self.counters()

    def since(self):
        """What went to the device since start()."""
        return {key: value - self.mark[key] for key, value in self.counters().items()}


class Rig:
    """The devices of one variant."""

    def __init__(self, variant, case):
        self.variant = variant
        self.chunk = case.chunk
        self.store = case.store
        self.nulls = {}
        self.dms = {}
        self.cows = []
        self.origin = self.snap = None
        mib = case.mib
        self.dev = self.null("dev", mib, case.dev_nsec, case.mbps)
        if variant == "raw":
            self.origin = self.snap = self.dm("origin", self.dev.sectors, "linear", f"{self.dev.path} 0")
        elif variant == "thin":
            self.make_thin(mib)
        else:
            self.make_snapshots(case, mib)

    def null(self, name, *args):
        """Makes a null_blk device whose I/O is counted."""
        self.nulls[name] = Counted(name, *args)
        return self.nulls[name]

    def dm(self, name, *line):
        """Makes a device of device-mapper, with one line from its first sector on; its path."""
        self.dms[name] = Dm(name, (0, *line))
        return self.dms[name].path

    def make_snapshots(self, case, mib):
        """ORIGIN and its snapshots, for C and ours."""
        self.origin = self.dm("origin", self.dev.sectors, TARGETS[self.variant][1], self.dev.path)
        cow_mib = mib + mib // 4 + 8
        if case.one_cow:
            cow = self.null("cow", cow_mib * case.snaps, cases.DEVICE_NS, case.mbps)
            size = cow_mib * MIB // SECTOR
            for i in range(case.snaps):
                self.cows.append(self.dm(f"cow{i}", size, "linear", f"{cow.path} {i * size}"))
        else:
            for i in range(case.snaps):
                self.cows.append(self.null(f"cow{i}", cow_mib, cases.DEVICE_NS, case.mbps).path)
        # C's origin must be suspended, or it goes on with its old size of a bio.
        self.dms["origin"].suspend()
        if not case.late:
            for i, cow in enumerate(self.cows):
                path = self.dm(f"snap{i}", *self.snap_line(cow))
                self.snap = self.snap or path
        self.dms["origin"].resume()

    def snap_line(self, cow, target=0):
        """The table of SNAP, or with target=2 of a merge."""
        return (self.dev.sectors, TARGETS[self.variant][target],
                f"{self.dev.path} {cow} {self.store} {self.chunk}")

    def make_thin(self, mib):
        """A full thin volume as ORIGIN, and its snapshot."""
        meta = self.null("meta", 64)
        data = self.null("data", mib * 3)
        pool = self.dm("pool", data.sectors, "thin-pool",
                       f"{meta.path} {data.path} 128 0 1 skip_block_zeroing")
        self.dms["pool"].sending("create_thin 0")()
        self.origin = self.dm("origin", self.dev.sectors, "thin", f"{pool} 0")
        stream(self.origin, mib)
        self.dms["origin"].suspend()
        self.dms["pool"].sending("create_snap 1 0")()
        self.dms["origin"].resume()
        self.snap = self.dm("snap0", self.dev.sectors, "thin", f"{pool} 1")

    def start(self):
        """Counts from here."""
        for null in self.nulls.values():
            null.start()

    def counts(self):
        """What each device did since start(), when all of it has arrived."""
        time.sleep(SETTLE)
        return {name: null.since() for name, null in self.nulls.items()}


def stream(path, mib, write=True):
    """Direct I/O of 1 MiB, one after the other."""
    fd = os.open(path, (os.O_WRONLY if write else os.O_RDONLY) | os.O_DIRECT)
    page = mmap.mmap(-1, MIB)
    for i in range(mib):
        if write:
            os.pwrite(fd, page, i * MIB)
        else:
            os.preadv(fd, [page], i * MIB)
    os.close(fd)


def fio(path, case):
    """Runs fio and returns its figures."""
    done = run("fio", "--name=x", f"--filename={path}", "--direct=1", "--ioengine=libaio",
               f"--iodepth={case.depth}", f"--rw={case.rw}", f"--bs={case.bs}",
               f"--size={case.mib}m", f"--io_size={case.count * case.bs}", "--thread", "--clocksource=clock_gettime",
               "--randseed=42", "--output-format=json", "--output=/tmp/fio.json")
    try:
        with open("/tmp/fio.json", encoding="utf-8") as file:
            text = file.read()
        job = json.loads(text[text.index("{"):])["jobs"][0]
    except ValueError:
        sys.exit(f"fio said: {done} {text}")
    if job["error"]:
        sys.exit(f"fio: error {job['error']}")
    side = job["read" if "read" in case.rw else "write"]
    # The run time has whole ms only.
    return {"ns": side["clat_ns"]["mean"], "ios": side["total_ios"],
            "iops": case.count * 1000 / max(side["runtime"], 1)}


class Trace:
    """The block layer's events, as the kernel sees them."""

    EVENTS = ("block_bio_queue", "block_rq_issue", "block_rq_complete",
              "block_bio_complete", "block_bio_remap")

    def __init__(self, *events):
        self.events = events or self.EVENTS
        self.lines = []

    def __enter__(self):
        put(f"{TRACING}/buffer_size_kb", 65536)
        put(f"{TRACING}/trace_clock", "mono")
        for event in self.events:
            put(f"{TRACING}/events/block/{event}/enable", 1)
        return self

    def __exit__(self, *_):
        for event in self.events:
            put(f"{TRACING}/events/block/{event}/enable", 0)
        with open(f"{TRACING}/trace", encoding="utf-8") as file:
            self.lines = [line.rstrip() for line in file if not line.startswith("#")]

    PATTERN = re.compile(r"^\s*(?P<task>\S+)-\d+\s+\[\d+\]\s+\S+\s+(?P<time>[\d.]+): (?P<event>\w+): "
                         r"(?P<dev>\d+,\d+) (?P<op>\w+) (?P<rest>.*)$")

    def parsed(self):
        """Each event as (time in ns, event, device, operation, sector, count, task)."""
        for line in self.lines:
            match = self.PATTERN.match(line)
            if not match:
                continue
            seconds, fraction = match["time"].split(".")
            place = re.search(r"(\d+) \+ (\d+)", match["rest"])
            sector, count = (int(place[1]), int(place[2])) if place else (0, 0)
            yield (int(seconds) * 10**9 + int(fraction.ljust(9, "0")), match["event"],
                   match["dev"], match["op"], sector, count, match["task"], match["rest"])


def device_number(path):
    """A device as traces name it."""
    number = os.stat(path).st_rdev
    return f"{os.major(number)},{os.minor(number)}"


# ---------------------------------------------------------------------------
# What a case does

def transfer(rig, case, trace):
    """fio on ORIGIN or SNAP, after what must be there before it."""
    where = rig.origin if case.on == "origin" else rig.snap
    if case.before == "covered":
        stream(rig.origin, case.mib)
    elif case.before == "written":
        stream(rig.snap, case.mib)
    time.sleep(SETTLE)
    rig.start()
    if trace:
        with Trace() as events:
            result = fio(where, case)
        show(events, rig)
    elif case.count_commits:
        with Trace("block_rq_issue") as events:
            result = fio(where, case)
        result["commits"] = commits(rig, events)
    else:
        result = fio(where, case)
    result["devices"] = rig.counts()
    return result


def clients(rig, case, trace):
    """Clients that send 4K writes to ORIGIN at random times, each to a place of its own.

    Unlike fio's, their requests do not come in step with each other.
    """
    places = list(range(rig.dev.sectors * SECTOR // PAGE))
    random.Random(42).shuffle(places)
    each = case.count // case.depth
    latencies = []
    # Sleeps end when they should, and not up to 50 µs later.
    ctypes.CDLL(None).prctl(29, 1)
    begin = time.monotonic() + 0.1

    def client(number):
        dice = random.Random(number)
        page = mmap.mmap(-1, PAGE)
        fd = os.open(rig.origin, os.O_RDWR | os.O_DIRECT)
        when = begin
        for place in places[number * each:(number + 1) * each]:
            when += dice.expovariate(case.rate / case.depth)
            time.sleep(max(when - time.monotonic(), 0))
            start = time.monotonic_ns()
            os.pwrite(fd, page, place * PAGE)
            latencies.append(time.monotonic_ns() - start)
        os.close(fd)

    rig.start()
    threads = [threading.Thread(target=client, args=(i,)) for i in range(case.depth)]
    with Trace() if trace else contextlib.nullcontext() as events:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if trace:
        show(events, rig)
    return {"ns": sum(latencies) / len(latencies), "worst_ns": max(latencies),
            "ios": len(latencies), "devices": rig.counts()}


def commits(rig, events):
    """How many commits the COW device has had: the writes to its metadata areas, but the
    first one to each, which zeroes it. The first area was zeroed when the snapshot was made.
    """
    number = device_number(rig.cows[0])
    stride = rig.chunk * SECTOR // 16 + 1
    zeroed = {0}
    total = 0
    for _, _, dev, operation, sector, count, *_ in events.parsed():
        area, place = divmod(sector // rig.chunk - 1, stride)
        if dev == number and "W" in operation and count and place == 0:
            total += area in zeroed
            zeroed.add(area)
    return total


def show(events, rig):
    """Prints the events with times since the first in µs, devices by name."""
    names = {device_number(null.path): name for name, null in rig.nulls.items()}
    for name, path in ("ORIGIN", rig.origin), ("SNAP", rig.snap):
        if path:
            names[device_number(path)] = name
    first = None
    for when, event, dev, operation, sector, count, task, rest in events.parsed():
        first = when if first is None else first
        print(f"TRACE {(when - first) / 1000:12.3f} {names.get(dev, dev):7} {event[6:]:13}"
              f" {operation:5} {sector:8} + {count:4} {task} {rest if 'remap' in event else ''}")




def conflict(rig, case, trace):
    """A write to ORIGIN that only a read of SNAP holds back.

    DEV takes 10 ms for each I/O. The read is sent there at 0 ms; at 1 ms SNAP
    overwrites the whole chunk, so nothing has to be copied; at 2 ms ORIGIN writes
    it. From then on only the read is in its way.
    """
    def at(when, path, write, chunk):
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        buffer = mmap.mmap(-1, PAGE)
        time.sleep(when - time.monotonic())
        (os.pwrite if write else lambda f, b, o: os.preadv(f, [b], o))(
            fd, buffer, chunk * PAGE)
        os.close(fd)

    delays = []
    for chunk in range(8, 8 + case.count):
        # The phase varies, so that a loop that polls is not met at a good moment.
        start = time.monotonic() + 0.02 + chunk * 0.000137
        with Trace() as events:
            threads = [threading.Thread(target=at, args=args) for args in (
                (start, rig.snap, False, chunk), (start + 0.001, rig.snap, True, chunk),
                (start + 0.002 + (chunk - 8) * 0.00021, rig.origin, True, chunk))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        dev = device_number(rig.dev.path)
        ended = sent = None
        for when, event, number, operation, *_ in events.parsed():
            if number != dev:
                continue
            if event == "block_rq_complete" and operation.startswith("R"):
                ended = when
            if event in ("block_bio_queue", "block_rq_issue") and "W" in operation and sent is None:
                sent = when
        if trace:
            show(events, rig)
        put(f"{TRACING}/trace", "")
        delays.append(sent - ended)
        time.sleep(0.1)
    # Whoever lets a write go before the read has ended has lost the race.
    return {"lost": min(delays) < 0, "ns": max(delays), "delays": delays}


def write_image(rig, olds):
    """Writes the metadata of a COW device that has these chunks."""
    chunk = rig.chunk * SECTOR
    per_area = chunk // 16
    fd = os.open(rig.cows[0], os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, chunk)
    page[:16] = struct.pack("<IIII", 0x70416E53, 1, 1, rig.chunk)
    os.pwrite(fd, page, 0)
    place = 2
    areas = len(olds) // per_area + 1
    for area in range(areas):
        records = []
        for old in olds[area * per_area:(area + 1) * per_area]:
            records += (old, place)
            place += 1
        place += 1
        page[:] = struct.pack(f"<{len(records)}Q", *records).ljust(chunk, b"\0")
        os.pwrite(fd, page, (1 + area * (per_area + 1)) * chunk)
    os.close(fd)


def scattered(rig, case):
    """An image of chunks none of which is beside another, in random order."""
    olds = list(range(0, 2 * case.count, 2))
    random.Random(42).shuffle(olds)
    write_image(rig, olds)


def memory():
    """What the kernel says of memory, in KiB, when all that is freed has been."""
    time.sleep(FREED)
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":") for line in file)
    found = {key: int(lines[key].split()[0])
             for key in ("MemFree", "Buffers", "Cached", "Slab", "VmallocUsed")}
    # Free pages that a processor keeps at hand do not count as free there.
    with open("/proc/zoneinfo", encoding="ascii") as file:
        pages = re.findall(r"^ +count: +(\d+)$", file.read(), re.M)
    found["MemFree"] += sum(map(int, pages)) * PAGE // 1024
    return found


def late_image(rig, case):
    """The COW device with the exceptions that the case asks for."""
    if case.scattered:
        scattered(rig, case)
    else:
        write_image(rig, range(case.count))
    time.sleep(SETTLE)


def activate(rig, case, trace):
    """Activates a snapshot with many exceptions: how long its reads take.

    What the kernel does besides, a grace period of RCU for instance, has the grain
    of a tick; it's the same for all, and would hide the difference.
    """
    late_image(rig, case)
    rig.start()
    with Trace("block_bio_queue", "block_rq_complete") as events:
        begin = time.monotonic_ns()
        rig.dm("snap0", *rig.snap_line(rig.cows[0]))
        elapsed = time.monotonic_ns() - begin
    number = device_number(rig.cows[0])
    times = [when for when, _, dev, *_ in events.parsed() if dev == number]
    if trace:
        show(events, rig)
    return {"ns": max(times) - min(times), "elapsed_ns": elapsed, "devices": rig.counts(),
            "status": rig.dms["snap0"].status().split()}


def taken(rig):
    """The memory that the snapshot takes when it is activated, in bytes: all, slab, vmalloc."""
    before = memory()
    rig.dm("snap0", *rig.snap_line(rig.cows[0]))
    after = memory()
    grown = {key: (after[key] - before[key]) * 1024 for key in before}
    # Page cache is not the snapshot's: it's there only because of this script.
    return (-(grown["MemFree"] + grown["Buffers"] + grown["Cached"]),
            grown["Slab"], grown["VmallocUsed"])


def keep(rig, case, _):
    """The memory that an active snapshot takes: all of it, in bytes for each of its many
    exceptions; and what one takes that has none."""
    # Activated twice: what is written then takes memory of null_blk the first time.
    write_image(rig, [])
    for _ in range(2):
        empty = taken(rig)
        rig.dms["snap0"].remove()
    late_image(rig, case)
    total, slab, vmalloc = taken(rig)
    return {"bytes_each": total / case.count, "slab_each": slab / case.count,
            "vmalloc_each": vmalloc / case.count, "empty": empty[0],
            "status": rig.dms["snap0"].status().split()}


def merge(rig, case, _):
    """Merges many scattered exceptions back."""
    scattered(rig, case)
    origin = rig.dms["origin"]
    origin.load((0, *rig.snap_line(rig.cows[0], 2)))
    rig.start()
    time.sleep(0.1)
    begin = time.monotonic_ns()
    origin.resume()
    while True:
        text = origin.status(NOFLUSH)
        match = re.fullmatch(r"(\d+)/\d+ (\d+)\s*", text)
        if not match:
            sys.exit(f"the merge ended with {text}")
        if match[1] == match[2]:
            break
        time.sleep(0.0005)
    end = time.monotonic_ns()
    return {"ns": end - begin, "each_ns": (end - begin) / case.count,
            "devices": rig.counts()}


KINDS = {"transfer": transfer, "clients": clients, "conflict": conflict, "activate": activate,
         "keep": keep, "merge": merge}


def main():
    """Reads the command line and runs the case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("variant")
    parser.add_argument("--trace", action="store_true")
    args = parser.parse_args()
    case = cases.by_name(args.case)
    for module in "dm-mod", "dm-snapshot", "dm-thin-pool":
        run("modprobe", module)
    run("modprobe", "null_blk", "nr_devices=0")
    if args.variant == "ours":
        run("insmod", "dm_snap_rs.ko")
        targets = run("dmsetup", "targets")
        if case.kind == "merge" and TARGETS["ours"][2] not in targets:
            print("RESULT", json.dumps({"missing": "this module has no merge target"}), flush=True)
            return
    rig = Rig(args.variant, case)
    result = KINDS[case.kind](rig, case, args.trace)
    print("RESULT", json.dumps(result, sort_keys=True), flush=True)


if __name__ == "__main__":
    main()
