"""Rules for uploaded archives of code, and the mapping from their entries to paths. Formats are parsed by an adapter.

Every entry is checked by name, kind and size before its content is stored. An entry that another operating system or
program would read differently is rejected.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise, takewhile

from builderd.domain.bundles import Bundle, BundleFile, path_error
from builderd.domain.errors import TooLarge, ValidationFailed

MAX_DEPTH = 64
#: Limit of all names together: they are held in memory while an archive is read.
MAX_NAMES_BYTES = 32_000_000
_SHOWN = 200
_DRIVE = re.compile(r"[A-Za-z]:")
#: Folder of icons and attributes that macOS adds to a zip; ignored.
_MACOS = "__MACOSX/"


class EntryKind(StrEnum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "a link, which archives of code may not have: put the file itself there"
    DEVICE = "a device or a pipe"
    SPARSE = "a file with holes"
    ENCRYPTED = "encrypted"
    UNKNOWN = "of a kind that is not known"


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """``max_bytes`` of all files unpacked; ``seconds`` that unpacking may take, ``memory_bytes`` that it may use.

    ``room_bytes``: what the file system has for the outcome; None: enough.
    """

    max_files: int = 100_000
    max_bytes: int = 1_000_000_000
    seconds: int = 120
    memory_bytes: int = 1 << 30
    room_bytes: int | None = None


class ArchiveRejected(Exception):
    """Rejection of an archive. ``entry`` names the bad entry or is empty; ``too_large`` if a limit was exceeded."""

    def __init__(self, entry: str, why: str, *, too_large: bool = False) -> None:
        self.too_large = too_large
        self.message = f"The archive's entry {quote_entry(entry)} {why}." if entry else f"The archive {why}."
        super().__init__(self.message)


def quote_entry(entry: str) -> str:
    """Quote a name as ASCII for a message, cut to 200 characters."""
    cut = entry if len(entry) <= _SHOWN else f"{entry[:_SHOWN]}…"
    return json.dumps(cut, ensure_ascii=True)


@dataclass(slots=True)
class ArchiveIndex:
    """Index of an archive's entries: checks each one and maps its files to paths in the bundle."""

    limits: ArchiveLimits
    files: dict[str, str] = field(default_factory=dict)
    _size: int = 0
    _names: int = 0
    #: Case-folded path → the path as written, and True for a file.
    _seen: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def add(self, entry: str, kind: EntryKind, size: int) -> None:
        """Add one entry; ``size`` in bytes. Raises ``ArchiveRejected``."""
        path = _relative(entry)
        if path is None:
            return
        self._check_name(entry, path)
        if kind not in (EntryKind.FILE, EntryKind.FOLDER):
            raise ArchiveRejected(entry, f"is {kind.value}")
        is_file = kind is EntryKind.FILE
        self._claim(entry, path, is_file)
        if is_file:
            self._count(entry, size)
            self.files[entry] = path

    def _check_name(self, entry: str, path: str) -> None:
        reason = name_error(path)
        if reason:
            raise ArchiveRejected(entry, f"is refused: its name {reason}")
        self._names += len(path.encode())
        if self._names > MAX_NAMES_BYTES:
            raise ArchiveRejected(
                entry, f"is one too many: all names have over {MAX_NAMES_BYTES} bytes", too_large=True
            )

    def _claim(self, entry: str, path: str, is_file: bool) -> None:
        """Reject names that some file system treats as equal, and a file that is also a folder."""
        parts = path.split("/")
        for depth in range(1, len(parts)):
            self._note(entry, "/".join(parts[:depth]), is_file=False)
        if self._note(entry, path, is_file) and is_file:
            raise ArchiveRejected(entry, "is there twice")

    def _note(self, entry: str, written: str, is_file: bool) -> bool:
        """Record a path; return True if it was there already."""
        folded = _folded(written)
        known = self._seen.get(folded)
        if known is None:
            self._seen[folded] = (written, is_file)
            return False
        if known[0] != written:
            raise ArchiveRejected(
                entry, f"differs from {quote_entry(known[0])} only in the case or the coding of its letters"
            )
        if known[1] != is_file:
            raise ArchiveRejected(entry, f"makes {quote_entry(written)} both a file and a folder")
        return True

    def _count(self, entry: str, size: int) -> None:
        self._size += size
        if len(self.files) >= self.limits.max_files:
            raise ArchiveRejected(
                entry, f"is one too many: at most {self.limits.max_files} files are taken", too_large=True
            )
        if size < 0 or self._size > self.limits.max_bytes:
            why = f"is too large: at most {self.limits.max_bytes} bytes are taken, of all files together"
            raise ArchiveRejected(entry, why, too_large=True)

    def paths(self) -> dict[str, str]:
        """Return entry → path, without a top folder that contains everything. Raises ``ArchiveRejected``."""
        if not self.files:
            raise ArchiveRejected("", "has no files")
        tops = {path.partition("/")[0] if "/" in path else "" for path in self.files.values()}
        if len(tops) > 1 or "" in tops:
            return self.files
        (top,) = tops
        return {entry: path.removeprefix(f"{top}/") for entry, path in self.files.items()}


def _relative(entry: str) -> str | None:
    """Strip ``./`` and a trailing ``/``; None for an entry that is ignored."""
    path = entry
    while path.startswith("./"):
        path = path.removeprefix("./")
    path = path.removesuffix("/") if len(path) > 1 else path
    return None if path in ("", ".") or f"{path}/".startswith(_MACOS) else path


def name_error(path: str) -> str | None:
    """Return the reason to reject an entry's name, or None."""
    if "\\" in path:
        return "must not contain a backslash: a folder's name ends with / in an archive"
    if _DRIVE.match(path):
        return "must be relative: leave out the drive's letter"
    if path.count("/") >= MAX_DEPTH:
        return f"must not lie over {MAX_DEPTH} folders deep"
    return path_error(path)


def check_added(before: Bundle, files: Sequence[BundleFile]) -> None:
    """Hold the rules of an archive's names for the paths of ``files`` that ``before`` does not have.

    Code that came as JSON may have names which an archive may not: they stay. Raises ``ValidationFailed``, and
    ``TooLarge`` when all names together are too long.
    """
    known = {file.path for file in before.files}
    paths = [file.path for file in files]
    added = {path for path in paths if path not in known}
    if not added:
        return
    errors = {path: why for path in sorted(added) if (why := name_error(path))} or _twins(paths, added)
    if errors:
        raise ValidationFailed({f"files.{path}": [why] for path, why in errors.items()})
    size = sum(len(path.encode()) for path in paths)
    if size > MAX_NAMES_BYTES:
        raise TooLarge(f"All names would have {size} bytes together: at most {MAX_NAMES_BYTES} are taken.")


def _twins(paths: Iterable[str], added: Collection[str]) -> Mapping[str, str]:
    """Return added path → reason for those of which a part differs from another path only in case or coding.

    Sorted, all paths below one folder, however it is written, follow each other: neighbours alone are compared.
    """
    ordered = sorted((_folded(path).replace("/", "\0"), path) for path in paths)
    errors = {}
    for (one_folded, one), (other_folded, other) in pairwise(ordered):
        path, neighbour = (other, one) if other in added else (one, other)
        if path not in added:
            continue
        folded = zip(one_folded.split("\0"), other_folded.split("\0"), strict=False)
        shared = sum(1 for _ in takewhile(lambda parts: parts[0] == parts[1], folded))
        if path.split("/")[:shared] != neighbour.split("/")[:shared]:
            errors[path] = f"differs from {quote_entry(neighbour)} only in the case or the coding of its letters"
    return errors


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
