"""Values that a control group's files hold."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CgroupUsage:
    cpu_seconds: float
    memory_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """``cpu`` is in vCPU."""

    cpu: float
    memory_bytes: int

    @property
    def cpus(self) -> int:
        """Return the number of processors that a program should reckon with."""
        return max(1, math.ceil(self.cpu))


@dataclass(frozen=True, slots=True)
class GroupCounters:
    """Counters of a group: bytes of memory (all, shared, of files by their use), and seconds of CPU time."""

    memory: int = 0
    shared: int = 0
    active_file: int = 0
    inactive_file: int = 0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
