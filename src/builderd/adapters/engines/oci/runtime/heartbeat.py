"""The heartbeat: written each second while something runs, so that after a crash of the machine the end is known."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

INTERVAL = 1.0
#: The file never changes its length, so that writing it again touches nothing else of the file system.
LENGTH = 80

log = logging.getLogger(__name__)


class Beat(NamedTuple):
    """In which boot of the machine, and when, in seconds since 1970."""

    boot: str
    at: float


class Heartbeat:
    def __init__(self, file: Path, boot: str, now: Callable[[], float]) -> None:
        self._file = file
        self._boot = boot
        self._now = now
        self._task: asyncio.Task[None] | None = None
        #: Whether the last one could not be written.
        self._fails = False

    def last(self) -> Beat | None:
        """The last one that is on disk."""
        try:
            boot, at = self._file.read_text().split()
            return Beat(boot, float(at))
        except (FileNotFoundError, ValueError):
            return None

    def beat(self) -> None:
        """Written through to the disk: a power cut takes a second at most."""
        line = f"{self._boot} {self._now():.3f}".ljust(LENGTH - 1) + "\n"
        file = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(file, line.encode(), 0)
            os.fdatasync(file)
        finally:
            os.close(file)

    def start(self, is_busy: Callable[[], bool]) -> None:
        """Beat while ``is_busy``. Needs a running event loop. Idempotent."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._go_on(is_busy))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _go_on(self, is_busy: Callable[[], bool]) -> None:
        while True:
            await self._try(is_busy)
            await asyncio.sleep(INTERVAL)

    async def _try(self, is_busy: Callable[[], bool]) -> None:
        """Where it fails, as on a disk that is full or does not answer, the next one makes up for it."""
        try:
            if is_busy():
                await asyncio.to_thread(self.beat)
        except OSError:
            if not self._fails:
                log.warning("the heartbeat cannot be kept in %s; it is tried again", self._file, exc_info=True)
            self._fails = True
        else:
            self._fails = False
