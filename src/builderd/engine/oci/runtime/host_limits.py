"""Kernel limits shared by all sandboxes, raised so that one sandbox cannot use them up.

What a user namespace takes of inotify is counted for the user who made it as well, and by default root has 128
instances (under control groups of version 2 each shim needs one of them). All network namespaces share one table of
neighbours, and two pools of memory for the buffers of TCP and of UDP. Those pools may be as large as half of the memory
where each sandbox has a limit of its own: then none of them can take all that its neighbours need.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from builderd.engine.oci.network.allocations import MAX_SLOTS
from builderd.engine.oci.runtime.launcher import INOTIFY
from builderd.linux.processes import Process
from builderd.linux.threads import RepeatedCall

#: Least values by the file below ``/proc/sys``. Of inotify there is some for shims and for the host beside what
#: sandboxes may take. A sandbox costs two neighbours, its own and the bridge's; the limit that cannot be exceeded comes
#: first.
LEAST = {
    "fs/inotify/max_user_instances": MAX_SLOTS * (INOTIFY["max_inotify_instances"] + 2),
    "fs/inotify/max_user_watches": MAX_SLOTS * INOTIFY["max_inotify_watches"] + (1 << 20),
    "net/ipv4/neigh/default/gc_thresh3": 8192,
    "net/ipv4/neigh/default/gc_thresh2": 4096,
}

#: Pools of socket buffers: each file has three numbers of pages, from which on buffers are small and at which no more
#: are given (``tcp_mem`` of tcp(7), ``udp_mem`` of udp(7)).
SOCKET_POOLS = ("net/ipv4/tcp_mem", "net/ipv4/udp_mem")
_PAGE = os.sysconf("SC_PAGE_SIZE")

log = logging.getLogger(__name__)


def raise_host_limits(root: Path = Path("/proc/sys"), least: Mapping[str, int] = LEAST) -> None:
    """Raise the limits; higher ones stay. Idempotent. When the host forbids it, sandboxes share what there is."""
    for name, wanted in least.items():
        file = root / name
        try:
            if int(file.read_text()) < wanted:
                file.write_text(str(wanted))
        except OSError as error:
            log.warning("kernel limit not raised, sandboxes may exhaust it limit=%s error=%s", name, error)


def raise_socket_pools(memory_bytes: int, root: Path = Path("/proc/sys")) -> None:
    """Raise the pools of socket buffers to half of the memory. Idempotent; what is higher already stays."""
    most = least_socket_pool(memory_bytes) // _PAGE
    for name in SOCKET_POOLS:
        try:
            if socket_pool(name, root) < most * _PAGE:
                (root / name).write_text(f"{most // 2} {most * 2 // 3} {most}")
        except OSError as error:
            log.warning("sandboxes may use up the socket buffers of the host limit=%s error=%s", name, error)


def least_socket_pool(memory_bytes: int) -> int:
    """Return the least size in bytes of each socket buffer pool for a machine with this much memory."""
    return memory_bytes // 2 // _PAGE * _PAGE


def socket_pool(name: str, root: Path = Path("/proc/sys")) -> int:
    """Return the size in bytes of the pool for all sockets of this kind."""
    return int((root / name).read_text().split()[2]) * _PAGE


def total_memory() -> int:
    """Return the memory of the machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * _PAGE


#: Bytes in the receive buffers of one sandbox. Programs read an answer at once; one is some 20 KB.
MOST = 16 << 20
#: Between two checks, in seconds: a program with one CPU adds up to 1 GB meanwhile.
INTERVAL = 1.0
_RMEM = 4


class NetlinkWatch:
    """Kills sandboxes whose netlink sockets keep too much memory, which no control group counts: docs/adr/0026.

    An app needs netlink to list its network links. The answers that it does not read stay in the kernel, up to 4 MB for
    each socket, and nothing limits the number of sockets. ``processes`` lists the ids of sandboxes with a process of
    each; ``kill`` ends one of them and blocks.
    """

    def __init__(self, processes: Callable[[], Sequence[tuple[str, Process]]], kill: Callable[[str], None]) -> None:
        self._kill = kill
        self._calls = RepeatedCall("netlink check", INTERVAL, processes, self.check)

    def start(self) -> None:
        """Check every second until ``close``. Needs a running event loop."""
        self._calls.start()

    def close(self) -> None:
        self._calls.close()

    def check(self, processes: Sequence[tuple[str, Process]]) -> None:
        """Kill each sandbox whose netlink sockets keep more than ``MOST``. Blocks."""
        for name, process in processes:
            if (used := netlink_bytes(process.pid)) > MOST and process.alive:
                log.warning("sandbox killed: netlink buffers too large sandbox=%s bytes=%d limit=%d", name, used, MOST)
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
