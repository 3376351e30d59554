"""Durable files: after a power cut they are old or new as a whole; mode 0600, synced on return."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import BinaryIO


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
