#!/usr/bin/env python3
"""Files of results: lines `# name: value` that say what was measured where, and then CSV.

Run as a program, it puts the parts of one measurement together: a fact that differs between them
stands in the file once for each.

usage: result_files.py OUT PART...
"""

import csv
import datetime
import os
import platform
import shlex
import sys
from pathlib import Path


def read_results(path):
    """(facts, rows) of a file of results."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    facts = [tuple(line[2:].split(": ", 1)) for line in lines if line.startswith("# ")]
    return facts, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def write_facts(file, facts):
    file.writelines(f"# {name}: {value}\n" for name, value in facts)


def write_results(path, facts, rows):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        write_facts(file, facts)
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def facts_of(threads, versions):
    """What the numbers of the program that runs depend on; the command as it can be typed in a
    checkout, whatever this one's path is, without the file that the numbers go to."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parent.parent
    script = script.relative_to(root) if script.is_relative_to(root) else f"scripts/{script.name}"
    words = sys.argv[1:]
    if "--csv" in words:
        del words[words.index("--csv"):words.index("--csv") + 2]
    return [
        ("device", f"{cpu_name()}, {threads} threads of {os.cpu_count()} cores"),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
        ("date", f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"),
        ("command", " ".join([str(script), shlex.join(words)]).strip()),
    ]


def merged(parts):
    """(facts, rows) of parts that have the same columns."""
    facts, rows = [], []
    for part_facts, part_rows in parts:
        facts += [fact for fact in part_facts if fact not in facts]
        rows += part_rows
    if len({tuple(row) for row in rows}) > 1:
        raise ValueError("the parts have different columns")
    # All values of a name together, in the order in which names came first.
    names = list(dict.fromkeys(name for name, _ in facts))
    return sorted(facts, key=lambda fact: names.index(fact[0])), rows


def main():
    out, *parts = sys.argv[1:]
    write_results(out, *merged([read_results(part) for part in parts]))


if __name__ == "__main__":
    main()
