"""Processes enter control groups without the kernel's wait.

Whoever moves a process to another group has to wait until nobody is in the middle of making or ending one. The kernel
makes that cheap for those by a lock that is dear for the mover: it waits for a grace period of RCU, some 6 to 15 ms,
unless another move ended less than such a period ago (kernel/rcu/sync.c). A start has two moves in a row, a command
three. So while there are some to come, a thread moves this process to the group where it is, every few milliseconds,
which does nothing else: then only the first of them waits, and beside the work.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

#: Well below a grace period.
_PAUSE = 0.004
#: How long a move that was announced is waited for.
_SOON_SECONDS = 0.05


class QuickMoves:
    """``groups`` is where control groups are mounted, ``own`` tells which of them this process is in."""

    def __init__(self, groups: Path, own: Path = Path("/proc/self/cgroup")) -> None:
        self._groups = groups
        self._own = own
        self._lock = threading.Lock()
        self._movers = 0
        self._until = 0.0
        self._goes_on = False

    def prewarm(self) -> None:
        """There will be moves within moments."""
        with self._lock:
            self._until = time.monotonic() + _SOON_SECONDS
            self._begin()

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """There are moves meanwhile."""
        with self._lock:
            self._movers += 1
            self._begin()
        try:
            yield
        finally:
            with self._lock:
                self._movers -= 1

    def _begin(self) -> None:
        if not self._goes_on:
            self._goes_on = True
            threading.Thread(target=self._keep_quick, name="moves", daemon=True).start()

    def _keep_quick(self) -> None:
        try:
            with self._tasks().open("wb", buffering=0) as tasks:
                while self._is_wanted():
                    tasks.write(b"0")
                    time.sleep(_PAUSE)
        except OSError:  # a group that cannot be written to: each move waits, as it would without us
            with self._lock:
                self._goes_on = False

    def _is_wanted(self) -> bool:
        """Decided under the lock, so that whoever comes now either is seen or begins anew."""
        with self._lock:
            self._goes_on = self._movers > 0 or time.monotonic() < self._until
            return self._goes_on

    def _tasks(self) -> Path:
        """The file by which a process enters the group where this one is (cgroups(7), /proc/[pid]/cgroup)."""
        for line in self._own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers and (self._groups / "cgroup.procs").exists():
                return self._groups / path.lstrip("/") / "cgroup.procs"
            if "cpu" in controllers.split(","):
                return self._groups / "cpu" / path.lstrip("/") / "cgroup.procs"
        raise FileNotFoundError("this process is in no control group")
