"""CPU time of this process's children, and load of this machine."""

from __future__ import annotations

import os
import resource


def children_seconds() -> float:
    """Return the CPU time of all ended children of this process, with what these had started (getrusage(2))."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def is_busy() -> bool:
    """Return True if more wants to run on this machine, over the last minute, than it has CPUs (getloadavg(3))."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)
