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
    """Boot id of the machine, and time in seconds since 1970."""

    boot: str
    at: float


class Heartbeat:
    def __init__(self, file: Path, boot: str, now: Callable[[], float]) -> None:
        self._file = file
        self._boot = boot
        self._now = now
        self._task: asyncio.Task[None] | None = None
        #: True when the last write failed.
        self._fails = False

    def last(self) -> Beat | None:
        """Return the last heartbeat on disk, None when there is none."""
        try:
            boot, at = self._file.read_text().split()
            return Beat(boot, float(at))
        except (FileNotFoundError, ValueError):
            return None

    def beat(self) -> None:
        """Write a heartbeat through to the disk: a power cut loses one second at most."""
        line = f"{self._boot} {self._now():.3f}".ljust(LENGTH - 1) + "\n"
        file = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(file, line.encode(), 0)
            os.fdatasync(file)
        finally:
            os.close(file)

    def start(self, is_busy: Callable[[], bool]) -> None:
        """Write a heartbeat each second while ``is_busy`` returns True. Needs a running event loop. Idempotent."""
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
        """Write a heartbeat; a failure, such as a full disk, is logged once and the next write retries."""
        try:
            if is_busy():
                await asyncio.to_thread(self.beat)
        except OSError:
            if not self._fails:
                log.warning("heartbeat not written, retrying file=%s", self._file, exc_info=True)
            self._fails = True
        else:
            self._fails = False
