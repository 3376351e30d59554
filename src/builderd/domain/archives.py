"""What an archive of code may hold, and what becomes of the names in it. Pure: formats are an adapter's business.

Every entry is judged by its name, kind and size before anything of it is kept. Refused is what means something else on
another system than on this one, or to another program than to this one.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from enum import StrEnum

from builderd.domain.bundles import path_error

MAX_DEPTH = 64
#: The names of all files together: so much is held in memory while an archive is read.
MAX_NAMES_BYTES = 32_000_000
_SHOWN = 200
_DRIVE = re.compile(r"[A-Za-z]:")
#: What macOS puts beside the files of a zip: their icons and attributes.
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
    """``max_bytes`` of all files unpacked; ``seconds`` that unpacking may take, ``memory_bytes`` that it may use."""

    max_files: int = 100_000
    max_bytes: int = 1_000_000_000
    seconds: int = 120
    memory_bytes: int = 1 << 30


class ArchiveRejected(Exception):
    """An archive is not taken. ``entry`` is the one at fault, or empty; ``too_large`` when a limit is the reason."""

    def __init__(self, entry: str, why: str, *, too_large: bool = False) -> None:
        self.too_large = too_large
        self.message = f"The archive's entry {quote_entry(entry)} {why}." if entry else f"The archive {why}."
        super().__init__(self.message)


def quote_entry(entry: str) -> str:
    """A name as it can stand in a message, whatever is in it."""
    cut = entry if len(entry) <= _SHOWN else f"{entry[:_SHOWN]}…"
    return json.dumps(cut, ensure_ascii=True)


@dataclass(slots=True)
class ArchiveIndex:
    """Goes through the entries of an archive, and knows then where each of its files goes."""

    limits: ArchiveLimits
    files: dict[str, str] = field(default_factory=dict)
    _size: int = 0
    _names: int = 0
    #: By their folded form: how a path is written, and whether it is a file.
    _seen: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def add(self, entry: str, kind: EntryKind, size: int) -> None:
        """Raises ``Refused``."""
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
        fault = name_error(path)
        if fault:
            raise ArchiveRejected(entry, f"is refused: its name {fault}")
        self._names += len(path)
        if self._names > MAX_NAMES_BYTES:
            raise ArchiveRejected(
                entry, f"is one too many: all names have over {MAX_NAMES_BYTES} bytes", too_large=True
            )

    def _claim(self, entry: str, path: str, is_file: bool) -> None:
        """Two names that some file system takes for one, and a file that is a folder too, are refused."""
        parts = path.split("/")
        for depth in range(1, len(parts)):
            self._note(entry, "/".join(parts[:depth]), is_file=False)
        if self._note(entry, path, is_file) and is_file:
            raise ArchiveRejected(entry, "is there twice")

    def _note(self, entry: str, written: str, is_file: bool) -> bool:
        """Whether it was known already."""
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
        """Where each file's entry goes; a folder that has all the others in it is left out. Raises ``Refused``."""
        if not self.files:
            raise ArchiveRejected("", "has no files")
        tops = {path.partition("/")[0] if "/" in path else "" for path in self.files.values()}
        if len(tops) > 1 or "" in tops:
            return self.files
        (top,) = tops
        return {entry: path.removeprefix(f"{top}/") for entry, path in self.files.items()}


def _relative(entry: str) -> str | None:
    """Without what says no more than that it is a path; None for what is passed over."""
    path = entry
    while path.startswith("./"):
        path = path.removeprefix("./")
    path = path.removesuffix("/") if len(path) > 1 else path
    return None if path in ("", ".") or f"{path}/".startswith(_MACOS) else path


def name_error(path: str) -> str | None:
    """Why a name in an archive is refused, or None."""
    if "\\" in path:
        return "must not contain a backslash: a folder's name ends with / in an archive"
    if _DRIVE.match(path):
        return "must be relative: leave out the drive's letter"
    if path.count("/") >= MAX_DEPTH:
        return f"must not lie over {MAX_DEPTH} folders deep"
    return path_error(path)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
