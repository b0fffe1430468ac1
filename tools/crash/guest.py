#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Records the workloads of a seed and cuts them.

guest.py SEED POINTS [--only GENERATION:POINT] [--snaprs SHARE]

Prints a line "FAILED SEED:GENERATION:POINT ..." for each cut after which something is
wrong, and at last "RESULT" with what was done as JSON.
"""

import argparse
import faulthandler
import json
import random
import subprocess
import sys
import time

from record import Broken, Model, Setup, State, Workload
from replay import Bench, Cut, heir_of, points_of

# So many seconds of the guest's time are more than a seed takes.
LIMIT = 7200

# Workloads, each of which begins with what a cut of the one before has left.
GENERATIONS = 3


def state_after(cut, shown):
    """What the next workload begins with: the contents after a cut."""
    state = State.__new__(State)
    model = cut.model
    state.dev = bytes(cut.images["dev"])
    state.cows = [bytes(cut.images[f"cow{i}"]) for i in range(len(cut.setup.chunks))]
    state.merging = model.merging
    state.snaps = [bytes(shown[i]) if i in shown else None for i in range(len(cut.setup.chunks))]
    state.gone = set(model.gone)
    for i in model.views:
        if i not in shown and i in model.acknowledged:
            state.gone.add(i)
    state.origin = state.dev if state.merging is None else state.snaps[state.merging]
    return state


def main():
    """Reads the command line and works."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seed")
    parser.add_argument("points", type=int)
    parser.add_argument("--only")
    parser.add_argument("--snaprs", type=float, default=0.25)
    args = parser.parse_args()
    # Time passes only when all wait: who waits for ever comes to this at once.
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.stdout)
    for command in ("modprobe dm-mod", "modprobe dm-log-writes", "modprobe dm-delay",
                    "modprobe null_blk nr_devices=0",
                    "insmod dm_snap_rs.ko"):
        subprocess.run(command.split(), check=True)
    rng = random.Random(f"setup {args.seed}")
    setup = Setup(rng)
    print(f"seed {args.seed}: {setup}", flush=True)
    only = [int(word) for word in args.only.split(":")] if args.only else None
    state = State(setup, rng)
    done, torn, events, failed, digests = 0, 0, 0, 0, []
    for generation in range(GENERATIONS):
        where = f"{args.seed}:{generation}"
        try:
            work = Workload(setup, state, random.Random(f"work {where}"))
            work.run()
            timeline = work.finish()
        except Broken as error:
            print(f"FAILED {where} in the workload: {error}", flush=True)
            failed += 1
            if only:
                work.show_trace()
            break
        events += len(timeline.events)
        digests.append(timeline.digest())
        chooser = random.Random(f"points {where}")
        points = points_of(timeline, args.points // GENERATIONS, chooser)
        bench = Bench(setup, time.sleep, args.snaprs)
        heir = heir_of(timeline, points, where, bench, chooser)
        if only:
            points = [heir] if generation < only[0] else only[1:] if generation == only[0] else []
        model = Model(timeline)
        state = None
        for point in points:
            model.go(point)
            name = f"{where}:{point}"
            cut = None
            try:
                cut = Cut(bench, model, f"cut {name}")
                torn += bool(cut.leftovers)
                shown = cut.check()
                if point == heir and state is None:
                    state = state_after(cut, shown)
                done += 1
                if only:
                    print(f"GOOD {name} mode {cut.mode}", flush=True)
            except (Broken, OSError) as error:
                print(f"FAILED {name} mode {cut.mode if cut else '?'}: {error}", flush=True)
                failed += 1
                if only:
                    print(timeline.excerpt(point, getattr(error, "sectors", ())), flush=True)
                if cut:
                    cut.drop_all()
        bench.close()
        if state is None:
            break
    print("KERNEL LOG", flush=True)
    subprocess.run(["dmesg", "--color=never"], check=True)
    print("RESULT", json.dumps({"seed": args.seed, "cuts": done, "torn": torn, "events": events, "failed": failed,
                                "digests": digests}), flush=True)


if __name__ == "__main__":
    main()
