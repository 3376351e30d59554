"""Kill sandboxes whose netlink sockets hold too much memory, which no control group counts: docs/adr/0026.

An app needs netlink to list its network links. The answers that it does not read stay in the kernel, up to 4 MB for
each socket, and nothing limits the number of sockets.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from builderd.linux.processes import Process
from builderd.linux.threads import RepeatedCall

#: Bytes in the receive buffers of one sandbox. Programs read an answer at once; one is some 20 KB.
MOST = 16 << 20
#: Between two checks, in seconds: a program with one CPU adds up to 1 GB meanwhile.
INTERVAL = 1.0
_RMEM = 4

log = logging.getLogger(__name__)


class NetlinkWatch:
    """``processes`` lists the ids of sandboxes with a process of each; ``kill`` ends one of them and blocks."""

    def __init__(self, processes: Callable[[], Sequence[tuple[str, Process]]], kill: Callable[[str], None]) -> None:
        self._kill = kill
        self._calls = RepeatedCall("netlink check", INTERVAL, processes, self.check)

    def start(self) -> None:
        """Check every second until ``close``. Needs a running event loop."""
        self._calls.start()

    def close(self) -> None:
        self._calls.close()

    def check(self, processes: Sequence[tuple[str, Process]]) -> None:
        """Kill each sandbox whose netlink sockets hold more than ``MOST``. Blocks."""
        for name, process in processes:
            if (held := netlink_bytes(process.pid)) > MOST and process.alive:
                log.warning("sandbox killed: netlink buffers too large sandbox=%s bytes=%d limit=%d", name, held, MOST)
                try:
                    self._kill(name)
                except OSError as error:  # the others are checked all the same
                    log.warning("sandbox not killed, retrying seconds=%s sandbox=%s error=%s", INTERVAL, name, error)


def netlink_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Bytes that wait in the netlink sockets of a process's network namespace; 0 when that is the host's, or gone."""
    with contextlib.suppress(OSError):
        if (proc / f"{pid}/ns/net").readlink() != (proc / "self/ns/net").readlink():
            lines = (proc / f"{pid}/net/netlink").read_text().splitlines()[1:]
            return sum(int(line.split()[_RMEM]) for line in lines)
    return 0
