"""The heartbeat: written each second while something runs, so that after a crash of the machine the end is known."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from builderd.linux.threads import RepeatedCall

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
        self._calls: RepeatedCall[bool] | None = None
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
        """Write a heartbeat each second while ``is_busy`` returns True. Needs a running event loop."""
        self._calls = RepeatedCall("heartbeat", INTERVAL, is_busy, self._try)
        self._calls.start()

    def stop(self) -> None:
        if self._calls is not None:
            self._calls.close()

    def _try(self, is_busy: bool) -> None:
        """Write a heartbeat; a failure, such as a full disk, is logged once and the next write retries."""
        try:
            if is_busy:
                self.beat()
            self._fails = False
        except OSError:
            if not self._fails:
                log.warning("heartbeat not written, retrying file=%s", self._file, exc_info=True)
            self._fails = True
