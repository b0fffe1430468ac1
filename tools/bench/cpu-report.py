#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The table of the CPU cases: cpu-report.py FOLDER with cpu-1.txt and cpu-2.txt.

Writes cpu.json and cpu.txt, and prints the latter.
"""

import json
import statistics
import sys

import report

# One instruction takes so long in the guest that counts them.
NS_EACH = 4

# How much of C's figure ours may be: with one thread and with two.
PASS_THROUGH = (0.9, 0.7)
FIRST_TOUCH = (1.0, 1.0)


def results(path):
    """What a guest printed as its result."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("RESULT "):
                return json.loads(line[len("RESULT "):])
    sys.exit(f"error: {path} has no result")


def row(path, jobs, runs):
    """A row: the medians of all variants."""
    # Of one processor, the wall time is all instructions; of two, CPU time of both.
    values = {variant: statistics.median(one[1 if jobs == 1 else 0] for one in rounds)
              for variant, rounds in runs.items()}
    if jobs == 1:
        values = {variant: value / NS_EACH for variant, value in values.items()}
    most = (FIRST_TOUCH if "first" in path else PASS_THROUGH)[jobs - 1]
    own = {variant: values[variant] - values["raw"] for variant in ("c", "ours")}
    return {"path": path, "threads": jobs, "unit": "instructions" if jobs == 1 else "ns",
            **values, "limit": most, "whole": values["ours"] / values["c"],
            "own": own["ours"] / own["c"] if own["c"] > 0 else None,
            "met": values["ours"] <= values["c"] * most}


def main():
    """Reads, judges, writes."""
    folder = sys.argv[1]
    rows = [row(path, jobs, runs) for jobs in (1, 2)
            for path, runs in results(f"{folder}/cpu-{jobs}.txt").items()]
    lines = [("CPU per I/O", "threads", "", "raw", "C", "ours", "ours/C", "above raw", "limit", "")]
    for one in rows:
        lines.append((one["path"], str(one["threads"]), one["unit"],
                      *(report.number(one[variant]) for variant in ("raw", "c", "ours")),
                      f"{one['whole']:.2f}", "–" if one["own"] is None else f"{one['own']:.2f}",
                      f"≤ {one['limit']:.1f}", "met" if one["met"] else "MISSED"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join("  ".join(cell.ljust(width) if i in (0, 2, 9) else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)
    with open(f"{folder}/cpu.json", "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1, sort_keys=True)
        file.write("\n")
    with open(f"{folder}/cpu.txt", "w", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
