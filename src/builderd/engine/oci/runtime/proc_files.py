"""Files that show a sandbox its own limits: ``meminfo``, ``cpuinfo`` and ``stat`` of ``/proc``, and those of its disk.

They lie in the sandbox's bundle and are mounted over the host's. The service writes the changing ones anew every two
seconds, in place, from the sandbox's control group. While no service runs they keep their last content.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from builderd.engine.oci.runtime.bundle import DISK_FILE, PROC_FOLDER
from builderd.engine.oci.runtime.cgroups import CgroupLimits, Cgroups, GroupCounters
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.storage.quotas import DiskSpace
from builderd.linux.processes import boot_id
from builderd.linux.threads import RepeatedCall

#: Between two updates, in seconds.
INTERVAL = 2.0
#: Ticks per second in ``/proc/stat`` (USER_HZ), on every architecture that Debian runs on here.
_TICKS = 100


class ProcFiles:
    """Keeps the files of sandboxes up to date.

    ``bundle`` is the folder of a sandbox by its id, ``records`` lists all; ``space`` is that of a disk by its id, or
    None for one that was removed.
    """

    def __init__(
        self,
        cgroups: Cgroups,
        bundle: Callable[[str], Path],
        records: Callable[[], Sequence[Record]],
        space: Callable[[str], DiskSpace | None],
    ) -> None:
        self._cgroups = cgroups
        self._bundle = bundle
        self._space = space
        self._calls = RepeatedCall("update of proc files", INTERVAL, records, self.update)

    def start(self) -> None:
        """Update every two seconds until ``close``. Needs a running event loop."""
        self._calls.start()

    def close(self) -> None:
        self._calls.close()

    def update(self, records: Sequence[Record]) -> None:
        """Write the changing files of the sandboxes that run and are not frozen. Blocks."""
        boot, uptime = boot_id(), Uptime.now()
        for record in records:
            if record.started_at is not None and record.boot == boot and not record.counts_as_frozen:
                self._update(record, uptime)

    def _update(self, record: Record, uptime: Uptime) -> None:
        """Write the files of one; leave out a sandbox that has none or that ends meanwhile."""
        folder = self._bundle(record.id) / PROC_FOLDER
        with contextlib.suppress(FileNotFoundError):
            if folder.exists():
                limits, counters = self._cgroups.limits(record.id), self._cgroups.counters(record.id)
                rewrite(folder / "meminfo", make_meminfo(limits.memory_bytes, counters))
                rewrite(folder / "stat", make_stat(limits.cpus, counters, uptime))
                if space := self._space(record.disk):
                    rewrite(folder / DISK_FILE, make_disk(space))


def write_first(bundle: Path, cpu: float, memory_bytes: int, space: DiskSpace) -> None:
    """Write all files of a sandbox that is about to be created."""
    folder = bundle / PROC_FOLDER
    folder.mkdir(mode=0o711)
    limits, unused = CgroupLimits(cpu, memory_bytes), GroupCounters()
    texts = {
        "cpuinfo": make_cpuinfo(limits.cpus, _host_cpuinfo()),
        "meminfo": make_meminfo(memory_bytes, unused),
        "stat": make_stat(limits.cpus, unused, Uptime.now()),
        DISK_FILE: make_disk(space),
    }
    for name, text in texts.items():
        file = folder / name
        file.touch(mode=0o444)
        rewrite(file, text)


@dataclass(frozen=True, slots=True)
class Uptime:
    """``booted``: the host's boot in seconds since 1970; ``seconds`` since then."""

    booted: int
    seconds: float

    @classmethod
    def now(cls) -> Uptime:
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
        return cls(round(time.time() - seconds), seconds)


@cache
def _host_cpuinfo() -> str:
    """Return the host's processors; reading them takes a while, and they do not change."""
    return Path("/proc/cpuinfo").read_text()


def make_disk(space: DiskSpace) -> str:
    """Return the file with the limits of the disk: a path, its size and its used bytes in each line."""
    lines = (("/app", space.size, space.used), ("/", space.scratch_size, space.scratch_used))
    return "".join(f"{path:<5} {size:>20} {used:>20}\n" for path, size, used in lines)


def make_cpuinfo(cpus: int, host: str) -> str:
    """Return the host's first processors."""
    return "\n\n".join(host.strip().split("\n\n")[:cpus]) + "\n\n"


def make_meminfo(limit: int, counters: GroupCounters) -> str:
    """Return ``/proc/meminfo`` of a machine that has the limit as its memory, and no swap (proc_meminfo(5))."""
    free = max(limit - counters.memory, 0)
    cached = min(counters.active_file + counters.inactive_file, counters.memory)
    values = {
        "MemTotal": limit,
        "MemFree": free,
        "MemAvailable": min(free + cached, limit),
        "Buffers": 0,
        "Cached": cached + counters.shared,
        "SwapCached": 0,
        "Active": counters.active_file,
        "Inactive": counters.inactive_file,
        "Active(file)": counters.active_file,
        "Inactive(file)": counters.inactive_file,
        "SwapTotal": 0,
        "SwapFree": 0,
        "Dirty": 0,
        "Writeback": 0,
        "Shmem": counters.shared,
        "Slab": 0,
        "SReclaimable": 0,
        "SUnreclaim": 0,
    }
    return "".join(f"{name + ':':<15} {value // 1024:>8} kB\n" for name, value in values.items())


def make_stat(cpus: int, counters: GroupCounters, uptime: Uptime) -> str:
    """Return ``/proc/stat`` of a machine on which only the sandbox ran since its boot (proc_stat(5)).

    The boot is the host's: ``/proc/<pid>/stat`` counts from it.
    """
    user, system = (int(seconds * _TICKS) for seconds in (counters.user_seconds, counters.system_seconds))
    idle = max(int(uptime.seconds * _TICKS) * cpus - user - system, 0)
    lines = [_cpu_line("cpu ", user, system, idle)]
    lines += [_cpu_line(f"cpu{number}", user // cpus, system // cpus, idle // cpus) for number in range(cpus)]
    rest = ("intr 0", "ctxt 0", f"btime {uptime.booted}", "processes 0", "procs_running 1", "procs_blocked 0")
    return "\n".join((*lines, *rest)) + "\n"


def _cpu_line(name: str, user: int, system: int, idle: int) -> str:
    return f"{name} {user:>11} 0 {system:>11} {idle:>13} 0 0 0 0 0 0"


def rewrite(file: Path, text: str) -> None:
    """Write an existing file in place: it is mounted inside, so it must stay the same file.

    The texts keep their length, so that a reader meanwhile never sees the end of an older one.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, text.encode(), 0)
        os.ftruncate(descriptor, len(text))
    finally:
        os.close(descriptor)
