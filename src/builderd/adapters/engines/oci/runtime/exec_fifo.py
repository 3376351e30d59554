"""How crun is told to let a sandbox run, without a process of crun's for it: see docs/adr/0043.

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
    """Let the sandbox with this state directory run; False when it does not wait there, and nothing was done."""
    fifo = state / "exec.fifo"
    for _ in range(_TRIES):
        if _write(fifo):
            fifo.unlink(missing_ok=True)
            return True
        await asyncio.sleep(_PAUSE_SECONDS)
    return False


def _write(fifo: Path) -> bool:
    """Whether somebody waited at the other end."""
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
