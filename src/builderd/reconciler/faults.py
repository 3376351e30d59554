"""Points at which a test kills the service, to prove that it comes back whole from each."""

from __future__ import annotations

from collections.abc import Callable

#: Called with ``<step>.<moment>``; moments are ``begun`` (before the world is touched), ``done`` (after that,
#: before it is recorded) and ``recorded``.
FaultPoint = Callable[[str], None]


def no_fault(point: str) -> None:
    """The fault point of a service that nobody tests."""
