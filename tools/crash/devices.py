# SPDX-License-Identifier: GPL-2.0
"""Devices of the guest, without a program being started for each step: null_blk by
configfs, device-mapper by its ioctls, and requests in flight by the kernel's AIO."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct

SECTOR = 512
MIB = 1 << 20
BLKDISCARD = 0x1277
NULLB = "/sys/kernel/config/nullb"


def put(path, value):
    """Writes a file of sysfs, configfs or tracefs."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(value))


class Null:
    """A null_blk device that keeps its data in memory."""

    def __init__(self, name, size, block=SECTOR, nsec=0, cached=False):
        self.folder = f"{NULLB}/{name}"
        os.mkdir(self.folder)
        settings = {"memory_backed": 1, "size": -(-size // MIB), "blocksize": block, "queue_mode": 2, "discard": 1,
                    "irqmode": 2 if nsec else 0, "completion_nsec": nsec}
        if cached:
            # With a cache, a flush takes as long as a write.
            settings["cache_size"] = settings["size"]
        for key, value in settings.items():
            put(f"{self.folder}/{key}", value)
        put(f"{self.folder}/power", 1)
        disk = name
        if not os.path.exists(f"/sys/block/{disk}"):
            with open(f"{self.folder}/index", encoding="ascii") as file:
                disk = f"nullb{file.read().strip()}"
        put(f"/sys/block/{disk}/queue/scheduler", "none")
        self.path = f"/dev/{disk}"

    def close(self):
        """Takes the device away, with its data."""
        put(f"{self.folder}/power", 0)
        os.rmdir(self.folder)


class Dm:
    """A device-mapper device."""

    HEADER = struct.Struct("<3I4Ii2IQ128s129s7x")
    SPEC = struct.Struct("<QQiI16s")
    ROOM = 16384
    REMOVE, CREATE, SUSPEND, LOAD, STATUS = 4, 3, 6, 9, 12
    SUSPENDED, NO_FLUSH = 1 << 1, 1 << 11
    control = None

    def __init__(self, name, *table):
        self.name = name
        self.number = self.call(self.CREATE)[0]
        self.path = f"/dev/dm-{os.minor(self.number)}"
        self.id = f"{os.major(self.number)}:{os.minor(self.number)}"
        try:
            self.load(*table)
            self.resume()
        except OSError:
            self.remove()
            raise

    def call(self, command, flags=0, data=b"", targets=0):
        """An ioctl; returns the device's number and what came back."""
        if Dm.control is None:
            Dm.control = os.open("/dev/mapper/control", os.O_RDWR)
        request = bytearray(self.ROOM)
        self.HEADER.pack_into(request, 0, 4, 0, 0, self.ROOM, self.HEADER.size, targets, 0, flags,
                              0, 0, 0, self.name.encode(), b"")
        request[self.HEADER.size:self.HEADER.size + len(data)] = data
        fcntl.ioctl(Dm.control, 0xC138FD00 | command, request)
        return self.HEADER.unpack_from(request)[10], request[self.HEADER.size:]

    def load(self, *table):
        """Loads a table: lines of (sectors, target, arguments)."""
        data, start = b"", 0
        for sectors, target, arguments in table:
            text = arguments.encode() + b"\0"
            text += b"\0" * (-len(text) % 8)
            data += self.SPEC.pack(start, sectors, 0, self.SPEC.size + len(text), target.encode()) + text
            start += sectors
        self.call(self.LOAD, data=data, targets=len(table))

    def suspend(self, no_flush=False):
        """Suspends it."""
        self.call(self.SUSPEND, self.SUSPENDED | (self.NO_FLUSH if no_flush else 0))

    def resume(self):
        """Resumes it, with the table that was loaded."""
        self.call(self.SUSPEND)

    def status(self):
        """The status line of the first target."""
        _, data = self.call(self.STATUS, self.NO_FLUSH)
        text = bytes(data[self.SPEC.size:])
        return text[:text.index(b"\0")].decode()

    def remove(self):
        """Removes it."""
        self.call(self.REMOVE)


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
