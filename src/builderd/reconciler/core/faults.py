"""Points at which a test kills the service, to prove that it comes back whole from each."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

#: Called with ``<step>.<moment>``; moments are ``begun`` (before the world is touched), ``done`` (after that,
#: before it is recorded) and ``recorded``.
FaultPoint = Callable[[str], None]


def no_fault(point: str) -> None:
    """Fault point of a service that is not under test: does nothing."""


def kill_at(chosen: str) -> FaultPoint:
    """Kills the process at the chosen point, as a crash or a power cut would: no cleanup runs."""

    def reach(point: str) -> None:
        if point == chosen:
            os.kill(os.getpid(), signal.SIGKILL)

    return reach
