"""CPU time of the machine, from ``/proc/stat`` (proc(5)), and of this process's children."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")


class IdleCpus:
    """Tells how many CPUs were idle between two looks. Not more exact than the kernel's ticks of 10 ms."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._last = (time.monotonic(), idle_seconds(stat.read_text()))

    def since_last(self) -> float:
        """Return the number of CPUs, such as 0.5, that were idle on average since the last call."""
        now, idle = time.monotonic(), idle_seconds(self._stat.read_text())
        (before, idle_before), self._last = self._last, (now, idle)
        return (idle - idle_before) / max(now - before, 1 / _TICKS)


def children_seconds() -> float:
    """Return the CPU time of all ended children of this process, with what these had started (getrusage(2))."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def idle_seconds(stat: str) -> float:
    """Return the idle time of all CPUs together, with that spent waiting for disks."""
    fields = stat.partition("\n")[0].split()
    return (int(fields[4]) + int(fields[5])) / _TICKS
