# SPDX-License-Identifier: GPL-2.0
"""The cases of the exact benchmark: what is done, and what the figures must be.

One case is one boot per variant, and gives one row of the table or more.  Guest
and host both read this file.
"""

from dataclasses import dataclass
from typing import Callable

RAW, C, THIN, OURS = "raw", "c", "thin", "ours"
ALL = (RAW, C, THIN, OURS)
# dm-thin's smallest block is 64K, so it's left out where chunks of 4K are the point.
NOT_THIN = (RAW, C, OURS)
SNAPSHOTS = (C, OURS)

MIB = 1 << 20
DEVICE_NS = 50000


@dataclass
class AtMost:
    """The limit of our figure is a number."""

    most: float
    better = "less"

    def value(self, _):
        """The limit, where C has this figure."""
        return self.most


@dataclass
class OfC:
    """The limit of our figure is so many times that of C."""

    times: float = 1
    better: str = "less"

    def value(self, c):
        """The limit, where C has this figure."""
        return None if c is None else c * self.times


@dataclass
class Row:
    """One line of the table: a figure of a case's result."""

    title: str
    unit: str
    figure: Callable
    limit: object
    # The plot in which it is shown.
    plot: str = ""


@dataclass
class Case:
    """What is done in one boot."""

    name: str
    rows: list
    variants: tuple = ALL
    kind: str = "transfer"
    # DEV: its size in MiB, the time of an I/O; of all devices: MiB/s (0: any).
    mib: int = 64
    dev_nsec: int = DEVICE_NS
    mbps: int = 0
    # The snapshots: chunk in sectors, store, how many, whether on one device.
    chunk: int = 8
    store: str = "P"
    snaps: int = 1
    one_cow: bool = False
    # The case writes the COW device itself, and then makes the snapshot.
    late: bool = False
    scattered: bool = True
    # The I/O: of which device, and what happened to all of it before.
    on: str = "origin"
    before: str = "fresh"
    rw: str = "randwrite"
    bs: int = 4096
    depth: int = 32
    count: int = 2000
    # Requests that come at random times: so many a second.
    rate: int = 0
    # The writes to metadata are counted; that takes a trace.
    count_commits: bool = False


CASES = []


def add(name, rows, variants=ALL, **more):
    """Adds a case."""
    CASES.append(Case(name, rows, variants, **more))


def total(result, key, *names):
    """A counter, added up over the devices whose name begins so."""
    return sum(counts[key] for name, counts in result["devices"].items()
               if not names or name.startswith(names))


def latency(title, limit, plot="latency"):
    """A row: the mean completion latency."""
    return Row(title, "µs", lambda result: result["ns"] / 1000, limit, plot)


def written_per_byte(title, sent):
    """A row: the bytes that all devices write for each byte that was sent."""
    return Row(f"{title}: written", "B per B",
               lambda result: total(result, "write_sectors") * 512 / sent, OfC(), "bytes")


def metadata_each(result):
    """Sectors of metadata for each chunk of 64K that was copied."""
    if "cow0" not in result["devices"]:
        return None
    copied = result["devices"]["dev"]["read_sectors"]
    return (result["devices"]["cow0"]["write_sectors"] - copied) / (copied / 128)


def first_touch():
    """The first write to each place of ORIGIN."""
    for store, depth, limit in (("P", 1, 203), ("P", 32, 215), ("N", 1, 103), ("N", 32, 115)):
        title = f"first touch, 4K chunks, {store}, depth {depth}"
        rows = [latency(title, AtMost(limit))]
        if store == "P":
            rows.append(written_per_byte(title, 2000 * 4096))
        add(f"first-4k-{store}-d{depth}", rows, NOT_THIN, store=store, depth=depth)
    # A boot of its own: each event that is traced reads a clock, and so takes time.
    add("first-4k-P-d32-commits", [
        Row("first touch, 4K chunks, P, depth 32: commits", "each",
            lambda result: result["commits"] / 2000, OfC())],
        SNAPSHOTS, count_commits=True)
    for rate in 10000, 40000:
        title = f"first touch, 4K chunks, P, {rate} a second at random times"
        add(f"first-4k-P-random-{rate}", [
            latency(title, OfC()),
            Row(f"{title}: the slowest", "µs", lambda result: result["worst_ns"] / 1000, OfC())],
            NOT_THIN, kind="clients", rate=rate)
    for store, limit in (("P", 125), ("N", 70)):
        add(f"first-64k-{store}-d32",
            [latency(f"4K writes, four to each 64K chunk, {store}, depth 32", AtMost(limit))],
            ALL if store == "P" else NOT_THIN, chunk=128, store=store, mib=32)
    title = "first touch, 64K chunks, P, depth 1"
    add("first-64k-P-d1", [
        latency(title, OfC()),
        Row(f"{title}: metadata", "sectors each", metadata_each, AtMost(8)),
        written_per_byte(title, 1000 * 4096),
    ], chunk=128, depth=1, mib=256, count=1000)


def snap_writes():
    """The first write to each place of SNAP."""
    for depth, limit in ((1, 52), (32, 60)):
        add(f"snap-whole-4k-d{depth}",
            [latency(f"first write to SNAP, whole 4K chunks, P, depth {depth}", AtMost(limit))],
            NOT_THIN, on="snap", depth=depth)
    add("snap-part-64k-d32",
        [latency("first write to SNAP, 4K of a 64K chunk, P, depth 32", AtMost(120))],
        on="snap", chunk=128, mib=512)


def sequential():
    """1 MiB at a time."""
    base = {"bs": MIB, "depth": 4, "count": 32, "rw": "write"}
    sent = 32 * MIB
    title = "1 MiB sequential, first touch, 4K chunks, P, depth 4"
    add("seq-first-4k", [
        latency(title, AtMost(230)),
        # Read once, written to COW, written to DEV.
        Row(f"{title}: moved, of the least", "times",
            lambda result: (total(result, "write_sectors") + total(result, "read_sectors"))
            * 512 / (3 * sent) if "cow0" in result["devices"] else None, AtMost(1.05)),
        written_per_byte(title, sent)], **base)
    add("seq-covered-4k", [
        latency("1 MiB sequential, already copied, 4K chunks, depth 4", AtMost(53))],
        before="covered", **base)
    title = "1 MiB sequential, first write to SNAP, 4K chunks, depth 4"
    add("seq-snap-4k", [latency(title, AtMost(60)), written_per_byte(title, sent)],
        on="snap", **base)
    base["rw"] = "read"
    for name, before in ("unchanged", "fresh"), ("copied", "covered"):
        add(f"seq-read-{name}-4k", [
            latency(f"1 MiB sequential read of SNAP, {name}, 4K chunks, depth 4", AtMost(53))],
            on="snap", before=before, **base)


def covered():
    """What no copy has to be made for."""
    for name, title, more in (
            ("covered-write", "write to ORIGIN, already copied", {"before": "covered"}),
            ("read-unchanged", "read of SNAP, unchanged", {"on": "snap", "rw": "randread"}),
            ("read-copied", "read of SNAP, copied",
             {"on": "snap", "rw": "randread", "before": "covered"}),
            ("snap-again", "write to SNAP, already written", {"on": "snap", "before": "written"})):
        add(name, [latency(f"{title}, 4K, 4K chunks, depth 32", AtMost(51.5))], **more)


def several():
    """Several snapshots of one origin."""
    for snaps in (1, 2, 4, 8):
        title = f"first touch, 4K chunks, P, depth 1, {snaps} snapshot{'s' if snaps > 1 else ''}"
        rows = [latency(title, OfC(), "snapshots")]
        if snaps == 8:
            rows.append(Row(f"{title}: reads of DEV", "each",
                            lambda result: result["devices"]["dev"]["reads"] / 2000, AtMost(1)))
        add(f"snaps-{snaps}", rows, SNAPSHOTS, snaps=snaps, depth=1)
    for snaps, one_cow, times in ((1, False, 1), (2, False, 1), (4, False, 1), (8, False, 3),
                                  (8, True, 1)):
        title = f"400 MB/s devices, first touch, depth 32, {snaps} snapshot{'s' if snaps > 1 else ''}"
        if snaps > 1:
            title += " on one COW device" if one_cow else ", COW devices of their own"
        rows = [Row(title, "IOPS", lambda result: result["iops"], OfC(times, "more"), "throughput")]
        if not one_cow:
            rows.append(latency(title, OfC(), "snapshots-busy"))
        add(f"mbps-{snaps}{'-one-cow' if one_cow else ''}", rows, SNAPSHOTS,
            snaps=snaps, one_cow=one_cow, mbps=400, count=16384)


def special():
    """What is no transfer."""
    add("conflict", [
        Row("a write that waits for a read: from the read's end to its own start", "µs",
            lambda result: None if result["lost"] else result["ns"] / 1000, AtMost(5))],
        SNAPSHOTS, kind="conflict", dev_nsec=10_000_000, count=8)
    for count in 8000, 100000:
        add(f"merge-{count}", [
            Row(f"merge of {count} scattered 4K exceptions", "µs each",
                lambda result: result["each_ns"] / 1000, OfC(0.1))],
            SNAPSHOTS, kind="merge", late=True, count=count, mib=count * 2 * 4096 // MIB + 64)
    for name, count, scattered, most in (
            ("100000", 100000, True, 16), ("1000000", 1000000, True, 16),
            ("seq", 1000000, False, 1)):
        what = f"{count} exceptions, {'scattered' if scattered else 'in sequence'}"
        more = {"late": True, "count": count, "scattered": scattered,
                "mib": count * 2 * 4096 // MIB + 64}
        add(f"activate-{name}", [
            Row(f"activation of {what}", "ms", lambda result: result["ns"] / 1e6,
                OfC(1 / 3 if count == 1000000 else 1))],
            SNAPSHOTS, kind="activate", **more)
        add(f"memory-{name}", [
            Row(f"memory for {what}", "B each", lambda result: result["bytes_each"],
                AtMost(most)),
            *([Row("memory of a snapshot without exceptions", "KiB",
                   lambda result: result["empty"] / 1024, OfC())] if name == "seq" else [])],
            SNAPSHOTS, kind="keep", **more)


for build in first_touch, snap_writes, sequential, covered, several, special:
    build()


def by_name(name):
    """The case of this name."""
    return next(case for case in CASES if case.name == name)
