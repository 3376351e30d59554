"""Emptying: what has lost its name goes when there is time, in a thread of its own: it may be millions of files.

Each folder is emptied where it lies. Nothing is moved for it: on a disk that is full the kernel refuses that.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from builderd.adapters.engines.oci.subvolumes import folder
from builderd.adapters.engines.oci.tree import clear

log = logging.getLogger(__name__)


class Emptying:
    """One folder after the other. Thread-safe."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "emptying")
        self._closed = threading.Event()

    def add(self, path: Path) -> None:
        """Empty it soon, unless it is gone by then. Returns at once."""
        with suppress(RuntimeError):  # closed: the next service finds it
            self._thread.submit(self._empty, path)

    def close(self) -> None:
        """Leave the rest to the next service. Returns when no folder is open any more. Idempotent."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)

    def _empty(self, path: Path) -> None:
        try:
            with folder(path) as inside:
                # As long as it is open, the space of a disk that was deleted meanwhile does not come back.
                clear(inside, lambda: self._closed.is_set() or not path.exists())
        except FileNotFoundError:
            return
        except OSError:
            log.warning("%s is not empty yet; the next service tries again", path, exc_info=True)
