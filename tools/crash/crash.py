#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Boots a guest for each seed; tools/crash/run prepares what it needs and starts it.

crash.py KERNEL ROOT MODULE SNAPRS POINTS [--only GENERATION:POINT] SEED...
"""

import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, f"{HERE}/../bench")

import runner  # pylint: disable=wrong-import-position

# Why a snapshot may be lost.
NO_ROOM = ("the COW device is full", "the COW device has no room for more metadata")
FILES = ("guest.py", "record.py", "replay.py", "media.py", "devices.py")


def kernel_report(output):
    """The first report of trouble in the guest's kernel log, as the virtual machine looks for it."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(output.partition("KERNEL LOG\n")[2] or output)
        file.flush()
        script = '. "$1"; kernel_report "$2"'
        done = subprocess.run(["bash", "-c", script, "bash", f"{HERE}/../vm/report.sh", file.name],
                              stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def main():
    """Reads the command line."""
    kernel, root, module, snaprs, points, *seeds = sys.argv[1:]
    options = []
    if seeds[0] == "--only":
        options, seeds = seeds[:2], seeds[2:]
    guest = runner.Guest(kernel, root, module)
    files = [f"{HERE}/{name}" for name in FILES] + [module, snaprs]
    begin = time.monotonic()

    def boot(seed):
        result, output = guest.run(files, ["guest.py", seed, points, *options])
        said = output.partition("KERNEL LOG\n")[0]
        if options:
            print(said)
        for line in said.splitlines() if not options else ():
            if line.startswith(("seed ", "FAILED ")):
                print(line, flush=True)
        report = kernel_report(output)
        # Nothing fails here, so a snapshot can be lost for want of room only.
        lost = [line for line in output.splitlines()
                if "invalidating" in line and not line.endswith(NO_ROOM)]
        why = ""
        if lost:
            print(f"FAILED {seed}: a snapshot was given up: {lost[0]}", flush=True)
            why, result = "a snapshot was given up", None
        elif report:
            print(f"FAILED {seed}: the guest's kernel reported trouble\n{report}", flush=True)
            why, result = "trouble in the kernel", None
        elif result is None:
            print(f"FAILED {seed}: the guest brought no result\n{output[-4000:]}", flush=True)
            why = "no result"
        else:
            why = (f"{result['cuts']} of {result['cuts'] + result['failed']} cuts are good, "
                   f"{result['torn']} of them within a commit, {result['events']} events ({' '.join(result['digests'])})")
        verdict = "not ok" if result is None or result["failed"] or not result["cuts"] else "ok"
        print(f"{verdict} - power cuts of seed {seed}: {why}", flush=True)
        return result, output

    results = runner.run_all(guest, [(seed,) for seed in seeds], lambda *_: None, boot)
    good = [result for result in results if result is not None]
    cuts = sum(result["cuts"] for result in good)
    torn = sum(result["torn"] for result in good)
    failed = sum(result["failed"] for result in good) + len(results) - len(good)
    seconds = time.monotonic() - begin
    if failed and not options:
        print("A line that begins with FAILED SEED:GENERATION:POINT is done once more by"
              f" `tools/crash/run --points {points} --replay SEED:GENERATION:POINT`.")
    print(f"crash: {cuts} cuts in {len(results)} workloads were good, {failed} were not; "
          f"{torn} left a part of a commit ("
          f"{seconds:.0f} s, {cuts * 60 / seconds:.0f} cuts a minute)")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
