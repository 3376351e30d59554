"""Looks at the ports of an app by a program in its instance, whose CPU time Incus counts as the app's."""

from __future__ import annotations

#: Look at the ports that listen; its last line is the program's own CPU time (proc_pid_schedstat(5)).
LOOK = ("cat", "/proc/net/tcp", "/proc/net/tcp6", "/proc/self/schedstat")
_SCHEDSTAT_FIELDS = 3


def parse_look(output: str) -> tuple[str, float]:
    """Return the tables of a look, and the CPU seconds that it took, 0 where the kernel does not tell them."""
    lines = output.splitlines()
    last = lines[-1].split() if lines else []
    if len(last) == _SCHEDSTAT_FIELDS and all(map(str.isdigit, last)):
        return "\n".join(lines[:-1]), int(last[0]) / 1e9
    return output, 0.0
