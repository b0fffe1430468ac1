#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Runs commands of model.py and cow.py without a start of Python for each, which
takes a second in an emulated machine, and a test has many of them.

helper.py REQUESTS
    REQUESTS is a FIFO, each line of which is a command, quoted as for a shell:

        REPLY GROUP SCRIPT [ARGUMENT]...

    A process of its own, in the process group GROUP, runs it.  The FIFO REPLY, which
    it removes, gets the exit status and a line feed, and what the command printed to
    its standard output and to its standard error, each with a zero byte behind it.
    The end of REQUESTS is the end.
"""

import gc
import os
import shlex
import signal
import sys
import traceback

import cow
import model

SCRIPTS = {"cow.py": cow.main, "model.py": model.main}


def outcome(group, script, args):
    """Runs a command; its exit status, by the rules of the interpreter."""
    try:
        os.setpgid(0, int(group))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        SCRIPTS[script](args)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def serve(request):
    """What the new process does."""
    reply, group, script, *args = shlex.split(request)
    # Files, so that what other programs print gets there too.
    for fd in 1, 2:
        file = os.memfd_create(script)
        os.dup2(file, fd)
        os.close(file)
    status = outcome(group, script, args)
    sys.stdout.flush()
    sys.stderr.flush()
    answer = b"%d\n" % status
    for fd in 1, 2:
        os.lseek(fd, 0, os.SEEK_SET)
        with open(fd, "rb", closefd=False) as file:
            answer += file.read() + b"\0"
    # Whoever gets the answer may remove the device at once that is still open here.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    with open(reply, "wb") as file:
        os.unlink(reply)
        file.write(answer)


def main():
    """Reads the requests."""
    # What is there by now is shared with the processes, and not looked through by them.
    gc.freeze()
    # Nobody waits for the processes.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with open(sys.argv[1], encoding="utf-8") as requests:
        for request in requests:
            if os.fork() == 0:
                # Whatever happens, the requests are not for this one to read.
                try:
                    serve(request)
                finally:
                    os._exit(0)


main()
