"""Signals over one event loop, callable from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

from builderd.domain.ids import BuilderId
from builderd.ports.signals import ANY, outcome_of

#: Builders share this many counts, so that nothing is kept of those that are gone: a shared one costs a look in vain.
COUNTS = 4096


class LocalSignals:
    """Bound to the event loop that is running when it is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        #: Builders of ``desired_changed`` that the reconciler has not taken yet.
        self._pending: set[BuilderId] = set()
        self._has_pending = asyncio.Event()
        self._counts = [0] * COUNTS
        self._waiters: defaultdict[BuilderId, set[asyncio.Future[None]]] = defaultdict(set)

    def desired_changed(self, builder: BuilderId) -> None:
        self._call(self._desired_changed, builder)

    async def desired_changes(self, timeout_seconds: float) -> frozenset[BuilderId]:
        if not self._has_pending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_pending.wait(), timeout_seconds)
        self._has_pending.clear()
        pending, self._pending = frozenset(self._pending), set()
        return pending

    def change(self, builder: BuilderId) -> None:
        self._call(self._change, builder)

    def progress(self, builder: BuilderId) -> None:
        self._call(self._progress, builder)

    def count(self, builder: BuilderId) -> int:
        return self._counts[hash(builder) % COUNTS]

    async def wait(self, builder: BuilderId, seen: int, timeout_seconds: float) -> None:
        if self.count(builder) != seen:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters[builder].add(future)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(future, timeout_seconds)
        finally:
            self._forget(builder, future)

    def _call(self, function: Callable[[BuilderId], None], builder: BuilderId) -> None:
        if threading.get_ident() == self._thread:
            function(builder)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, builder)

    def _desired_changed(self, builder: BuilderId) -> None:
        self._pending.add(builder)
        self._has_pending.set()

    def _change(self, builder: BuilderId) -> None:
        self._wake(builder, ANY, outcome_of(builder))

    def _progress(self, builder: BuilderId) -> None:
        self._wake(builder, ANY)

    def _wake(self, *subjects: BuilderId) -> None:
        for subject in subjects:
            self._counts[hash(subject) % COUNTS] += 1
            for future in self._waiters.pop(subject, set()):
                if not future.done():
                    future.set_result(None)

    def _forget(self, builder: BuilderId, future: asyncio.Future[None]) -> None:
        waiting = self._waiters.get(builder)
        if waiting is None:
            return
        waiting.discard(future)
        if not waiting:
            del self._waiters[builder]
