"""Bytes on the way through the service: a few in memory, more in a file without a name.

Many clients may send large bodies at once: in memory they would end the service.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from typing import IO

#: Bytes of a body in memory.
MEMORY_BYTES = 1_000_000
#: On a disk, where /tmp may be in memory (file-hierarchy(7)).
FOLDER = "/var/tmp"  # noqa: S108 -- the files have no name


class Body:
    """Body of a request as it arrived. Reading it does not change it."""

    def __init__(self, content: bytes = b"") -> None:
        self.size = 0
        self._memory = bytearray()
        self._spool: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._take(content)

    def _take(self, piece: bytes) -> None:
        self._memory += piece
        self.size += len(piece)
        self._digest.update(piece)

    async def add(self, piece: bytes) -> None:
        """Append a piece; what is in memory goes to the disk once there is too much of it."""
        self._take(piece)
        if len(self._memory) > MEMORY_BYTES:
            await asyncio.to_thread(self._spill)

    def _spill(self) -> None:
        self._spool = self._spool or tempfile.TemporaryFile(dir=FOLDER)  # noqa: SIM115 -- lives as long as the body
        self._spool.write(self._memory)
        self._memory = bytearray()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self) -> bytes:
        """Return all bytes."""
        if self._spool is None:
            return bytes(self._memory)
        self._spool.seek(0)
        return self._spool.read() + self._memory
