"""Processes of the host, told apart by when they started, since a number is used again."""

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

    async def wait_until_hearing(self, seconds: float) -> bool:
        """Wait until a sandbox's init takes signals: what comes before is lost, as for any first process.

        False when it does not by then. It blocks them first and ignores those of the terminal last. Whether they are
        blocked cannot be asked: while it waits for one, they are not.
        """
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            if self._name == _INIT and self._ignores(signal.SIGTTOU):
                return True
            await asyncio.sleep(0.001)
        return False

    @property
    def _name(self) -> str:
        """Of its program, cut to 15 characters; empty when it is gone."""
        return read_proc(f"{self.pid}/comm").strip()

    def _ignores(self, number: int) -> bool:
        masks = [line.split()[1] for line in read_proc(f"{self.pid}/status").splitlines() if line.startswith("SigIgn:")]
        return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)

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


def open_files() -> int:
    """The limit of open files that a sandbox gets: ours may be lower, and only a privileged process could raise it."""
    return min(_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _status(pid: int) -> tuple[str, int] | None:
    """State letter and start time (proc(5)); the name before them may hold anything, so it is cut off first."""
    fields = read_proc(f"{pid}/stat").rpartition(")")[2].split()
    return (fields[0], int(fields[19])) if fields else None


def read_proc(name: str) -> str:
    """A file below ``/proc``, such as ``17/stat``; empty when its process is gone."""
    try:
        descriptor = os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Read so plainly because it is done often: pathlib takes four times as long.
    try:
        with contextlib.suppress(ProcessLookupError):
            return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b"")).decode(errors="replace")
        return ""
    finally:
        os.close(descriptor)
