# SPDX-License-Identifier: GPL-2.0
"""Cuts the power at moments of a timeline, and looks at what the module makes of it."""

import random
import struct
import subprocess

from devices import SECTOR, buffer, read_all, write_all
from dm import Dm
from nullblk import Null
from record import MERGE, ORIGIN, SNAPSHOT, Broken, Model, stamps

MAGIC = 0x70416E53

# Of what isn't durable: nothing is there, all is, all of one device and nothing of the
# others, or each write or each block by chance.
MODES = ("none", "all", "dev", "cow", "writes", "blocks", "blocks")


def points_of(timeline, count, rng):
    """Moments to cut at: within commits of several blocks; before and after all that ends
    something durable; and others."""
    events = timeline.events
    torn, sharp = set(), set()
    for at, (kind, medium, thing) in enumerate(events):
        if kind in ("end_flush", "mark") or (kind == "end" and thing.fua):
            sharp |= {at, at + 1}
        elif kind == "begin" and thing.fua:
            sharp |= {at, at + 1}
            if medium.startswith("cow") and thing.count > 1:
                torn.add(at + 1)
    points = set()
    for some, share in (torn, 0.25), (sharp, 0.5), (range(len(events) + 1), 1):
        left = sorted(set(some) - points)
        points |= set(rng.sample(left, min(len(left), round((count - len(points)) * share))))
    return sorted(points)


def has_leftovers(cow, chunk):
    """Whether something stands behind the last record, in its area: a commit was cut."""
    size = chunk * SECTOR
    per_area = size // 16
    area = 0
    while (1 + area * (per_area + 1)) * size + size <= len(cow):
        at = (1 + area * (per_area + 1)) * size
        for record in range(per_area):
            if cow[at + record * 16 + 8:at + record * 16 + 16] == bytes(8):
                return any(cow[at + record * 16:at + size])
        area += 1
    return False


def heir_of(timeline, points, where, bench, rng):
    """The moment of the cut after which the next workload begins: if there is one that left
    something of a commit behind, such a one."""
    some = sorted(rng.sample(points, min(len(points), 60)))
    best = rng.choice(some)
    model = Model(timeline)
    for point in some:
        model.go(point)
        try:
            cut = Cut(bench, model, f"cut {where}:{point}")
        except Broken:
            continue
        if cut.leftovers:
            best = point
            if rng.random() < 0.5:
                break
    return best


class Cut:
    """The devices after a cut, and what they must show."""

    def __init__(self, bench, model, name):
        self.bench = bench
        self.setup = bench.setup
        self.model = model
        self.rng = random.Random(name)
        self.mode = self.rng.choice(MODES)
        self.size = self.setup.sectors * SECTOR
        self.devices = []
        self.snaps = {}
        self.origin = None
        self.images = self.compose()
        # The snapshots that the COW devices say there are.
        self.usable = []
        for i in sorted(model.views):
            magic, valid = struct.unpack_from("<II", self.images[f"cow{i}"])
            if magic == MAGIC and valid:
                self.usable.append(i)
            elif magic == MAGIC and self.setup.full:
                continue
            elif i in model.acknowledged:
                raise Broken(f"the header of snapshot {i} is not valid")
        self.leftovers = {i for i in self.usable
                          if has_leftovers(self.images[f"cow{i}"], self.setup.chunks[i])}

    def compose(self):
        """The contents of the devices."""
        mode, rng = self.mode, self.rng
        chosen = {}

        def by_write(_, writes):
            there = [w for w in writes if chosen.setdefault(w, rng.random() < 0.5)]
            return there[-1] if there else None

        choices = {"none": lambda _, writes: None, "all": lambda _, writes: writes[-1],
                   "writes": by_write,
                   "blocks": lambda _, writes: rng.choice([None] + writes)}
        images = {}
        for name in ["dev"] + [f"cow{i}" for i in range(len(self.setup.chunks))]:
            how = mode
            if mode in ("dev", "cow"):
                how = "all" if name.startswith(mode) else "none"
            images[name] = self.model.media[name].cut(choices[how])
        return images

    # Devices

    def write(self):
        """Puts the contents on the devices."""
        for name, image in self.images.items():
            self.bench.write(name, image)

    def snaprs(self, when):
        """No COW device may have a bad record."""
        for i in self.usable:
            if i in self.model.gone:
                continue
            command = ["./snaprs", "check", "--origin-sectors", str(self.setup.sectors),
                       self.bench.parts[f"cow{i}"].path]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, check=False)
            if done.returncode != 0:
                raise Broken(f"snaprs check of snapshot {i}, {when}: {done.stdout}")

    def activate(self, i):
        """Makes the device of a snapshot."""
        self.snaps[i] = self.make(f"again{i}", self.bench.table(SNAPSHOT, i))
        status = self.snaps[i].status()
        if "/" not in status:
            raise Broken(f"snapshot {i} is {status} after the cut")
        if i in self.leftovers:
            # Else they would be taken for records when those before them are.
            part = self.bench.parts[f"cow{i}"]
            memory = read_all(part.path, self.setup.cow_sectors[i] * SECTOR)
            if has_leftovers(memory, self.setup.chunks[i]):
                raise Broken(f"snapshot {i}: what a cut commit left was not zeroed")
            memory.close()

    def make(self, name, table):
        """Makes a device."""
        device = Dm(name, table)
        self.devices.append(device)
        return device

    def drop(self, device):
        """Removes a device."""
        self.devices.remove(device)
        device.remove()

    def drop_all(self):
        """Removes all devices."""
        while self.devices:
            self.devices.pop().remove()
        self.snaps = {}

    # What is looked at

    def read(self, device):
        """All that a device shows."""
        memory = read_all(device.path, self.size)
        data = memory[:]
        memory.close()
        return data

    def must_suit(self, view, data, what):
        """Fails where a view doesn't allow what is found."""
        wrong = view.differing(data)
        if wrong:
            raise Broken(f"{what}: {len(wrong)} sectors are wrong: {explain(view, data, wrong)}",
                         wrong[:4])

    def must_be(self, expected, data, what):
        """Fails where data isn't what it was."""
        if expected != data:
            wrong = [s for s in range(self.setup.sectors)
                     if expected[s * SECTOR:][:SECTOR] != data[s * SECTOR:][:SECTOR]]
            raise Broken(f"{what}: {len(wrong)} sectors have changed: "
                         + "; ".join(f"sector {s} has {stamp(data, s)}, was {stamp(expected, s)}"
                                     for s in wrong[:4]))

    def check(self):
        """Activates all that is there, and compares. Returns what the snapshots show."""
        model, rng = self.model, self.rng
        self.write()
        if rng.random() < self.bench.snaprs_share:
            self.snaprs("after the cut")
        shown = {}
        merging = model.merging
        if merging is None:
            self.must_suit(model.media["ORIGIN"], bytes(self.images["dev"][:self.size]), "DEV")
        elif merging not in self.usable:
            raise Broken("the snapshot that is merged is not valid")
        if merging is None and rng.random() < 0.5:
            self.origin = self.make("origin-again", self.bench.table(ORIGIN))
        for i in self.usable:
            self.activate(i)
        for i in self.usable:
            shown[i] = self.read(self.snaps[i])
            self.must_suit(model.media[f"SNAP{i}"], shown[i], f"SNAP {i}")
        found = dict(shown)
        if merging is not None:
            self.merge(merging, shown)
        elif self.origin is None:
            self.origin = self.make("origin-again", self.bench.table(ORIGIN))
        if merging is None and rng.random() < 0.3:
            self.go_on(shown)
        self.drop_all()
        return found

    def merge(self, merging, shown):
        """The merge goes on, and comes to its end."""
        expected = shown.pop(merging)
        self.drop(self.snaps.pop(merging))
        self.origin = self.make("origin-again", self.bench.table(MERGE, merging))
        if self.rng.random() < 0.5:
            self.must_be(expected, self.read(self.origin), "the merging ORIGIN")
        while True:
            status = self.origin.status().split()
            if len(status) != 2 or "/" not in status[0]:
                raise Broken(f"the merge after the cut ended with {status}")
            if status[0].split("/")[0] == status[1]:
                break
            self.bench.rest(0.0005)
        self.must_be(expected, self.read(self.origin), "the merged ORIGIN")
        self.must_be(expected, self.read(self.bench.parts["dev"]), "DEV, all merged")
        for i, data in shown.items():
            # What the merge would overwrite may find no room there.
            if self.setup.full and "/" not in self.snaps[i].status():
                continue
            self.must_be(data, self.read(self.snaps[i]), f"SNAP {i}, beside the merge")

    def go_on(self, shown):
        """Both sides are written to again, removed in order, and activated once more."""
        rng, unit = self.rng, self.setup.block // SECTOR
        expected = {i: bytearray(data) for i, data in shown.items()}
        for name in range(1, 9):
            for key, device in [("origin", self.origin)] + list(self.snaps.items()):
                first = rng.randrange(self.setup.sectors) // unit * unit
                count = min(rng.choice((unit, 8, 64)), self.setup.sectors - first)
                data = stamps((1 << 32) + name, first, count)
                try:
                    write_all(device.path, buffer(data), first * SECTOR)
                except OSError as error:
                    if key == "origin" or not self.setup.full:
                        raise Broken(f"a write to {key} after the cut: {error}") from error
                    continue
                if key != "origin":
                    expected[key][first * SECTOR:(first + count) * SECTOR] = data
        for again in "when it went on", "activated once more":
            for i, data in expected.items():
                if self.setup.full and "/" not in self.snaps[i].status():
                    continue
                self.must_be(bytes(data), self.read(self.snaps[i]), f"SNAP {i}, {again}")
            if again == "activated once more" or self.setup.full:
                return
            self.drop_all()
            self.snaprs(again)
            for i in expected:
                self.activate(i)


def stamp(data, sector):
    """What a sector says of itself."""
    name, number = struct.unpack_from("<QQ", data, sector * SECTOR)
    if number > 1 << 32 or name > 1 << 40:
        return "something else"
    return f"write {name} of sector {number}"


def explain(view, data, wrong):
    """A few wrong sectors in words."""
    lines = []
    for sector in wrong[:4]:
        may = [f"write {w.name}" for w in view.later.get(sector, ())]
        lines.append(f"sector {sector} has {stamp(data, sector)}, "
                     f"may have {stamp(view.image, sector)}{''.join(', ' + m for m in may)}")
    return "; ".join(lines)


class Bench:
    """The devices on which cuts are looked at."""

    def __init__(self, setup, rest, snaprs_share):
        self.setup = setup
        self.rest = rest
        self.snaprs_share = snaprs_share
        self.nulls = {}
        self.parts = {}
        sizes = {"dev": setup.sectors} | {f"cow{i}": s for i, s in enumerate(setup.cow_sectors)}
        self.buffers = {}
        for name, sectors in sizes.items():
            self.nulls[name] = Null(f"c{name}", sectors * SECTOR, discard=1, blocksize=setup.block)
            self.parts[name] = Dm(f"cut-{name}", (0, sectors, "linear", f"{self.nulls[name].path} 0"))
            self.buffers[name] = buffer(sectors * SECTOR)

    def table(self, target, i=None):
        """A table line of the module."""
        return self.setup.table(self.parts, target, i)

    def write(self, name, image):
        """Fills a device."""
        self.buffers[name][:] = bytes(image)
        write_all(self.parts[name].path, self.buffers[name])

    def close(self):
        """Takes the devices away."""
        for part in self.parts.values():
            part.remove()
        for null in self.nulls.values():
            null.close()
