"""Patch of a difference between two versions' files, as ``git apply`` takes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from builderd.domain.diffs import ChangeKind, FileDiff


def patch(files: Sequence[FileDiff], old: int, new: int) -> str:
    """Return the patch. Files without compared lines are named in its head, which programs pass over."""
    return "".join(f"{line}\n" for line in _lines(files, old, new))


def _lines(files: Sequence[FileDiff], old: int, new: int) -> Iterator[str]:
    yield f"From version {old} to version {new}."
    shown = [one for one in files if _is_shown(one)]
    left_out = [one for one in files if one not in shown]
    yield from (
        f"Left out, binary, not UTF-8, too long or without other lines: {_quoted('', one.path)}" for one in left_out
    )
    yield ""
    for one in shown:
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
    return f'"{prefix}{"".join(map(_escaped, path))}"'


def _escaped(letter: str) -> str:
    if letter in ('"', "\\"):
        return f"\\{letter}"
    return letter if letter.isprintable() else "".join(f"\\{byte:03o}" for byte in letter.encode())


def _ended(name: str) -> str:
    """Return a name whose end is marked, as git does it for names with spaces."""
    return f"{name}\t" if " " in name and not name.startswith('"') else name
