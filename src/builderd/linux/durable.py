"""Files that a power cut leaves as they were before, or whole: for their owner alone, and on the disk on return."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import BinaryIO


def write(path: Path, content: bytes) -> None:
    """Fill a new file, or an old one in place; its name is on the disk once its folder is (``sync``)."""
    _fill(path, io.BytesIO(content))


def copy(source: Path, target: Path) -> None:
    """The same of a file's content."""
    with source.open("rb") as content:
        _fill(target, content)


def replace(path: Path, content: bytes) -> None:
    """The whole file at once, with its name. One writer at a time: what one of them left unfinished, the next takes."""
    fresh = path.with_name(f"{path.name}.new")
    write(fresh, content)
    fresh.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have what lies in a file, or the names in a folder, on the disk."""
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
