#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Has a device beneath a snapshot fail, and compares with a model what each device shows
while it does and afterwards; what is asked for each time is told in stand.py.

faults.py devices DEV COW
    DEV or COW fails altogether, for reads, for writes, or for both, while it is in use.
faults.py steps DEV COW OTHER
    Each step of a copy, a commit, an activation and a merge fails alone, by the place on
    DEV or COW that it is about.  OTHER is the COW device of a second snapshot, to which
    nothing must happen unless DEV itself can't be read.

It prints how many requests have failed.
"""

import collections
import sys
import time
from errno import EIO

import dm
from stand import MERGE, SNAPSHOT, Snap, Stand, Under, Wrong, refused

COUNTS = collections.Counter()


def stand_on(dev, cow):
    """DEV and COW as devices that can fail, and a stand on them."""
    under_dev = Under("under-dev", dev, dm.size_of(dev))
    under_cow = Under("under-cow", cow, dm.size_of(cow))
    return under_dev, under_cow, Stand(under_dev.path, under_cow.path)


def devices(dev, cow):
    """Has each device fail in each way."""
    for victim in "cow", "dev":
        for how in "error_writes", "error_reads", "error":
            for store in "P", "N":
                under_dev, under_cow, stand = stand_on(dev, cow)
                stand.open_origin()
                stand.open_snap(store=store)
                stand.origin.write(0, stand.data(128))
                stand.snap.write(256, stand.data(16))
                under = under_cow if victim == "cow" else under_dev
                under.fail(how, (0, under.sectors))
                stand.snap.may_fail = True
                # Whole chunks, for which ORIGIN has nothing to read.
                stand.origin.may_fail = victim == "dev" and how != "error_reads"
                for at in range(0, 1024, 64):
                    stand.origin.write(at, stand.data(16))
                    stand.snap.read(at, 16384)
                    stand.snap.write(at + 32, stand.data(4))
                stand.snap.flush()
                stand.origin.flush()
                failed = stand.snap.failures + stand.origin.failures
                if not failed:
                    raise Wrong(f"nothing has failed with {how} of {victim}")
                COUNTS[f"{how} of {victim}"] += failed
                under.fail()
                COUNTS["snapshots lost"] += not stand.check()
                stand.close()
                under_dev.remove()
                under_cow.remove()


# Where things are, in chunks: the header and the first area; the area after that, for
# records of 16 bytes in chunks of 4 KiB; and a chunk that nothing uses. A flush comes to
# all parts of a device, so to that too.
HEADER, AREA = 0, 1
NEXT_AREA = AREA + 1 + Stand.CHUNK * 512 // 16
PLACE = 5
UNUSED = 1000


class Ground:
    """What the steps stand on."""

    def __init__(self, dev, cow, other, store):
        self.store = store
        # The first chunk that is handed out.
        self.data = AREA + 1 if store == "P" else 0
        self.dev, self.cow, self.stand = stand_on(dev, cow)
        self.other_cow = other
        self.others_lost = False
        # Whether the header can be written: a snapshot that is lost must be marked there then.
        self.is_marked = True
        self.stand.open_origin()
        self.other = None

    def open(self, **line):
        """Makes both snapshots."""
        stand = self.stand
        stand.open_snap(store=self.store, **line)
        stand.wipe(self.other_cow)
        self.other = Snap(stand, stand.line(SNAPSHOT, "N", cow=self.other_cow), "other")

    def fails(self, under, how, *chunks):
        """What is about these chunks, fails from now on."""
        under.fail(how, *((chunk * Stand.CHUNK, Stand.CHUNK) for chunk in chunks))
        self.is_marked &= not (under is self.cow and HEADER in chunks)

    def touch(self, sectors=2):
        """ORIGIN is written to, which must not fail."""
        self.stand.origin.write(PLACE * Stand.CHUNK, self.stand.data(sectors))

    def own(self, sectors, good=False):
        """SNAP is written to, which must fail, or not."""
        snap = self.stand.snap
        snap.may_fail = not good
        if snap.write(PLACE * Stand.CHUNK, self.stand.data(sectors)) != good:
            raise Wrong("a write to the snapshot was good that must have failed")

    def fails_to(self, call):
        """SNAP can't do this."""
        self.stand.snap.may_fail = True
        if call(self.stand.snap):
            raise Wrong("something was good that must have failed")

    def tells(self, *texts):
        """The log must have one of these, in a while."""
        for _ in range(100):
            if self.stand.log.tells(*texts):
                return
            time.sleep(0.05)
        raise Wrong(f"the log does not tell '{texts[0]}': {self.stand.log.read()}")

    def merges(self, under, how, chunk, again=True):
        """A merge fails, and goes on when nothing fails any more."""
        self.open()
        stand = self.stand
        for at in range(0, 8):
            stand.origin.write((PLACE + at) * Stand.CHUNK, stand.data(2))
        self.fails(under, how, chunk)
        stand.merge()
        if stand.merge_status() != "Merge failed":
            raise Wrong(f"the merge should have failed, but ended with {stand.origin.dm.status()}")
        self.tells("merging the snapshot on COW device")
        # What is not merged is read from COW, and what can't be read there is not read at all.
        stand.origin.may_fail = under is self.cow and how == "error_reads"
        stand.origin.all()
        stand.origin.may_fail = False
        under.fail()
        if again:
            stand.origin.dm.suspend()
            stand.origin.dm.resume()
        self.ends()

    def ends(self):
        """The merge comes to its end."""
        if "/" not in self.stand.merge_status():
            raise Wrong("the merge does not go on")

    def finish(self, is_there):
        """Compares all that there is, and removes it."""
        stand = self.stand
        self.dev.fail()
        self.cow.fail()
        stand.origin.may_fail = False
        stand.origin.all()
        if stand.snap and stand.snap.check() != is_there:
            raise Wrong("the snapshot is " + ("lost" if is_there else "still there"))
        if self.other.check() == self.others_lost:
            raise Wrong("the other snapshot is " + ("still there" if self.others_lost else "lost"))
        self.other.remove()
        failed = stand.origin.failures
        if stand.snap:
            failed += stand.snap.failures
            if self.is_marked and stand.log.tells("could not be marked as invalid"):
                raise Wrong("the snapshot was not marked as invalid")
            if self.store == "P" and self.is_marked:
                # What it was, it is still when it is opened again.
                stand.reopen_snap()
                if stand.snap.check() != is_there:
                    raise Wrong("on disk, the snapshot is " + ("lost" if is_there else "still there"))
        COUNTS["requests failed"] += failed
        COUNTS["snapshots lost"] += stand.snap is not None and not is_there
        stand.close()
        self.dev.remove()
        self.cow.remove()


class Steps(Ground):
    """The steps: each has something fail, and answers whether SNAP is to be there still."""

    # What ORIGIN's writes need.

    def copy_read(self):
        """The old data can't be read from DEV."""
        self.open()
        self.fails(self.dev, "error_reads", PLACE)
        self.touch()
        # It can't be saved for any snapshot.
        self.others_lost = True
        self.tells("old data could not be read from the origin")
        return False

    def copy_write(self):
        """The old data can't be written to COW."""
        self.open()
        self.fails(self.cow, "error_writes", self.data)
        self.touch()
        self.tells("old data could not be written to the COW device")
        return False

    def p_copy_write_and_header(self):
        """And that the snapshot is invalid, can't be written either."""
        self.open()
        self.fails(self.cow, "error_writes", HEADER, self.data)
        self.touch()
        self.tells("could not be marked as invalid")
        return False

    def p_commit(self):
        """The record can't be written."""
        self.open()
        self.fails(self.cow, "error_writes", AREA)
        self.touch()
        self.tells("metadata could not be written to the COW device")
        return False

    def p_commit_flush(self):
        """What was saved can't be flushed before its record is written."""
        self.open()
        self.fails(self.cow, "error_writes", UNUSED)
        self.touch()
        self.tells("metadata could not be written to the COW device")
        return False

    def p_zeroing(self):
        """The area after the current one can't be zeroed, and COW not be flushed. In race-cow.sh
        the zeroing alone fails."""
        self.open()
        self.fails(self.cow, "error_writes", NEXT_AREA)
        self.touch()
        self.stand.origin.write(64 * Stand.CHUNK, self.stand.data(8))
        self.tells("metadata could not be written to the COW device")
        return False

    def origin_discard(self):
        """What is discarded can't be saved."""
        self.open()
        self.fails(self.cow, "error_writes", self.data)
        self.stand.origin.discard(PLACE * Stand.CHUNK, 16)
        self.tells("old data could not be written to the COW device")
        return False

    def origin_flush(self):
        """A flush of DEV fails, which is DEV's own failure."""
        self.open()
        self.touch()
        self.fails(self.dev, "error_writes", UNUSED)
        self.stand.origin.may_fail = True
        if self.stand.origin.flush():
            raise Wrong("a flush of ORIGIN was good, and that of DEV was not")
        return True

    # What SNAP's own I/O needs.

    def own_whole(self):
        """A first write of a whole chunk can't be written to COW."""
        self.open()
        self.fails(self.cow, "error_writes", self.data)
        self.own(8)
        return False

    def own_part(self):
        """A first write to a part of a chunk can't be written to COW."""
        self.open()
        self.fails(self.cow, "error_writes", self.data)
        self.own(2)
        return False

    def own_part_read(self):
        """The rest of the chunk can't be read."""
        self.open()
        self.fails(self.dev, "error_reads", PLACE)
        self.own(2)
        return False

    def own_again(self):
        """A later write to the same place fails: that is all."""
        self.open()
        self.own(8, good=True)
        self.fails(self.cow, "error_writes", self.data)
        self.own(4)
        return True

    def read_cow(self):
        """What is on COW can't be read."""
        self.open()
        self.touch()
        self.fails(self.cow, "error_reads", self.data)
        self.fails_to(lambda snap: snap.read(PLACE * Stand.CHUNK, 4096))
        return True

    def read_dev(self):
        """What is on DEV can't be read. Who waited for that read goes on."""
        self.open()
        self.fails(self.dev, "error_reads", PLACE)
        self.fails_to(lambda snap: snap.read(PLACE * Stand.CHUNK, 4096))
        self.dev.fail()
        self.touch()
        return True

    def snap_flush(self):
        """A flush of COW fails."""
        self.open()
        self.own(8, good=True)
        self.stand.snap.flush()
        self.fails(self.cow, "error_writes", UNUSED)
        self.fails_to(lambda snap: snap.flush())
        return True

    def p_own_commit(self):
        """A flush of SNAP, whose record can't be written."""
        self.open()
        self.own(8, good=True)
        self.fails(self.cow, "error_writes", AREA)
        self.fails_to(lambda snap: snap.flush())
        self.tells("metadata could not be written to the COW device")
        return False

    def p_own_flush(self):
        """The same where the flush comes from SNAP, while its record is not durable."""
        self.open()
        self.own(8, good=True)
        self.fails(self.cow, "error_writes", UNUSED)
        self.fails_to(lambda snap: snap.flush())
        self.tells("metadata could not be written to the COW device")
        return False

    def p_commit_message(self):
        """The same for the message that makes records durable."""
        self.open()
        self.own(8, good=True)
        self.fails(self.cow, "error_writes", AREA)
        refused(self.stand.snap.dm.sending("commit"), EIO)
        return False

    def snap_discard(self):
        """A discard can't be written to COW."""
        self.open(features="discard_zeroes_cow")
        self.own(8, good=True)
        self.fails(self.cow, "error_writes", self.data)
        self.fails_to(lambda snap: snap.discard(PLACE * Stand.CHUNK, 8))
        return True

    # Activation.

    def p_new(self):
        """A new COW device can't be made one."""
        stand = self.stand
        for chunk in HEADER, AREA:
            stand.wipe(stand.cow)
            self.fails(self.cow, "error_writes", chunk)
            refused(lambda: Snap(stand, stand.line(SNAPSHOT)), EIO)
            self.cow.fail()
        self.open()
        self.touch()
        return True

    def p_used(self):
        """A COW device can't be read."""
        self.open()
        self.touch()
        stand = self.stand
        for chunk in HEADER, AREA:
            image = stand.snap.image
            self.fails(self.cow, "error_reads", chunk)
            refused(stand.reopen_snap, EIO)
            self.cow.fail()
            stand.snap = Snap(stand, stand.line(SNAPSHOT))
            stand.snap.image = image
        return True

    # A merge. It is stopped by the failure, and goes on by a resume.

    def p_merge_read(self):
        """Data can't be read from COW."""
        self.merges(self.cow, "error_reads", self.data + 1)
        self.tells("data could not be read from the COW device")

    def p_merge_write(self):
        """Data can't be written to DEV, which then can't be flushed either: dm-flakey takes a
        flush for a write. race-merge.sh has the write alone fail."""
        self.merges(self.dev, "error_writes", PLACE + 1)
        self.tells("data could not be written to the origin")

    def p_merge_flush(self):
        """A flush of DEV fails."""
        self.merges(self.dev, "error_writes", UNUSED)
        self.tells("data could not be written to the origin")

    def p_merge_metadata(self):
        """Records can't be read from COW."""
        self.merges(self.cow, "error_reads", AREA)
        self.tells("metadata could not be read from the COW device")

    def p_merge_commit(self):
        """Records can't be removed. Writes to what they are about fail until the device is made
        anew, since nobody knows which copy will count then."""
        stand = self.stand
        try:
            self.merges(self.cow, "error_writes", AREA)
        except Wrong as wrong:
            if "does not go on" not in str(wrong):
                raise
        else:
            raise Wrong("the merge went on, though nobody knows which records are there")
        self.tells("metadata could not be written to the COW device")
        stand.origin.may_fail = True
        if stand.origin.write(PLACE * Stand.CHUNK, stand.data(2)):
            raise Wrong("a chunk was written to that may be on COW or on DEV")
        stand.origin.choices.clear()
        stand.origin.may_fail = False
        stand.origin.all()
        stand.origin.write(100 * Stand.CHUNK, stand.data(2))
        image = stand.origin.image
        stand.origin.remove()
        stand.origin = type(stand.origin)(stand.line(MERGE))
        stand.origin.image = image
        self.ends()


def steps(dev, cow, other):
    """Takes all steps, with a persistent and with a transient snapshot."""
    names = [name for name in vars(Steps) if not name.startswith("_")]
    for name in names:
        for store in "P" if name.startswith("p_") else "PN":
            print(f"{name} {store}", flush=True)
            step = Steps(dev, cow, other, store)
            step.finish(getattr(step, name)())
            COUNTS["steps that failed"] += 1


def main(command, *arguments):
    """Does what the arguments say."""
    {"devices": devices, "steps": steps}[command](*arguments)
    for name, count in sorted(COUNTS.items()):
        print(f"note: {name}: {count}")


if __name__ == "__main__":
    main(*sys.argv[1:])
