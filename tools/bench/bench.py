#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Runs the exact benchmark; tools/bench/run prepares what it needs and starts it.

bench.py run OUT KERNEL ROOT MODULE [CASE]...   all variants, twice; table and JSON
bench.py gate KERNEL ROOT MODULE [--accept]     ours against expected.json
bench.py list                                   the names of the cases
bench.py trace KERNEL ROOT MODULE CASE VARIANT  the block layer's events of one case
"""

import fnmatch
import json
import os
import sys

import cases
import report
import runner

HERE = os.path.dirname(os.path.abspath(__file__))
EXPECTED = f"{HERE}/expected.json"

# What the gate looks at: together all paths, in about a minute.
GATE = ("first-4k-P-d1", "first-4k-P-d32", "first-4k-P-d32-commits",
        "first-4k-P-random-40000", "first-4k-N-d32", "first-64k-P-d1", "first-64k-P-d32",
        "snap-whole-4k-d32", "snap-part-64k-d32", "seq-first-4k", "seq-covered-4k",
        "seq-snap-4k", "seq-read-copied-4k", "read-unchanged", "covered-write", "snaps-8",
        "conflict", "merge-8000", "activate-100000", "memory-100000")

# Where bios meet, the order of two of them may change a figure a little; so may the
# clock being read once more.
SLACK = 1.005


def tell(job, seconds, failure):
    """One line for each boot."""
    print(f"    {' '.join(job)}: {seconds:.0f} s", file=sys.stderr)
    if failure is not None:
        print(failure[-3000:], file=sys.stderr)
        print(f"error: {' '.join(job)} brought no result", file=sys.stderr)


def chosen(patterns):
    """The cases with these names; names may be patterns."""
    picked = [case for case in cases.CASES
              if not patterns or any(fnmatch.fnmatch(case.name, p) for p in patterns)]
    if not picked:
        sys.exit("error: no such case; there are: " + " ".join(case.name for case in cases.CASES))
    return picked


def run(out, guest, patterns):
    """The benchmark itself."""
    picked = chosen(patterns)
    jobs = [(case.name, variant) for case in picked for variant in case.variants]
    print(f"==> {len(picked)} cases, {len(jobs)} boots, each twice", file=sys.stderr)
    results = runner.run_all(guest, [job for job in jobs for _ in range(2)], tell)
    by_case, differ, failed = {}, [], []
    for job, first, second in zip(jobs, results[::2], results[1::2]):
        name, variant = job
        by_case.setdefault(name, {})[variant] = first if first is not None else second
        if first is None or second is None:
            failed.append(job)
        elif first != second:
            differ.append((job, first, second))
    rows = [row for case in picked for row in report.rows_of(case, by_case[case.name])]
    text = report.table(rows)
    os.makedirs(out, exist_ok=True)
    with open(f"{out}/table.txt", "w", encoding="utf-8") as file:
        file.write(text + "\n")
    with open(f"{out}/results.json", "w", encoding="utf-8") as file:
        json.dump({"rows": rows, "results": by_case,
                   "differ": [" ".join(job) for job, *_ in differ]}, file, indent=1, sort_keys=True)
        file.write("\n")
    print(text)
    print()
    if not differ and not failed:
        print("All boots were made twice, and the figures of each pair are the same.")
    for job, first, second in differ:
        before = flat(first)
        parts = [f"{key}: {before.get(key)} and {value}"
                 for key, value in flat(second).items() if before.get(key) != value]
        print(f"{' '.join(job)}: the two boots differ ({', '.join(parts)})")
    for job in failed:
        print(f"{' '.join(job)}: a boot brought no result")
    bad = [row for row in rows if row["verdict"] in ("MISSED", "C IS AHEAD")]
    missing = [row for row in rows if row["verdict"] == "not there yet"]
    print(f"{len(rows)} figures: {len(rows) - len(bad) - len(missing)} as good as they must be, "
          f"{len(bad)} not, {len(missing)} not there yet")
    return bool(failed)


def flat(result, prefix=""):
    """A result as a flat dictionary of numbers."""
    figures = {}
    for key, value in result.items():
        if isinstance(value, dict):
            figures.update(flat(value, f"{prefix}{key}."))
        elif isinstance(value, (int, float)):
            figures[prefix + key] = value
    return figures


# Not judged: what follows from the others, or has the grain of a tick.
NOT_JUDGED = ("ios", "iops", "elapsed_ns", "slab_each", "vmalloc_each")


def gate(guest, accept):
    """Compares exact figures of ours with the checked-in ones."""
    names = GATE
    results = runner.run_all(guest, [(name, "ours") for name in names], tell)
    got = {}
    for name, result in zip(names, results):
        if result is None:
            print(f"LOSS {name}: no result")
        elif "missing" not in result:
            got[name] = {key: value for key, value in sorted(flat(result).items())
                         if key.rsplit(".", 1)[-1] not in NOT_JUDGED}
    if accept:
        if None in results:
            return True
        with open(EXPECTED, "w", encoding="utf-8") as file:
            json.dump(got, file, indent=1, sort_keys=True)
            file.write("\n")
        print(f"{EXPECTED} has the figures of this build now; commit it with the change that made them")
        return False
    with open(EXPECTED, encoding="utf-8") as file:
        expected = json.load(file)
    losses = results.count(None)
    gains = 0
    for name in names:
        if name not in expected:
            if name in got:
                print(f"NEW {name}: there are no figures to compare with")
                gains += 1
            continue
        # Where one request at a time is under way, nothing may change at all but time.
        alone = cases.by_name(name).depth == 1
        for key, was in expected[name].items():
            now = got.get(name, {}).get(key)
            counted = not key.endswith(("ns", "bytes_each"))
            slack = 1 if alone and counted else SLACK
            if now is None:
                print(f"LOSS {name}: {key} is not there; it was {was}")
                losses += 1
            elif now > was * slack:
                print(f"LOSS {name}: {key} is {now}, it was {was}")
                losses += 1
            elif now * slack < was:
                print(f"GAIN {name}: {key} is {now}, it was {was}")
                gains += 1
    if gains and not losses:
        print("Figures are better than the checked-in ones: run `tools/bench/gate --accept`"
              " and commit tools/bench/expected.json with the change, so that they stay so.")
    if losses:
        print("Figures are worse. `tools/bench/run --trace CASE ours` shows the way of each I/O."
              " If it must be so, `tools/bench/gate --accept` takes the new figures.")
    print(f"bench-gate: {len(names)} cases, {losses} losses, {gains} gains")
    return losses > 0


def main():
    """Reads the command line."""
    command, *rest = sys.argv[1:]
    if command == "run":
        out, kernel, root, module, *patterns = rest
        failed = run(out, runner.Guest(kernel, root, module), patterns)
    elif command == "gate":
        kernel, root, module, *options = rest
        failed = gate(runner.Guest(kernel, root, module), "--accept" in options)
    elif command == "list":
        print(*(case.name for case in cases.CASES), "cpu", sep="\n")
        failed = False
    else:
        kernel, root, module, case, variant = rest
        _, output = runner.Guest(kernel, root, module).boot(case, variant, "--trace")
        print(output)
        failed = "RESULT" not in output
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
