"""Fast moves of processes between control groups, without the kernel's wait for an RCU grace period.

A move waits until no process is being forked or ended. The kernel makes that cheap for forks by a lock that is
expensive for the mover: it waits for an RCU grace period, some 6 to 15 ms, unless another move ended less than such a
period ago (kernel/rcu/sync.c). A start has two moves in a row, a command three. So while moves are expected, a thread
moves this process into its own group every few milliseconds: only the first of these moves waits, beside the work.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

#: Well below a grace period.
_PAUSE = 0.004
#: Time for which ``prewarm`` keeps moves fast.
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
        """Make moves fast for the next moments. Returns at once."""
        with self._lock:
            self._until = time.monotonic() + _SOON_SECONDS
            self._begin()

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """Keep moves fast while the context lasts."""
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
        except OSError:  # the group is not writable: each move waits as it would without this thread
            with self._lock:
                self._goes_on = False

    def _is_wanted(self) -> bool:
        """Return True while moves are expected. Locked: a new caller either is seen or restarts the thread."""
        with self._lock:
            self._goes_on = self._movers > 0 or time.monotonic() < self._until
            return self._goes_on

    def _tasks(self) -> Path:
        """Return the file by which a process enters this process's group (cgroups(7), /proc/[pid]/cgroup)."""
        for line in self._own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers and (self._groups / "cgroup.procs").exists():
                return self._groups / path.lstrip("/") / "cgroup.procs"
            if "cpu" in controllers.split(","):
                return self._groups / "cpu" / path.lstrip("/") / "cgroup.procs"
        raise FileNotFoundError("this process is in no control group")
