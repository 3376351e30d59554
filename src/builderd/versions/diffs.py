"""Differences between the files of two versions: unified diffs, within limits that keep hostile files cheap.

``difflib`` alone takes 23 s for two hostile files of 4,000 lines: its work grows with the number of equal pairs of
lines, which the files' author chooses, so it is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from enum import StrEnum

from builderd.code.model import Bundle, BundleFile

CONTEXT_LINES = 3
#: Files longer than this, in bytes or lines, are named as changed and not compared line by line.
MAX_BYTES, MAX_LINES = 400_000, 4_000
#: Lines and characters of all diffs together, and files with one; the others are named alone.
MAX_SHOWN_LINES, MAX_SHOWN_CHARACTERS, MAX_SHOWN_FILES = 5_000, 1_000_000, 200

#: Mark of a last line without a line end; it becomes a line of its own, as in all unified diffs.
NO_NEWLINE = "\n\\ No newline at end of file"


@dataclass(slots=True)
class Work:
    """Rest of the limits of one comparison; ``steps``: pairs of equal lines that are looked at, in all its texts."""

    steps: int = 1_000_000
    lines: int = MAX_SHOWN_LINES
    characters: int = MAX_SHOWN_CHARACTERS
    files: int = MAX_SHOWN_FILES

    def take(self, lines: Sequence[str]) -> bool:
        """Count a diff; return False, and count nothing, when it is too long."""
        characters = sum(map(len, lines))
        if not self.files or len(lines) > self.lines or characters > self.characters:
            return False
        self.files, self.lines, self.characters = self.files - 1, self.lines - len(lines), self.characters - characters
        return True


class _Bounded(SequenceMatcher[str]):
    """Compares lines until the work ends; those that are left then count as replaced."""

    a: Sequence[str]
    #: Line of the second text → its positions.
    b2j: dict[str, list[int]]

    def __init__(self, old: Sequence[str], new: Sequence[str], work: Work) -> None:
        super().__init__(None, old, new)
        self._work = work

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> Match:
        self._work.steps -= sum(1 + len(self.b2j.get(line, ())) for line in self.a[alo:ahi])
        return Match(alo, blo, 0) if self._work.steps < 0 else super().find_longest_match(alo, ahi, blo, bhi)


def unified(old: Sequence[str], new: Sequence[str], work: Work) -> Iterator[str]:
    """Yield the unified diff of two texts without its head. Where the work does not suffice, all lines differ."""
    for group in _Bounded(old, new, work).get_grouped_opcodes(CONTEXT_LINES):
        first, last = group[0], group[-1]
        yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@"
        for tag, begin, end, new_begin, new_end in group:
            if tag == "equal":
                yield from (f" {line}" for line in old[begin:end])
                continue
            yield from (f"-{line}" for line in old[begin:end])
            yield from (f"+{line}" for line in new[new_begin:new_end])


def _range(begin: int, end: int) -> str:
    """Return a range of lines as unified diffs write it."""
    count = end - begin
    if count == 1:
        return str(begin + 1)
    return f"{begin + 1 if count else begin},{count}"


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
    before, after = ({file.path: file for file in bundle.files} for bundle in (old, new))
    work = Work()
    paths = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
    return [_difference(path, before.get(path), after.get(path), work) for path in paths]


def _difference(path: str, one: BundleFile | None, other: BundleFile | None, work: Work) -> FileDiff:
    kind = ChangeKind.ADDED if one is None else ChangeKind.REMOVED if other is None else ChangeKind.CHANGED
    modes = (one is not None and one.executable, other is not None and other.executable)
    before, after = (_lines(one), _lines(other)) if work.files and work.lines else (None, None)
    if before is None or after is None:
        return FileDiff(path, kind, compared=False, modes=modes)
    lines = tuple(part for line in unified(before, after, work) for part in line.split("\n"))
    added = sum(line.startswith("+") for line in lines)
    removed = sum(line.startswith("-") for line in lines)
    is_shown = work.take(lines)
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


def patch(files: Sequence[FileDiff], old: int, new: int) -> str:
    """Return the patch. Files without compared lines are named in its head, which programs pass over."""
    head = [f"From version {old} to version {new}."]
    shown = [one for one in files if _is_shown(one)]
    for one in files:
        if one not in shown:
            head += [f"Left out, binary, not UTF-8, too long or without other lines: {_quoted('', one.path)}"]
    return "".join(f"{line}\n" for line in (*head, "", *_patch_lines(shown)))


def _patch_lines(files: Sequence[FileDiff]) -> Iterator[str]:
    for one in files:
        before, after = _quoted("a/", one.path), _quoted("b/", one.path)
        yield f"diff --git {before} {after}"
        yield from _modes(one)
        if one.lines:
            yield f"--- {'/dev/null' if one.kind is ChangeKind.ADDED else _ended(before)}"
            yield f"+++ {'/dev/null' if one.kind is ChangeKind.REMOVED else _ended(after)}"
            yield from one.lines


def _is_shown(one: FileDiff) -> bool:
    """Return True if the patch can say the file's change. Lines that were not UTF-8 have a U+FFFD now."""
    is_changed = one.lines or one.kind is not ChangeKind.CHANGED or one.modes[0] != one.modes[1]
    return one.compared and bool(is_changed) and not any("\ufffd" in line for line in one.lines)


def _modes(one: FileDiff) -> Iterator[str]:
    before, after = ("100755" if is_executable else "100644" for is_executable in one.modes)
    if one.kind is ChangeKind.ADDED:
        yield f"new file mode {after}"
    elif one.kind is ChangeKind.REMOVED:
        yield f"deleted file mode {before}"
    elif before != after:
        yield f"old mode {before}"
        yield f"new mode {after}"


def _quoted(prefix: str, path: str) -> str:
    """Return a name, in git's quotes if it has what could end the line or reorder it."""
    if path.isprintable() and not set(path) & {'"', "\\"}:
        return f"{prefix}{path}"
    shown = path.replace("\\", "\\\\").replace('"', '\\"')
    octal = (one if one.isprintable() else "".join(f"\\{byte:03o}" for byte in one.encode()) for one in shown)
    return f'"{prefix}{"".join(octal)}"'


def _ended(name: str) -> str:
    """Return a name whose end is marked, as git does it for names with spaces."""
    return f"{name}\t" if " " in name and not name.startswith('"') else name
