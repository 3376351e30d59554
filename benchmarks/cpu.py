"""CPU time of a service, and of what it starts: on a machine with other work, it says more than the clock."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


def spent(service: int) -> dict[str, float]:
    """Return milliseconds so far (proc(5)) by part: the service's process, its ended children, its launcher.

    The launcher's are those of the programs that it ran to their end, too: of commands, but of no app.
    """
    own, ended = _times(service)
    launchers = [_times(pid) for pid in _children(service) if b"launcher" in _words(pid)]
    return {"service": own, "its children": ended, "launcher and commands": sum(map(sum, launchers))}


def between(before: dict[str, float], after: dict[str, float], rounds: int) -> dict[str, float]:
    """Return the milliseconds of one round."""
    return {name: round((after[name] - before[name]) / rounds, 1) for name in before}


def _times(pid: int) -> tuple[float, float]:
    """Return the CPU time of a process, and that of its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_MS, (int(fields[13]) + int(fields[14])) * _TICK_MS


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
