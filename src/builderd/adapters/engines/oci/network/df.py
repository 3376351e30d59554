#!/usr/bin/python3 -I
"""``df`` of sandboxes: GNU df, with the limits of the builder's disk in place of the machine's store.

Copied to ``/usr/local/bin/df`` of every sandbox and run by the base's Python. The service writes the limits to
``LIMITS``. Options that it does not know, and a sandbox without that file, get GNU df's own output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

GNU = "/usr/bin/df"
LIMITS = "/run/limits/disk"
#: Where the disk is seen beside ``/app``.
ALIASES = {"/home/app": "/app"}
FIELDS = "source,fstype,size,used,target"
#: Options that choose rows, by whether the next word belongs to them, and the short ones among those that choose units.
ROWS = {"-a": False, "--all": False, "-l": False, "--local": False, "-t": True, "-x": True}
UNITS = {
    "-h": (1024, True),
    "--human-readable": (1024, True),
    "-H": (1000, True),
    "--si": (1000, True),
    "-k": (1024, False),
    "-m": (1 << 20, False),
    "-BM": (1 << 20, False),
    "-BG": (1 << 30, False),
    "-B1": (1, False),
}
OTHERS = ("-T", "--print-type", "-P", "--portability")
NAMES = {1 << 20: "1M-blocks", 1 << 30: "1G-blocks", 1: "1B-blocks"}


def main(words: Sequence[str]) -> int:
    limits = read_limits(LIMITS)
    split = split_words(words)
    if not limits or split is None:
        os.execv(GNU, ["df", *words])  # noqa: S606 -- the program itself, without a shell
    rows, options = split
    done = subprocess.run([GNU, f"--output={FIELDS}", "-B1", *rows], stdout=subprocess.PIPE, text=True, check=False)
    everything = {"-a", "--all"}.intersection(rows) or any(not word.startswith("-") for word in rows)
    table = make_table(done.stdout if everything else without_single_files(done.stdout), limits, options)
    sys.stdout.write("".join(f"{line}\n" for line in table))
    return done.returncode


def read_limits(path: str) -> Mapping[str, tuple[int, int]]:
    """Return size and used bytes by path; empty if nothing is known."""
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return {}
    found = {line[0]: (int(line[1]), int(line[2])) for line in lines if len(line) == 3}
    return {path: space for path, space in found.items() if space[0]}


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Return (what chooses rows, options of the output); None if a word is not known here."""
    rows: list[str] = []
    options: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*rows, "--", *rest], options
        if word in ROWS:
            rows += [word, *(rest[:1] if ROWS[word] else ())]
            rest = rest[1:] if ROWS[word] else rest
        elif word in UNITS or word in OTHERS:
            options.append(word)
        elif ROWS.get(word[:2]) and len(word) > 2:
            rows.append(word)  # the value is attached: -tbtrfs
        elif word[:1] == "-" and "-" not in word[1:3] and len(word) > 2 and word[:2] != "-B":
            rest = [word[:2], f"-{word[2:]}", *rest]
        elif word.startswith("-"):
            return None
        else:
            rows.append(word)
    return rows, options


def without_single_files(output: str) -> str:
    """Leave out what is mounted over a file, such as ``/proc/stat``: those rows tell the host's disks."""
    head, *rows = output.splitlines() or [""]
    return "\n".join([head, *(row for row in rows if Path(row.split(maxsplit=4)[4]).is_dir())])


def make_table(output: str, limits: Mapping[str, tuple[int, int]], options: Sequence[str]) -> list[str]:
    """Return the lines, from GNU df's with ``FIELDS`` in bytes."""
    unit, human = next((UNITS[one] for one in reversed(options) if one in UNITS), (1024, False))
    has_type = any(one in OTHERS[:2] for one in options)
    size_name = "Size" if human else NAMES.get(unit, "1K-blocks")
    head = ["Filesystem", "Type", size_name, "Used", "Avail" if human else "Available", "Use%", "Mounted on"]
    rows = [_row(line, limits, unit, human) for line in output.splitlines()[1:]]
    columns = [head, *rows] if rows else []
    if not has_type:
        columns = [[row[0], *row[2:]] for row in columns]
    left = 2 if has_type else 1
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    return [
        " ".join(
            cell if number == len(row) - 1 else cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in columns
    ]


def _row(line: str, limits: Mapping[str, tuple[int, int]], unit: int, human: bool) -> list[str]:
    source, kind, size_text, used_text, target = line.split(maxsplit=4)
    size, used = (0 if text == "-" else int(text) for text in (size_text, used_text))
    size, used = limits.get(ALIASES.get(target, target), (size, used))
    free = max(size - used, 0)
    share = f"{-(-100 * used // (used + free))}%" if used + free else "-"
    shown = [_human(amount, unit) if human else str(-(-amount // unit)) for amount in (size, used, free)]
    return [source, kind, *shown, share, target]


def _human(amount: int, unit: int) -> str:
    """Return the amount as GNU's ``-h`` writes it: rounded up, with one digit after the point below 10."""
    step = 0
    value = float(amount)
    while value >= unit and step < 6:
        value, step = value / unit, step + 1
    if step == 0:
        return str(amount)
    tenths = -int(-value * 10 // 1)
    text = f"{tenths / 10:.1f}" if tenths < 100 else str(-int(-value // 1))
    return text + ("KMGTPE" if unit == 1024 else "kMGTPE")[step - 1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
