"""Differences between the files of two versions, as unified diffs, within limits that keep hostile files cheap."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from builderd.domain.bundles import Bundle, BundleFile

#: Files longer than this, in bytes or lines, are named as changed and not compared line by line.
MAX_BYTES, MAX_LINES = 400_000, 4_000
#: Lines of all diffs together, and files with one; the others are named alone.
MAX_SHOWN_LINES, MAX_SHOWN_FILES = 5_000, 200
CONTEXT_LINES = 3


class ChangeKind(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class FileDiff:
    """Difference of one file. ``lines`` is a unified diff without its head; empty when ``compared`` is False.

    A file is not compared when it is binary, too long, or beyond the limits of the whole diff.
    """

    path: str
    kind: ChangeKind
    compared: bool
    added: int = 0
    removed: int = 0
    lines: tuple[str, ...] = ()


def compare(old: Bundle, new: Bundle) -> Sequence[FileDiff]:
    """Return the differences by path."""
    return list(_differences(old, new))


def _differences(old: Bundle, new: Bundle) -> Iterator[FileDiff]:
    before, after = ({file.path: file for file in bundle.files} for bundle in (old, new))
    left = MAX_SHOWN_LINES
    shown = 0
    for path in sorted(before.keys() | after.keys()):
        one, other = before.get(path), after.get(path)
        if one == other:
            continue
        found = _difference(path, one, other, left if shown < MAX_SHOWN_FILES else 0)
        left -= len(found.lines)
        shown += found.compared
        yield found


def _difference(path: str, one: BundleFile | None, other: BundleFile | None, left: int) -> FileDiff:
    kind = ChangeKind.ADDED if one is None else ChangeKind.REMOVED if other is None else ChangeKind.CHANGED
    before, after = _lines(one), _lines(other)
    if before is None or after is None or left <= 0:
        return FileDiff(path, kind, compared=False)
    lines = list(difflib.unified_diff(before, after, n=CONTEXT_LINES, lineterm=""))[2:]
    added = sum(line.startswith("+") for line in lines)
    removed = sum(line.startswith("-") for line in lines)
    return FileDiff(path, kind, len(lines) <= left, added, removed, tuple(lines) if len(lines) <= left else ())


def _lines(file: BundleFile | None) -> list[str] | None:
    """Return the text's lines, none for no file, and None for a file that is not compared."""
    if file is None:
        return []
    if file.size > MAX_BYTES:
        return None
    content = file.content
    if b"\0" in content:
        return None
    lines = content.decode("utf-8", "replace").split("\n")
    return lines if len(lines) <= MAX_LINES else None
