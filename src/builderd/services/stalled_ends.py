"""Stops and deletions that fail again and again, in the memory of this process: their callers need not wait for ever.

The desired state stays stored, and the reconciler tries on.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import NamedTuple

from builderd.domain.builders import Builder, Desired
from builderd.domain.errors import (
    RETRY_AFTER,
    BuilderdError,
    EngineUnavailable,
    MachineFault,
    NoCapacity,
    machine_fault,
)
from builderd.domain.ids import BuilderId

#: A run is given up after some failures, a stop or a deletion never.
_STORED = {
    Desired.DELETED: "The builder is deleted and not to be seen any more, but its app and its files are not removed "
    "yet: that is tried until it succeeds.",
    Desired.STOPPED: "The change is stored, and tried until it succeeds.",
    Desired.RUNNING: "The change is stored and goes on, but may still fail: see GET /api/v1/builders/{uuid}, or send "
    "the call again with the same Idempotency-Key.",
}


class _Failure(NamedTuple):
    #: Grows with each failure of any builder.
    number: int
    error: BuilderdError


class StalledEnds:
    def __init__(self) -> None:
        self._failures: MutableMapping[BuilderId, _Failure] = {}
        self._number = 0

    def note(self, builder_id: BuilderId, error: Exception) -> None:
        """Note that another step of a stop or a deletion failed."""
        self._number += 1
        self._failures[builder_id] = _Failure(self._number, _shown(error))

    def clear(self, builder_id: BuilderId) -> None:
        """Forget a builder that is settled."""
        self._failures.pop(builder_id, None)

    @property
    def number(self) -> int:
        """Return the number of the last failure; pass it to ``error_since``."""
        return self._number

    def error_since(self, builder: Builder, number: int) -> BuilderdError | None:
        """Return the error for those who wait for the builder's end, None unless a step failed after ``number``."""
        failure = self._failures.get(builder.id)
        return not_yet(builder, failure.error) if failure is not None and failure.number > number else None


def not_yet(builder: Builder, error: BuilderdError) -> BuilderdError:
    """Return the error of a change that is stored and was not carried out so far because of ``error``."""
    kind = type(error) if isinstance(error, MachineFault | NoCapacity) else EngineUnavailable
    stored = _STORED[builder.desired].format(uuid=builder.id)
    return kind(f"{stored} {error.message}", data={"uuid": builder.id}, retry_after=RETRY_AFTER)


def _shown(error: Exception) -> BuilderdError:
    shown = machine_fault(error) or error
    if isinstance(shown, BuilderdError):
        return shown
    return EngineUnavailable("The service failed at it; its log says why.")
