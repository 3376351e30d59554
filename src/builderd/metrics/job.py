"""Usage and spending: sample sandboxes and visits, and check tenants' caps when one will be reached.

One reading takes a few small files a sandbox and one look at the proxy for all; one transaction a minute writes what
they add up to. What was read since is lost with the service, nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from builderd.application import Application
from builderd.core.errors import BuilderdError
from builderd.core.ids import SandboxId
from builderd.core.loops import every
from builderd.core.members import MemberAway
from builderd.metrics.model import (
    BUCKET,
    SPAN,
    SampleTarget,
    UsageBucket,
    UsageSample,
    merged,
    start_of,
    together,
    usage_between,
)
from builderd.previews.model import PreviewActivity
from builderd.sandboxes.model import SandboxUsage

#: Between two readings, and how many of them are written down together, in seconds.
INTERVAL, FLUSH_INTERVAL = 10.0, 60.0

log = logging.getLogger(__name__)


class Sampling:
    """Sampler of usage and visits: ``run`` continues until cancelled."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._last: dict[SandboxId, UsageSample] = {}
        self._visited: Mapping[str, PreviewActivity] | None = None
        self._at: datetime | None = None
        self._steps: list[UsageBucket] = []
        self._flushed_at = application.clock.passed()

    async def run(self) -> None:
        """Sample every ``INTERVAL`` seconds and write the sums every ``FLUSH_INTERVAL``."""
        await every(INTERVAL, self._sample_and_flush, event="usage sampling", sleep=self._app.clock.sleep)

    async def _sample_and_flush(self) -> None:
        await self.sample()
        if self._app.clock.passed() - self._flushed_at >= FLUSH_INTERVAL:
            await self.flush()

    async def sample(self) -> None:
        """Take one sample of every sandbox that runs here."""
        watched = await self._app.store.read(lambda uow: uow.metrics.watched())
        visited = await self._visits()
        found: dict[SandboxId, UsageSample] = {}
        errors: dict[SandboxId, Exception] = {}
        usages = await self._app.engine.sandboxes.usages([one.sandbox_id for one in watched])
        for one in watched:
            used = usages.get(one.sandbox_id)
            if isinstance(used, Exception):
                errors[one.sandbox_id] = used
            elif used is not None:
                found[one.sandbox_id] = self._reading(one, used, None if one.process else visited.get(one.host))
        # The check of members reports one that is away, once.
        if untold := [error for error in errors.values() if not isinstance(error, MemberAway)]:
            log.warning("usage unavailable builders=%d", len(untold), exc_info=untold[0])
        # The next reading of one that failed, or was not taken again yet, continues from its last.
        alive = {*errors, *usages}
        kept = {sandbox: last for sandbox, last in self._last.items() if sandbox in alive and sandbox not in found}
        self._last, self._visited, self._at = kept | found, visited, self._app.clock.now()
        self._steps += [
            UsageBucket(
                one.watched.builder_id,
                start_of(one.at),
                # Averages are over the time of the app's own sandbox: those of others add to them.
                replace(one.since_previous, seconds=0) if one.watched.process else one.since_previous,
            )
            for one in found.values()
        ]
        readings = [one for sandbox, one in self._last.items() if sandbox not in errors]
        self._app.usage.clear()
        for reading in sorted(readings, key=lambda one: one.watched.process):
            known = self._app.usage.get(reading.watched.builder_id)
            both = reading if known is None else replace(known, used=together(known.used, reading.used))
            self._app.usage[reading.watched.builder_id] = both

    async def _visits(self) -> Mapping[str, PreviewActivity]:
        try:
            return await self._app.previews.activity()
        except BuilderdError:
            # Visits are unknown while the proxy does not answer.
            return self._visited or {}

    def _reading(self, watched: SampleTarget, used: SandboxUsage, visited: PreviewActivity | None) -> UsageSample:
        now, last = self._app.clock.now(), self._last.get(watched.sandbox_id)
        is_new = self._at is not None and watched.started_at >= self._at
        since = last.at if last else watched.started_at if is_new else now
        before = last.used if last else None if is_new else used
        # Counts from before the first sample are ignored; a host that is new since then is counted from zero.
        first = visited if self._visited is None else self._visited.get(watched.host)
        seen = last.visited if last else first
        seconds = max((now - since).total_seconds(), 0)
        return UsageSample(watched, now, used, visited, usage_between(used, before, visited, seen, seconds))

    async def flush(self) -> None:
        """Store the samples; after a failure they are kept for the next call."""
        steps, now = merged(self._steps), self._app.clock.now()
        await self._app.store.write(lambda uow: uow.metrics.add(steps))
        # Cleared only after the write, so that a failed write loses nothing.
        self._steps.clear()
        self._flushed_at = self._app.clock.passed()
        await self._app.store.write(lambda uow: uow.metrics.expire(start_of(now) - SPAN - BUCKET))


async def sample(application: Application) -> None:
    """Sample until cancelled, then store the remaining samples."""
    sampling = Sampling(application)
    try:
        await sampling.run()
    finally:
        await asyncio.shield(sampling.flush())
