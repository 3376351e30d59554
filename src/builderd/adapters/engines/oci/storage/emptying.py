"""Emptying: what has lost its name goes when there is time, in a thread of its own: it may be millions of files.

Each folder is emptied where it lies. Nothing is moved for it: on a disk that is full the kernel refuses that.
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

#: A folder has the thread for so many seconds, then the next one: an app may feed its own without end.
SLICE_SECONDS = 5.0


class Emptying:
    """One folder after the other, in turns. Thread-safe."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "emptying")
        self._closed = threading.Event()
        #: Held while a folder joins the queue or leaves it.
        self._lock = threading.Lock()
        #: Each is in the queue once, however often it is added: one turn for one disk.
        self._queued: set[Path] = set()

    def add(self, path: Path) -> None:
        """Empty it soon, unless it is gone by then. Returns at once."""
        with self._lock, suppress(RuntimeError):  # closed: the next service finds it
            if path not in self._queued:
                self._thread.submit(self._take_turn, path)
                self._queued.add(path)

    def close(self) -> None:
        """Leave the rest to the next service. Returns when no folder is open any more. Idempotent."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)

    def _take_turn(self, path: Path) -> None:
        with self._lock:
            self._queued.remove(path)
        if not self._empty(path):
            self.add(path)

    def _empty(self, path: Path) -> bool:
        """For one turn: whether there is nothing left to do."""
        end = time.monotonic() + SLICE_SECONDS
        try:
            with folder(path) as inside:
                # As long as it is open, the space of a disk that was deleted meanwhile does not come back.
                return clear(inside, lambda: self._closed.is_set() or time.monotonic() > end or not path.exists())
        except FileNotFoundError:
            return True
        except OSError:
            log.warning("%s is not empty yet; the next service tries again", path, exc_info=True)
            return True
