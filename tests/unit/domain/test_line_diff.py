"""Diffs that lead from one text to the other, and whose work no text can make long."""

from __future__ import annotations

import difflib
import random
import re

from builderd.domain.diffs import MAX_EDITS, Work, unified

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


def patched(old: list[str], diff: list[str]) -> list[str]:
    """Apply a unified diff; its hunks' ranges and context must fit."""
    new, at = [], 0
    for line in diff:
        match = HUNK.fullmatch(line)
        if match:
            begin = int(match[1]) - (match[2] != "0")
            new += old[at:begin]
            at = begin
            assert int(match[3]) - (match[4] != "0") == len(new)
        elif line[0] == "+":
            new.append(line[1:])
        else:
            assert old[at] == line[1:]
            at += 1
            new += [line[1:]] if line[0] == " " else []
    return new + old[at:]


def test_the_diff_of_random_texts_leads_from_one_to_the_other() -> None:
    chance = random.Random(7)
    for _ in range(300):
        old = [chance.choice("abcde") for _ in range(chance.randrange(40))]
        new = [chance.choice("abcde") for _ in range(chance.randrange(40))]
        assert patched(old, list(unified(old, new, Work()))) == new


def test_a_small_change_reads_as_difflib_writes_it() -> None:
    old = [f"line {number}" for number in range(50)]
    new = [*old[:10], "inserted", *old[10:30], "changed", *old[31:]]
    assert list(unified(old, new, Work())) == list(difflib.unified_diff(old, new, lineterm=""))[2:]


def test_hostile_texts_use_up_the_work_and_no_more() -> None:
    common = [f"l{number % 105}" for number in range(2000)]
    old = [line for number, shared in enumerate(common) for line in (shared, f"u{number}")]
    new = [line for number, shared in enumerate(common) for line in (shared, f"v{number}")]
    work = Work()
    assert patched(old, list(unified(old, new, work))) == new
    # The last round that was begun ends: as many steps as diagonals, and each line once for each of them.
    assert work.steps > -(2 * MAX_EDITS + len(old)) * 2
    again = list(unified(old, new, work))
    assert patched(old, again) == new
