"""Processes of the host, told apart by when they started, since a number is used again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Process:
    """``started`` is in clock ticks since boot (field 22 of ``/proc/<pid>/stat``)."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it runs still; a zombie does not."""
        status = _status(self.pid)
        return status is not None and status[1] == self.started and status[0] not in "ZX"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, and never to another process that got its number. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.alive:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    @property
    def name(self) -> str:
        """Of its program, cut to 15 characters; empty when it is gone."""
        try:
            return Path(f"/proc/{self.pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def ignores(self, number: int) -> bool:
        """Whether it has chosen to ignore a signal."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")), "0")
        return bool(int(mask, 16) >> (number - 1) & 1)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended; False when it has not by then. None: however long it takes."""
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
    """The process of this number now."""
    status = _status(pid)
    return Process(pid, status[1]) if status else None


@functools.cache
def boot_id() -> str:
    """Names this boot of the machine."""
    return _BOOT_ID.read_text().strip()


def _status(pid: int) -> tuple[str, int] | None:
    """State letter and start time (proc(5)); the name before them may hold anything, so it is cut off first."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[19])
