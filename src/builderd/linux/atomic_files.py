"""Files that are replaced atomically: a reader sees the old content or the new one, as a whole."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from builderd.linux.durable import sync


def replace(path: Path, content: bytes, *, durable: bool = False, mode: int = 0o600) -> None:
    """Replace the file, or make it. Several writers at once do not disturb each other.

    A power cut soon after may leave an empty file, unless it is ``durable``: that waits for the disk, some
    milliseconds. On failure the old file stays.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def append(file: Path, line: str) -> None:
    """Add a line to an existing file by one write, which a kill of the service cuts off nowhere."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
