# SPDX-License-Identifier: GPL-2.0
"""I/O of the guest past the page cache, and requests in flight by the kernel's AIO."""

import contextlib
import ctypes
import mmap
import os

SECTOR = 512
MIB = 1 << 20
BLKDISCARD = 0x1277


def buffer(data):
    """Memory that is aligned for direct I/O, of a size or with these bytes."""
    if isinstance(data, int):
        return mmap.mmap(-1, max(data, 1))
    memory = mmap.mmap(-1, len(data))
    memory[:] = bytes(data)
    return memory


@contextlib.contextmanager
def opened(path, flags):
    """A device, open for direct I/O."""
    fd = os.open(path, flags | os.O_DIRECT)
    try:
        yield fd
    finally:
        os.close(fd)


def read_all(path, size):
    """All of a device."""
    memory = buffer(size)
    done = 0
    with opened(path, os.O_RDONLY) as fd, memoryview(memory) as view:
        while done < size:
            got = os.preadv(fd, [view[done:done + MIB]], done)
            if got <= 0:
                raise OSError(f"{path} ends at {done}")
            done += got
    return memory


def write_all(path, memory, at=0):
    """Writes aligned memory."""
    done = 0
    with opened(path, os.O_WRONLY) as fd, memoryview(memory) as view:
        while done < len(view):
            done += os.pwritev(fd, [view[done:done + MIB]], at + done)


class Iocb(ctypes.Structure):
    """struct iocb of the kernel's AIO."""

    _fields_ = [("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("rw_flags", ctypes.c_int32),
                ("opcode", ctypes.c_uint16), ("prio", ctypes.c_int16), ("fd", ctypes.c_uint32),
                ("buf", ctypes.c_uint64), ("nbytes", ctypes.c_uint64), ("offset", ctypes.c_int64),
                ("reserved", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("resfd", ctypes.c_uint32)]


class IoEvent(ctypes.Structure):
    """struct io_event."""

    _fields_ = [("data", ctypes.c_uint64), ("obj", ctypes.c_uint64), ("res", ctypes.c_int64),
                ("res2", ctypes.c_int64)]


class Timespec(ctypes.Structure):
    """struct timespec."""

    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


class Aio:
    """Requests in flight. The kernel's AIO sends a write with RWF_DSYNC as FUA and nothing else;
    a plain system call would send a flush after it, which would hide a FUA that is not one."""

    SETUP, GETEVENTS, SUBMIT = 206, 208, 209
    WRITE, FLUSH = 1, 2
    DSYNC = 2

    def __init__(self, depth):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.context = ctypes.c_ulong(0)
        self.call(self.SETUP, depth, ctypes.byref(self.context))
        self.flying = {}
        self.events = (IoEvent * depth)()

    def call(self, number, *args):
        """A system call."""
        result = self.libc.syscall(ctypes.c_long(number), *args)
        if result < 0:
            raise OSError(ctypes.get_errno(), f"AIO: {os.strerror(ctypes.get_errno())}")
        return result

    def submit(self, tag, fd, opcode, memory=None, offset=0, fua=False):
        """Begins a write or a flush."""
        iocb = Iocb(data=tag, opcode=opcode, fd=fd, offset=offset)
        pin = None
        if memory is not None:
            pin = (ctypes.c_char * len(memory)).from_buffer(memory)
            iocb.buf, iocb.nbytes = ctypes.addressof(pin), len(memory)
            iocb.rw_flags = self.DSYNC if fua else 0
        self.flying[tag] = (iocb, pin, memory)
        pointer = ctypes.pointer(iocb)
        self.call(self.SUBMIT, self.context, 1, ctypes.byref(pointer))

    def reap(self, least, seconds=None):
        """Waits for this many to end, or so long; returns their tags and results."""
        limit = None
        if seconds is not None:
            limit = ctypes.byref(Timespec(int(seconds), int(seconds % 1 * 1e9)))
        count = self.call(self.GETEVENTS, self.context, ctypes.c_long(least),
                          ctypes.c_long(len(self.events)), self.events, limit)
        ended = []
        for event in self.events[:count]:
            iocb, _, _ = self.flying.pop(event.data)
            good = event.res == (iocb.nbytes if iocb.opcode == self.WRITE else 0)
            ended.append((event.data, good))
        return ended
