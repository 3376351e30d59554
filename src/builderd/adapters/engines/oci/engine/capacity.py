"""Capacity of the machine for builders."""

from __future__ import annotations

import os
from pathlib import Path

from builderd.domain.resources import GB, Capacity

MEMINFO = Path("/proc/meminfo")


def capacity(disk_bytes: int) -> Capacity:
    """Return CPUs, memory and disk space; ``disk_bytes`` is the most that the store reserves for disks."""
    return Capacity(float(os.cpu_count() or 1), memory_bytes(MEMINFO.read_text()) / GB, disk_bytes / GB)


def memory_bytes(meminfo: str) -> int:
    """Return the machine's memory, from the text of ``/proc/meminfo`` (proc(5): in kB, which are 1024 bytes)."""
    for line in meminfo.splitlines():
        name, _, amount = line.partition(":")
        if name == "MemTotal":
            return int(amount.split()[0]) * 1024
    raise ValueError("/proc/meminfo does not say how much memory there is")
