"""Deletion of large folders in the background, by a thread of its own: they may hold millions of files.

Each folder is emptied where it lies. It is not moved first: on a full disk the kernel refuses a rename.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from builderd.adapters.engines.oci.storage.subvolumes import folder
from builderd.adapters.engines.oci.storage.tree import clear

log = logging.getLogger(__name__)

#: Time slice of one folder before the next one gets the thread: an app may refill its own without end.
SLICE_SECONDS = 5.0


class BackgroundDelete:
    """Queue of folders to be emptied, round robin in slices of ``SLICE_SECONDS``. Thread-safe."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "background-delete")
        self._closed = threading.Event()
        #: Held while a folder joins the queue or leaves it.
        self._lock = threading.Lock()
        #: Each folder is queued once, however often it is added: one slice a round for one disk.
        self._queued: set[Path] = set()

    def add(self, path: Path) -> None:
        """Queue a folder; ignore it when it is gone by its slice. Returns at once."""
        with self._lock, suppress(RuntimeError):  # closed: the next service finds it
            if path not in self._queued:
                self._thread.submit(self._run_slice, path)
                self._queued.add(path)

    def close(self) -> None:
        """Leave the rest to the next service. Returns when no folder is open any more. Idempotent."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)

    def _run_slice(self, path: Path) -> None:
        with self._lock:
            self._queued.remove(path)
        if not self._empty(path):
            self.add(path)

    def _empty(self, path: Path) -> bool:
        """Empty the folder for one slice; return True when nothing is left to do."""
        end = time.monotonic() + SLICE_SECONDS
        try:
            with folder(path) as descriptor:
                # An open descriptor keeps the space of a disk that was deleted meanwhile.
                return clear(descriptor, lambda: self._closed.is_set() or time.monotonic() > end or not path.exists())
        except FileNotFoundError:
            return True
        except OSError:
            log.warning("background delete failed, left to the next start path=%s", path, exc_info=True)
            return True
