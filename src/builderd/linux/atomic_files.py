"""Files that are replaced atomically: a reader sees the old content or the new one, as a whole."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from builderd.linux.durable import sync
from builderd.linux.spare_files import SIZE, take_spare


def replace(path: Path, content: bytes, *, durable: bool = False, mode: int = 0o600) -> None:
    """Replace the file, or make it. Several writers at once do not disturb each other.

    A power cut soon after may leave an empty file, unless it is ``durable``: that waits for the disk, some
    milliseconds. On failure the old file stays. On a full disk a small one takes a spare file of the data directory.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            _write(unfinished, content, os.O_CREAT | os.O_EXCL, mode, durable=durable)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            if error.errno != errno.ENOSPC or len(content) > SIZE or not take_spare(unfinished):
                raise
            unfinished.chmod(mode)
            _write(unfinished, content, 0, mode, durable=durable)
        unfinished.rename(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def _write(path: Path, content: bytes, flags: int, mode: int, *, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.truncate()
        if durable:
            file.flush()
            os.fsync(file.fileno())


def append(file: Path, line: str) -> None:
    """Add a line to an existing file by one write, which a kill of the service cuts off nowhere."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
