"""Bundles: the files of a version, stored under the hash of their paths, modes and contents; and uploaded archives.

Formats of archives are parsed by an adapter. Every entry is checked by name, kind and size before its content is
stored. An entry that another operating system or program would read differently is rejected.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Protocol

from builderd.core.errors import TooLarge, ValidationFailed

MAX_PATH_BYTES = 1024
#: The longest name that common Linux file systems take (NAME_MAX).
MAX_SEGMENT_BYTES = 255
MAX_FILES = 2_000
#: Of all files of one request together, as they are stored.
MAX_CONTENT_BYTES = 20_000_000
#: Of a tar: a block, the end, and the headers of a file with a long path (``tarfile.PAX_FORMAT``).
_TAR_BLOCK, _TAR_END, _TAR_HEADERS = 512, 10_240, 2_048
_CHUNK_BYTES = 1 << 20
_HASH = re.compile(r"[0-9a-f]{64}")


class Content(Protocol):
    """Bytes that are stored outside of memory."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, length: int) -> bytes:
        """Return at most ``length`` bytes from ``start``; fewer at the end."""


@dataclass(frozen=True, slots=True, eq=False)
class BundleFile:
    """One file: a relative path with ``/`` between its segments, its bytes, and its executable bit.

    The bytes of a large file are not in memory: read its ``head`` or ``chunks``.
    """

    path: str
    source: bytes | Content
    executable: bool = False

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.size

    @property
    def content(self) -> bytes:
        """All bytes at once."""
        return self.head(self.size)

    def head(self, length: int, start: int = 0) -> bytes:
        """Return its first ``length`` bytes, or those from ``start`` on."""
        if isinstance(self.source, bytes):
            return self.source[start : start + length]
        return self.source.read(start, length)

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes in chunks of at most 1 MiB."""
        return (self.head(_CHUNK_BYTES, start) for start in range(0, self.size, _CHUNK_BYTES))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BundleFile):
            return NotImplemented
        if (self.path, self.executable, self.size) != (other.path, other.executable, other.size):
            return False
        return all(one == another for one, another in zip(self.chunks(), other.chunks(), strict=True))

    def __hash__(self) -> int:
        return hash((self.path, self.executable, self.size))

    @property
    def sha256(self) -> bytes:
        """SHA-256 of its bytes, 32 bytes."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Bundle:
    """Files with the hash that names them: ``hash`` is 64 hex characters, ``size`` the sum of the contents in bytes."""

    hash: str
    files: tuple[BundleFile, ...]
    #: Of a folder's files: all of the code, and the folder within it.
    whole: Bundle | None = field(default=None, compare=False, repr=False)
    root: str = field(default="", compare=False)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def packed_size(self) -> int:
        """Bytes as one tar, at most: each file has a header, and one more for a long path, in blocks of 512 bytes."""
        return _TAR_END + sum(_TAR_HEADERS + len(file.path.encode()) + file.size + _TAR_BLOCK for file in self.files)

    def file(self, path: str) -> BundleFile | None:
        """The file at this path, or None."""
        return next((file for file in self.files if file.path == path), None)


def folder_of(bundle: Bundle, root: str) -> Bundle:
    """Return the files below the folder ``root``, as they lie there, under the bundle's own hash; "": all of them."""
    if not root:
        return bundle
    above = f"{root}/"
    below = (replace(file, path=file.path[len(above) :]) for file in bundle.files if file.path.startswith(above))
    return Bundle(bundle.hash, tuple(below), bundle, root)


def optional_path_error(path: str) -> str | None:
    """Return the reason to reject a path of the code that may be left empty, or None."""
    return path_error(path) if path else None


def make_bundle(files: Iterable[BundleFile]) -> Bundle:
    """Order the files and name them by their hash. The paths must have passed ``path_error``."""
    ordered = tuple(sorted(files, key=lambda file: file.path))
    return Bundle(hash=bundle_hash(ordered), files=ordered)


def bundle_hash(files: Sequence[BundleFile]) -> str:
    """sha256 over each file's mode, the length and text of its path, and its own sha256, in path order."""
    return hash_of_digests((file.path, file.executable, file.sha256) for file in files)


def digest_error(text: str) -> str | None:
    """Return the reason to reject a bundle's hash, or None."""
    return None if _HASH.fullmatch(text) else "must be 64 lower-case hex characters"


def hash_of_digests(files: Iterable[tuple[str, bool, bytes]]) -> str:
    """Return the bundle hash from (path, executable, sha256) of each file."""
    digest = hashlib.sha256(b"builderd bundle 1\n")
    for path, executable, sha256 in sorted(files):
        name = path.encode(errors="surrogateescape")
        mode = b"x" if executable else b"-"
        digest.update(mode + len(name).to_bytes(4, "big") + name + sha256)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Alteration:
    """Change of stored code: ``files`` replace those of the same path or are added, ``removed`` are taken out.

    ``result`` is the expected hash of the outcome, None where the caller does not tell.
    """

    files: tuple[BundleFile, ...] = ()
    removed: tuple[str, ...] = ()
    result: str | None = None


def altered(bundle: Bundle, alteration: Alteration) -> tuple[BundleFile, ...]:
    """Return the files after the alteration, by path.

    Raises ``ValidationFailed`` when a file to remove is missing, a path is used twice, or nothing is left.
    """
    files = {file.path: file for file in bundle.files}
    missing = [path for path in alteration.removed if files.pop(path, None) is None]
    if missing:
        raise ValidationFailed({"stored.remove": [f"names {missing[0]!r}, which is no file of the stored code"]})
    files |= {file.path: file for file in alteration.files}
    errors = {f"files.{path}": [why] for path, why in tree_errors(files).items()}
    if errors or not files:
        raise ValidationFailed(errors or {"stored.remove": ["leaves no file: at least one is needed"]})
    return tuple(sorted(files.values(), key=lambda file: file.path))


def check_size(files: Sequence[BundleFile], limits: ArchiveLimits) -> None:
    """Raise ``TooLarge`` for more files, bytes or names than stored code may have, however it came about."""
    size = sum(file.size for file in files)
    if len(files) > limits.max_files or size > limits.max_bytes:
        raise TooLarge(
            f"The code would have {len(files)} files of {size} bytes together: at most {limits.max_files} files of "
            f"{limits.max_bytes} bytes are taken."
        )
    names = sum(len(file.path.encode()) for file in files)
    if names > MAX_NAMES_BYTES:
        raise TooLarge(f"All names would have {names} bytes together: at most {MAX_NAMES_BYTES} are taken.")


def check_result(found: str, alteration: Alteration) -> None:
    """Raise ``ValidationFailed`` when the outcome is not the expected one."""
    if alteration.result not in (None, found):
        raise ValidationFailed({"stored.result": [f"is not the outcome, which is {found}: send all files"]})


def changes(before: Bundle, after: Bundle) -> tuple[tuple[BundleFile, ...], tuple[str, ...]]:
    """Return the files to write and the paths to remove when ``after`` replaces ``before``.

    A file that is equal in both is left alone: the app may have changed or removed it since.
    """
    known = {file.path: file for file in before.files}
    kept = {file.path for file in after.files}
    written = tuple(file for file in after.files if known.get(file.path) != file)
    return written, tuple(path for path in known if path not in kept)


def path_error(path: str) -> str | None:
    """Return the reason to reject a path, or None for a plain relative path inside the app's folder."""
    if "\0" in path:
        return "must not contain a NUL character"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode text"
    if not path:
        return "must not be empty"
    if path.startswith("/"):
        return "must be relative: leave out the leading /"
    if len(encoded) > MAX_PATH_BYTES:
        return f"must be at most {MAX_PATH_BYTES} bytes long"
    for segment in path.split("/"):
        if segment == "..":
            return "must not contain .."
        if segment in ("", "."):
            return "must not contain an empty or . segment"
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            return f"must not contain a name longer than {MAX_SEGMENT_BYTES} bytes"
    return None


def tree_errors(paths: Iterable[str]) -> Mapping[str, str]:
    """Return path → reason for paths used both as a file and as a folder. They must have passed ``path_error``.

    Sorted with the lowest character as separator, children follow their parent directly: one comparison per path is
    enough, however deep hostile paths are.
    """
    ordered = sorted(set(paths), key=lambda path: path.replace("/", "\0"))
    return {
        path: f"is both a file and the folder of {below!r}"
        for path, below in pairwise(ordered)
        if below.startswith(f"{path}/")
    }


MAX_DEPTH = 64
#: Limit of all names together: they are in memory while an archive is read.
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
        parts = path.split("/")
        for depth in range(1, len(parts)):
            self._note(entry, "/".join(parts[:depth]), is_file=False)
        if self._note(entry, path, is_file) and is_file:
            raise ArchiveRejected(entry, "is there twice")
        if is_file:
            self._count(entry, size)
            self.files[entry] = path

    def _check_name(self, entry: str, path: str) -> None:
        if (reason := name_error(path)) is not None:
            raise ArchiveRejected(entry, f"is refused: its name {reason}")
        self._names += len(path.encode())
        if self._names > MAX_NAMES_BYTES:
            raise ArchiveRejected(
                entry, f"is one too many: all names have over {MAX_NAMES_BYTES} bytes", too_large=True
            )

    def _note(self, entry: str, written: str, is_file: bool) -> bool:
        """Record a path; return True if it was there already.

        Raises ``ArchiveRejected`` for one that some file system treats as equal, and for a file that is also a folder.
        """
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", written).casefold())
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
