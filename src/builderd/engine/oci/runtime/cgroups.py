"""Control groups, version 1 and 2: where a sandbox's processes are counted, limited, frozen and killed.

A sandbox's group is ``/builderd-<instance>/<name>``; crun and runc make it. The shim's own group beside it is ours: a
shim copies what the app logs and would take as much of the machine as it is given to copy.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from builderd.linux.processes import read_proc

ROOT = Path("/sys/fs/cgroup")
#: Prefix of the names of groups within a sandbox's group.
INNER = "exec-"
#: Limit of socket buffers in a group of version 1. Some kernels lack it (CONFIG_MEMCG_V1).
SOCKET_LIMIT = "memory.kmem.tcp.limit_in_bytes"
#: The limit of socket buffers, beside the memory: this part of it, and at least 16 MiB.
_SOCKET_SHARE, _SOCKET_LEAST = 4, 16 << 20
#: The kernel charges up to a huge page and a batch of 64 pages at once: so much may be left when the limit is met.
_CHARGED_AT_ONCE = 4 << 20
_CONTROLLERS = ("cpu", "memory", "pids")
#: A fifth of one CPU for the copying of one log.
_SHIM_QUOTA, _PERIOD = 20_000, 100_000
#: Ticks per second of version 1's CPU time.
_USER_HZ = 100
_KILL_SECONDS = 5.0
_REMOVE_SECONDS = 1.0
#: A process that waits for a device freezes only when the device has answered.
_FREEZE_SECONDS = 2.0


class Cgroups:
    """Control groups of one service."""

    def __init__(self, instance: str, root: Path = ROOT) -> None:
        self.parent = f"/builderd-{instance}"
        self._root = root
        self.version = 2 if (root / "cgroup.controllers").exists() else 1
        #: True when socket buffers have a limit of their own (version 1). Version 2 counts them as memory.
        self.limits_sockets = (root / "memory" / SOCKET_LIMIT).exists()
        #: File by which a process with one thread enters a group by writing 0 to it. On version 1 that needs no lock
        #: and so never waits for the kernel: kernel/cgroup/cgroup.c, cgroup_procs_write_start.
        self.entry = "cgroup.procs" if self.version == 2 else "tasks"

    @property
    def counts_sockets(self) -> bool:
        """Return True when a sandbox's socket buffers are limited at all."""
        return self.version == 2 or self.limits_sockets

    def path(self, name: str) -> str:
        """Return the group's path as the OCI configuration names it."""
        return f"{self.parent}/{name}"

    def open(self) -> None:
        """Create the service's group outside of any systemd unit, so that sandboxes outlive the service."""
        if self.version == 1:
            return
        wanted = " ".join(f"+{controller}" for controller in _CONTROLLERS)
        (self._root / "cgroup.subtree_control").write_text(wanted)
        parent = self._directory("cpu", "")
        parent.mkdir(exist_ok=True)
        (parent / "cgroup.subtree_control").write_text(wanted)

    def close(self) -> None:
        """Kill all processes in the service's groups and remove them. Idempotent."""
        self.remove("")

    def open_shim(self, name: str) -> str:
        """Create the group of a sandbox's shim; return the file by which a process enters it."""
        directory = self._directory("cpu", f"{name}.shim")
        directory.mkdir(parents=True, exist_ok=True)
        return str(directory / self.entry)

    def limit_shim(self, name: str) -> None:
        """Limit the shim to the CPU that copying a log may take; before, its group also runs the sandbox's creation."""
        directory = self._directory("cpu", f"{name}.shim")
        if self.version == 2:
            (directory / "cpu.max").write_text(f"{_SHIM_QUOTA} {_PERIOD}")
        else:
            (directory / "cpu.cfs_period_us").write_text(str(_PERIOD))
            (directory / "cpu.cfs_quota_us").write_text(str(_SHIM_QUOTA))

    def limit_sockets(self, name: str, memory_bytes: int) -> None:
        """Limit the TCP and UDP buffers of a sandbox that was created and has not run yet.

        Only needed on version 1, which does not count them as memory. Set here and not in the OCI configuration: runc
        ignores ``kernelTCP`` there, and says so in the log of the app.
        """
        if self.limits_sockets:
            write(
                self._directory("memory", name) / SOCKET_LIMIT, str(max(memory_bytes // _SOCKET_SHARE, _SOCKET_LEAST))
            )

    def enter_inner(self, name: str, inner: str, pid: int) -> None:
        """Move a process into a subgroup of its sandbox's, so that it can be killed with all that it starts.

        Raises ``ProcessLookupError`` when it is not in the sandbox: its pid was reused.
        """
        if f"{self.path(name)}/" not in read_proc(f"{pid}/cgroup").replace("\n", "/\n"):
            raise ProcessLookupError(pid)
        directory = self._directory("pids", f"{name}/{inner}")
        with removed_as_missing():
            directory.mkdir(exist_ok=True)
            (directory / "cgroup.procs").write_text(str(pid))

    def discard_inner(self, name: str) -> None:
        """Remove the empty ones of these groups. A background process keeps its own for as long as it continues."""
        for group in self._directory("pids", name).glob(f"{INNER}*"):
            with contextlib.suppress(OSError):
                group.rmdir()

    def usage(self, name: str) -> CgroupUsage | None:
        """Return the usage, or None when there is no such group."""
        try:
            counted = self.counters(name)
            memory = max(counted.memory - counted.inactive_file, 0)
            processes = int(read(self._directory("pids", name) / "pids.current"))
            return CgroupUsage(self.cpu_seconds(name), memory, processes)
        except FileNotFoundError:
            return None

    def cpu_seconds(self, name: str) -> float:
        """Return the CPU time of a group. Raises ``FileNotFoundError`` when there is no such group."""
        if self.version == 2:
            return counter(self._directory("cpu", name) / "cpu.stat", "usage_usec") / 1e6
        return int(read(self._directory("cpuacct", name) / "cpuacct.usage")) / 1e9

    def limits(self, name: str) -> CgroupLimits:
        """Return the limits. Raises ``FileNotFoundError`` when there is no such group."""
        cpu, memory = self._directory("cpu", name), self._directory("memory", name)
        if self.version == 2:
            quota, period = read(cpu / "cpu.max").split()
            return CgroupLimits(int(quota) / int(period), int(read(memory / "memory.max")))
        quota = read(cpu / "cpu.cfs_quota_us")
        return CgroupLimits(int(quota) / _PERIOD, int(read(memory / "memory.limit_in_bytes")))

    def counters(self, name: str) -> GroupCounters:
        """Return the counters. Raises ``FileNotFoundError`` when there is no such group."""
        memory, prefix = self._directory("memory", name), "" if self.version == 2 else "total_"
        used = int(read(memory / ("memory.current" if self.version == 2 else "memory.usage_in_bytes")))
        stat = counters(memory / "memory.stat")
        shared, active, inactive = (stat.get(prefix + kind, 0) for kind in ("shmem", "active_file", "inactive_file"))
        if self.version == 2:
            cpu = counters(self._directory("cpu", name) / "cpu.stat")
            user, system = (cpu.get(f"{kind}_usec", 0) / 1e6 for kind in ("user", "system"))
        else:
            cpu = counters(self._directory("cpuacct", name) / "cpuacct.stat")
            user, system = (cpu.get(kind, 0) / _USER_HZ for kind in ("user", "system"))
        return GroupCounters(used, shared, active, inactive, user, system)

    def oom_kills(self, name: str) -> int:
        """Return the number of processes that the kernel killed for memory; 0 when there is no such group."""
        file = "memory.events" if self.version == 2 else "memory.oom_control"
        try:
            return counter(self._directory("memory", name) / file, "oom_kill")
        except FileNotFoundError:
            return 0

    def host_oom_kills(self, name: str) -> bool:
        """Return True when the kernel killed one of its processes for the memory of the host, not of the group.

        Version 2 counts what met the group's own limit apart (cgroup-v2.rst: ``oom`` of memory.events). Version 1 does
        not, and Linux 6.18 leaves its ``failcnt`` at 0: there, only a group that never used all of its limit is known
        to be within it. The limit is one of memory, and of memory and swap together where the kernel counts swap.
        """
        memory = self._directory("memory", name)
        try:
            if self.version == 2:
                return self.oom_kills(name) > counter(memory / "memory.events", "oom")
            kinds = ("memory.memsw", "memory") if (memory / "memory.memsw.max_usage_in_bytes").exists() else ("memory",)
            return self.oom_kills(name) > 0 and not any(_has_met_limit(memory, kind) for kind in kinds)
        except FileNotFoundError:
            return False

    def freeze(self, name: str) -> None:
        """Freeze every process in the group; return when all are frozen.

        Raises ``TimeoutError`` when one cannot be frozen, after thawing them all.
        """
        deadline = time.monotonic() + _FREEZE_SECONDS
        while not self.is_frozen(name):
            if time.monotonic() > deadline:
                self.thaw(name)
                raise TimeoutError("a process cannot be frozen: it waits for a device")
            # Version 1 may need a second write when a process was forked meanwhile.
            self._set_freezer(name, frozen=True)
            time.sleep(0.0005)

    def thaw(self, name: str) -> None:
        """Thaw the group. Idempotent, also when there is no such group."""
        with contextlib.suppress(FileNotFoundError):
            self._set_freezer(name, frozen=False)

    def is_frozen(self, name: str) -> bool:
        """Return True when every process in the group is frozen."""
        directory = self._directory("freezer", name)
        try:
            if self.version == 2:
                return counter(directory / "cgroup.events", "frozen") == 1
            return read(directory / "freezer.state").strip() == "FROZEN"
        except FileNotFoundError:
            return False

    def _set_freezer(self, name: str, *, frozen: bool) -> None:
        directory = self._directory("freezer", name)
        if self.version == 2:
            write(directory / "cgroup.freeze", "1" if frozen else "0")
        else:
            write(directory / "freezer.state", "FROZEN" if frozen else "THAWED")

    def reclaim(self, name: str) -> None:
        """Move the group's memory to swap as far as the kernel can. Blocks for a while."""
        directory = self._directory("memory", name)
        with contextlib.suppress(OSError):
            if self.version == 2:
                # A running sandbox may not swap: its limit is one of memory and swap together. What was moved out in an
                # earlier sleep and not used since is there still.
                limit, used, moved = (
                    int(read(directory / f"memory.{what}")) for what in ("max", "current", "swap.current")
                )
                write(directory / "memory.swap.max", str(limit))
                if (amount := min(used, limit - moved)) > 0:
                    write(directory / "memory.reclaim", str(amount))
            else:
                write(directory / "memory.force_empty", "0")

    def end_reclaim(self, name: str) -> None:
        """Stop moving memory out; swapped memory comes back as it is used."""
        if self.version == 2:
            with contextlib.suppress(OSError):
                write(self._directory("memory", name) / "memory.swap.max", "0")

    def kill(self, name: str) -> None:
        """Kill every process in the group and below it, also those forked meanwhile; return when none is left.

        On version 1 a frozen process does not die, so all are thawed; a fork bomb would never end, so the group may
        not fork any more. All hierarchies are searched: a shim is in one of them only, and a process whose runtime was
        killed while moving it in some.

        Raises ``TimeoutError`` when one does not die (it waits for a device).
        """
        deadline = time.monotonic() + _KILL_SECONDS
        while processes := {pid for directory in self._directories(name) for pid in processes_below(directory)}:
            if self.version == 2:
                with contextlib.suppress(FileNotFoundError), removed_as_missing():
                    (self._directory("pids", name) / "cgroup.kill").write_text("1")
            # Parents first: a shell would report the death of its child.
            for process in sorted(processes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if self.version == 1:
                # Only after the first round of kills: a shell that cannot fork would end with an exit code of its own.
                with contextlib.suppress(FileNotFoundError):
                    write(self._directory("pids", name) / "pids.max", "0")
            for folder, _, _ in os.walk(self._directory("freezer", name)):
                self.thaw(os.path.relpath(folder, self._directory("freezer", "")))
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {processes} do not die")
            time.sleep(0.001)

    def remove(self, name: str) -> None:
        """Kill the processes of the group, also those that enter it meanwhile, and remove it. Idempotent.

        Covers all hierarchies. Once this returns, nothing enters the group any more. The kernel may keep a group
        briefly after its last process has ended; one that it keeps for longer stays.
        """
        deadline = time.monotonic() + _REMOVE_SECONDS
        while True:
            self.kill(name)
            directories = self._directories(name)
            for directory in directories:
                # The innermost first; their files cannot be unlinked.
                for folder, _, _ in os.walk(directory, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(folder).rmdir()
            if not any(directory.exists() for directory in directories) or time.monotonic() > deadline:
                return
            time.sleep(0.002)

    def _directories(self, name: str) -> list[Path]:
        """Return the group's folder in every hierarchy, existing or not."""
        bases = [self._root]
        if self.version == 1:
            bases = [Path(entry.path) for entry in os.scandir(self._root) if entry.is_dir(follow_symlinks=False)]
        return [base / self.path(name).strip("/") for base in bases]

    def _directory(self, controller: str, name: str) -> Path:
        base = self._root if self.version == 2 else self._root / controller
        return base / self.path(name).strip("/")


def _has_met_limit(memory: Path, kind: str) -> bool:
    """Return True if a group of version 1 has ever used all of its limit of this kind."""
    most, limit = (int(read(memory / f"{kind}.{file}_in_bytes")) for file in ("max_usage", "limit"))
    return most + _CHARGED_AT_ONCE >= limit


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


@contextlib.contextmanager
def removed_as_missing() -> Iterator[None]:
    """Raise ``FileNotFoundError`` for ENODEV: the kernel's error for a group that is just being removed."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error


def read(file: Path) -> str:
    """Return the text of a group's file. Raises ``FileNotFoundError`` when the group is gone."""
    with removed_as_missing():
        return file.read_text()


def write(file: Path, value: str) -> None:
    """Write a group's file. Raises ``FileNotFoundError`` when the group is gone, and never creates a file.

    Not by Python's own files, which look whether they can seek: that fails in a group that is just being removed.
    """
    with removed_as_missing():
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)


def processes_below(directory: Path) -> list[int]:
    """Return the pids in a group and in the groups below it; none when it is gone."""
    found: list[int] = []
    for folder, _, _ in os.walk(directory):
        with contextlib.suppress(OSError):
            found.extend(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
    return found


def counter(file: Path, name: str) -> int:
    """Return the number after a name in a flat keyed file."""
    return counters(file).get(name, 0)


def counters(file: Path) -> dict[str, int]:
    """Return the numbers of a flat keyed file by their names."""
    pairs = (line.split(" ", 1) for line in read(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
