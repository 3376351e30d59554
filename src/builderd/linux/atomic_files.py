"""Files that are replaced atomically, JSON files among them, and files that are written through to the disk.

A reader of a replaced file sees the old content or the new one, as a whole.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from builderd.core.errors import EngineUnavailable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


#: Bytes of a page, which the kernel writes as a whole.
_PAGE = 4096


def replace(path: Path, content: bytes, *, durable: bool = False, mode: int = 0o600) -> None:
    """Replace the file, or make it. Several writers at once do not disturb each other.

    A power cut soon after may leave an empty file, unless it is ``durable``: that waits for the disk, some
    milliseconds. On failure the old file stays. On a full disk, a file of a page is overwritten in its own block, and
    may have newlines at its end: the end of a sandbox can be recorded, and so a deletion free space.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write(unfinished, content, mode, durable=durable)
        unfinished.rename(path)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.errno != errno.ENOSPC or not _overwrite(path, content):
            raise
    if durable:
        sync(path.parent)


def _write(path: Path, content: bytes, mode: int, *, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _overwrite(path: Path, content: bytes) -> bool:
    """Write the content into the existing file's block. Return False when it is too small, or has another name."""
    known = path.lstat() if path.exists() else None
    if known is None or not stat.S_ISREG(known.st_mode) or known.st_nlink > 1:
        return False
    if len(content) > min(_PAGE, known.st_blocks * 512):
        return False
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, content.ljust(os.fstat(descriptor).st_size, b"\n"), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def write(path: Path, content: bytes) -> None:
    """Write and sync a file in place. A new file's name is durable only once its folder is synced (``sync``)."""
    _fill(path, io.BytesIO(content))


def copy(source: Path, target: Path) -> None:
    """Copy a file's content and sync it; see ``write``."""
    with source.open("rb") as content:
        _fill(target, content)


def sync(path: Path) -> None:
    """Sync a file's content or a folder's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(path: Path, content: BinaryIO) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


T = TypeVar("T", bound="DataclassInstance")


def write_json(path: Path, value: object, *, durable: bool = False) -> None:
    """Replace the file atomically, readable by its owner only.

    A power cut soon after may leave an empty file, unless it is ``durable``: that waits for the disk, some
    milliseconds.
    """
    replace(path, json.dumps(value).encode(), durable=durable)


def read_json(path: Path, remedy: str) -> Any:
    """Return the parsed file, None when there is none.

    Raises ``EngineUnavailable`` when it is not JSON, with the file's name and the remedy.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise EngineUnavailable(f"{path} is damaged. {remedy}") from error


def from_stored(kind: type[T], found: Mapping[str, Any]) -> T:
    """Return the dataclass of a stored object.

    Fields that only a later version knows are ignored, or kept for ``to_stored`` where the dataclass has ``unknown``.
    """
    names = {field.name for field in fields(kind)}
    known = {name: value for name, value in found.items() if name in names}
    if "unknown" in names:
        known["unknown"] = {name: value for name, value in found.items() if name not in names}
    return kind(**known)


def to_stored(value: DataclassInstance) -> dict[str, Any]:
    """Return the object to store, with the fields that a later version had stored."""
    known = asdict(value)
    return {**known.pop("unknown", {}), **known}


def read_if_there(path: str | Path) -> str | None:
    """Return the file's text, None when there is no such file."""
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return None
