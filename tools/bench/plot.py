#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Draws the plots of the benchmark: plot.py FOLDER with results.json."""

import json
import sys

import matplotlib

matplotlib.use("Agg")
# The same figures give the same files.
matplotlib.rcParams["svg.hashsalt"] = "snapshot-rs"
matplotlib.rcParams["font.size"] = 9
# Text stays text, which is small and can be searched.
matplotlib.rcParams["svg.fonttype"] = "none"

# pylint: disable=wrong-import-position
from matplotlib import pyplot  # noqa: E402

# Colours that people who see colours differently tell apart.
VARIANTS = (("raw", "raw device", "#999999"), ("c", "C dm-snapshot", "#d55e00"),
            ("thin", "dm-thin, 64K blocks", "#56b4e9"), ("ours", "snapshot-rs", "#009e73"))


def save(figure, folder, name, top=0.0):
    """Writes a figure in both formats; so many inches at its top are taken."""
    figure.tight_layout(rect=(0, 0, 1, 1 - top / figure.get_figheight()))
    figure.savefig(f"{folder}/{name}.svg", metadata={"Date": None})
    figure.savefig(f"{folder}/{name}.png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def bars(rows, folder, name, title, unit):
    """Horizontal bars, a group for each row."""
    if not rows:
        return
    figure, axes = pyplot.subplots(figsize=(9, 0.5 + 0.62 * len(rows)))
    height = 0.8 / len(VARIANTS)
    for i, (key, label, colour) in enumerate(VARIANTS):
        places = [n + (i - 1.5) * height for n, row in enumerate(rows) if row.get(key) is not None]
        values = [row[key] for row in rows if row.get(key) is not None]
        if not values:
            continue
        axes.barh(places, values, height, label=label, color=colour)
        for place, value in zip(places, values):
            axes.text(value, place, f" {value:.3g}" if value < 1000 else f" {value:.0f}",
                      va="center", fontsize=6.5)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.08, y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    inch = 1 / figure.get_figheight()
    figure.suptitle(title, y=1 - 0.1 * inch)
    # Above the bars, where it covers none of them.
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 1 - 0.3 * inch), ncols=4, fontsize=8,
                  frameon=False)
    save(figure, folder, name, 0.5)


def lines(panels, folder):
    """Latency against the number of snapshots, one panel beside the other."""
    panels = [(rows, title) for rows, title in panels if len(rows) > 1]
    if not panels:
        return
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6),
                                       squeeze=False)
    for axes, (rows, title) in zip(all_axes[0], panels):
        for key, label, colour in VARIANTS:
            points = [(int(row["case"].rsplit("-", 1)[1]), row[key]) for row in rows
                      if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points), marker="o", label=label, color=colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.set_ylim(bottom=0, top=1.15 * axes.get_ylim()[1])
        axes.set_xlabel("snapshots of the origin")
        axes.set_ylabel("µs")
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left")
    save(figure, folder, "snapshots")


def main():
    """Reads the results and draws."""
    folder = sys.argv[1]
    with open(f"{folder}/results.json", encoding="utf-8") as file:
        rows = json.load(file)["rows"]

    def of(plot):
        return [row for row in rows if row["plot"] == plot]

    bars(of("latency"), folder, "latency",
         "Mean latency on devices of 50 µs (less is better)", "µs")
    bars(of("bytes"), folder, "bytes",
         "Bytes that the devices write for each byte (less is better)", "bytes written per byte")
    bars(of("throughput"), folder, "throughput", "Devices of 400 MB/s (more is better)", "IOPS")
    lines(((of("snapshots"), "First touch, devices of 50 µs, depth 1"),
           (of("snapshots-busy"), "First touch, devices of 400 MB/s, depth 32")), folder)


if __name__ == "__main__":
    main()
