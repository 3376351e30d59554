"""Spare files in the data directory, whose blocks are allocated: small files can be replaced on a full disk.

Without them no end of a sandbox could be recorded once the disk is full, and so no deletion could free space. A spare
becomes the new file, so that nobody else gets its blocks in between.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import count
from pathlib import Path

FOLDER = ".spare"
#: How many small files can be replaced on a full disk, and the largest: 4 MB in all. A deletion takes a few.
COUNT, SIZE = 256, 16 << 10


def make_spares(data_dir: Path) -> None:
    """Make what is missing of them. Raises ``OSError`` where the disk is full."""
    folder = data_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    there = {file.name for file in folder.iterdir()}
    names = (str(number) for number in count() if str(number) not in there)
    for _ in range(COUNT - len(there)):
        file = folder / next(names)
        try:
            with file.open("xb") as opened:
                os.fchmod(opened.fileno(), 0o600)
                os.posix_fallocate(opened.fileno(), 0, SIZE)
        except BaseException:
            file.unlink(missing_ok=True)
            raise


def take_spare(path: Path) -> bool:
    """Let a spare of a folder above become this new file. Return False where its file system has none left."""
    device = path.parent.stat().st_dev
    for spare in _spares(path):
        try:
            if spare.stat().st_dev == device:
                spare.rename(path)
                return True
        except OSError:
            continue  # another thread was first
    return False


def _spares(path: Path) -> Iterator[Path]:
    for folder in (parent / FOLDER for parent in path.parents):
        try:
            spares = list(folder.iterdir()) if _is_own(folder) else []
        except OSError:
            continue
        yield from spares


def _is_own(folder: Path) -> bool:
    """Return False where somebody else may have put a file that he keeps open: what is written may be secret."""
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
