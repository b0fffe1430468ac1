# SPDX-License-Identifier: GPL-2.0
"""What is on a medium that has a volatile cache, when its power is cut.

The same rules hold for a device beneath the module, where they say what may be found
after the cut, and for a device that the module shows, where they say what must be:

- a write with FUA is durable when it has ended, any other when a flush has ended that
  began after the write had ended;
- of a block that was written to since, any later write may be there, or none of them:
  each logical block by itself, so writes may be torn between blocks.
"""


class Write:
    """A write: its data is that of whole blocks."""

    __slots__ = ("first", "count", "fua", "data", "name", "ended")

    def __init__(self, first, count, fua, data, name):
        self.first = first
        self.count = count
        self.fua = fua
        self.data = data
        self.name = name
        self.ended = None

    def block(self, number, size):
        """The data of a block of the medium."""
        at = (number - self.first) * size
        return self.data[at:at + size]


class Medium:
    """What is durable, and what else may be there."""

    def __init__(self, image, block):
        self.image = bytearray(image)
        self.block = block
        # Of a block: the writes that may be there as well, the last one last.
        self.later = {}
        self.cached = {}
        self.flushes = {}
        self.clock = 0

    def begin(self, write):
        """The write was sent; from now on it may be there."""
        write.ended = None
        for number in range(write.first, write.first + write.count):
            self.later.setdefault(number, []).append(write)

    def end(self, write):
        """The write has ended."""
        self.clock += 1
        write.ended = self.clock
        for number in range(write.first, write.first + write.count):
            writes = self.later.get(number, ())
            if len(writes) > 1 and write in writes:
                # What is still in flight may come after it.
                writes.sort(key=lambda w: w.ended or 1 << 60)
        if write.fua:
            self.settle(write)
        else:
            self.cached[write] = True

    def begin_flush(self, flush):
        """A flush was sent."""
        self.flushes[flush] = list(self.cached)

    def end_flush(self, flush):
        """It has ended: what had ended before it was sent, is durable."""
        for write in self.flushes.pop(flush):
            if self.cached.pop(write, None):
                self.settle(write)

    def fail_flush(self, flush):
        """It has failed, and says nothing."""
        self.flushes.pop(flush)

    def settle(self, write):
        """The write is durable."""
        size = self.block
        for number in range(write.first, write.first + write.count):
            writes = self.later.get(number)
            if not writes or write not in writes:
                continue
            self.image[number * size:(number + 1) * size] = write.block(number, size)
            del writes[:writes.index(write) + 1]
            if not writes:
                del self.later[number]

    # What a cut leaves: for each block that is not certain, one of what may be there.

    def cut(self, choose):
        """An image after a cut; choose(number, writes) answers one of them, or None."""
        image = bytearray(self.image)
        size = self.block
        for number, writes in self.later.items():
            write = choose(number, writes)
            if write is not None:
                image[number * size:(number + 1) * size] = write.block(number, size)
        return image

    def differing(self, actual):
        """The blocks that may not be as they are found."""
        size = self.block
        expected = bytearray(self.image)
        for number, writes in self.later.items():
            found = actual[number * size:(number + 1) * size]
            if any(write.block(number, size) == found for write in writes):
                expected[number * size:(number + 1) * size] = found
        if expected == actual[:len(expected)]:
            return []
        return [number for number in range(len(expected) // size)
                if expected[number * size:(number + 1) * size]
                != actual[number * size:(number + 1) * size]]
