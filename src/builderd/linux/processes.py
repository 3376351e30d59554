"""Processes of the host, identified by pid and start time, since pids are reused."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

#: The first process of every sandbox, tini.
_INIT = "tini"
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

    async def wait_until_signals_work(self, seconds: float) -> bool:
        """Wait until a sandbox's init handles signals: earlier ones are lost, as for any PID 1.

        Return False when it does not in time. tini blocks signals first and ignores those of the terminal last. The
        latter is checked: blocked signals do not show while it waits for one.
        """
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            if self._name == _INIT and self._ignores(signal.SIGTTOU):
                return True
            await asyncio.sleep(0.001)
        return False

    @property
    def _name(self) -> str:
        """Name of its program, cut to 15 characters; empty when it is gone."""
        return read_proc(f"{self.pid}/comm").strip()

    def _ignores(self, number: int) -> bool:
        masks = [line.split()[1] for line in read_proc(f"{self.pid}/status").splitlines() if line.startswith("SigIgn:")]
        return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)

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
    """Return state letter and start time (proc(5)); the name before them, which may hold anything, is cut off."""
    fields = read_proc(f"{pid}/stat").rpartition(")")[2].split()
    return (fields[0], int(fields[19])) if fields else None


def read_proc(name: str) -> str:
    """Return the text of a file below ``/proc``, such as ``17/stat``; empty when its process is gone."""
    try:
        descriptor = os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Called often: pathlib takes four times as long.
    try:
        with contextlib.suppress(ProcessLookupError):
            return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b"")).decode(errors="replace")
        return ""
    finally:
        os.close(descriptor)


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
