"""Limit the memory of a control group: a stand-in for a small machine, without swap whatever this one has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def limited_memory(group: Path, version: int, limit: int) -> Iterator[None]:
    """Let the group use at most ``limit`` bytes of memory and no swap; ``version`` is that of the control groups."""
    if version == 1:
        files, none = {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}, "-1"
    else:
        files, none = {"memory.max": limit, "memory.swap.max": 0}, "max"
    there = [name for name in files if (group / name).exists()]
    for name in there:
        (group / name).write_text(str(files[name]))
    try:
        yield
    finally:
        # The limit with swap is never below that without.
        for name in reversed(there):
            (group / name).write_text(none)
