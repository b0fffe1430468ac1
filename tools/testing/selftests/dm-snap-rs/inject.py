#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Has one request, or one allocation, after the other fail, by the kernel's fault injection;
what is asked for each time is told in stand.py.

inject.py requests DEV COW
    Of activations, copies, commits, writes of the snapshot, discards, reloads and merges,
    each request to DEV and each to COW fails once.
inject.py steps DEV COW EACH WIDE
    Of the loading, resuming, suspending and reloading of each target, and of its messages,
    each allocation of the module fails once; or only one of so many, from one that is
    chosen at random on. WIDE has 256 MiB, a span for each of the module's slots.
inject.py bios DEV COW COUNT
    The same for COUNT reads, writes, flushes and discards of ORIGIN and SNAP, for what the
    module allocates before they are sent.
inject.py work DEV COW COUNT
    Of COUNT lives of a snapshot, with a merge at the end, a part of all allocations of the
    module fails, at random, in whichever context they are.

It prints how many have failed.
"""

import collections
import contextlib
import errno
import os
import random
import sys

import dm
from model import SECTOR, buffer
from stand import MERGE, ORIGIN, SNAPSHOT, Origin, Side, Snap, Stand, Wrong

DEBUG = "/sys/kernel/debug"
NTH = "/proc/thread-self/fail-nth"
COUNTS = collections.Counter()
# Each of the module's slots is for every 256th span of an origin, of so many sectors.
SPAN = 2048


def put(path, value):
    """Writes a file of debugfs, sysfs or proc."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(value))


def get(path):
    """The number in such a file."""
    with open(path, encoding="ascii") as file:
        return int(file.read())


def text_of(module):
    """Where the code of a module is, from its begin to its end."""
    with open("/proc/kallsyms", encoding="ascii") as file:
        words = (line.split() for line in file)
        code = [int(word[0], 16) for word in words
                if word[1] in "tT" and word[-1] == f"[{module}]"]
    if not code:
        raise Wrong(f"no code of {module} is known")
    # The last function is not as large as that.
    return min(code), max(code) + 4096


class Injection:
    """What the kernel's fault injection is told for a kind of fault."""

    def __init__(self, kind):
        self.folder = f"{DEBUG}/{kind}"
        self.set(probability=0, interval=1, times=-1, space=0, verbose=0, task_filter="N")

    def set(self, **settings):
        """Sets some of it."""
        for name, value in settings.items():
            put(f"{self.folder}/{name.replace('_', '-')}", value)

    def only_for(self, module, but=None):
        """Only what this module does fails, but not what it has that other one do."""
        begin, end = text_of(module)
        self.set(stacktrace_depth=32, require_start=f"{begin:#x}", require_end=f"{end:#x}")
        if but:
            begin, end = text_of(but)
            self.set(reject_start=f"{begin:#x}", reject_end=f"{end:#x}")


def allocations(module, **options):
    """Both kinds of allocations, with the code whose ones are to fail."""
    both = Injection("failslab"), Injection("fail_page_alloc")
    both[1].set(min_order=0)
    for one in both:
        one.set(ignore_gfp_wait="N")
        one.only_for(module, **options)
    return both


class Nth:
    """Has the n-th allocation of this thread fail, of those that are looked at."""

    def __init__(self, number):
        self.number = number
        self.has_failed = False

    def __enter__(self):
        put(NTH, self.number)
        return self

    def __exit__(self, *_):
        self.has_failed = get(NTH) == 0
        put(NTH, 0)
        COUNTS["allocations failed"] += self.has_failed


class Requests:
    """Has the n-th request to a device fail.

    The kernel counts all requests since it was booted, fails those whose number can be
    divided by the interval, and does not tell the count. But it's known after each one that
    failed, if nobody else has used it."""

    KEPT = "/run/inject-requests"

    def __init__(self):
        self.injection = Injection("fail_make_request")
        self.count = get(self.KEPT) if os.path.exists(self.KEPT) else 0
        self.bounce = buffer(SECTOR)

    @contextlib.contextmanager
    def failing(self, path, number):
        """Of the requests to a device, this one fails. What it gives is filled in the end:
        whether it has failed."""
        mark = f"/sys/block/{os.path.basename(path)}/make-it-fail"
        put(mark, 1)
        if self.count == 0:
            # Nothing is counted as long as the interval is 1.
            self.count = 2
            self.injection.set(interval=self.count, times=1, probability=100)
            self.finish(path)
        self.injection.set(interval=self.count + number, times=1, probability=100)
        has_failed = []
        try:
            yield has_failed
        finally:
            if get(f"{self.injection.folder}/times") == 0:
                has_failed.append(True)
                COUNTS[f"requests to {'DEV' if path.endswith('0') else 'COW'} failed"] += 1
            self.finish(path)
            self.count += number
            put(self.KEPT, self.count)
            put(mark, 0)
            self.injection.set(probability=0)

    def finish(self, path):
        """Uses up the one that is left."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        while get(f"{self.injection.folder}/times"):
            with contextlib.suppress(OSError):
                os.preadv(fd, [self.bounce], 0)
        os.close(fd)


def touch(stand):
    """ORIGIN is written to, where nothing has been saved: parts of chunks and many of them."""
    for at, sectors in (3, 2), (64, 8), (200, 64), (2040, 16):
        stand.origin.write(at, stand.data(sectors))


def own(stand):
    """SNAP is written to, a part of a chunk, whole chunks, and what was written before."""
    for at, sectors in (32, 8), (35, 2), (43, 2), (400, 64):
        stand.snap.write(at, stand.data(sectors))


def is_marked(stand):
    """Fails if a snapshot was lost and not marked as such: that takes no memory, and not the
    request that had failed before."""
    if stand.log.tells("could not be marked as invalid"):
        raise Wrong("a lost snapshot was not marked as invalid")


class Life:
    """A stand with ORIGIN, and what a snapshot on it comes through."""

    def __init__(self, dev, cow, store):
        self.stand = Stand(dev, cow)
        self.store = store
        self.device = None

    def opened(self):
        """ORIGIN, and SNAP on a new COW device."""
        self.stand.open_origin()
        self.stand.open_snap(store=self.store, features="discard_zeroes_cow")
        self.stand.snap.may_fail = True

    def used(self):
        """And both have been written to."""
        self.opened()
        touch(self.stand)
        own(self.stand)
        # What was acknowledged may be as volatile as what a disk has in its cache.
        self.stand.snap.flush()

    def closed(self):
        """SNAP is not there any more; answers what it has shown."""
        self.used()
        image = self.stand.snap.image
        self.stand.snap.remove()
        self.stand.snap = None
        return image

    def open_again(self):
        """SNAP is made on what is on COW, and if that failed, once more."""
        try:
            self.stand.snap = Snap(self.stand, self.line())
        except OSError:
            self.stand.snap = Snap(self.stand, self.line())

    def line(self):
        """SNAP's table line."""
        return self.stand.line(SNAPSHOT, store=self.store)

    def new(self, name, line):
        """A device with a table."""
        self.device = dm.Dm(name)
        try:
            self.device.load(line)
        except OSError:
            self.device.remove()
            raise

    def finish(self):
        """Compares all, and removes it."""
        stand = self.stand
        if stand.origin:
            stand.origin.may_fail = False
            stand.origin.all()
        if stand.snap and not stand.snap.check():
            COUNTS["snapshots lost"] += 1
            if self.store == "P":
                stand.reopen_snap()
                if not stand.snap.is_invalid():
                    raise Wrong("a lost snapshot can be opened again")
        is_marked(stand)
        stand.close()

    @classmethod
    def all(cls):
        """What there is, with the stores that it is about."""
        for name in vars(cls):
            if not name.startswith("_"):
                for store in "P" if name.startswith("p_") else "PN":
                    yield name, store


class Scenes(Life):
    """Each does something before, and something while a request fails."""

    def copies(self):
        """ORIGIN is written to."""
        self.opened()
        yield
        touch(self.stand)
        self.stand.origin.flush()
        touch(self.stand)

    def discards(self):
        """Both are discarded."""
        self.used()
        yield
        self.stand.origin.discard(1000, 32)
        self.stand.snap.discard(200, 64)

    def writes(self):
        """SNAP is written to, and read."""
        self.opened()
        yield
        own(self.stand)
        self.stand.snap.flush()
        own(self.stand)
        self.stand.snap.read(400, 32768)
        self.stand.snap.read(3000, 32768)
        self.stand.snap.flush()

    def reload(self):
        """SNAP gets another table."""
        self.used()
        own(self.stand)
        yield
        self.stand.snap.dm.load(self.line())
        self.stand.snap.dm.suspend()
        self.stand.snap.dm.resume()

    def p_new(self):
        """A new COW device is made one, and if that failed, again."""
        self.stand.open_origin()
        self.stand.wipe(self.stand.cow)
        yield
        self.open_again()

    def p_used(self):
        """A COW device is opened that is in use, and if that failed, again."""
        image = self.closed()
        yield
        self.open_again()
        self.stand.snap.image = image

    def p_merge(self):
        """SNAP is merged, and if that failed, again."""
        self.used()
        stand = self.stand
        before = stand.origin.image
        yield
        stand.merge()
        status = stand.merge_status()
        if status == "Invalid":
            stand.origin.image = before
        stand.origin.all()
        yield
        if "/" not in stand.merge_status() and status != "Invalid":
            stand.origin.dm.suspend()
            stand.origin.dm.resume()
        if "/" not in stand.merge_status() and status != "Invalid":
            # Nobody knows whether the last records are there: they are read anew.
            image = stand.origin.image
            stand.origin.remove()
            stand.origin = Origin(stand.line(MERGE))
            stand.origin.image = image
            if "/" not in stand.merge_status():
                raise Wrong("the merge does not go on")


def requests(dev, cow):
    """Has each request fail."""
    counter = Requests()
    for name, store in Scenes.all():
        for victim in dev, cow:
            number, has_failed = 0, [True]
            while has_failed:
                number += 1
                scene = Scenes(dev, cow, store)
                stand = scene.stand
                parts = getattr(scene, name)()
                next(parts)
                stand.origin.may_fail = victim == dev
                with counter.failing(victim, number) as has_failed:
                    next(parts, None)
                    # What SNAP has written may still be on its way.
                    if stand.snap:
                        stand.snap.may_fail = True
                        stand.snap.flush()
                # One request has failed, so one at most of ORIGIN's has.
                if stand.origin.failures > 1:
                    raise Wrong(f"{name}: {stand.origin.failures} requests of ORIGIN failed")
                stand.origin.may_fail = False
                next(parts, None)
                scene.finish()
            print(f"{name} {store}: {number - 1} requests to {victim}", flush=True)


class Steps(Life):
    """Each gives a step, all of whose allocations fail in turn, and goes on when it's taken."""

    def __init__(self, dev, cow, store, wide):
        super().__init__(dev, cow, store)
        self.wide = wide

    def p_load_origin(self):
        """ORIGIN is loaded."""
        yield lambda: self.new("origin", self.stand.line(ORIGIN))
        self.device.resume()
        self.device.remove()

    def p_resume_origin(self):
        """And resumed."""
        self.new("origin", self.stand.line(ORIGIN))
        yield self.device.resume
        self.device.remove()

    def load_new(self):
        """A new snapshot is loaded."""
        self.stand.open_origin()
        self.stand.wipe(self.stand.cow)
        yield lambda: self.new("snap", self.line())
        goes_on(self.stand, self.device, self.stand.origin.image)

    def p_load_used(self):
        """One that is on COW is loaded."""
        image = self.closed()
        yield lambda: self.new("snap", self.line())
        goes_on(self.stand, self.device, image)

    def resume_new(self):
        """A new snapshot is resumed."""
        self.stand.open_origin()
        self.stand.wipe(self.stand.cow)
        self.new("snap", self.line())
        yield self.device.resume
        goes_on(self.stand, self.device, self.stand.origin.image)

    def p_resume_wide(self):
        """A snapshot is resumed whose origin has a span for each slot: all must know it."""
        stand = self.stand
        stand.wipe(stand.cow)
        size = dm.size_of(self.wide)
        origin = dm.Dm("origin", (0, size, ORIGIN, self.wide))
        self.new("snap", (0, size, SNAPSHOT, f"{self.wide} {stand.cow} P {stand.CHUNK}"))
        yield self.device.resume
        # Most of this memory is not touched.
        wide, snap = (Side(device.path, buffer(size * SECTOR)) for device in (origin, self.device))
        length = stand.CHUNK * SECTOR
        for at in range(0, size, SPAN):
            snap.image[at * SECTOR:at * SECTOR + length] = wide.fetch(at, length)
            wide.write(at, stand.data(stand.CHUNK))
            snap.read(at, length)
        for side, device in (wide, origin), (snap, self.device):
            side.close()
            device.remove()

    def reload_load(self):
        """Another table is loaded for a snapshot that is live."""
        self.used()
        yield lambda: self.stand.snap.dm.load(self.line())
        self.stand.snap.dm.suspend()
        self.stand.snap.dm.resume()

    def reload_suspend(self):
        """The old one is suspended."""
        self.used()
        self.stand.snap.dm.load(self.line())
        yield self.stand.snap.dm.suspend
        self.stand.snap.dm.resume()

    def reload_resume(self):
        """The new one takes over."""
        self.used()
        self.stand.snap.dm.load(self.line())
        self.stand.snap.dm.suspend()
        yield self.stand.snap.dm.resume

    def status(self):
        """The status is asked for."""
        self.used()
        yield self.stand.snap.dm.status

    def stats(self):
        """And the counters."""
        self.used()
        yield self.stand.snap.dm.sending("stats")

    def p_commit(self):
        """Records are made durable."""
        self.used()
        own(self.stand)
        yield self.stand.snap.dm.sending("commit")

    def remove(self):
        """The device is removed."""
        self.used()
        self.stand.snap.close()
        yield self.stand.snap.dm.remove
        self.stand.snap = None

    def p_load_merge(self):
        """A merge is loaded."""
        self.used()
        yield lambda: self.stand.origin.dm.load(self.stand.line(MERGE))
        self.stand.merge()
        is_merged(self.stand)

    def p_resume_merge(self):
        """A merge is begun."""
        self.used()
        stand = self.stand
        stand.snap.dm.suspend()
        stand.origin.dm.load(stand.line(MERGE))
        stand.origin.dm.suspend()
        yield stand.origin.dm.resume
        stand.origin.image = stand.snap.image
        stand.snap.remove()
        stand.snap = None
        is_merged(self.stand)


def is_merged(stand):
    """Fails unless a merge has come to its end."""
    if "/" not in stand.merge_status():
        raise Wrong(f"the merge has ended with {stand.merge_status()}")


def goes_on(stand, device, image):
    """SNAP is there, on a device whose table is loaded, and shows this."""
    device.resume()
    stand.snap = Snap.adopt(stand, device, image)
    touch(stand)
    own(stand)


def steps(dev, cow, each, wide):
    """Has each allocation of each step fail, or one of so many."""
    each = int(each)
    # Not those of device-mapper's own, which loses memory where some of them fail.
    allocations("dm_snap_rs", but="null_blk")
    for name, store in Steps.all():
        number, has_failed, tried = random.randrange(each) + 1 - each, True, 0
        while has_failed:
            number += each
            scene = Steps(dev, cow, store, wide)
            parts = getattr(scene, name)()
            step = next(parts)
            with Nth(number) as nth:
                try:
                    step()
                    error = None
                except OSError as failure:
                    error = failure
            if error:
                if error.errno != errno.ENOMEM:
                    raise Wrong(f"{name}: allocation {number}: {error}")
                COUNTS["steps refused"] += 1
                # Nothing has changed, so it can be taken now.
                step()
            next(parts, None)
            scene.finish()
            has_failed = nth.has_failed
            tried += has_failed
        print(f"{name} {store}: {tried} allocations", flush=True)


def bios(dev, cow, count):
    """Has each allocation of bios of all kinds fail, before they are sent."""
    allocations("dm_snap_rs", but="null_blk")
    stand = Stand(dev, cow)
    stand.open_origin()
    rng = stand.rng
    chunks = stand.size // Stand.CHUNK
    written = 0

    def act(kind, place):
        """A bio of some kind."""
        nonlocal written
        origin, snap = stand.origin, stand.snap
        at = place * Stand.CHUNK
        if kind == "origin part":
            origin.write(at + 2, stand.data(3))
        elif kind == "origin many":
            origin.write(at, stand.data(min(128, stand.size - at)))
        elif kind == "origin discard":
            origin.discard(at, Stand.CHUNK)
        elif kind == "origin flush":
            origin.flush()
        elif kind == "snap part":
            snap.write(at + 1, stand.data(2))
        elif kind == "snap whole":
            if snap.write(at, stand.data(min(64, stand.size - at))):
                written = at
        elif kind == "snap read":
            snap.read(at, 4096)
        elif kind == "snap discard":
            # Elsewhere there is nothing to do for it.
            snap.discard(written, Stand.CHUNK)
        elif kind == "snap flush":
            snap.flush()

    kinds = ("origin part", "origin many", "origin discard", "origin flush", "snap part",
             "snap whole", "snap read", "snap discard", "snap flush")
    for number in range(int(count)):
        kind = kinds[number % len(kinds)]
        nth = 0
        while True:
            nth += 1
            if stand.snap is None:
                store = rng.choice("PN")
                stand.open_snap(store=store, features="discard_zeroes_cow")
                stand.snap.may_fail = True
            with Nth(nth) as injected:
                act(kind, rng.randrange(chunks))
            if injected.has_failed:
                COUNTS[f"of these, {kind}"] += 1
            elif nth > 1 or number % 50:
                break
            if not stand.check():
                COUNTS["snapshots lost"] += 1
                stand.snap.remove()
                stand.snap = None
            else:
                stand.snap.may_fail = True
            if not injected.has_failed:
                break
    stand.check()
    is_marked(stand)
    stand.close()


def work(dev, cow, count):
    """Has allocations fail at random, through the whole life of a snapshot."""
    both = allocations("dm_snap_rs", but="null_blk")

    def begin(times, percent):
        for one in both:
            one.set(times=times, probability=percent)

    def end(times):
        for one in both:
            COUNTS["allocations failed"] += times - get(f"{one.folder}/times")
            one.set(probability=0)

    for number in range(int(count)):
        # A snapshot for which there was no memory is lost, so those that are merged have what
        # they need before.
        percent = (0, 1, 0, 10)[number % 4]
        life = Life(dev, cow, "PN"[number % 4 == 1])
        life.opened()
        stand, rng = life.stand, life.stand.rng
        begin(1000000, percent)
        touch(stand)
        own(stand)
        for _ in range(20):
            for side in stand.origin, stand.snap:
                at = rng.randrange(stand.size - 256)
                side.write(at, stand.data(rng.randrange(1, 200)))
        stand.snap.flush()
        end(1000000)
        if stand.snap.check() and life.store == "P":
            COUNTS["snapshots merged"] += 1
            stand.snap.flush()
            stand.snap.dm.suspend()
            stand.origin.dm.load(stand.line(MERGE))
            stand.origin.dm.suspend()
            begin(50, 5)
            for _ in range(100):
                with contextlib.suppress(OSError):
                    stand.origin.dm.resume()
                    break
            stand.origin.image = stand.snap.image
            for _ in range(20):
                stand.origin.write(rng.randrange(stand.size - 8), stand.data(8))
            is_merged(stand)
            end(50)
            stand.snap.remove()
            stand.snap = None
        life.finish()


def main(command, *arguments):
    """Does what the arguments say."""
    {"requests": requests, "steps": steps, "bios": bios, "work": work}[command](*arguments)
    victims = ("requests to DEV", "requests to COW") if command == "requests" else ("allocations",)
    for victim in victims:
        if not COUNTS[f"{victim} failed"]:
            raise Wrong(f"none of the {victim} has failed")
    for name, count in sorted(COUNTS.items()):
        print(f"note: {name}: {count}")


if __name__ == "__main__":
    main(*sys.argv[1:])
