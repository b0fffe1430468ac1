# SPDX-License-Identifier: GPL-2.0
"""Block devices whose chosen requests stall until they are told to go on.

This is a plugin for nbdkit's Python plugin. It serves one or more devices,
whose contents are kept in memory, and a control socket, on which a test says
which requests are to be held and when they go on. Everything that arrives is
logged, in one order for all devices, so that a test can tell what reached
which device before what.

By hand, as root, with the nbd module loaded:

  nbdkit --foreground --threads 160 --unix /tmp/nbd.sock \\
      python stall.py device=dev:64M device=cow:32M control=/tmp/stall.sock &
  nbd-client -unix /tmp/nbd.sock -N dev -timeout 0 /dev/nbd0
  ./stallctl /tmp/stall.sock hold read dev 0 4096
  dd if=/dev/nbd0 of=/dev/null iflag=direct bs=4096 count=1 &   # stalls
  ./stallctl /tmp/stall.sock wait-held 1
  ./stallctl /tmp/stall.sock release all                        # dd ends
  nbd-client -d /dev/nbd0
  ./stallctl /tmp/stall.sock quit

A held request occupies one thread of nbdkit, hence --threads: one more than the
nbd driver's queue is deep (128) lets any number of requests be held while
others pass. A time-out of 0 keeps the driver from giving a held request up.
Merging has to be off (echo 2 >/sys/block/nbd0/queue/nomerges) where a test
wants to find its own requests again.

Commands on the control socket are lines; sizes and offsets are bytes. Each
answer ends with a line "ok" or "error: TEXT".

  hold OP DEVICE OFFSET LENGTH [COUNT]
      From now on hold requests that touch this range: all, or the first COUNT.
      OP is read, write or flush.
  unhold
      Take back all that was said by hold. What is held stays held.
  list [DEVICE]
      What is held, oldest first: ID OP DEVICE OFFSET LENGTH.
  wait-held N [SECONDS [DEVICE]]
      Wait until at least N requests (of this device) are held; answers like list.
  wait-covered OP DEVICE OFFSET LENGTH [SECONDS [AFTER]]
      Wait until every byte of the range is in a held request that came after
      the event with the number AFTER; answers with these requests.
  wait-log EVENT OP DEVICE OFFSET LENGTH [SECONDS [AFTER]]
      Wait for an event on a request that touches the range, after the event
      with the number AFTER (0: from the beginning); answers with its log line.
      EVENT is begin, held or end.
  release ID...|all      The requests go on. A read sees the data of now.
  fail ID...|all         The requests end with EIO. A write changes nothing.
  log [AFTER]
      NUMBER EVENT ID OP DEVICE OFFSET LENGTH, with "fua" or "failed" at the end
      where it applies. A write is in the image before its end is logged.
  last                   The number of the last event.
  fill DEVICE BYTE       Sets each byte of the image to the number BYTE.
  clear                  unhold, release all.
  lease                  When this connection ends, however it ends: clear. So a
                         test that dies leaves nothing that waits for ever.
  quit                   clear, and the server ends.
"""

import errno
import os
import socketserver
import threading
import time

import nbdkit

API_VERSION = 2
# Long enough for an emulated machine, shorter than the kernel's hung-task limit.
DEFAULT_SECONDS = 60.0

images = {}
control = None

# One condition guards all that follows, and is notified at each change of it.
changed = threading.Condition()
rules = []
held = {}
events = []
last_id = 0


class Refused(Exception):
    """A command that can't be done; the text goes to the client."""


class Request:
    """One request of a device, from its arrival to its end."""

    def __init__(self, op, device, offset, length, fua):
        global last_id
        last_id += 1
        self.id = last_id
        self.op, self.device, self.offset, self.length = op, device, offset, length
        self.fua = fua
        # The number of the event by which it came.
        self.begin = len(events) + 1
        # None while it is held, then "release" or "fail".
        self.verdict = None

    def __str__(self):
        return f"{self.id} {self.op} {self.device} {self.offset} {self.length}"

    def touches(self, op, device, offset, length):
        if (self.op, self.device) != (op, device):
            return False
        # A flush has no range: it concerns the whole device.
        return op == "flush" or (
            self.offset < offset + length and offset < self.offset + self.length)


class Rule:
    """What one hold command asked for."""

    def __init__(self, op, device, offset, length, left):
        self.range = (op, device, offset, length)
        self.left = left


def note(event, request, extra=""):
    events.append((event, request, f"{len(events) + 1} {event} {request}{extra}"))
    changed.notify_all()


def must_hold(request):
    for rule in rules:
        if rule.left != 0 and request.touches(*rule.range):
            rule.left -= 1
            return True
    return False


def serve(op, device, offset, length, fua, action):
    """Logs a request, holds it where a rule says so, and does its action."""
    with changed:
        request = Request(op, device, offset, length, fua)
        note("begin", request, " fua" if fua else "")
        if must_hold(request):
            held[request.id] = request
            note("held", request)
            # The wait gives up the interpreter's lock: other requests pass.
            changed.wait_for(lambda: request.verdict)
            del held[request.id]
        failed = request.verdict == "fail"
        if not failed:
            action()
        note("end", request, " failed" if failed else "")
    if failed:
        nbdkit.set_error(errno.EIO)
        raise RuntimeError(f"failed by request: {request}")


# The commands. Each is called with `changed` held, and yields lines.

def deadline(seconds):
    return float(seconds) if seconds is not None else DEFAULT_SECONDS


def arguments(op, device, offset, length):
    if op not in ("read", "write", "flush"):
        raise Refused(f"{op}: neither read, write nor flush")
    if device not in images:
        raise Refused(f"{device}: no such device")
    return op, device, int(offset), int(length)


def chosen(ids):
    if not ids:
        raise Refused("which requests?")
    if ids == ("all",):
        return list(held.values())
    try:
        return [held[int(i)] for i in ids]
    except KeyError as e:
        raise Refused(f"{e}: no such request is held") from None


def judge(ids, verdict):
    for request in chosen(ids):
        request.verdict = verdict
    changed.notify_all()


def do_hold(op, device, offset, length, count="-1"):
    rules.append(Rule(*arguments(op, device, offset, length), int(count)))
    return ()


def do_unhold():
    rules.clear()
    return ()


def do_list(device=None):
    # What was released is no longer held, though its thread may not have run yet.
    return [str(r) for r in held.values() if not r.verdict and device in (None, r.device)]


def do_wait_held(count, seconds=None, device=None):
    if not changed.wait_for(lambda: len(do_list(device)) >= int(count), deadline(seconds)):
        raise Refused(f"{len(do_list(device))} requests are held, not {count}")
    return do_list(device)


def do_wait_covered(op, device, offset, length, seconds=None, after="0"):
    op, device, offset, length = arguments(op, device, offset, length)

    def look():
        found.clear()
        found.extend(r for r in held.values() if not r.verdict
                     and r.begin > int(after) and r.touches(op, device, offset, length))
        at = offset
        for r in sorted(found, key=lambda r: r.offset):
            if r.offset <= at:
                at = max(at, r.offset + r.length)
        return at >= offset + length

    found = []
    if not changed.wait_for(look, deadline(seconds)):
        raise Refused("held requests do not cover the range")
    return [str(r) for r in found]


def do_wait_log(event, op, device, offset, length, seconds=None, after="0"):
    where = arguments(op, device, offset, length)
    found = []
    at = int(after)
    end = time.monotonic() + deadline(seconds)

    def look():
        nonlocal at
        while at < len(events) and not found:
            kind, request, text = events[at]
            at += 1
            if kind == event and request.touches(*where):
                found.append(text)
        return found

    if not changed.wait_for(look, max(0, end - time.monotonic())):
        raise Refused(f"no {event} of such a {op}")
    return found


def do_release(*ids):
    judge(ids, "release")
    return ()


def do_fail(*ids):
    judge(ids, "fail")
    return ()


def do_log(after="0"):
    return [text for _, _, text in events[int(after):]]


def do_last():
    return [str(len(events))]


def do_fill(device, byte):
    if device not in images:
        raise Refused(f"{device}: no such device")
    # In pieces: a copy of the image would stay with the thread of each session when it was
    # freed. On User-Mode Linux that is what ends a process, in an endless page fault: each
    # of its pages is a mapping of the host, which gives a process 65,530 of them.
    image = memoryview(images[device])
    piece = bytes([int(byte)]) * min(64 << 10, len(image))
    for at in range(0, len(image), len(piece)):
        image[at:at + len(piece)] = piece[:len(image) - at]
    return ()


def do_clear():
    rules.clear()
    judge(("all",), "release")
    return ()


def do_quit():
    do_clear()
    nbdkit.shutdown()
    return ()


COMMANDS = {
    "hold": do_hold, "unhold": do_unhold, "list": do_list,
    "wait-held": do_wait_held, "wait-covered": do_wait_covered,
    "wait-log": do_wait_log, "release": do_release, "fail": do_fail,
    "log": do_log, "last": do_last, "fill": do_fill, "clear": do_clear,
    "quit": do_quit,
}


class Session(socketserver.StreamRequestHandler):
    """One client of the control socket: a line in, lines out."""

    lease = False

    def handle(self):
        for line in self.rfile:
            words = line.decode().split()
            if not words:
                continue
            if words == ["lease"]:
                self.lease = True
                self.wfile.write(b"ok\n")
                continue
            try:
                command = COMMANDS.get(words[0])
                if not command:
                    raise Refused(f"{words[0]}: no such command")
                with changed:
                    answer = [*command(*words[1:]), "ok"]
            except (Refused, TypeError, ValueError) as e:
                answer = [f"error: {e}"]
            self.wfile.write("".join(f"{a}\n" for a in answer).encode())

    def finish(self):
        if self.lease:
            with changed:
                do_clear()
        super().finish()


class Control(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


# What nbdkit calls.

def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL


def config(key, value):
    global control
    if key == "device":
        name, _, size = value.partition(":")
        images[name] = bytearray(nbdkit.parse_size(size))
    elif key == "control":
        control = os.path.abspath(value)
    else:
        raise RuntimeError(f"{key}: no such parameter")


def config_complete():
    if not images or not control:
        raise RuntimeError("device=NAME:SIZE and control=PATH are needed")


def after_fork():
    # Threads don't survive the fork into the background, so they start here.
    server = Control(control, Session)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def list_exports(readonly, is_tls):
    return list(images)


def open(readonly):
    name = nbdkit.export_name()
    if name not in images:
        raise RuntimeError(f"{name}: no such device")
    return name


def get_size(name):
    return len(images[name])


def block_size(name):
    return (512, 4096, 0xffffffff)


def can_multi_conn(name):
    return True


def can_fua(name):
    return nbdkit.FUA_NATIVE


def can_flush(name):
    return True


def pread(name, buf, offset, flags):
    def action():
        buf[:] = memoryview(images[name])[offset:offset + len(buf)]
    serve("read", name, offset, len(buf), False, action)


def pwrite(name, buf, offset, flags):
    def action():
        images[name][offset:offset + len(buf)] = buf
    serve("write", name, offset, len(buf), bool(flags & nbdkit.FLAG_FUA), action)


def flush(name, flags):
    serve("flush", name, 0, 0, False, lambda: None)
