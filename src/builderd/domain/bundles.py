"""A bundle is the files of a version, stored under the hash of their paths, modes and contents."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from builderd.domain.errors import TooLarge, ValidationFailed

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
        return self.source if isinstance(self.source, bytes) else self.source.read(0, self.source.size)

    def head(self, length: int) -> bytes:
        """Return its first ``length`` bytes."""
        return self.source[:length] if isinstance(self.source, bytes) else self.source.read(0, length)

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes in chunks of at most 1 MiB."""
        if isinstance(self.source, bytes):
            yield self.source
            return
        for start in range(0, self.source.size, _CHUNK_BYTES):
            yield self.source.read(start, _CHUNK_BYTES)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BundleFile):
            return NotImplemented
        if (self.path, self.executable, self.size) != (other.path, other.executable, other.size):
            return False
        return all(self._piece(at) == other._piece(at) for at in range(0, self.size, _CHUNK_BYTES))

    def _piece(self, start: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start : start + _CHUNK_BYTES]
        return self.source.read(start, _CHUNK_BYTES)

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
    above = f"{root}/"
    return (
        Bundle(
            bundle.hash,
            tuple(replace(file, path=file.path[len(above) :]) for file in bundle.files if file.path.startswith(above)),
        )
        if root
        else bundle
    )


def root_error(root: str) -> str | None:
    """Return the reason to reject the folder of an app within its code, or None; "": the code's own folder."""
    return path_error(root) if root else None


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
        name = path.encode()
        mode = b"x" if executable else b"-"
        digest.update(mode + len(name).to_bytes(4, "big") + name + sha256)
    return digest.hexdigest()


class SizeLimits(Protocol):
    """Limits of the code of one version."""

    @property
    def max_files(self) -> int: ...

    @property
    def max_bytes(self) -> int: ...


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


def check_size(files: Sequence[BundleFile], limits: SizeLimits) -> None:
    """Raise ``TooLarge`` for more files or bytes than stored code may have, however it came about."""
    size = sum(file.size for file in files)
    if len(files) > limits.max_files or size > limits.max_bytes:
        raise TooLarge(
            f"The code would have {len(files)} files of {size} bytes together: at most {limits.max_files} files of "
            f"{limits.max_bytes} bytes are taken."
        )


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
    return _segment_error(path.split("/"))


def _segment_error(segments: list[str]) -> str | None:
    for segment in segments:
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
