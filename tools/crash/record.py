# SPDX-License-Identifier: GPL-2.0
"""Runs a workload on the module, and records all that reaches the devices beneath it.

The data comes from dm-log-writes, below DEV and below each COW device.  It logs a write
when it's flushed, or at once if it has FUA, so its log alone doesn't say what was in
the cache when something with FUA ended.  The order comes from the kernel's trace: when
each request was sent to such a device and when it ended, and in between the marks of
the workload, which say when it began something and when it was told of its end."""

import fcntl
import hashlib
import os
import re
import struct

from devices import BLKDISCARD, Aio, MIB, SECTOR, buffer, read_all, write_all
from dm import Dm, NOFLUSH
from media import Medium, Write
from nullblk import Null, put

TRACING = "/sys/kernel/tracing"
LOG_MIB = 48
STRIPE = 64
# After so many seconds of the guest, in which nothing else happens, a request hangs.
HANGS = 300
ORIGIN, SNAPSHOT, MERGE = "snap-origin-rs", "snapshot-rs", "snap-merge-rs"


class Broken(Exception):
    """The module, or this test, did something that it must not do."""

    def __init__(self, text, sectors=()):
        super().__init__(text)
        self.sectors = sectors


def stamps(name, first, count):
    """Data that says in each sector which write it comes from, and to where."""
    return b"".join(struct.pack("<QQ", name, number) * 32 for number in range(first, first + count))


class Setup:
    """What a seed stands for: the devices and what is done with them."""

    def __init__(self, rng):
        self.block = rng.choice((512, 512, 512, 4096))
        least = self.block // SECTOR
        chunks = [c for c in (1, 2, 4, 8, 8, 8, 16, 32, 128) if c >= least]
        count = rng.choice((1, 1, 3))
        self.chunks = [rng.choice(chunks) for _ in range(count)]
        # Small chunks have small areas; the device need not be large to fill many.
        self.sectors = {1: 512, 2: 1024}.get(min(self.chunks), 4096)
        if rng.random() < 0.3:
            # The last chunk is cut off.
            self.sectors -= least
        self.full = rng.random() < 0.2
        share = 0.3 if self.full else 1.4
        self.cow_sectors = []
        for chunk in self.chunks:
            size = int(self.sectors * share) + chunk * 8 + 64
            # Each record takes 16 bytes.
            size += self.sectors // chunk // 32 + 1
            self.cow_sectors.append(size // least * least)
        # Each device has a fast part and a slow one, in turns.
        self.nsec = [[rng.choice((10, 30, 50, 120, 300)) * 1000 for _ in range(2)] for _ in range(1 + count)]
        self.depth = rng.choice((1, 4, 8, 16, 32))
        self.operations = rng.choice((100, 200, 300))
        self.late = rng.random() < 0.5
        self.merge = rng.random() < 0.5
        self.weights = [rng.random() + 0.05 for _ in range(5)]
        self.discards = rng.choice((0, 0, 0.5))

    def table(self, parts, target, i=None):
        """A table line of the module on these devices; of snapshot i, unless it is of ORIGIN."""
        line = parts["dev"].id
        if i is not None:
            line += f" {parts[f'cow{i}'].id} P {self.chunks[i]}"
        return (0, self.sectors, target, line)

    def __str__(self):
        return (f"{len(self.chunks)} snapshots, chunks {self.chunks}, {self.sectors} sectors, "
                f"block {self.block}, depth {self.depth}, {self.operations} operations"
                f"{', merge' if self.merge else ''}{', discards' if self.discards else ''}"
                f"{', COW too small' if self.full else ''}")


class State:
    """What is on the devices, and what they must show, when a workload begins."""

    def __init__(self, setup, rng):
        self.dev = stamps(0, 0, setup.sectors)
        self.origin = self.dev
        # No header, and then what looks like records: whatever isn't zeroed will be found.
        self.cows = []
        for chunk, sectors in zip(setup.chunks, setup.cow_sectors):
            junk = b"".join(struct.pack("<QQ", rng.randrange(setup.sectors // chunk),
                                        rng.randrange(1, sectors // chunk))
                            for _ in range((sectors - 8) * 32))
            self.cows.append(bytes(8 * SECTOR) + junk)
        # What each snapshot shows; None for one that was not made yet.
        self.snaps = [None] * len(setup.chunks)
        self.merging = None
        # Snapshots that were merged or became invalid.
        self.gone = set()


class Timeline:
    """What happened, in its order, and what it began with."""

    def __init__(self, setup, state):
        self.setup = setup
        self.state = state
        # (kind, medium, thing), where kind is the name of a method of Medium, or "mark".
        self.events = []

    def digest(self):
        """By which two runs can be compared."""
        digest = hashlib.sha256()
        for kind, medium, thing in self.events:
            what = thing
            if isinstance(thing, Write):
                what = (thing.name, thing.first, thing.count, thing.fua, hashlib.sha256(thing.data).digest())
            digest.update(repr((kind, medium, what)).encode())
        return digest.hexdigest()[:16]

    def excerpt(self, point, sectors=(), before=25):
        """The last events before a moment in words, and all that is about these sectors."""
        lines = []
        scale = {"dev": self.setup.block // SECTOR}
        for at, (kind, medium, thing) in enumerate(self.events[:point]):
            if at < point - before:
                near = kind == "mark"
                if isinstance(thing, Write) and not medium.startswith("cow"):
                    unit = scale.get(medium, 1)
                    near = any(thing.first * unit <= s < (thing.first + thing.count) * unit for s in sectors)
                if not near:
                    continue
            what = thing
            if isinstance(thing, Write):
                what = (f"write {thing.name}, {thing.count} blocks from {thing.first}"
                        f"{', FUA' if thing.fua else ''}")
            lines.append(f"    {at:6} {medium:7} {kind:11} {what}")
        return "\n".join(lines)


class Model:
    """Devices and views at a moment of a timeline."""

    def __init__(self, timeline):
        setup, state = timeline.setup, timeline.state
        self.timeline = timeline
        self.at = 0
        self.media = {"dev": Medium(state.dev, setup.block), "ORIGIN": Medium(state.origin, SECTOR)}
        for i, image in enumerate(state.cows):
            self.media[f"cow{i}"] = Medium(image, setup.block)
        self.views = {i for i, image in enumerate(state.snaps) if image is not None}
        self.acknowledged = set(self.views)
        for i in self.views:
            self.media[f"SNAP{i}"] = Medium(state.snaps[i], SECTOR)
        self.merging = state.merging
        if self.merging is not None:
            self.media["ORIGIN"] = self.media[f"SNAP{self.merging}"]
        self.gone = set(state.gone)

    def go(self, until):
        """Goes on to the moment at which this many events have happened."""
        for kind, medium, thing in self.timeline.events[self.at:until]:
            if kind == "mark":
                self.mark(medium, thing)
            else:
                getattr(self.media[medium], kind)(thing)
        self.at = until

    def mark(self, what, i):
        """Something has changed that is no write."""
        if what == "create":
            self.media[f"SNAP{i}"] = Medium(self.media["ORIGIN"].image, SECTOR)
            self.views.add(i)
        elif what == "created":
            self.acknowledged.add(i)
        elif what == "merge":
            self.merging = i
            self.media["ORIGIN"] = self.media[f"SNAP{i}"]
        elif what == "merged":
            self.merging = None
            self.views.discard(i)
            self.acknowledged.discard(i)
            self.gone.add(i)


def fresh_trace():
    """Begins to record."""
    put(f"{TRACING}/tracing_on", 0)
    put(f"{TRACING}/trace", "")
    put(f"{TRACING}/buffer_size_kb", 32768)
    for event in "block_bio_queue", "block_bio_complete":
        put(f"{TRACING}/events/block/{event}/enable", 1)
    put(f"{TRACING}/tracing_on", 1)


class Workload:
    """One run of the module."""

    def __init__(self, setup, state, rng):
        self.setup = setup
        self.rng = rng
        self.state = state
        self.aio = Aio(64)
        self.marker = os.open(f"{TRACING}/trace_marker", os.O_WRONLY)
        self.operations = {}
        self.names = 0
        self.flying = {}
        self.failed = set()
        self.snaps = {}
        self.merging = state.merging
        self.gone = set(state.gone)
        self.files = {}
        self.logs = {}
        self.numbers = {}
        self.stack = []
        self.nulls = []
        self.parts = {"dev": self.part("dev", state.dev, setup.nsec[0])}
        for i, image in enumerate(state.cows):
            self.parts[f"cow{i}"] = self.part(f"cow{i}", image, setup.nsec[1 + i])

    # The devices

    def part(self, name, image, nsec):
        """DEV or a COW device, whose writes are logged."""
        sectors = len(image) // SECTOR
        log = Null(f"l{name}", LOG_MIB * MIB)
        nulls = [Null(f"r{name}{i}", len(image), time, cached=True, discard=1,
                      blocksize=self.setup.block) for i, time in enumerate(nsec)]
        self.nulls += nulls + [log]
        lines = []
        for at in range(0, sectors, STRIPE):
            null = nulls[at // STRIPE % 2]
            lines.append((at, min(STRIPE, sectors - at), "linear", f"{null.path} {at}"))
        base = Dm(f"base-{name}", *lines)
        write_all(base.path, buffer(image))
        logged = Dm(f"log-{name}", (0, sectors, "log-writes", f"{base.id} {log.path}"))
        # A linear device would pass on a write with a flush as it is, and then the trace
        # would not show the flush by itself.
        part = Dm(name, (0, sectors, "delay", f"{logged.id} 0 0"))
        self.logs[name] = log
        self.numbers[logged.id.replace(":", ",")] = name
        self.stack += [base, logged, part]
        return part

    def table(self, target, i=None):
        """A table line of the module."""
        return self.setup.table(self.parts, target, i)

    def open(self, key, device):
        """Lets the workload use a device."""
        self.files[key] = os.open(device.path, os.O_RDWR | os.O_DIRECT)
        self.flying.setdefault(key, {})

    def mark(self, text):
        """Leaves a mark in the trace."""
        os.write(self.marker, text.encode())

    # What is done

    def run(self):
        """The workload, from the activation on."""
        setup, rng = self.setup, self.rng
        fresh_trace()
        active = [i for i, image in enumerate(self.state.snaps) if image is not None and i not in self.gone]
        for i in active:
            if i != self.merging:
                self.add(i)
        table = self.table(ORIGIN) if self.merging is None else self.table(MERGE, self.merging)
        self.origin = Dm("origin", table)
        self.open("ORIGIN", self.origin)
        missing = [i for i, image in enumerate(self.state.snaps) if image is None and i not in self.gone]
        if missing and not (self.snaps and setup.late):
            self.create(missing.pop(0))
        plan = self.plan(missing)
        for step in range(setup.operations):
            for what, argument in plan.get(step, ()):
                what(argument)
            self.one()
            if len(self.aio.flying) >= setup.depth or rng.random() < 0.1:
                self.reap(1)
            if rng.random() < 0.01:
                self.rest(rng.choice((0.0002, 0.002, 1.2)))
        self.quiet()
        self.live_check()

    def plan(self, missing):
        """The special steps, at random moments."""
        rng, steps = self.rng, self.setup.operations
        plan = {}

        def at(low, high, what, argument=None):
            plan.setdefault(rng.randrange(int(steps * low), int(steps * high)), []).append((what, argument))

        for i in missing:
            at(0, 0.6, self.create, i)
        for _ in range(rng.choice((0, 1, 2, 3))):
            at(0, 1, self.reload)
        for _ in range(rng.choice((0, 2, 4))):
            at(0, 0.5, self.burst)
        if self.merging is not None:
            at(0, 0.6, self.after_merge)
        elif self.setup.merge:
            at(0.3, 0.7, self.begin_merge)
            at(0.7, 1, self.after_merge)
        return plan

    def burst(self, _):
        """Many chunks of a snapshot are written, and their records come together in a commit."""
        if not self.snaps:
            return
        i = self.rng.choice(sorted(self.snaps))
        chunk = self.setup.chunks[i]
        self.quiet(f"SNAP{i}")
        for _ in range(self.rng.randrange(4, 24)):
            first = self.rng.randrange(self.setup.sectors) // chunk * chunk
            count = min(max(256 // chunk, 1) * chunk, self.setup.sectors - first)
            self.write(f"SNAP{i}", first, count, False)
        self.flush(f"SNAP{i}")

    def add(self, i):
        """Makes the device of a snapshot."""
        self.snaps[i] = Dm(f"snap{i}", self.table(SNAPSHOT, i))
        self.open(f"SNAP{i}", self.snaps[i])

    def create(self, i):
        """A new snapshot, of an origin that is at rest and flushed."""
        if self.merging is not None:
            return
        self.quiet("ORIGIN")
        self.flush("ORIGIN")
        self.quiet("ORIGIN")
        self.mark(f"m create {i}")
        self.add(i)
        self.mark(f"m created {i}")

    def reload(self, _):
        """The live table is taken over by a new one, under I/O."""
        rng = self.rng
        choices = [("ORIGIN", self.origin)] + [(f"SNAP{i}", dm) for i, dm in self.snaps.items()]
        key, device = rng.choice(choices)
        if key == "ORIGIN":
            table = self.table(ORIGIN) if self.merging is None else self.table(MERGE, self.merging)
        elif key in self.failed:
            return
        else:
            table = self.table(SNAPSHOT, int(key[4:]))
        device.load(table)
        for _ in range(rng.randrange(4)):
            self.one()
        device.suspend(NOFLUSH if rng.random() < 0.5 else 0)
        device.resume()

    def begin_merge(self, _):
        """A snapshot is rolled back into the origin."""
        able = [i for i in self.snaps if f"SNAP{i}" not in self.failed and self.is_valid(i)]
        if not able or self.merging is not None:
            return
        i = self.rng.choice(able)
        self.quiet("ORIGIN")
        self.quiet(f"SNAP{i}")
        snap = self.snaps.pop(i)
        os.close(self.files.pop(f"SNAP{i}"))
        handover = self.rng.random() < 0.5
        if handover:
            snap.suspend()
        else:
            snap.remove()
        self.mark(f"m merge {i}")
        self.merging = i
        self.origin.load(self.table(MERGE, i))
        self.origin.suspend()
        self.origin.resume()
        if handover:
            snap.remove()

    def after_merge(self, _):
        """When a merge is over, the origin is one as before."""
        if self.merging is None:
            return
        while not self.is_merged():
            if self.aio.flying:
                self.reap(1, 0.001)
            else:
                self.rest(0.001)
        self.quiet("ORIGIN")
        i, self.merging = self.merging, None
        self.mark(f"m merged {i}")
        self.gone.add(i)
        self.origin.load(self.table(ORIGIN))
        self.origin.suspend()
        self.origin.resume()

    def is_merged(self):
        """Whether all has been merged."""
        status = self.origin.status()
        match = re.match(r"(\d+)/\d+ (\d+)", status)
        if not match:
            raise Broken(f"the merge ended with {status}")
        return match[1] == match[2]

    def is_valid(self, i):
        """Whether a snapshot is still one."""
        return "/" in self.snaps[i].status()

    def one(self):
        """One operation at a random place."""
        rng = self.rng
        keys = list(self.files)
        key = rng.choice(keys + ["ORIGIN"])
        fua, flush, whole, small, hot = self.setup.weights
        # While it is merged, the origin may leave discarded data as it was.
        discard = self.setup.discards if key == "ORIGIN" and self.merging is None else 0
        kind = rng.choices(("write", "fua", "flush", "discard"), (3, fua, flush / 2, discard))[0]
        if kind == "flush":
            self.flush(key)
            return
        unit = self.setup.block // SECTOR
        chunk = rng.choice(self.setup.chunks)
        shape = rng.choices(("chunks", "blocks", "part", "long"), (whole, small, 0.5, 0.1))[0]
        if shape == "chunks":
            count = chunk * rng.choice((1, 1, 1, 2, 4))
            align = chunk
        elif shape == "blocks":
            count, align = unit * rng.choice((1, 2, 8)), unit
        elif shape == "part":
            count, align = rng.randrange(unit, chunk * 2 + unit, unit), unit
        else:
            count, align = rng.randrange(unit, 256, unit), unit
        count = max(count, unit)
        size = self.setup.sectors
        area = size // 8 if rng.random() < hot else size
        first = rng.randrange(0, max(area, 1)) // align * align
        count = min(count, size - first, 256)
        self.write(key, first, count, kind == "fua", kind == "discard")

    def write(self, key, first, count, fua, discard=False):
        """A write or a discard, unless it would meet one that is in flight."""
        if any(first < end and begin < first + count for begin, end in self.flying[key].values()):
            return
        self.names += 1
        name = self.names
        data = bytes(count * SECTOR) if discard else stamps(name, first, count)
        write = Write(first, count, fua, data, name)
        self.operations[name] = (key, write)
        self.mark(f"o begin {name}")
        if discard:
            fcntl.ioctl(self.files[key], BLKDISCARD, struct.pack("<QQ", first * SECTOR, count * SECTOR))
            self.mark(f"o end {name}")
            return
        self.flying[key][name] = (first, first + count)
        self.aio.submit(name, self.files[key], Aio.WRITE, buffer(write.data), first * SECTOR, fua)

    def flush(self, key):
        """A flush of a device."""
        self.names += 1
        self.operations[self.names] = (key, None)
        self.flying[key][self.names] = (0, 0)
        self.mark(f"o begin_flush {self.names}")
        self.aio.submit(self.names, self.files[key], Aio.FLUSH)

    def reap(self, least, seconds=None):
        """Takes note of what has ended."""
        if not self.aio.flying:
            return
        ended = self.aio.reap(least, seconds or HANGS)
        if not ended and seconds is None:
            raise Broken("these have not ended: " + ", ".join(
                f"{'write' if write else 'flush'} {name} of {key}"
                for name, (key, write) in self.operations.items() if name in self.flying[key]))
        for name, good in ended:
            key, write = self.operations[name]
            del self.flying[key][name]
            if good:
                self.mark(f"o {'end' if write else 'end_flush'} {name}")
                continue
            if key == "ORIGIN":
                raise Broken(f"operation {name} of ORIGIN has failed")
            if not self.setup.full:
                raise Broken(f"operation {name} of {key} has failed")
            self.failed.add(key)
            if not write:
                self.mark(f"o fail_flush {name}")

    def quiet(self, key=None):
        """Waits until nothing is in flight on a device, or at all."""
        while self.flying[key] if key else self.aio.flying:
            self.reap(1)

    def rest(self, seconds):
        """Lets time pass."""
        if self.aio.flying:
            self.reap(len(self.aio.flying) + 1 if len(self.aio.flying) < 64 else 64, seconds)
        else:
            self.aio.reap(1, seconds)

    def live_check(self):
        """What the devices show before anything is cut."""
        self.live = {"ORIGIN": read_all(self.origin.path, self.setup.sectors * SECTOR)}
        for i, snap in self.snaps.items():
            if self.is_valid(i):
                self.live[f"SNAP{i}"] = read_all(snap.path, self.setup.sectors * SECTOR)

    def show_trace(self):
        """Prints the end of the trace, and what the devices say."""
        with open(f"{TRACING}/trace", encoding="utf-8", errors="replace") as file:
            print("".join(list(file)[-60:]))
        for device in list(self.snaps.values()) + [self.origin]:
            print(device.name, device.status())

    def close(self):
        """Takes everything away."""
        put(f"{TRACING}/tracing_on", 0)
        os.close(self.marker)
        self.aio.call(207, self.aio.context)
        for null in self.nulls:
            null.close()

    def finish(self):
        """Removes the devices in order, and makes the timeline."""
        for file in self.files.values():
            os.close(file)
        for device in list(self.snaps.values()) + [self.origin]:
            device.remove()
        self.mark("m end 0")
        for device in reversed(self.stack):
            device.remove()
        put(f"{TRACING}/tracing_on", 0)
        timeline = Timeline(self.setup, self.state)
        logs = {name: read_log(log.path) for name, log in self.logs.items()}
        timeline.events = self.parse(logs)
        self.close()
        self.judge(timeline)
        return timeline

    LINE = re.compile(r": (block_bio_queue|block_bio_complete|tracing_mark_write): (.*)$")
    REQUEST = re.compile(r"(\d+,\d+) (F?)([A-Z]+) (\d+) \+ (\d+) \[(.*)\]$")

    def parse(self, logs):
        """The trace as events; the data of writes comes from the logs."""
        events = []
        flying = {name: {} for name in logs}
        ended = {name: {} for name in logs}
        unit = self.setup.block // SECTOR
        with open(f"{TRACING}/trace", encoding="utf-8", errors="replace") as file:
            for line in file:
                match = self.LINE.search(line)
                if not match:
                    if "LOST" in line:
                        raise Broken("the trace is not complete")
                    continue
                what, rest = match.groups()
                if what == "tracing_mark_write":
                    kind, verb, number = rest.split()
                    if kind == "m":
                        events.append(("mark", verb, int(number)))
                        continue
                    key, write = self.operations[int(number)]
                    events.append((verb, key, write or int(number)))
                    continue
                device, preflush, flags, sector, count, tail = self.REQUEST.match(rest).groups()
                name = self.numbers.get(device)
                if name is None or flags.startswith("R"):
                    continue
                sector, count = int(sector), int(count)
                fua = "F" in flags
                if preflush and count:
                    raise Broken("a write with a flush before it was not split")
                queue = flying[name].setdefault((sector, count, fua), [])
                if what == "block_bio_queue":
                    if count:
                        thing = Write(sector // unit, count // unit, fua, None, f"{name}@{sector}")
                    else:
                        thing = f"flush {len(events)}"
                    queue.append(thing)
                    events.append(("begin" if count else "begin_flush", name, thing))
                    continue
                if tail != "0" or not queue:
                    raise Broken(f"this end of a request was not expected: {line}")
                thing = queue.pop(0)
                events.append(("end" if count else "end_flush", name, thing))
                if count:
                    ended[name].setdefault((sector, count, fua), []).append(thing)
        for name, log in logs.items():
            if any(queue for queue in flying[name].values()):
                raise Broken(f"requests of {name} have not ended")
            for key, data in log:
                writes = ended[name].get(key)
                if not writes:
                    raise Broken(f"the log of {name} has a write {key} that was not seen")
                writes.pop(0).data = data
            if any(ended[name].values()):
                raise Broken(f"the log of {name} is not complete")
        return events

    def judge(self, timeline):
        """Sees that the live devices showed what the model says."""
        model = Model(timeline)
        model.go(len(timeline.events))
        for key, found in self.live.items():
            view = model.media[key]
            if key not in self.failed and view.cut(lambda _, writes: writes[-1]) != found[:]:
                raise Broken(f"{key} did not show what was written to it, before any cut")


def read_log(path):
    """The writes in a log of dm-log-writes, in its order: (sector, count, fua), data."""
    log = read_all(path, LOG_MIB * MIB)
    magic, version, count, size = struct.unpack_from("<QQQI", log, 0)
    if (magic, version) != (0x6A736677736872, 1):
        raise Broken("this is no log of dm-log-writes")
    writes, at = [], size
    for _ in range(count):
        sector, sectors, flags, _ = struct.unpack_from("<QQQQ", log, at)
        at += size
        if sectors:
            scale = size // SECTOR
            key = (sector * scale, sectors * scale, bool(flags & 2))
            if flags & 4:
                # What was discarded is zero.
                writes.append((key, bytes(sectors * size)))
                continue
            writes.append((key, log[at:at + sectors * size]))
            at += sectors * size
    log.close()
    return writes
