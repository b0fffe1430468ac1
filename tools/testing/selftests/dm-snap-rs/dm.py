# SPDX-License-Identifier: GPL-2.0
"""Device-mapper without dmsetup: one ioctl for each step, in this very task, so that a
fault can be put into just that step, and a long run starts no processes."""

import ctypes
import errno
import os
import struct
import threading
import time

PREFIX = "dsr-"
HEAD = 312
READONLY = 1 << 0
SUSPEND = 1 << 1
TABLE = 1 << 4
NOFLUSH = 1 << 11
COMMANDS = {"create": 3, "remove": 4, "suspend": 6, "load": 9, "clear": 10,
            "status": 12, "message": 14}
LIBC = ctypes.CDLL(None, use_errno=True)


class DmError(OSError):
    """A step that failed."""


class Dm:
    """A device of device-mapper, with the prefix by which lib.sh knows what is ours. If it is
    given lines of a table, it is in use at once."""

    control = None
    # What the kernel reads and writes: one for each thread.
    local = threading.local()

    def __init__(self, name, *lines):
        self.name = PREFIX + name
        if Dm.control is None:
            Dm.control = os.open("/dev/mapper/control", os.O_RDWR)
        self.prepare("create")()
        number = self.number()
        self.path = f"/dev/dm-{os.minor(number)}"
        # By which a table names it.
        self.id = f"{os.major(number)}:{os.minor(number)}"
        if not lines:
            return
        try:
            self.load(*lines)
            self.resume()
        except DmError:
            self.remove()
            raise

    @classmethod
    def buffer(cls):
        """This thread's buffer."""
        if not hasattr(cls.local, "buffer"):
            cls.local.buffer = bytearray(16384)
        return cls.local.buffer

    @classmethod
    def number(cls):
        """The device's number, from what the last command has told."""
        return struct.unpack_from("Q", cls.buffer(), 40)[0]

    def prepare(self, command, flags=0, targets=0, data=b""):
        """A step that is ready to be taken: nothing is left to be done but the ioctl."""
        code = 3 << 30 | HEAD << 16 | 0xfd << 8 | COMMANDS[command]

        def step():
            buf = Dm.buffer()
            buf[:HEAD + len(data)] = struct.pack(
                "=3IIIIiIIIQ128s129s7x", 4, 0, 0, len(buf), HEAD,
                targets, 0, flags, 0, 0, 0, self.name.encode(), b"") + data
            memory = (ctypes.c_char * len(buf)).from_buffer(buf)
            # While this waits, other threads go on, as they would not by fcntl.ioctl.
            if LIBC.ioctl(Dm.control, ctypes.c_ulong(code), memory) < 0:
                number = ctypes.get_errno()
                raise DmError(number, f"{command} of {self.name}: "
                              + os.strerror(number))
        return step

    def loading(self, *lines, flags=0):
        """The step that loads a table, of lines (start, length, target, arguments)."""
        data = b""
        for start, length, target, args in lines:
            text = args.encode() + b"\0"
            text += bytes(-len(text) % 8)
            data += struct.pack("=QQiI16s", start, length, 0, 40 + len(text),
                                target.encode()) + text
        return self.prepare("load", flags, len(lines), data)

    def load(self, *lines, flags=0):
        """Loads a table."""
        self.loading(*lines, flags=flags)()

    def clear(self):
        """Forgets a table that was loaded."""
        self.prepare("clear")()

    def resume(self):
        """Resumes the device, with the loaded table if there is one."""
        self.prepare("suspend")()

    def suspend(self, flags=0):
        """Suspends the device."""
        self.prepare("suspend", SUSPEND | flags)()

    def remove(self):
        """Removes the device; one that is just being closed is waited for."""
        for _ in range(50):
            try:
                return self.prepare("remove")()
            except DmError as error:
                if error.errno != errno.EBUSY:
                    raise
            time.sleep(0.1)
        raise DmError(errno.EBUSY, f"{self.name} stays in use")

    def result(self):
        """What the last command has told of the first target, as text."""
        buf = self.buffer()
        # A device that is just being resumed for the first time has no target yet.
        if struct.unpack_from("I", buf, 20)[0] == 0:
            return ""
        start = struct.unpack_from("I", buf, 16)[0] + 40
        return bytes(buf[start:buf.index(0, start)]).decode()

    def status(self, flags=0):
        """The target's status; with TABLE, its arguments."""
        self.prepare("status", flags)()
        return self.result()

    def sending(self, text):
        """The step that sends a message."""
        return self.prepare("message", 0, 0, struct.pack("=Q", 0) + text.encode() + b"\0")


def size_of(path):
    """The size of a block device in sectors."""
    with open(path, "rb") as file:
        return file.seek(0, os.SEEK_END) // 512
