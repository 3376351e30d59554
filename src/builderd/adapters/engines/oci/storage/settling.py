"""Settling: what was written becomes safe on the disk a little later, while the app that waits for it starts.

A folder that was filled is marked with the boot of the machine, in a file ``boot``, until the file system was synced.
A mark of another boot says that the machine went down in between: what the folder holds may be damaged, and has to be
made again. A service that is killed loses nothing, since the kernel still has what it wrote.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from builderd.adapters.engines.oci.storage.subvolumes import folder
from builderd.linux.syscalls import sync_file_system

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MARK = "boot"
#: A burst of deployments is settled at once, and after the apps have started.
DELAY_SECONDS = 5.0


class Settling:
    """For the file system that ``root`` lies on. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._marked: set[Path] = set()
        self._timer: threading.Timer | None = None

    def mark(self, filled: Path) -> None:
        """Call it when the folder is filled, and before what is in it gets the name by which it is found."""
        with self._lock:
            (filled / MARK).write_text(_boot())
            self._settle_later(filled)

    def adopt(self, filled: Path) -> bool:
        """Take over a folder of an earlier service: False when a crash of the machine may have damaged it."""
        if is_damaged(filled):
            return False
        if (filled / MARK).exists():
            with self._lock:
                self._settle_later(filled)
        return True

    def _settle_later(self, filled: Path) -> None:
        self._marked.add(filled)
        if self._timer is None:
            self._timer = threading.Timer(DELAY_SECONDS, self._try)
            self._timer.daemon = True
            self._timer.start()

    def _try(self) -> None:
        """Marks that stay cost some work after a crash of the machine, and no more."""
        try:
            self.settle()
        except OSError as error:
            log.warning("the store could not be synced: %s", error)

    def settle(self) -> None:
        """Make safe what is marked. Waits for everything that is to be written to the file system."""
        with self._lock:
            settled, self._marked, self._timer = self._marked, set(), None
        with folder(self._root) as root:
            sync_file_system(root)
        with self._lock:
            for filled in settled - self._marked:
                (filled / MARK).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the rest to the next service."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            self._timer = None


def is_damaged(filled: Path) -> bool:
    """Whether the machine went down after the folder was filled and before it was safe on the disk."""
    try:
        return (filled / MARK).read_text() != _boot()
    except FileNotFoundError:
        return False


def _boot() -> str:
    return BOOT_ID.read_text()
