#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Random I/O on an origin and four snapshots, all of which is verified, while everything
that can be done to them is done at random.

soak.py DEV SPACE MINUTES SEED

Jobs read and write ORIGIN and the snapshots, and compare with the model of model.py. One
thread reloads tables, takes snapshots and drops them, merges, stops merges, takes all
away and brings it back from disk, and has memory become short. Another has COW devices
grow that have become full, a little late. Another process looks whether anybody hangs.

What may fail is told in Soak.excuse; all else that fails is an error, and so is data that
is not what the model says. The seed stands for what is decided, not for what coincides.
"""

import argparse
import collections
import contextlib
import errno
import faulthandler
import fcntl
import mmap
import os
import random
import re
import signal
import struct
import sys
import threading
import time
import traceback

import dm
from model import BLKDISCARD, MIB, SECTOR, Mismatch, Run, buffer, read_all
from slots import ERROR, PARAMETERS, QUEUE, Log, Side, Slot, Watch

JOBS = 6
ORIGIN, MERGE = "snap-origin-rs", "snap-merge-rs"
# The stores of each snapshot, and what it does when COW is full, at first.
SLOTS = (("P",), QUEUE), (("N",), QUEUE), (("P",), ERROR), (("P", "PO", "N"), "")
# Of the space for COW devices, in sectors.
STRIDE = 20480 << 1
# What a job does, and how often.
KINDS = {"read": 35, "write": 50, "fua": 4, "flush": 4, "discard": 7}
CHANGES = ("write", "fua", "discard")
PIECE = MIB // 4
POPULATE_WRITE = 23


class Over(Exception):
    """Something has failed elsewhere, and all ends."""


class Soak(Run):
    """All of it."""

    device = Side

    def __init__(self, args, watch):
        self.watch = watch
        self.dev = args.dev
        self.rng = random.Random(f"{args.seed} chaos")
        self.counts, self.counting = collections.Counter(), threading.Lock()
        self.failing = threading.Lock()
        self.log = Log()
        # What was done last: from when to when, to what, which sectors, and how it ended.
        self.history = collections.deque(maxlen=50000)
        # The same of what each thread is doing now.
        self.doing = {}
        self.over = self.has_grown = False
        self.began = time.monotonic()
        self.until = self.began + args.minutes * 60
        # The slot whose snapshot is merged, and what ORIGIN showed before.
        self.merging = self.before = None
        # How many MiB of memory are to be left now; since when they are, and all such times.
        self.left, self.short_since, self.shorts = None, float("inf"), []
        self.origin_dm = dm.Dm("origin", (0, dm.size_of(args.dev), ORIGIN, args.dev))
        super().__init__(argparse.Namespace(
            seed=args.seed, origin=self.origin_dm.path, max_io=PIECE, stop=None))
        self.origin.is_blocked = False
        self.slots = [Slot(number, *kind, f"{args.space} {number * STRIDE}", args.dev)
                      for number, kind in enumerate(SLOTS)]

    def count(self, name, number=1):
        """Counts something for the summary."""
        with self.counting:
            self.counts[name] += number

    def note(self, began, name, what, start=0, end=None, result="", is_over=True):
        """Adds to the history. What is not over yet is kept for the thread that does it."""
        now = time.monotonic() - self.began if is_over else float("inf")
        entry = (began - self.began, now, name, what, start // SECTOR, end and end // SECTOR,
                 result)
        if is_over:
            self.history.append(entry)
            self.doing.pop(threading.get_ident(), None)
        else:
            self.doing[threading.get_ident()] = entry

    def source_of(self, data):
        """Where some data is from, for a person."""
        if not any(data):
            return "zeroes"
        at = bytes(self.pool).find(data)
        return f"pool {at // SECTOR}" if at >= 0 else "something else"

    def fail(self, error, cause=None):
        """The first error is the end; shows what led to it."""
        with self.failing:
            if self.error:
                return
            print(f"# FAILED, with the seed {self.args.seed}: {error}", flush=True)
            shown = getattr(cause or error, "shown", None)
            if shown:
                print("# it shows, and may show:", *map(self.source_of, shown), sep=" | ")
            told = re.search(r"(?:wrong from|:) sector (\d+)", str(error))
            led = [entry for entry in list(self.history) + list(self.doing.values())
                   if entry[5] is None
                   or told and entry[4] <= int(told[1]) < entry[5]]
            for entry in led[-200:]:
                print("# {:.3f}-{:.3f} {} {} {}-{} {}".format(*entry), flush=True)
            with self.lock:
                self.error = error
                self.advanced.notify_all()

    # -----------------------------------------------------------------------
    # The jobs

    def claim(self, rng):
        """Takes a device, what to do with it, and a free range on it; None at the end."""
        while not self.over and not self.error:
            able = [side for side in self.devices if not side.is_blocked]
            if not able:
                self.advanced.wait(1)
                continue
            side = self.origin if self.origin in able and rng.random() < 0.5 else rng.choice(able)
            kind = rng.choices(list(KINDS), KINDS.values())[0]
            if side.is_read_only or kind == "discard" and side.slot:
                kind = "read"
            offset, size = self.pick_range(rng)
            held = (offset, offset + size)
            if not side.overlaps(*held):
                side.busy.append(held)
                return side, kind, held
        return None

    def release(self, side, held):
        """What was claimed is free."""
        with self.lock:
            side.busy.remove(held)
            self.advanced.notify_all()

    def job(self, number):
        """One stream of reads and writes."""
        self.watch.enter(number)
        rng = random.Random(f"{self.args.seed} {number}")
        bounce = buffer(PIECE)
        while True:
            with self.lock:
                claim = self.claim(rng)
                if not claim:
                    return
                side, kind, held = claim
                source = None
                data = bounce[:held[1] - held[0]]
                if kind == "discard":
                    data = bytes(len(data))
                elif kind in CHANGES:
                    source = rng.randrange(0, (len(self.pool) - len(data)) // SECTOR)
                    data = self.pool[source * SECTOR:source * SECTOR + len(data)]
                if side is self.origin and kind in CHANGES:
                    self.in_flight[number] = (held[0], data)
                    if self.unsure is not None:
                        self.unsure.append((held[0], data))
            try:
                with self.watch.step():
                    self.do(side, kind, held[0], data, source)
            except Exception as error:
                self.fail(error)
            with self.lock:
                self.in_flight.pop(number, None)
            self.release(side, held)

    def do(self, side, kind, offset, data, source=None):
        """Does one thing, which may fail by what `excuse` says. The data is that of the pool
        from the sector `source` on."""
        began = time.monotonic()
        name = f"snap{side.slot.number}" if side.slot else "origin"
        result, step = "" if source is None else f"pool {source}", kind
        self.note(began, name, kind, offset, offset + len(data), result, is_over=False)
        try:
            try:
                self.do_io(side, kind, offset, data)
            except OSError as error:
                result += f" {error}"
                if not self.excuse(side, kind, error, began):
                    raise
                self.count("failures that had to be")
                if kind in CHANGES:
                    step = "a look at what a failed write has done"
                    self.learn(side, [(offset, data)])
        except OSError as error:
            if step == kind or not self.excuse(side, step, error, began):
                raise Mismatch(f"{name}: sector {offset // SECTOR}: {step} of {len(data)} "
                               f"bytes: {error}") from error
        finally:
            self.note(began, name, kind, offset, offset + len(data), result)

    def do_io(self, side, kind, offset, data):
        """Does one thing, and compares with the model or changes it."""
        merges = self.merging
        done = len(data)
        if kind == "flush":
            os.fsync(side.direct)
        elif kind == "discard":
            fcntl.ioctl(side.direct, BLKDISCARD, struct.pack("QQ", offset, done))
        elif kind == "read":
            done = os.preadv(side.direct, [data], offset)
        else:
            done = os.pwritev(side.direct, [data], offset, os.RWF_DSYNC if kind == "fua" else 0)
        if done != len(data):
            raise Mismatch(f"{side.name}: sector {offset // SECTOR}: {kind} fell short")
        if kind == "read":
            side.compare(data, offset, "a read", self.devices)
            self.count("bytes verified", done)
        elif kind == "discard" and merges:
            # What is still to be merged is left as it is.
            self.learn(side, [(offset, data)])
        elif kind in CHANGES:
            with self.lock:
                self.finish(side, offset, done, data)
        self.count(kind)

    def excuse(self, side, kind, error, began):
        """Whether what was begun then may fail like that.

        For want of room only a write, where a COW device can be full that has chosen
        this, be it one of several snapshots of ORIGIN. In any other way only what is done
        to a snapshot that was given up. Nothing else of ORIGIN ever fails."""
        if error.errno == errno.ENOSPC and kind in CHANGES:
            slots = [side.slot] if side.slot else self.slots
            return any(slot.refuses() or slot.refused_until >= began for slot in slots)
        if error.errno != errno.EIO or not side.slot:
            return False
        return self.is_lost(side.slot) or kind in CHANGES + ("flush",) and side.is_read_only

    def is_lost(self, slot):
        """Whether a snapshot is of no use any more, for which there must be a reason. One
        that overflows can be read, but no more be written to."""
        status = slot.dm.status()
        if status == "Overflow" and slot.store == "PO":
            if slot.side:
                slot.side.is_read_only = True
            return False
        if status != "Invalid":
            return False
        when, why = self.log.reason(slot.cow.id)
        if "room" in why or "full" in why:
            may_be = not slot.policy and when < slot.ample_since + 2
        else:
            may_be = "no memory" in why and any(a <= when <= b + 2 for a, b in self.shorts)
        if not may_be:
            raise Mismatch(f"{slot.dm.name} was given up: {why} ({slot.line()[3]}, COW has "
                           f"{slot.size} of {slot.cap} sectors)")
        with self.lock:
            if slot.side in self.devices:
                self.devices.remove(slot.side)
        return True

    # -----------------------------------------------------------------------
    # COW devices that grow

    def grow(self):
        """Has COW devices grow that have become full, after a while."""
        self.watch.enter(JOBS)
        rng = random.Random(f"{self.args.seed} grow")
        while not self.has_grown and not self.error:
            time.sleep(0.5)
            for slot in self.slots:
                if slot.size == slot.cap or rng.random() > slot.pace:
                    continue
                # Who holds this may wait for another one's room.
                if not slot.lock.acquire(blocking=False):
                    continue
                try:
                    with self.watch.step():
                        if slot.guards and slot.grow(rng):
                            self.count("COW devices grown")
                except Exception as error:
                    self.fail(error)
                finally:
                    slot.lock.release()

    # -----------------------------------------------------------------------
    # What is done to the devices

    @contextlib.contextmanager
    def idle(self, *sides):
        """Meanwhile nothing is in flight on these sides."""
        with self.lock:
            for side in sides:
                side.is_blocked = True
            while any(side.busy for side in sides) and not self.error:
                self.advanced.wait(1)
            if self.error:
                raise Over
        try:
            yield
        finally:
            with self.lock:
                for side in sides:
                    side.is_blocked = False
                self.advanced.notify_all()

    def origin_line(self):
        """The line of the table of ORIGIN."""
        if self.merging:
            return self.merging.line(MERGE)
        return 0, self.size // SECTOR, ORIGIN, self.dev

    def reload(self, device, line, flags=0):
        """Loads a table and has it become live, in one of the ways that there are."""
        device.load(line, flags=flags)
        if self.rng.random() < 0.7:
            device.suspend(self.rng.choice((0, dm.NOFLUSH)))
            time.sleep(self.rng.choice((0, 0, 0.1, 0.5)))
        device.resume()
        self.count("reloads")

    def some_slot(self):
        """One of the snapshots that are there."""
        with self.lock:
            return self.rng.choice([side.slot for side in self.devices if side.slot] or [None])

    def reload_origin(self):
        """ORIGIN is reloaded, or suspended only."""
        if self.rng.random() < 0.2:
            self.origin_dm.suspend(self.rng.choice((0, dm.NOFLUSH)))
            self.origin_dm.resume()
            self.count("suspends only")
        else:
            self.reload(self.origin_dm, self.origin_line())

    def reload_snapshot(self):
        """A snapshot is reloaded, and may make another choice for a full COW device."""
        slot = self.some_slot()
        if slot:
            with slot.change():
                if slot.policy:
                    slot.policy = self.rng.choice((QUEUE, ERROR))
                self.reload(slot.dm, slot.line())

    def read_only(self):
        """A snapshot is read-only for a while."""
        slot = self.some_slot()
        if not slot or slot.side.is_read_only:
            return
        with self.idle(slot.side):
            slot.side.is_read_only = True
        self.reload(slot.dm, slot.line(), dm.READONLY)
        time.sleep(0.5)
        self.reload(slot.dm, slot.line())
        slot.side.is_read_only = False
        self.count("read-only tables")

    def rest_origin(self):
        """Only the snapshots are used for a while: so it is they who find COW full."""
        with self.idle(self.origin):
            time.sleep(1)

    def hand_over(self):
        """A snapshot goes on as another device."""
        slot = self.some_slot()
        if not slot:
            return
        self.count("handovers to another device")
        with self.idle(slot.side), slot.lock:
            slot.side.close()
            old = slot.dm
            slot.dm = dm.Dm(f"{slot.number}-{self.counts['handovers to another device']}")
            slot.dm.load(slot.line())
            old.suspend()
            slot.dm.resume()
            old.remove()
            slot.side.reopen(slot.dm.path)

    def add(self, slot, is_new=True):
        """A snapshot of ORIGIN is taken, on a new COW device or on what a merge has left."""
        with slot.lock:
            if is_new:
                slot.renew(self.rng)
                self.log.reasons.pop(slot.cow.id, None)
            slot.dm = dm.Dm(f"{slot.number}-new")
            slot.dm.load(slot.line())
            suspends = self.rng.random() < 0.3

            def make():
                if suspends:
                    self.origin_dm.suspend()
                slot.guards = True
                # It may become full before it's resumed, which waits for ORIGIN's writes.
                slot.lock.release()
                try:
                    slot.dm.resume()
                finally:
                    slot.lock.acquire()
                if suspends:
                    self.origin_dm.resume()

            try:
                self.enlist(slot, self.create(slot.dm.path, make))
            except OSError:
                # It may be lost before its first read.
                if not self.is_lost(slot):
                    raise
        self.count("snapshots taken")

    def enlist(self, slot, side):
        """What a snapshot shows is known now."""
        with self.lock:
            side.slot, slot.side, side.is_blocked = slot, side, False
            if side not in self.devices:
                self.devices.append(side)
            self.advanced.notify_all()

    def discharge(self, side):
        """A snapshot is not to be used any more."""
        with self.lock:
            if side in self.devices:
                self.devices.remove(side)

    def drop(self, slot):
        """A snapshot goes."""
        with contextlib.ExitStack() as stack:
            if slot.side:
                self.discharge(slot.side)
                stack.enter_context(self.idle(slot.side))
                slot.side.close()
            stack.enter_context(slot.lock)
            stack.enter_context(slot.change())
            slot.dm.remove()
            slot.guards, slot.side, slot.dm = False, None, None
        self.count("snapshots removed")

    def replace(self):
        """A snapshot goes, and a new one comes."""
        slot = self.rng.choice(self.slots)
        if slot.dm:
            self.drop(slot)
        if not self.merging:
            self.add(slot)

    def heal(self):
        """What is lost, or has ended, is made anew."""
        self.log.read()
        if self.merging:
            self.see_merge()
            return
        for slot in self.slots:
            if slot.dm and slot.side not in self.devices:
                self.drop(slot)
            if not slot.dm:
                self.add(slot)

    def compare_all(self, side):
        """Compares all of a device, piece by piece, as long as it is there."""
        part = buffer(PIECE)
        for offset in range(0, self.size, PIECE):
            held = (offset, offset + PIECE)
            with self.lock:
                while side.overlaps(*held) and not self.error:
                    self.advanced.wait(1)
                if self.error or side not in self.devices:
                    return
                side.busy.append(held)
            try:
                self.do(side, "read", offset, part)
            finally:
                self.release(side, held)
        self.count("devices compared in full")

    def compare_one(self):
        """Compares all of one device."""
        self.compare_all(self.rng.choice(self.devices))

    def ask(self):
        """Sends messages, and compares a table."""
        self.origin_dm.sending("stats")()
        slot = self.some_slot()
        if not slot:
            return
        slot.dm.sending(self.rng.choice(("stats", "reset_stats")))()
        told = slot.dm.status(dm.TABLE).split()
        if told[2:] != slot.line()[3].split()[2:]:
            raise Mismatch(f"the table of {slot.dm.name} says {told}, wanted {slot.line()}")
        if slot.store == "N":
            return
        try:
            slot.dm.sending("commit")()
            self.count("commits by message")
        except OSError:
            if not self.is_lost(slot):
                raise

    def throttle(self):
        """Another bound on what is copied at a time."""
        set_parameter("snapshot_cow_threshold", self.rng.choice((1, 16, 2048)))

    # -----------------------------------------------------------------------
    # Merges

    def merge(self):
        """ORIGIN becomes what a snapshot shows; the merge is disturbed a few times."""
        slot = self.some_slot()
        if self.merging or not slot or slot.store == "N" or slot.side.is_read_only:
            return
        side = slot.side
        with self.idle(self.origin, side):
            # Nobody may have noticed so far.
            if self.is_lost(slot) or side.is_read_only:
                return
            self.discharge(side)
            with slot.lock, slot.change():
                side.close()
                self.merging = slot
                is_live = self.rng.random() < 0.7
                slot.dm.suspend()
                if not is_live:
                    slot.dm.remove()
                self.reload(self.origin_dm, self.origin_line())
                if is_live:
                    slot.dm.remove()
                slot.guards, slot.side, slot.dm = False, None, None
            with self.lock:
                self.before = self.origin.image
                self.origin.image, self.origin.view = side.image, side.view
        self.count("merges begun")
        for _ in range(self.rng.choice((0, 1, 2, 4))):
            time.sleep(self.rng.choice((0, 0, 0.05, 0.3)))
            if not self.merging or self.is_merged():
                break
            self.count("merges interrupted")
            self.rng.choice((self.reload_origin, self.reload_origin, self.restart,
                             self.stop_merge))()

    def is_merged(self):
        """Whether a merge has come to its end."""
        words = self.origin_dm.status().replace("/", " ").split()
        return len(words) == 3 and words[0] == words[2]

    def see_merge(self):
        """Ends a merge that is done, and mends one that has failed."""
        slot = self.merging
        if self.is_merged():
            self.merging = None
            self.reload(self.origin_dm, self.origin_line())
            self.count("merges finished")
            # COW holds an empty snapshot, which can be used as it is.
            if self.rng.random() < 0.5:
                self.add(slot, is_new=False)
        elif self.origin_dm.status() == "Merge failed":
            _, why = self.log.reason(slot.cow.id)
            if "has no room for what the merge" not in why:
                raise Mismatch(f"the merge has failed: {why}")
            self.count("merges that wanted room for others")
            self.log.reasons.pop(slot.cow.id)
            self.origin_dm.suspend()
            self.origin_dm.resume()

    def stop_merge(self):
        """The snapshot is one again. DEV has something of both states."""
        slot = self.merging
        with self.idle(self.origin):
            self.merging = None
            self.reload(self.origin_dm, self.origin_line())
            image = bytearray(self.origin.image)
            for at in range(0, self.size, MIB):
                self.learn(self.origin, [(at, self.before[at:at + MIB])])
            with slot.lock:
                slot.dm = dm.Dm(f"{slot.number}-old", slot.line())
                slot.guards = True
                self.enlist(slot, Side(slot.dm.path, image))
        self.count("merges stopped for good")

    # -----------------------------------------------------------------------
    # All at once

    def restart(self):
        """All is taken away, and comes back from what is on the devices."""
        sides = list(self.devices)
        with self.idle(*sides), contextlib.ExitStack() as stack:
            for slot in self.slots:
                stack.enter_context(slot.lock)
            there = [slot for slot in self.slots if slot.dm]
            lost = [slot for slot in there if self.is_lost(slot)]
            steps = [(self.origin, self.origin_dm)] + [(slot.side, slot.dm) for slot in there]
            self.rng.shuffle(steps)
            if self.merging:
                # A merge must not go on without those that it has to save for.
                steps.sort(key=lambda step: step[0] is not self.origin)
            for side, device in steps:
                if side:
                    side.close()
                device.remove()
            self.rng.shuffle(there)
            for slot in there:
                with slot.change():
                    slot.guards, slot.dm = False, None
                if slot.store == "N":
                    self.discharge(slot.side)
                    slot.side = None
                    continue
                slot.dm = dm.Dm(f"{slot.number}-back", slot.line())
                slot.guards = True
                if (slot in lost) != (slot.dm.status() == "Invalid"):
                    raise Mismatch(f"{slot.dm.name} came back as {slot.dm.status()}")
                if slot.side:
                    slot.side.is_read_only = False
                    slot.side.reopen(slot.dm.path)
            self.origin_dm = dm.Dm("origin", self.origin_line())
            self.origin.reopen(self.origin_dm.path)
        self.count("restarts from disk")

    # -----------------------------------------------------------------------
    # Memory

    def shorten(self):
        """Memory becomes short, for a while."""
        if not self.left:
            self.shorts.append([time.monotonic(), float("inf")])
            self.short_since = float("inf")
            self.left = self.rng.choice((48, 64, 96))

    def relieve(self):
        """The time of short memory may be over."""
        if self.left and time.monotonic() > self.short_since + 15:
            self.left = None
            self.shorts[-1][1] = time.monotonic()
            self.count("times of short memory")
            free = figure("/proc/meminfo", "MemFree:") // 1024
            self.counts["MiB that were free in the last of them"] = free

    def press(self):
        """While memory is to be short, takes all but so much of it, and has the page cache
        take what is left."""
        rng = random.Random(f"{self.args.seed} press")
        number = os.stat("/").st_dev
        disk = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        fd = os.open("/dev/" + os.path.basename(disk), os.O_RDONLY)
        size = dm.size_of("/dev/" + os.path.basename(disk)) * SECTOR
        ballast = []
        while not self.over and not self.error:
            left = self.left
            if not left:
                ballast.clear()
                time.sleep(0.5)
                continue
            room = figure("/proc/meminfo", "MemAvailable:") // 1024 - left
            if room > 16:
                ballast.append(mmap.mmap(-1, 16 * MIB))
                ballast[-1].madvise(POPULATE_WRITE)
                continue
            self.short_since = min(self.short_since, time.monotonic())
            # The model needs some as well.
            if room < -16 and ballast:
                ballast.pop()
            os.pread(fd, MIB, rng.randrange(size - MIB))

    # -----------------------------------------------------------------------
    # The run

    def chaos(self):
        """One thing after the other."""
        what = {self.reload_origin: 10, self.reload_snapshot: 12, self.read_only: 2,
                self.rest_origin: 3, self.hand_over: 4, self.replace: 6, self.compare_one: 3,
                self.ask: 8, self.throttle: 3, self.merge: 5, self.restart: 3, self.shorten: 2}
        self.watch.enter(JOBS + 1)
        while time.monotonic() < self.until:
            for step in self.heal, self.rng.choices(list(what), what.values())[0], self.relieve:
                began = time.monotonic()
                try:
                    with self.watch.step():
                        step()
                except Over:
                    return
                except Exception as error:
                    if not isinstance(error, (Mismatch, OSError)):
                        traceback.print_exc()
                    self.fail(f"{step.__name__}: {error}", error)
                    return
                self.note(began, "all", step.__name__)
            time.sleep(self.rng.choice((0, 0.2, 0.5, 1)))

    def tell(self):
        """A line of what has been done so far."""
        done = ", ".join(f"{self.counts[kind]} {kind}" for kind in KINDS)
        states = []
        for slot in self.slots:
            merges = slot is self.merging
            # It may just be changed for another.
            with contextlib.suppress(OSError, AttributeError):
                states.append(("merge " if merges else "")
                              + (self.origin_dm if merges else slot.dm).status())
        print(f"# {time.monotonic() - self.began:.0f} s: {done}; "
              f"{self.counts['bytes verified'] // MIB} MiB verified; {', '.join(states)}",
              flush=True)

    def guard(self, work):
        """Does work in a thread; what goes wrong there is the end of all."""
        try:
            work()
        except Exception as error:
            self.fail(f"{work.__name__}: {error}", error)

    def main(self):
        """Runs all; whether nothing was wrong."""
        self.watch.enter(JOBS + 2)
        threads = [threading.Thread(target=self.job, args=(n,), daemon=True) for n in range(JOBS)]
        threads += [threading.Thread(target=self.guard, args=(work,), daemon=True)
                    for work in (self.press, self.grow, self.chaos)]
        for thread in threads:
            thread.start()
        *users, grower, chaos = threads
        told = self.began
        while chaos.is_alive() and not self.error:
            chaos.join(1)
            if time.monotonic() - told > 60:
                told += 60
                self.tell()
        self.over = True
        # With an error, there may be some that never end.
        if not self.error:
            try:
                for thread in users:
                    with self.watch.step():
                        thread.join()
                self.end()
                self.has_grown = True
                grower.join()
                with self.watch.step():
                    self.leave()
            except (Mismatch, OSError, Over) as error:
                self.fail(error)
        self.tell_all()
        return not self.error

    def end(self):
        """All rests: the last comparisons, before and after all was taken away."""
        with self.watch.step():
            while self.merging:
                self.see_merge()
                time.sleep(0.5)
        for _ in range(2):
            for side in list(self.devices):
                with self.watch.step():
                    self.compare_all(side)
            with self.watch.step():
                self.restart()

    def leave(self):
        """Removes all; DEV has what ORIGIN has shown."""
        for slot in self.slots:
            if slot.dm:
                self.drop(slot)
            slot.cow.remove()
        self.origin.close()
        self.origin_dm.remove()
        fd = os.open(self.dev, os.O_RDONLY | os.O_DIRECT)
        got = bytearray(self.size)
        read_all(fd, memoryview(got))
        os.close(fd)
        self.origin.compare(memoryview(got), 0, "the last read of DEV", [])

    def tell_all(self):
        """The figures, a line each."""
        if self.error:
            self.tell()
        self.log.read()
        self.counts["MiB verified"] = self.counts.pop("bytes verified", 0) // MIB
        for name in "pgscan_direct", "pgscan_kswapd":
            self.counts[f"pages looked at by {name}"] = figure("/proc/vmstat", name)
        self.counts.update(self.log.counts)
        print(f"# soak: {time.monotonic() - self.began:.0f} seconds")
        for name, number in sorted(self.counts.items()):
            print(f"# soak: {number} {name}", flush=True)


def figure(path, name):
    """A figure of the kernel's; 0 where it counts no such thing."""
    with open(path, encoding="ascii") as file:
        found = re.search(rf"^{name} *(\d+)", file.read(), re.MULTILINE)
    return int(found[1]) if found else 0


def set_parameter(name, value):
    """Sets a parameter of the module."""
    with open(PARAMETERS + name, "w", encoding="ascii") as file:
        file.write(str(value))


def work(args, watch):
    """What the process that works does; its exit status."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Nobody else shall have to go when memory is short.
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")
    dm.LIBC.mlockall(1)
    # Who waits for room goes on when there is some, or hangs: no time-out hides that.
    set_parameter("no_space_timeout", 0)
    return 0 if Soak(args, watch).main() else 1


def main():
    """Reads the command line and works."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dev")
    parser.add_argument("space")
    parser.add_argument("minutes", type=float)
    parser.add_argument("seed")
    args = parser.parse_args()
    watch = Watch(memoryview(mmap.mmap(-1, 4096)))
    child = os.fork()
    if child:
        sys.exit(watch.look_after(child))
    status = 1
    try:
        status = work(args, watch)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        # Threads that wait for ever are not waited for.
        os._exit(status)


if __name__ == "__main__":
    main()
