"""Room for SQLite on a full disk: blocks behind the ends of its files, allocated while there is space.

Without them a deletion could not be recorded once the disk is full, and so nothing could free space.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import make_url

#: Bytes that each file may grow by on a full disk. A builder's record takes a few pages of 4 KB.
ROOM = 16 << 20
_BLOCK = 512
_TIMEOUT = 30.0

log = logging.getLogger(__name__)


def keep_room(url: str) -> None:
    """Allocate ``ROOM`` bytes behind the end of the database's file and its log, where less than half is left of them.

    Does nothing for another database, and where the file system cannot do it or has no space left.
    """
    for file in _files(url):
        try:
            status = file.stat()
        except OSError:
            continue
        if status.st_blocks * _BLOCK >= status.st_size + ROOM // 2:
            continue
        # A program of its own: this process would drop SQLite's locks by closing a descriptor of these files
        # (https://www.sqlite.org/howtocorrupt.html, 2.2).
        command = ["fallocate", "--keep-size", "--offset", str(status.st_size), "--length", str(ROOM), str(file)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT)
        except (OSError, subprocess.SubprocessError) as error:
            log.debug("no room allocated for the database file=%s error=%s", file, error)


def _files(url: str) -> Iterator[Path]:
    found = make_url(url)
    if found.get_backend_name() == "sqlite" and found.database not in (None, "", ":memory:"):
        yield Path(str(found.database))
        yield Path(f"{found.database}-wal")
