# SPDX-License-Identifier: GPL-2.0
"""What the benchmark's figures say: rows, and the table for people."""

import cases

# What is compared with C's own figure may be behind it by this much: a device is
# asked for the time now and then, and each time costs a little.
LEVEL = 1.01

HEADINGS = ("case", "", "raw", "C", "thin", "ours", "advantage", "limit", "")


def figure(row, result):
    """A row's figure in a result, or None when there is none."""
    if result is None or "missing" in result:
        return None
    return row.figure(result)


def rows_of(case, results):
    """The rows of a case, as dictionaries."""
    for row in case.rows:
        values = {variant: figure(row, results.get(variant)) for variant in case.variants}
        yield judge({"case": case.name, "title": row.title, "unit": row.unit, "plot": row.plot,
                     "better": row.limit.better, **values}, row.limit)


def judge(row, limit):
    """Adds the limit, our advantage and the verdict to a row."""
    c, ours = row.get("c"), row.get("ours")
    row["limit"] = limit.value(c)
    more = limit.better == "more"
    row["advantage"] = None
    if c and ours:
        row["advantage"] = ours / c if more else c / ours
    if ours is None:
        row["verdict"] = "not there yet"
    elif row["limit"] is None:
        row["verdict"] = "no limit"
    else:
        level = LEVEL if isinstance(limit, cases.OfC) and limit.times == 1 else 1
        met = ours * level >= row["limit"] if more else ours <= row["limit"] * level
        row["verdict"] = "met" if met else "MISSED"
        if met and row["advantage"] and row["advantage"] * LEVEL < 1:
            row["verdict"] = "C IS AHEAD"
    return row


def number(value):
    """A figure for people."""
    if value is None:
        return "–"
    if value >= 10000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows):
    """The rows as a table of text."""
    lines = [HEADINGS]
    for row in rows:
        advantage = "–" if row["advantage"] is None else f"{row['advantage']:.2f} ×"
        sign = "≥" if row["better"] == "more" else "≤"
        limit = "–" if row["limit"] is None else f"{sign} {number(row['limit'])}"
        lines.append((row["title"], row["unit"],
                      *(number(row.get(variant)) for variant in cases.ALL),
                      advantage, limit, row["verdict"]))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    text = []
    for line in lines:
        cells = [cell.ljust(width) if i in (0, 1, 8) else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(line, widths))]
        text.append("  ".join(cells).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)
