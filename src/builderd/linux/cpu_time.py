"""CPU time of this process's children."""

from __future__ import annotations

import resource


def children_seconds() -> float:
    """Return the CPU time of all ended children of this process, with what these had started (getrusage(2))."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
