"""Processes of the host, identified by pid and start time, since pids are reused."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

_OPEN_FILES = 65536
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Process:
    """Process of the host. ``started`` is in clock ticks since boot (field 22 of ``/proc/<pid>/stat``)."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """True while it runs; a zombie does not."""
        status = _status(self.pid)
        return status is not None and status[1] == self.started and status[0] not in "ZX"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, never to another process with its reused pid. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.alive:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended; return False after so many seconds. None: no timeout."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            if not self.alive:
                return True
            await asyncio.wait_for(ended.wait(), seconds)
        except TimeoutError:
            return False
        else:
            return True
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)


def find_process(pid: int) -> Process | None:
    """Return the process that has this pid now, or None."""
    status = _status(pid)
    return Process(pid, status[1]) if status else None


@functools.cache
def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return _BOOT_ID.read_text().strip()


def open_files() -> int:
    """Return a sandbox's limit of open files: at most our own, which an unprivileged process cannot raise."""
    return min(_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _status(pid: int) -> tuple[str, int] | None:
    """Return state letter and start time (proc(5)); the name before them, which may contain anything, is cut off."""
    fields = read_proc(f"{pid}/stat").rpartition(")")[2].split()
    return (fields[0], int(fields[19])) if fields else None


def read_proc(name: str) -> str:
    """Return the text of a file below ``/proc``, such as ``17/stat``; empty when its process is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{name}").read_text(errors="replace")
    return ""


def is_alive(process: Process | None) -> bool:
    """Return True when there is such a process and it runs."""
    return process is not None and process.alive


def children_seconds() -> float:
    """Return the CPU time of all ended children of this process, with what these had started (getrusage(2))."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def is_busy() -> bool:
    """Return True if more wants to run on this machine, over the last minute, than it has CPUs (getloadavg(3))."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)
