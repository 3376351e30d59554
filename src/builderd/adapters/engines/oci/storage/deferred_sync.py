"""Deferred sync: written folders become durable a few seconds later, while the app that waits for them starts.

A filled folder is marked with the machine's boot id, in a file ``boot``, until the file system was synced. A mark of
another boot means that the machine went down in between: the folder's content may be damaged and has to be made again.
A service that is killed loses nothing, since the kernel still has what it wrote.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from builderd.adapters.engines.oci.storage.subvolumes import folder
from builderd.linux.json_files import read_if_there
from builderd.linux.processes import boot_id
from builderd.linux.syscalls import sync_file_system

log = logging.getLogger(__name__)

MARK = "boot"
#: One sync covers a burst of deployments, and runs after their apps have started.
DELAY_SECONDS = 5.0


class DeferredSync:
    """Sync of the file system that ``root`` lies on, for folders marked since the last one. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._marked: set[Path] = set()
        self._timer: threading.Timer | None = None

    def mark(self, filled: Path) -> None:
        """Mark a filled folder as not yet durable. Call it before its content gets its final name."""
        with self._lock:
            (filled / MARK).write_text(boot_id())
            self._sync_later(filled)

    def adopt(self, filled: Path) -> bool:
        """Take over a folder of an earlier service; return False when a crash of the machine may have damaged it."""
        if is_damaged(filled):
            return False
        if (filled / MARK).exists():
            with self._lock:
                self._sync_later(filled)
        return True

    def _sync_later(self, filled: Path) -> None:
        self._marked.add(filled)
        if self._timer is None:
            self._timer = threading.Timer(DELAY_SECONDS, self._try)
            self._timer.daemon = True
            self._timer.start()

    def _try(self) -> None:
        """Sync; on failure the marks stay, which only costs some work after a crash of the machine."""
        try:
            self.sync()
        except OSError as error:
            log.warning("store sync failed root=%s error=%s", self._root, error)

    def sync(self) -> None:
        """Sync the file system and remove the marks set before. Waits for everything that is still to be written."""
        with self._lock:
            synced, self._marked, self._timer = self._marked, set(), None
        with folder(self._root) as root:
            sync_file_system(root)
        with self._lock:
            for filled in synced - self._marked:
                (filled / MARK).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the marked folders to the next service."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            self._timer = None


def is_damaged(filled: Path) -> bool:
    """Return True when the machine went down after the folder was filled and before it was synced."""
    mark = read_if_there(filled / MARK)
    return mark is not None and mark.strip() != boot_id()
