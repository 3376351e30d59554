"""The data directory: one service's own, and only one process's at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builderd.domain.errors import EngineUnavailable

LOCK_FILE = "service.lock"


def make(data_dir: Path) -> None:
    """Make it, readable for its owner alone. Idempotent."""
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir.chmod(0o700)


@contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Be the one service of this directory; the kernel lets go when the process ends, however it ends."""
    descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineUnavailable(f"A service is already running on {data_dir}: stop it first.") from None
        yield
    finally:
        os.close(descriptor)
