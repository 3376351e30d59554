"""Signals: hints inside one process that a builder changed, so that waiters read it again at once.

A hint may be missing: another control plane on the same database sends none here. So every waiter also polls.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import NamedTuple

from builderd.builders.model import Builder, Desired
from builderd.core.errors import (
    RETRY_AFTER,
    BuilderdError,
    EngineUnavailable,
    MachineFault,
    NoCapacity,
    machine_fault,
)
from builderd.core.ids import BuilderId

#: To wait for a change of any builder.
ANY = BuilderId("")


def outcome_of(builder: BuilderId) -> BuilderId:
    """Return what to wait for instead of the builder if steps on the way to its outcome do not matter."""
    return BuilderId(f"{builder}/outcome")


#: Builders share this many counts, so that nothing is kept of those that are gone: a shared one costs a look in vain.
COUNTS = 4096


class Signals:
    """Signals over the event loop that is running when it is made.

    All methods but the waiting ones are thread-safe and never block.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        #: Builders of ``desired_changed`` that the reconciler has not taken yet.
        self._pending: set[BuilderId] = set()
        self._has_pending = asyncio.Event()
        self._counts = [0] * COUNTS
        self._waiters: defaultdict[BuilderId, set[asyncio.Future[None]]] = defaultdict(set)

    def desired_changed(self, builder: BuilderId) -> None:
        """Have the reconciler observe the builder: its desired state, or what it does, changed."""

        def add() -> None:
            self._pending.add(builder)
            self._has_pending.set()

        self._call(add)

    async def desired_changes(self, timeout_seconds: float) -> frozenset[BuilderId]:
        """Return the builders of ``desired_changed`` since the last call, as soon as there is one.

        Empty at the timeout. One consumer only: the reconciler.
        """
        if not self._has_pending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_pending.wait(), timeout_seconds)
        self._has_pending.clear()
        pending, self._pending = frozenset(self._pending), set()
        return pending

    def change(self, builder: BuilderId) -> None:
        """Wake everybody who waits for the builder: its record changed, or its outcome."""
        self._call(lambda: self._wake(builder, ANY, outcome_of(builder)))

    def progress(self, builder: BuilderId) -> None:
        """Wake those who follow the builder step by step; not those who wait at ``outcome_of`` it."""
        self._call(lambda: self._wake(builder, ANY))

    def count(self, builder: BuilderId) -> int:
        """Return what grows with each change of this builder, of ``ANY`` or at ``outcome_of``; pass it to ``wait``.

        It may grow without one: who waits looks again anyway.
        """
        return self._counts[hash(builder) % COUNTS]

    async def wait(self, builder: BuilderId, seen: int, timeout_seconds: float) -> None:
        """Return when the count differs from ``seen``, or at the timeout."""
        if self.count(builder) != seen:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters[builder].add(future)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(future, timeout_seconds)
        finally:
            if waiting := self._waiters.get(builder):
                waiting.discard(future)
                if not waiting:
                    del self._waiters[builder]

    def _call(self, function: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            function()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def _wake(self, *subjects: BuilderId) -> None:
        for subject in subjects:
            self._counts[hash(subject) % COUNTS] += 1
            for future in self._waiters.pop(subject, set()):
                if not future.done():
                    future.set_result(None)


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
        #: Number of the last failure; pass it to ``error_since``.
        self.number = 0

    def note(self, builder_id: BuilderId, error: Exception) -> None:
        """Note that another step of a stop or a deletion failed."""
        self.number += 1
        self._failures[builder_id] = _Failure(self.number, _shown(error))

    def clear(self, builder_id: BuilderId) -> None:
        """Forget a builder that is settled."""
        self._failures.pop(builder_id, None)

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
