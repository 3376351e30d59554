"""Differences between the files of two versions, as unified diffs, within limits that keep hostile files cheap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from builderd.domain.bundles import Bundle, BundleFile
from builderd.domain.line_diff import Work, unified

#: Files longer than this, in bytes or lines, are named as changed and not compared line by line.
MAX_BYTES, MAX_LINES = 400_000, 4_000
#: Lines and characters of all diffs together, and files with one; the others are named alone.
MAX_SHOWN_LINES, MAX_SHOWN_CHARACTERS, MAX_SHOWN_FILES = 5_000, 1_000_000, 200

#: Mark of a last line without a line end; it becomes a line of its own, as in all unified diffs.
NO_NEWLINE = "\n\\ No newline at end of file"


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
    #: Executable bits, the old and the new; False where there is no file.
    modes: tuple[bool, bool] = (False, False)


def compare(old: Bundle, new: Bundle) -> Sequence[FileDiff]:
    """Return the differences by path."""
    return list(_differences(old, new))


def _differences(old: Bundle, new: Bundle) -> Iterator[FileDiff]:
    before, after = ({file.path: file for file in bundle.files} for bundle in (old, new))
    left = _Left()
    for path in sorted(before.keys() | after.keys()):
        one, other = before.get(path), after.get(path)
        if one != other:
            yield _difference(path, one, other, left)


@dataclass(slots=True)
class _Left:
    """Rest of the limits of one comparison."""

    lines: int = MAX_SHOWN_LINES
    characters: int = MAX_SHOWN_CHARACTERS
    files: int = MAX_SHOWN_FILES
    work: Work = field(default_factory=Work)

    def take(self, lines: Sequence[str]) -> bool:
        """Count a diff; return False, and count nothing, when it is too long."""
        characters = sum(map(len, lines))
        if not self.files or len(lines) > self.lines or characters > self.characters:
            return False
        self.files, self.lines, self.characters = self.files - 1, self.lines - len(lines), self.characters - characters
        return True


def _difference(path: str, one: BundleFile | None, other: BundleFile | None, left: _Left) -> FileDiff:
    kind = ChangeKind.ADDED if one is None else ChangeKind.REMOVED if other is None else ChangeKind.CHANGED
    modes = (one is not None and one.executable, other is not None and other.executable)
    before, after = (_lines(one), _lines(other)) if left.files and left.lines else (None, None)
    if before is None or after is None:
        return FileDiff(path, kind, compared=False, modes=modes)
    lines = tuple(part for line in unified(before, after, left.work) for part in line.split("\n"))
    added = sum(line.startswith("+") for line in lines)
    removed = sum(line.startswith("-") for line in lines)
    is_shown = left.take(lines)
    return FileDiff(path, kind, is_shown, added, removed, lines if is_shown else (), modes)


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
    if not lines[-1]:
        lines.pop()
    else:
        lines[-1] += NO_NEWLINE
    return lines if len(lines) <= MAX_LINES else None
