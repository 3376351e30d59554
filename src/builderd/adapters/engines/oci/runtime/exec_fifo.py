"""Start of a created crun container by writing to its exec fifo, without running ``crun start``: docs/adr/0024.

A sandbox that was created and not started waits for a byte in ``<state>/exec.fifo``; ``crun start`` writes it and
removes the file, by which crun tells the two states apart (src/libcrun/status.c).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

_TRIES = 20
_PAUSE_SECONDS = 0.0005


async def release(state: Path) -> bool:
    """Start the container with this state directory; return False when it does not wait at its fifo."""
    fifo = state / "exec.fifo"
    for _ in range(_TRIES):
        if _write(fifo):
            fifo.unlink(missing_ok=True)
            return True
        await asyncio.sleep(_PAUSE_SECONDS)
    return False


def was_released(state: Path) -> bool:
    """Return True when the container with this state directory was started, also if it has ended since."""
    return state.is_dir() and not (state / "exec.fifo").exists()


def _write(fifo: Path) -> bool:
    """Write a byte to the fifo; return True when a reader waited at it."""
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.write(descriptor, b"0") == 1
    except OSError:
        return False
    finally:
        os.close(descriptor)
